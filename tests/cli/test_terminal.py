"""Messages fit the terminal's width, break no path and no command, and stay one line where a program reads them."""

import os
import pty
import select
import termios
from contextlib import contextmanager

import pytest

from rapo_jax.distributed import say
from rapo_jax.terminal import width_of, wrapped
from tests.tiny import RUN, rapo

LONG = "a/very/long/path/" * 8 + "rows.jsonl"


@contextmanager
def terminal(columns):
    """A stream to a terminal of this width, and a function that gives what it shows."""
    reader, writer = pty.openpty()
    attributes = termios.tcgetattr(writer)
    attributes[1] &= ~termios.OPOST  # no carriage returns
    termios.tcsetattr(writer, termios.TCSANOW, attributes)
    termios.tcsetwinsize(writer, (24, columns))
    stream = os.fdopen(writer, "w")

    def shown() -> str:
        stream.flush()
        parts = []
        while select.select([reader], [], [], 0.3)[0]:
            parts.append(os.read(reader, 10**5))
        return b"".join(parts).decode()

    try:
        yield stream, shown
    finally:
        stream.close()
        os.close(reader)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_an_error_is_wrapped_under_its_first_line(tmp_path, monkeypatch, columns):
    """When this fails, a terminal breaks messages in the middle of words, and people copy half of a path."""
    (tmp_path / "run.yaml").write_text(RUN)
    with terminal(columns) as (stream, shown):
        monkeypatch.setattr("sys.stderr", stream)
        assert (
            rapo(
                "train",
                tmp_path / "run.yaml",
                "model.path=x",
                "run_dir=y",
                f"data.path={LONG}",
                "data.max_length=4",
                "data.max_prompt_length=9",
            )
            == 2
        )
        first, *others = shown().splitlines()
    assert first.startswith("rapo train: data.max_length=4 must")
    assert all(len(line) < columns for line in (first, *others)) and all(line.startswith(" " * 12) for line in others)
    assert " ".join([first, *(line.strip() for line in others)]).endswith("raise the first or lower the second.")


def test_wrong_arguments_are_wrapped_too(monkeypatch):
    with terminal(50) as (stream, shown):
        monkeypatch.setattr("sys.stderr", stream)
        assert rapo("train", "run.yaml", "--fast", "--faster", "--the-fastest-of-all", "--and-more") == 2
        lines = shown().splitlines()
    assert lines[-3:] == [
        "rapo: error: unrecognized arguments: --fast",
        "             --faster --the-fastest-of-all",
        "             --and-more",
    ]


def test_paths_and_commands_are_not_broken():
    command = "rapo export runs/a-run-with-a-long-name OUT_DIR"
    text = f"nothing to do; see {LONG} for more.  next: {command}, or a longer run, such as train.max_steps=20"
    lines = wrapped(text, 60).splitlines()
    assert any(LONG in line for line in lines) and any(command in line for line in lines)
    assert " ".join(line.strip() for line in lines).split() == text.split()
    quoted = "relabel.template='Be good or better.' has no {goal}; write one with it, or name one of them."
    assert wrapped(quoted, 50).startswith("relabel.template='Be good or better.' has no\n  ")


def test_what_is_no_terminal_gets_one_line(capsys):
    """When this fails, a log cannot be searched for a message."""
    say("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"
    assert wrapped("short\n  and indented", 80) == "short\n  and indented"


def test_a_line_of_output_is_wrapped_with_its_indentation(monkeypatch):
    with terminal(40) as (stream, shown):
        assert width_of(stream) == 40
        monkeypatch.setattr("sys.stdout", stream)
        say("  next: rapo export runs/mine OUT_DIR, or a longer run, such as train.max_steps=4")
        lines = shown().splitlines()
    assert lines == [
        "  next: rapo export runs/mine OUT_DIR,",
        "    or a longer run, such as",
        "    train.max_steps=4",
    ]
