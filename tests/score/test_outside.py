"""Rewards by a Python function or another program: theirs, whole, once, or one sentence that says what went wrong."""

import itertools
import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rapo_jax.errors import UserError
from rapo_jax.score import outside, program
from rapo_jax.score.responses import kept_for_us
from tests.score.conftest import DONE, ROWS, Place
from tests.tiny import rapo, write_rows

NUMBERS = itertools.count()  # of modules, which Python imports once
LENGTHS = [[float(len(text)) for text in row["responses"]] for row in ROWS]


@pytest.fixture
def module(place: Place):
    """Writes a module of this text into the working directory; the name of its function `judge`."""

    def write(text: str) -> str:
        name = f"judging_{next(NUMBERS)}"
        (place.directory / f"{name}.py").write_text(textwrap.dedent(text))
        return f"python:{name}:judge"

    before = list(sys.path)
    yield write
    sys.path[:] = before


@pytest.fixture
def command(place: Place):
    """Writes a program of this text; the scorer that runs it."""

    def write(text: str) -> str:
        path = place.directory / "program.py"
        path.write_text("import json, sys, time\nasked = map(json.loads, sys.stdin)\n" + textwrap.dedent(text))
        return f"command:{sys.executable} -S {path}"

    return write


# Functions.


def test_a_function_gives_rewards_and_attributes(place, module):
    """When this fails, a programmatic judge gets other texts than training does, or its numbers land elsewhere."""
    name = module(
        """
        import numpy as np
        def judge(prompts, responses):
            assert prompts[0] == [{"role": "user", "content": "What is two plus one?"}], prompts
            rewards = [np.array([len(text) for text in each], float) for each in responses]
            return rewards, [[{"digits": sum(c.isdigit() for c in text)} for text in each] for each in responses]
        """
    )
    assert place.score(name) == DONE, place.said
    assert [line["rewards"] for line in place.lines()] == LENGTHS
    assert place.lines()[0]["attributes"] == [{"digits": 1}, {"digits": 0}, {"digits": 3}]
    assert place.about() == {"kind": "function", "function": name.removeprefix("python:")}
    assert "8 responses of 3 rows" in place.said and sorted(p.name for p in place.directory.glob("scores*")) == [
        "scores.json",
        "scores.jsonl",
    ]


def test_what_a_function_scored_is_what_training_reads(place, module):
    """When this fails, scores are written that the next command refuses."""
    name = module("def judge(prompts, responses):\n    return [[float(len(t)) for t in each] for each in responses]")
    assert place.score(name) == DONE
    rows = place.directory / "rows.jsonl"
    out = place.directory / "pairs.jsonl"
    more = [
        f"data.rewards={place.out}",
        "relabel.scale.fit=minmax",
        "relabel.placement=system",
        "data.pairs=best_worst",
    ]
    code = rapo("relabel", place.directory / "config.yaml", f"data.path={rows}", "--out", out, *more)
    assert code == DONE, place.capsys.readouterr().err
    goals = {json.loads(line)["goal"] for line in out.read_text().splitlines()}
    assert {1.0, 10.0} <= goals


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [[1.0]] * 2", "gave the rewards [[1.0], [1.0]] for 3 rows"),
        ("return None", "gave the rewards None for 3 rows"),
        ("return [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]", "of row 1 its rewards are [1.0, 2.0] for 3 responses"),
        ("return [[float('nan')] * len(r) for r in responses]", "rewards[0] is nan, not a finite number"),
        ("return [['good'] * len(r) for r in responses]", "rewards[0] is 'good', not a finite number"),
        ("return 1 / 0", "failed at rows 1 to 3: ZeroDivisionError: division by zero at "),
    ],
)
def test_what_is_no_scores_is_refused_with_what_it_is(body, said, place, module):
    """When this fails, someone else's mistake is trained on, or is a traceback of ours."""
    message = place.refused(module(f"def judge(prompts, responses):\n    {body}"))
    assert said in message and message.startswith("--scorer=python:judging_")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "python:nothing_there:judge",
            "the module nothing_there cannot be imported (ModuleNotFoundError: No module named",
        ),
        ("python:json:dupms", "dupms is not in "),
        ("python:json", "must be python:package.module:function."),
        ("python:json:__name__", "__name__ is no function"),
        ("rewardmodel", "is unknown; did you mean 'reward_model'?"),
        ("", "--model is not given: add --model DIR (a reward model or a trained policy), or --scorer."),
        ("implicit", "--model is not given"),
    ],
)
def test_a_scorer_that_is_not_there_is_refused(name, said, place):
    assert said in place.refused(name)


def test_a_misspelt_function_is_answered_with_the_nearest_one(place):
    assert place.refused("python:json:dupms").endswith("; did you mean 'dumps'?")


def test_what_a_scorer_does_not_read_is_refused(place):
    """When this fails, someone believes that an option had an effect."""
    assert place.refused("python:json:dumps", "--reference", "x") == (
        "--scorer=python:json:dumps does not read --reference; leave it out."
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge-cache", "x.jsonl"], "options that begin with --judge are of --scorer=judge"),
        (["--judge-concurrency", "8"], "options that begin with --judge are of --scorer=judge"),
        (["--judge-timeout", "120"], "options that begin with --judge are of --scorer=judge"),
        (["--judge-max-tokens", "9"], "options that begin with --judge are of --scorer=judge"),
        (["--judge-key-from", "KEY"], "options that begin with --judge are of --scorer=judge"),
        (["--scorer-timeout", "600"], "--scorer-timeout is of --scorer=command:PROGRAM"),
    ],
)
def test_options_of_another_scorer_are_refused(more, said, place):
    """When this fails, someone believes that an option had an effect."""
    assert said in place.refused("python:json:dumps", *more)


def test_rows_that_another_scorer_kept_are_not_removed(place, module, command):
    """When this fails, scoring into the same file by a model removes hours of a judge's scores when it ends."""
    kept = Path(f"{place.out}.unfinished")
    name = module("def judge(prompts, responses):\n    raise KeyboardInterrupt")
    assert place.score(name) == 130 and list(kept.iterdir())
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    said = f"{kept} holds scores of something else: of a scorer of the kind function, not program. Choose another --out"
    assert said in place.refused(command(f"for row in asked:\n    {GOOD}"))
    with (
        pytest.raises(UserError, match="of the kind function, not implicit_reward"),
        kept_for_us(kept, kind="implicit_reward"),
    ):
        pass
    (kept / "owner.json").unlink()  # as an earlier version left it
    with (
        pytest.raises(UserError, match="by another kind of scorer, not reward_model"),
        kept_for_us(kept, kind="reward_model"),
    ):
        pass
    assert {path.name: path.read_bytes() for path in kept.iterdir()} | {"owner.json": before["owner.json"]} == before


def test_rows_that_were_scored_are_not_asked_for_again(place, module, monkeypatch):
    """When this fails, an interruption in the third hour of a slow judge costs three hours."""
    monkeypatch.setattr("rapo_jax.score.function.AT_ONCE", 1)
    text = """
        import pathlib
        def judge(prompts, responses):
            asked = pathlib.Path("asked")
            asked.write_text((asked.read_text() if asked.exists() else "") + prompts[0][0]["content"] + "\\n")
            if prompts[0][0]["content"] == "Hi" and pathlib.Path("stop").exists():
                raise KeyboardInterrupt
            return [[float(len(t)) for t in each] for each in responses]
        """
    name = module(text)
    (place.directory / "stop").touch()
    assert place.score(name) == 130
    assert place.said.splitlines()[-1] == "rapo score: interrupted; nothing more was saved. Run the same command again."
    kept = Path(f"{place.out}.unfinished") / "rows.jsonl"
    with kept.open("a") as file:
        file.write('{"row": 3, "rewa')  # what a killed writer leaves
    (place.directory / "stop").unlink()
    assert place.score(name) == DONE, place.said
    assert f"2 of 3 rows found in {kept.parent}; asking for the others ..." in place.said
    assert [line["rewards"] for line in place.lines()] == LENGTHS
    asked = (place.directory / "asked").read_text().splitlines()
    assert asked == [row["prompt"] for row in ROWS] + ["Hi"]
    assert not kept.parent.exists()


def test_scores_by_another_function_are_not_mixed_in(place, module, monkeypatch):
    """When this fails, half of a file is by a function as it was before it was corrected."""
    monkeypatch.setattr("rapo_jax.score.function.AT_ONCE", 1)
    body = "def judge(prompts, responses):\n    if prompts[0][0]['content'] == 'Hi': {}\n    return [[1.0] * len(r) for r in responses]"
    assert place.score(module(body.format("raise KeyboardInterrupt"))) == 130
    message = place.refused(module(body.format("pass")))
    assert (
        "holds scores of something else; changed: --scorer; the file of the function. Choose another --out" in message
    )


# Programs.


def test_a_program_scores_rows_in_any_order(place, command):
    """When this fails, a scorer in another framework's environment cannot be used, or its rows are exchanged."""
    name = command(
        """
        for row in reversed(list(asked)):
            assert row["prompt"][0]["role"] == "user"
            rewards = [len(text) for text in row["responses"]]
            print(json.dumps({"row": row["row"], "rewards": rewards, "attributes": [{"length": n} for n in rewards]}))
        """
    )
    assert place.score(name) == DONE, place.said
    assert [line["row"] for line in place.lines()] == [1, 2, 3]
    assert [line["rewards"] for line in place.lines()] == LENGTHS
    assert place.lines()[1]["attributes"] == [{"length": 1}, {"length": 38}]
    assert place.about() == {"kind": "program", "command": name.removeprefix("command:")}


def test_what_a_program_is_given_in_secret_is_written_nowhere(place, command):
    """When this fails, a shared file of scores, or its log, holds somebody's key."""
    given = "--api-key k33p-it --max-tokens 9 TOKEN=k33p-it --header 'Authorization: Bearer k33p-it' sk-k33p-it-k33p-it"
    name = command(f"for row in asked:\n    {GOOD}\n    sys.exit(1)")
    assert "ended with 1" in place.refused(f"{name} {given}")
    for path in place.directory.glob("scores*/*"):
        assert b"k33p-it" not in path.read_bytes()
    (place.directory / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    place.out = place.directory / "others.jsonl"
    assert place.score(f"{name} {given}") == DONE, place.said
    assert place.about()["command"].endswith(
        "--api-key *** --max-tokens 9 TOKEN=*** --header 'Authorization: Bearer ***' ***"
    )
    assert "k33p-it" not in place.said
    place.out = place.directory / "third.jsonl"
    assert "k33p-it" not in place.refused(f"{name} --token=k33p-it 'open")
    assert "k33p-it" not in place.refused(f"{name} --token=k33p-it", "--model", "x")


GOOD = "print(json.dumps({'row': row['row'], 'rewards': [1.0] * len(row['responses'])}), flush=True)"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"for row in asked:\n    {GOOD}\n    sys.exit('no memory')", "ended with 1 before it had scored 2 rows (the first: row 2); last on its standard error: no memory."),
        ("import os\nos.kill(os.getpid(), 9)", "ended by signal 9 before it had scored 3 rows (the first: row 1); it wrote nothing on its standard error."),
        (f"for row in list(asked)[:2]:\n    {GOOD}", "ended with 0 before it had scored 1 row (the first: row 3)"),
        ("sys.stderr.write('loading')\nprint('Loading model ...', flush=True)\ntime.sleep(60)", "wrote no scores: line 1 of its output is not JSON: Expecting value at character 1: 'Loading model ...'; last on its standard error: loading."),
        ("print('[1]')", "line 1 of its output is '[1]', and it has no row"),
        ("print('{\"row\": 7, \"rewards\": []}')", "row 7 was not asked for, or has scores already"),
        (f"for row in asked:\n    {GOOD}\n    {GOOD}", "row 1 was not asked for, or has scores already"),
        ("print('{\"row\": [1], \"rewards\": []}')", "row [1] was not asked for, or has scores already"),
        ("print('{\"row\": true, \"rewards\": [1, 2, 3]}')", "row True was not asked for"),
        ("print('{\"row\": 1.0, \"rewards\": [1, 2, 3]}')", "row 1.0 was not asked for"),
        ("print('{\"row\": 1, \"rewards\": [1, 2]}')", "line 1 of its output is of row 1, and its rewards are [1, 2] for 3 responses"),
        ("print('{\"row\": 1, \"rewards\": [1, NaN, 2]}')", "rewards[1] is nan, not a finite number"),
        ("print('{\"row\": 1, \"rewards\": [1, 2, 3], \"attributes\": [1, 2, 3]}')", "its attributes are [1, 2, 3], not 3 objects of named numbers"),
        (f"for row in asked:\n    {GOOD}\nprint('done')", "wrote more lines than rows: 'done'"),
    ],
)  # fmt: skip
def test_a_program_that_errs_is_quoted(body, said, place, command):
    """When this fails, someone waits for a dead program, or trains on its half of the scores."""
    message = place.refused(command(body))
    assert said in message and message.startswith(f"--scorer=command: {sys.executable} ")


def test_a_program_that_hangs_is_ended(place, command):
    message = place.refused(command(f"for row in asked:\n    {GOOD}\n    time.sleep(60)"), "--scorer-timeout", "1.5")
    assert (
        "has written nothing for 1.5 s after line 1 of its output, with 2 rows left; --scorer-timeout waits" in message
    )


def test_a_program_that_is_not_there_is_refused(place):
    assert "/nowhere/scorer cannot be started (No such file or directory)" in place.refused("command:/nowhere/scorer")
    assert place.refused("command:'a b").startswith("--scorer=command:'a b: no closing quotation")
    assert "names no program" in place.refused("command:")


def test_what_a_program_scored_before_it_died_is_kept(place, command):
    """When this fails, a scorer that needs hours has to do them without a fault."""
    assert "ended with 1" in place.refused(command(f"for row in asked:\n    {GOOD}\n    sys.exit(1)"))
    assert "changed: the program's files" in place.refused(command(f"for row in asked:\n    {GOOD}\n    sys.exit(2)"))
    numbers = [
        json.loads(line)["row"] for line in (Path(f"{place.out}.unfinished") / "rows.jsonl").read_text().splitlines()
    ]
    assert numbers == [1]


def test_what_is_refused_at_the_end_is_refused_again(place, command):
    """When this fails, a program that is refused is believed when the command is repeated."""
    name = command(f"for row in asked:\n    {GOOD}\nprint('done')")
    for _ in range(2):
        assert "wrote more lines than rows: 'done'" in place.refused(name)


def test_rows_of_a_program_that_does_not_flush_are_kept(place, command):
    """When this fails, what a program prints stays in its buffer, and Ctrl-C or its death loses all of it."""
    name = command(f"import os\nfor row in asked:\n    {GOOD.replace(', flush=True', '')}\n    os._exit(3)")
    assert "ended with 3 before it had scored 2 rows" in place.refused(name)


def test_what_a_program_started_ends_with_it(place, command, monkeypatch):
    """When this fails, a server that a program left behind keeps the GPU."""
    monkeypatch.setattr(program, "ENDS_WITHIN", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    name = command(
        f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-S", "-c", {deaf!r}], stdout=subprocess.PIPE)
        child.stdout.readline()
        open("child", "w").write(str(child.pid))
        for row in asked:
            {GOOD}
        """
    )
    assert place.score(name) == DONE, place.said
    child = int((place.directory / "child").read_text())
    deadline = time.monotonic() + 5
    while (alive := is_running(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def is_running(number: int) -> bool:
    """Whether there is such a process, and not its remains alone."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_ends_the_program_too(place, command, monkeypatch):
    """When this fails, a program goes on computing on the GPU after its command was interrupted."""
    started: list[program.Program] = []
    start = program.Program.started

    def started_and_seen(*arguments, **more):
        started.append(start(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(program.Program, "started", staticmethod(started_and_seen))
    add = outside.KeptRows.add

    def add_and_interrupt(rows, *arguments):
        add(rows, *arguments)
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()

    monkeypatch.setattr(outside.KeptRows, "add", add_and_interrupt)
    begun = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        code = place.score(command(f"for row in asked:\n    {GOOD}\n    time.sleep(60)"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and time.monotonic() - begun < 20
    assert place.said.splitlines()[-1] == "rapo score: interrupted; nothing more was saved. Run the same command again."
    assert started[0].process.poll() is not None
    assert len((Path(f"{place.out}.unfinished") / "rows.jsonl").read_text().splitlines()) == 1


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
ASKED = {"role": "user", "content": "What is two plus one?"}
CALLING = {"role": "assistant", "content": "I add.", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": [ASKED], "chosen": [CALLING], "rejected": [ASKED | {"role": "assistant"}]},
            "row 1, with tool_calls)",
        ),
        ({"prompt": "Hi", "chosen": "3", "rejected": "No", "tools": [CALL]}, "row 1, with tools)"),
    ],
)
def test_rows_that_are_more_than_texts_are_refused(row, said, place, module):
    """When this fails, a call of a tool is scored as an empty answer, and nobody is told."""
    lengths = module("def judge(prompts, responses):\n    return [[float(len(t)) for t in each] for each in responses]")
    write_rows(place.directory / "rows.jsonl", [row])
    message = place.refused(lengths)
    assert message.startswith("a function gets the texts of responses alone, and 1 row has more (the first: ")
    assert said in message


def test_an_empty_file_is_refused(place):
    (place.directory / "rows.jsonl").write_text("")
    assert "rows.jsonl" in place.refused("python:json:dumps")
