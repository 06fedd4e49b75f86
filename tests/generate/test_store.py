"""`rapo generate` stopped, killed, damaged: the same command goes on, and gives the answers it would have given."""

import errno
import fcntl
import json
import os
import signal
from collections import Counter
from unittest.mock import Mock

import pytest

from rapo_jax.errors import Interrupted, UserError
from rapo_jax.generate.answers import Request, answer_file
from rapo_jax.generate.progress import Progress
from rapo_jax.generate.store import Sample, day_of, line_of, open_store, sample_of
from tests import tiny
from tests.opened.exports import as_export, closed

DONE, USER_ERROR, INTERRUPTED = 0, 2, 75
NUM_PROMPTS = 20  # three batches: the tests have eight devices, so a batch of eight rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, prompts, and the answers of a command that was never stopped."""
    world = tmp_path_factory.mktemp("world")
    as_export(tiny.write_model(world / "model"), world / "exported")
    rows = [{"prompt": f"What is {n} plus one{'?' * (n % 5)}", "at": n} for n in range(NUM_PROMPTS)]
    tiny.write_rows(world / "prompts.jsonl", rows)
    assert generate(world, world / "whole.jsonl") == DONE
    assert not (world / "whole.jsonl.partial").exists()
    return world


def generate(world, out, *more):
    """Runs the command; its exit code."""
    options = ["--max-new-tokens", 5, "--temperature", 1, "--seed", 3, "--batch-size", 8, *more]
    return tiny.rapo("generate", world / "exported", "--prompts", world / "prompts.jsonl", "--out", out, *options)


@pytest.fixture
def stopped(world, tmp_path, monkeypatch, capsys):
    """An output whose command got Ctrl-C in its second batch."""
    add, calls = Progress.add, Counter()

    def add_and_stop(progress, segment):
        add(progress, segment)
        calls["add"] += 1
        if calls["add"] == 2:
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", add_and_stop)
        assert generate(world, out) == INTERRUPTED
    said = capsys.readouterr()
    told = f"interrupted: 16 of 20 answers are kept in {out}.partial; run the same command to go on."
    assert said.out.splitlines()[-1] == told
    assert said.err == "" and [path.name for path in tmp_path.iterdir()] == ["answers.jsonl.partial"]
    return out


def goes_on(world, out, capsys, *, num_known):
    """Runs the command again, which must find `num_known` answers and end as if it had never been stopped."""
    assert generate(world, out) == DONE
    said = capsys.readouterr().out
    assert f"{num_known} of 20 answers found in {out}.partial\n" in said
    assert out.read_bytes() == (world / "whole.jsonl").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]
    return said


def test_what_ctrl_c_stopped_goes_on_bit_for_bit(world, stopped, capsys):
    """When this fails, Ctrl-C or a preempted host costs all answers so far, or what is written depends on it."""
    goes_on(world, stopped, capsys, num_known=16)


def test_a_line_that_a_kill_or_a_disk_broke_is_sampled_again(world, stopped, capsys):
    """When this fails, a kill in the middle of a line makes the file unreadable, or a flipped bit becomes an answer."""
    kept = stopped.with_name("answers.jsonl.partial")
    lines = kept.read_bytes().splitlines(keepends=True)
    flipped = lines[3].replace(b'"tokens": [', b'"tokens": [1, ')
    kept.write_bytes(b"".join([*lines[:3], flipped, *lines[4:-1], lines[-1][:-9]]))
    assert "1 damaged line of" in goes_on(world, stopped, capsys, num_known=14)


def test_a_command_that_was_killed_after_writing_its_answers_ends_at_once(world, stopped, capsys, monkeypatch):
    """When this fails, the leftover of a finished command makes it refuse for ever."""
    kept = stopped.with_name("answers.jsonl.partial")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda path, **_: None)
        assert generate(world, stopped) == DONE
    assert kept.exists() and stopped.exists()
    monkeypatch.delattr("rapo_jax.generate.answers.load_model")
    goes_on(world, stopped, capsys, num_known=20)


def test_a_template_with_todays_date_goes_on_with_the_day_on_which_it_began(tmp_path, monkeypatch):
    """When this fails, a command that was stopped before midnight refuses its own answers after it."""
    model = tiny.write_model(tmp_path / "model", chat_template="{{ strftime_now('%d %b %Y') }}" + tiny.CHAT_TEMPLATE)
    tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}])
    request = Request(prompts=str(tmp_path / "prompts.jsonl"), out=str(tmp_path / "out.jsonl"), max_new_tokens=2)
    kept, prompts = tmp_path / "out.jsonl.partial", []

    def stop(answers, _engine):
        prompts.append(answers.job.opened.tokenizer.decode(answers.job.tokens[0]))
        raise Interrupted("")

    monkeypatch.setattr("rapo_jax.generate.answers.Answers.fill", stop)
    for day in ("2026-11-27", "2026-11-28"):
        monkeypatch.setattr("rapo_jax.generate.answers.today", lambda day=day: day)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr("pathlib.Path.unlink", lambda path, **_: None)  # as if it held answers
            answer_file(closed(model), request)
    assert '"day": "2026-11-27"' in kept.read_text()
    assert "27 Nov 2026" in prompts[0] and prompts[1] == prompts[0]


def test_answers_of_another_command_are_refused_by_what_differs(world, stopped, capsys):
    """When this fails, one file holds the answers of two models, or of two temperatures."""
    kept = stopped.with_name("answers.jsonl.partial")
    before = kept.read_bytes()
    assert generate(world, stopped, "--temperature", 0.5, "--no-goal") == USER_ERROR
    message = capsys.readouterr().err
    assert f"{kept} holds the answers of another command so far; what differs: --prompts (" in message
    assert "--temperature (1.0, now 0.5)" in message and "--seed" not in message and "MODEL_DIR" not in message
    assert kept.read_bytes() == before and not stopped.exists()


def test_a_batch_of_another_size_goes_on_too(world, stopped, capsys):
    """When this fails, a command that ran out of memory cannot be continued with fewer prompts at once."""
    assert generate(world, stopped, "--batch-tokens", 128) == DONE
    theirs, ours = (
        [json.loads(line)["response"] for line in path.read_text().splitlines()]
        for path in (world / "whole.jsonl", stopped)
    )
    assert ours == theirs


@pytest.mark.parametrize("content", ["mine\n", '{"prompt": "Hi"}\n', '{"kind": "other", "identity": {}}\n'])
def test_a_file_of_the_users_is_never_taken_for_kept_answers(world, tmp_path, capsys, content):
    (tmp_path / "answers.jsonl.partial").write_text(content)
    assert generate(world, tmp_path / "answers.jsonl") == USER_ERROR
    message = capsys.readouterr().err
    assert "answers.jsonl.partial" in message and "choose another --out, or remove this file" in message
    assert (tmp_path / "answers.jsonl.partial").read_text() == content


@pytest.mark.parametrize("kept", [0, 1, 20, 60])
def test_a_first_line_that_a_kill_left_incomplete_is_written_again(tmp_path, kept):
    """When this fails, a kill in the first millisecond leaves a file that the same command refuses for ever."""
    path = tmp_path / "a"
    with open_store(path, {"x": 1}, day="2026-03-07") as store:
        store.append([Sample(0, [5], "stop")])
        line = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(line[:kept])
    assert day_of(path) == ""
    with open_store(path, {"x": 1}, day="2026-03-08") as store:
        assert store.known == {} and day_of(path) == "2026-03-08"


def test_a_disk_that_fills_up_is_one_sentence_with_the_path(tmp_path, monkeypatch):
    """When this fails, "No space left on device" names neither the file nor whether the answers before are lost."""
    with open_store(tmp_path / "a", {"x": 1}) as store:
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(UserError, match=r"no space left for .*/a: .* The answers before are kept\. Make space"):
            store.append([Sample(0, [5], "stop")])


def test_two_commands_never_write_one_file(world, stopped, capsys):
    """When this fails, two terminals mix their answers in one file."""
    kept = stopped.with_name("answers.jsonl.partial")
    before = kept.read_bytes()
    with kept.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert generate(world, stopped) == USER_ERROR
    assert "is in use by another process" in capsys.readouterr().err and kept.read_bytes() == before


def test_a_store_without_samples_leaves_nothing_behind(tmp_path):
    with open_store(tmp_path / "a", {"x": 1}) as store:
        assert store.known == {}
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_a_directory_that_does_not_exist_makes_it(tmp_path):
    with open_store(tmp_path / "new" / "a", {"x": 1}) as store:
        assert store.path.exists()


def test_any_flipped_bit_of_a_line_is_noticed():
    """When this fails, a damaged disk changes an answer."""
    sample = Sample(3, [5, 17, 255], "length")
    line = line_of(sample)
    assert line == b'{"prompt": 3, "tokens": [5, 17, 255], "finish_reason": "length", "sample": 0, "crc": 1164233964}\n'
    assert sample_of(line) == sample
    for at in range(len(line) - 1):
        for bit in range(8):
            broken = bytearray(line)
            broken[at] ^= 1 << bit
            found = sample_of(bytes(broken))
            assert found in (None, sample), bytes(broken)


def test_progress_tells_a_rate_and_a_time_left_without_compilation(monkeypatch, capsys):
    """When this fails, the first line promises hours because XLA compiled for a minute."""
    from rapo_jax.generate.engine import Drawn

    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(total=40, answers=8)
    progress.start()
    for seconds, compiling, finished in [(64.0, 60.0, 8), (68.0, 0.0, 8)]:
        clock[0] = seconds
        progress.add(Drawn([Sample(0, [5], "stop")] * finished, 100, compiling, at_once=8))
    assert capsys.readouterr().out == (
        "  16 of 40 answers  25 new tokens/s  12 s left\n  24 of 40 answers  25 new tokens/s  8 s left\n"
    )
