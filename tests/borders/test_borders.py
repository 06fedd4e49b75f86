"""Whatever is wrong with a file, the user reads one sentence about it; whatever interrupts a write, the old file survives."""

import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from rapo_jax import borders, locks
from rapo_jax.errors import UserError

DEEP = "[" * 100_000
HUGE = f'{{"n": {"9" * 5_000}}}'


@dataclass(frozen=True)
class Inner:
    share: float
    kind: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 0
    inner: Inner | None = None
    parts: tuple[Inner, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count={self.count} is negative")


def every_line(path: Path) -> list:
    return list(borders.read_json_lines(path))


READERS = [borders.read_text, borders.read_json, borders.read_object, every_line]
JSON_READERS = READERS[1:]


def refusal(read, *arguments, **options) -> str:
    """The one sentence that a reader answers with."""
    with pytest.raises(UserError) as refused:
        read(*arguments, **options)
    message = str(refused.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_cannot_be_opened_is_named(read, tmp_path):
    assert "absent.json cannot be read (No such file" in refusal(read, tmp_path / "absent.json")
    assert f"{tmp_path} cannot be read (Is a directory)" in refusal(read, tmp_path)
    assert "cannot be read" in refusal(read, tmp_path / "a\0b")


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_not_utf8_is_refused(read, tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('{"name": "Zürich"}'.encode("latin-1"))
    assert "codec can't decode" in refusal(read, path)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    """When this fails, a file saved by a Windows editor is refused as damaged JSON."""
    path = tmp_path / "marked.json"
    path.write_text('{"n": 1}', encoding="utf-8-sig")
    assert borders.read_text(path) == '{"n": 1}'
    assert borders.read_object(path) == {"n": 1}
    assert every_line(path) == [(1, {"n": 1})]


@pytest.mark.parametrize("read", JSON_READERS)
@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('{"n": 1', "Expecting ',' delimiter"),
        ('{"n": 1} x', "Extra data"),
        (DEEP, "nested too deep"),
        (HUGE, "Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_parsed_is_refused(read, text, fact, tmp_path):
    (tmp_path / "damaged.json").write_text(text)
    message = refusal(read, tmp_path / "damaged.json")
    assert "damaged.json" in message and fact in message


@pytest.mark.parametrize("read", [borders.read_object, every_line])
@pytest.mark.parametrize(("text", "kind"), [("[1]", "a list"), ("3", "3"), ("null", "null"), ('"x"', "a text")])
def test_json_that_is_not_an_object_is_refused_where_one_is_needed(read, text, kind, tmp_path):
    (tmp_path / "value.json").write_text(text)
    assert f"holds {kind} where a JSON object is expected" in refusal(read, tmp_path / "value.json")


def test_the_remedy_ends_the_message(tmp_path):
    message = refusal(borders.read_object, tmp_path / "scale.json", remedy="set relabel.scale.file=FILE")
    assert message.endswith("; set relabel.scale.file=FILE.")


def test_json_lines_are_numbered_as_an_editor_numbers_them(tmp_path):
    """Only a line feed ends a line: a text may contain a Unicode line separator."""
    (tmp_path / "rows.jsonl").write_text('{"a": "x\u2028y"}\r\n\n  \n{"a": 2}')
    assert every_line(tmp_path / "rows.jsonl") == [(1, {"a": "x\u2028y"}), (4, {"a": 2})]


def test_json_lines_are_read_one_by_one(tmp_path):
    """When this fails, a data set larger than memory cannot be read, and an error far down hides the rows before it."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    lines = borders.read_json_lines(tmp_path / "rows.jsonl")
    assert next(lines) == (1, {"a": 1})
    assert "rows.jsonl line 2 is not JSON" in refusal(next, lines)


def test_only_an_unterminated_last_line_is_dropped_as_torn(tmp_path):
    """When this fails, a run killed while writing metrics.jsonl cannot resume, or damage within it goes unseen."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for _, row in borders.read_json_lines(path, drop_torn_line=True)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    assert "line 2" in refusal(lambda: list(borders.read_json_lines(path, drop_torn_line=True)))


def test_json_values_may_stand_one_after_another(tmp_path):
    assert list(borders.parse_json_values(b' {"a":\n1}\n{"a": 2} ', said="x.json")) == [{"a": 1}, {"a": 2}]
    assert refusal(lambda: list(borders.parse_json_values(b'{"a": 1}\n{"b"', said="x.json"))) == (
        "x.json is not JSON: Expecting ':' delimiter at line 2, character 5."
    )


def test_what_can_be_no_path_is_refused(tmp_path):
    """When this fails, a name that was pasted wrongly is a traceback of the operating system's errors."""
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        ("x" * 300, "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        ("~nobody-of-this-name/x", "Could not determine home directory."),
        ("a\0b", "embedded null byte"),
    ):
        assert f"run_dir=x is not a usable path ({reason}); correct it." == refusal(
            borders.path_of, path, said="run_dir=x"
        )
    assert borders.path_of("~/absent", said="") == Path.home() / "absent"


class PanicException(BaseException):
    """As pyo3, by which Rust libraries are bound to Python, calls a panic."""


@pytest.mark.parametrize(
    "raised", [KeyError("type"), TypeError(), PanicException("called `unwrap()`\non None"), MemoryError("9 GB")]
)
def test_whatever_a_library_raises_about_a_file_is_one_sentence(raised):
    """When this fails, a damaged tokenizer.json or parquet file is a traceback: their readers document no errors."""
    with (
        pytest.raises(UserError) as refused,
        borders.read_by_library("x.json is no tokenizer", remedy="download it again"),
    ):
        raise raised
    reason = {PanicException: "called `unwrap()`", TypeError: "TypeError"}.get(type(raised), str(raised))
    assert str(refused.value) == f"x.json is no tokenizer ({reason}); download it again."
    with pytest.raises(KeyboardInterrupt), borders.read_by_library("x.json is no tokenizer"):
        raise KeyboardInterrupt


def test_a_nested_value_takes_its_declared_types():
    value = {"name": "n", "inner": {"share": 1}, "parts": [{"share": 0.5, "kind": "cosine"}], "weights": {"a": 2}}
    outer = borders.shaped(value, Outer, said="x.json")
    assert outer == Outer("n", 0, Inner(1.0), (Inner(0.5, "cosine"),), {"a": 2.0})
    assert isinstance(outer.inner.share, float)


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ([], "x.json is a list where an object is expected"),
        ({}, "x.json lacks name"),
        ({"name": 3}, "name is 3, expected a text"),
        ({"name": None}, "name is None, expected a text"),
        ({"name": "n", "count": True}, "count is True, expected an integer"),
        ({"name": "n", "count": 1.0}, "count is 1.0, expected an integer"),
        ({"name": "n", "cuont": 1}, "unknown field cuont; did you mean 'count'?"),
        ({"name": "n", "count": -1}, "x.json: count=-1 is negative"),
        ({"name": "n", "inner": 3}, "x.json: inner is 3 where an object is expected"),
        ({"name": "n", "inner": {}}, "x.json lacks inner.share"),
        ({"name": "n", "inner": {"share": "1"}}, "inner.share is '1', expected a number"),
        ({"name": "n", "inner": {"share": 10**400}}, "expected a number"),
        ({"name": "n", "inner": {"share": float("-inf")}}, "inner.share is -inf, expected a finite number"),
        ({"name": "n", "inner": {"share": 1, "kind": "x"}}, "inner.kind is 'x', expected 'linear' or 'cosine'"),
        ({"name": "n", "parts": [{"share": 1}, {"shore": 1}]}, "unknown field parts[1].shore"),
        ({"name": "n", "parts": {"share": 1}}, "parts is {'share': 1}, expected a list"),
        ({"name": "n", "weights": [1]}, "weights is [1], expected an object"),
        ({"name": "n", "weights": {"a": "b"}}, "weights.a is 'b', expected a number"),
    ],
)
def test_a_value_of_another_shape_is_refused_with_the_field_and_what_it_should_hold(value, fact):
    assert fact in refusal(borders.shaped, value, Outer, said="x.json")


# Writing.


class Stop(Exception):
    pass


def failing_rows():
    yield {"n": 1}
    raise Stop


def write_half_and_fail(path: Path) -> None:
    with borders.whole_file(path) as temporary:
        temporary.write_text("hal")
        raise Stop


@pytest.mark.parametrize(
    "write",
    [
        write_half_and_fail,
        lambda path: borders.write_text(path, "half \ud800"),
        lambda path: borders.write_json(path, {"n": float("nan")}),
        lambda path: borders.write_json(path, object()),
        lambda path: borders.write_json_lines(path, failing_rows()),
        lambda path: borders.write_json_lines(path, [{"n": 1}, object()]),
    ],
)
@pytest.mark.parametrize("before", [None, "old"])
def test_a_write_that_fails_halfway_leaves_the_old_file_and_nothing_else(write, before, tmp_path):
    """When this fails, a full disk or a kill replaces a good file with half of one."""
    path = tmp_path / "file.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises((Stop, ValueError, TypeError)):
        write(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {} if before is None else {path.name: before}
    )


def test_what_is_written_can_be_read(tmp_path):
    value = {"text": "Zürich 🎿", "numbers": [1, 2.5, None]}
    borders.write_json(tmp_path / "made" / "value.json", value)
    assert borders.read_json(tmp_path / "made" / "value.json") == value
    borders.write_json_lines(tmp_path / "rows.jsonl", [value, {}])
    assert every_line(tmp_path / "rows.jsonl") == [(1, value), (2, {})]
    assert "Zürich 🎿" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    borders.write_json_lines(tmp_path / "rows.jsonl", [{"n": 1}], encode=lambda row: json.dumps(row, indent=None))
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["rows.jsonl"]


def test_half_of_a_surrogate_pair_is_written_as_it_came(tmp_path):
    """When this fails, a column that nobody reads ends a command in a traceback when its answers are written."""
    borders.write_json_lines(tmp_path / "rows.jsonl", [{"a": "\ud800 é"}, {"a": "é"}])
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"a": "\\ud800 \\u00e9"}\n{"a": "\xc3\xa9"}\n'


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    out = tmp_path / "model"
    with pytest.raises(Stop), borders.whole_directory(out) as directory:
        (directory / "half").write_text("x")
        raise Stop
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "left by a kill").touch()
    out.mkdir()
    with borders.whole_directory(out) as directory:
        (directory / "weights").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and [path.name for path in out.iterdir()] == [
        "weights"
    ]


def test_only_the_writing_process_touches_the_directory(tmp_path):
    with borders.whole_directory(tmp_path / "model", writes=False) as directory:
        assert directory == tmp_path / "model.partial"
    assert list(tmp_path.iterdir()) == []


# One holder of a directory.


def test_who_needs_a_directory_that_is_in_use_is_refused_or_waits(tmp_path):
    """When this fails, two processes write one directory, or one that could wait fails."""
    said, entered = [], threading.Event()

    def wait_for_it():
        with locks.claimed(tmp_path, said="cache=x", say=said.append):
            entered.set()

    with locks.claimed(tmp_path, said="cache=x"):
        holder = rf"cache=x is in use by process {os.getpid()} on \S+ since [-0-9]+ [:0-9]+"
        with pytest.raises(UserError, match=f"{holder}; wait for it, stop it, or choose another directory."):
            locks.claimed(tmp_path, said="cache=x").__enter__()
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        while not said:
            time.sleep(0.01)
        assert re.fullmatch(holder + "; waiting for it ...", said[0]) and not entered.is_set()
    waiting.join(timeout=60)
    assert entered.is_set() and not (tmp_path / "in_use").exists()
