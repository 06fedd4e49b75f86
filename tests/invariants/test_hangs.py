"""A run that makes no step any more ends, and says who hangs, and where."""

import os
import subprocess
import sys
import threading

import pytest

from rapo_jax import hangs, peers
from rapo_jax.peers import Peers, at, stepped, steps_watched, waiting
from rapo_jax.places import Record, Seen
from tests import tiny
from tests.tiny import runs


class Ends(BaseException):
    """Raised in place of the end of the process."""


class Store:
    """A key-value store as JAX's client has it, which keeps what is written."""

    def __init__(self):
        self.texts: dict[str, str] = {}

    def key_value_set(self, key, text, allow_overwrite=False):
        self.texts[key] = text

    def key_value_dir_get(self, place):
        return list(self.texts.items())


@pytest.fixture
def pod(monkeypatch, tmp_path):
    """Makes the processes of a pod whose steps take 2 s; no thread runs, and the end of one is raised."""

    def exits(code):
        raise Ends(code)

    monkeypatch.setattr(os, "_exit", exits)
    monkeypatch.setattr(peers, "GRACE", 0.0)

    def make(number: int) -> list[Peers]:
        store = Store() if number > 1 else None
        made = [Peers(store, process=n, num_processes=number, coordinator="") for n in range(number)]
        for process in made:
            process.run_dir = tmp_path
            process.pace_at(paced())
        return made

    return make


def paced(*, own: float = 0.1, step: float = 2.0) -> hangs.Pace:
    """A pace that knows steps, and how long the places of the loop take."""
    pace = hangs.Pace(20.0)
    for number in range(hangs.STEPS):
        for place, within, took in (
            (f"fetching the metrics of step {number}", f"step {number}", step - own),
            (f"the batch after step {number}", "", own / 2),
            (f"step {number}", "", own / 2),
        ):
            pace.left(Record(0, "a", 1, at=place, kind="waits" if within else "works", within=within), took)
        pace.steps.append(step)
        pace.own.append(pace.own_now)
        pace.own_now = 0.0
    return pace


def place(process: Peers, at: str, kind: hangs.Kind = "works", *, within: str = "", ago: float = 0.0) -> None:
    """Puts a process into a place, where it came so many seconds ago."""
    process.go(at, kind, within=within)
    process.since -= ago


def waits(process: Peers, step: int, *, ago: float) -> None:
    place(process, f"fetching the metrics of step {step}", "waits", within=f"step {step + 1}", ago=ago)


def said(process: Peers, capsys) -> str:
    """The message with which a process ends; all of its pod have to have been told where the others are."""
    with pytest.raises(Ends, match="76"):
        process.turn()
    return capsys.readouterr().err.replace(f"pid {os.getpid()}", "pid 7").replace(process.mine.host, "b")


def told(processes: list[Peers]) -> None:
    """Every process has read the records of all others."""
    for process in (*processes, *processes):
        process.turn()


def test_a_run_of_one_process_that_hangs_ends(pod, capsys, tmp_path):
    """When this fails, a run whose disk or data hangs stands still until somebody looks."""
    (alone,) = pod(1)
    place(alone, "the batch after step 7", ago=890)
    alone.turn()  # not yet
    alone.since -= 20
    message = said(alone, capsys)
    assert message.startswith(
        "the run hangs at the batch after step 7, for 15 minutes now (usually 0.05 s). Stacks of process 0 ("
    )
    assert message.endswith(
        f": {tmp_path}/stacks-0.txt. Run the same command to go on; train.hang_factor=null waits for as long as it takes.\n"
    )
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert stacks.count("Thread 0x") >= 1 and "test_hangs.py" in stacks and "the batch after step 7" in stacks


def test_of_several_processes_the_one_that_hangs_is_named_and_all_leave_their_stacks(pod, capsys, tmp_path):
    """When this fails, a pod of which one data loader hangs burns its hours, or nobody learns which host it was."""
    first, second = pod(2)
    waits(first, 6, ago=899)
    place(second, "the batch after step 7", ago=890)
    told([first, second])  # not yet: the first one may wait for as long as loading may take
    second.since, first.since = second.since - 20, first.since - 2
    told([first])  # nor does it speak before the other one
    message = said(second, capsys)
    assert message.startswith(
        "process 1 (host b, pid 7) hangs at the batch after step 7, for 15 minutes now (usually 0.05 s); meanwhile process 0 "
        "(host b, pid 7) is at step 7, fetching the metrics of step 6. Stacks of process 1 ("
    )
    followed = said(first, capsys)
    assert followed.startswith("process 1 (host b, pid 7) stopped at the batch after step 7, and with it this one: ")
    assert followed.endswith(f"Stacks of process 0: {tmp_path}/stacks-0.txt.\n")
    assert (tmp_path / "stacks-0.txt").exists() and (tmp_path / "stacks-1.txt").exists()


def test_a_process_that_cannot_speak_is_named_by_the_others(pod, capsys):
    """When this fails, a process whose interpreter stands still, which reports nothing by itself, keeps the pod for hours."""
    first, second = pod(2)
    waits(first, 6, ago=290)
    waits(second, 5, ago=0)
    told([second, first])
    seen = first.seen[1]
    first.seen[1] = Seen(seen.record, seen.since - 290)
    first.since -= 20
    assert (
        "process 0 has waited 5 minutes for the others at step 7, fetching the metrics of step 6: process 1 (host b, pid 7) is at "
        "step 6, fetching the metrics of step 5 and has been silent for 5 minutes. Stacks of process 0 ("
        in said(first, capsys)
    )


@pytest.mark.parametrize(
    ("at", "kind", "within", "ago", "expected"),
    [
        (
            "fetching the metrics of step 6",
            "waits",
            "step 7",
            301,
            "at step 7, fetching the metrics of step 6, for 5 minutes now (usually 1.9 s)",
        ),
        (
            "the checkpoint of step 6",
            "long",
            "",
            7201,
            "at the checkpoint of step 6, for 120 minutes now (how long that usually takes is not known yet)",
        ),
        ("the batch after step 6", "works", "", 901, "at the batch after step 6, for 15 minutes now (usually 0.05 s)"),
    ],
)
def test_a_hang_of_all_processes_in_one_place_ends_and_process_0_says_so(at, kind, within, ago, expected, pod, capsys):
    """When this fails, a collective or a file system that hangs keeps a pod for six hours, or every process of a thousand tells
    of it."""
    first, second = pod(2)
    for process in (first, second):
        place(process, at, kind, within=within, ago=ago)
    first.publish(**first.at_this_pace())
    second.turn()  # leaves the word to the first
    assert said(first, capsys).startswith(f"all 2 processes hang {expected}. Stacks of process 0 (")


@pytest.mark.parametrize(
    ("place", "kind", "expected"),
    [
        ("step 40", "works", 900),
        ("fetching the metrics of step 40", "waits", 300),
        ("step 1", "long", 1800),
        ("the checkpoint of step 40", "long", hangs.UNKNOWN),
        ("evaluating a batch of eval", "waits", hangs.UNKNOWN),
    ],
)
def test_what_may_take_long_may_take_longer_and_what_is_unknown_longest(place, kind, expected):
    """When this fails, a compilation, a save or a slow disk ends a healthy run, which then never gets past it."""
    assert paced().allowed(place, kind) == expected


def test_a_stay_that_is_interrupted_by_waits_is_one_stay(pod):
    """When this fails, the seconds of a first step before its compilation pass for all of it, and the compilation for a hang."""
    (alone,) = pod(1)
    pace = alone.pace
    place(alone, "the checkpoint of step 4", "long", ago=100)
    place(alone, "comparing flags", "waits", within="the checkpoint of step 4", ago=1)
    place(alone, "the checkpoint of step 4", "long", ago=200)
    assert pace.usual("the checkpoint of step 4", "long") is None
    place(alone, "the batch after step 4")
    assert pace.usual("the checkpoint of step 8", "long") == pytest.approx(300, abs=1)
    assert pace.stays["comparing flags"][-1] == pytest.approx(1, abs=0.1)


def test_slow_steps_and_saves_have_larger_bounds_that_follow_the_median_and_the_longest():
    """When this fails, a model whose steps take a minute is ended by a pause that is ordinary for it."""
    pace = paced(step=60.0)
    assert pace.allowed("fetching the metrics of step 9", "waits") == 20 * 60.0
    for took in (100.0, 300.0, 50.0):
        pace.left(Record(0, "a", 1, at="the checkpoint of step 3", kind="long"), took)
    assert pace.allowed("the checkpoint of step 40", "long") == 20 * 300.0


def test_a_debugger_is_no_hang_in_a_pod_either(pod, monkeypatch):
    """When this fails, whoever looks at a variable for six minutes loses the run."""
    first, second = pod(2)
    place(second, "the batch after step 7", ago=10**6)
    waits(first, 6, ago=10**6)
    with monkeypatch.context() as patch:
        patch.setattr(peers, "is_debugged", lambda: True)
        second.turn()
    first.turn()
    assert first.seen[1].record.kind == "elsewhere"


def test_pdb_is_a_debugger():
    """When this fails, the test above means nothing."""
    found = []
    run = compile("found.append(is_debugged())", "<prompt>", "exec")
    assert not hangs.is_debugged()
    exec(run, {"__name__": "pdb", "found": found, "is_debugged": hangs.is_debugged})
    assert found == [True]


def test_time_in_which_the_process_was_stopped_does_not_count(pod, monkeypatch):
    """When this fails, a run on a laptop that slept, or that was stopped with Ctrl-Z, ends when it goes on."""
    (alone,), (woken,) = pod(1), pod(1)
    place(alone, "the batch after step 7")
    clock = iter((1000.0, 1000.0 + 3600.0) * 2)
    alone.since, woken.since = 110.0, 4599.0  # on this clock; the second came to its place when it could go on
    monkeypatch.setattr(peers.time, "monotonic", lambda: next(clock))
    for process in (alone, woken):
        monkeypatch.setattr(process.leaving, "wait", lambda seconds: False)
        process.rest()
    assert alone.since == 110.0 + 3600.0 - alone.period
    assert woken.since == 4599.0, "the clock of a place lies in the future, and no hang is noticed for an hour"


def test_the_switch_is_off_with_null_and_the_watcher_leaves_with_the_run(tmp_path):
    """When this fails, null still ends runs, or a watcher stays behind that would end whatever comes next."""
    with steps_watched(tmp_path, None):
        assert peers._peers is None
    with steps_watched(tmp_path, 20.0):
        mine = peers._peers
        assert mine is not None and mine.thread.is_alive() and mine.mine.where == "at the first batch"
        at("step 1", "long")
        with waiting("fetching the metrics of step 0"):
            assert mine.mine.where == "at step 1, fetching the metrics of step 0"
        stepped(plain=False)
        stepped(plain=True)
        assert mine.pace is not None and len(mine.pace.steps) == 1
    mine.thread.join(10)
    assert peers._peers is None and not mine.thread.is_alive()


def record(process: int, own: float, *, step: float = 1.0) -> Record:
    return Record(process, "b", 7, own_seconds=own, step_seconds=step)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((0.1, 0.9, 0.1, 0.12), [(1, 0.1)]),
        ((0.1, 0.4, 0.1, 0.1), []),  # hidden behind the device
        ((0.9, 0.9, 0.9, 0.9), []),  # all alike
        ((0.1, 0.9, 0.0, 0.1), []),  # not known of all yet
    ],
)
def test_a_process_is_slow_that_the_others_wait_for(own, expected):
    """When this fails, one bad host halves the speed of a pod and nobody learns which, or healthy ones are accused."""
    found = hangs.slow_ones([record(process, seconds) for process, seconds in enumerate(own)])
    assert [(each.process, others) for each, others in found] == expected


def test_a_slow_process_is_named_once(pod, capsys):
    """When this fails, a log consists of the same line, or does not have it."""
    first, second = pod(2)
    with second.changing:
        second.pace = paced(own=1.8)
    told([second, first])
    told([second, first])
    assert capsys.readouterr().out.replace(f"pid {os.getpid()}", "pid 7").replace(first.mine.host, "b") == (
        "process 1 (host b, pid 7) is slow: of a step of 2 s it takes 1.8 s on its host by itself, the others 0.1 s (medians of 16 "
        "steps). Look at what else runs on that host, and at its disk.\n"
    )


def test_stacks_are_shown_where_the_disk_is_what_hangs(tmp_path, capfd, monkeypatch):
    """When this fails, a run whose file system hangs hangs once more while it says so."""
    monkeypatch.setattr(hangs, "WRITING", 0.2)
    os.mkfifo(tmp_path / "stacks-0.txt")  # opening it waits for a reader
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    assert hangs.dump_stacks(tmp_path / "stacks-0.txt", "the run hangs.") == "above"
    assert "test_hangs.py" in capfd.readouterr().err
    reader = os.open(tmp_path / "stacks-0.txt", os.O_RDONLY | os.O_NONBLOCK)
    for thread in threading.enumerate():
        if thread.name == "stacks":
            thread.join(10)
    os.close(reader)


@pytest.mark.slow
def test_a_step_waits_within_places_that_are_known(world, tmp_path, monkeypatch):
    """When this fails, a hang in the loop is reported as one of somewhere else, and bounds are learned of nothing."""
    paces = []

    class Watched(hangs.Pace):
        def __init__(self, factor):
            super().__init__(factor)
            paces.append(self)

    monkeypatch.setattr(peers, "Pace", Watched)
    assert tiny.rapo(*world.train(tmp_path / "run", "train.max_steps=6", "train.save_every=3")) == runs.DONE
    (pace,) = paces
    assert set(pace.stays) == {
        "the first batch",
        "step #",
        "the profile",
        "fetching the metrics of step #",
        "writing the metrics of step #",
        "finishing the step",
        "evaluating a batch of eval",
        "evaluating a batch of eval_plain",
        "the checkpoint of step #",
        "the batch after step #",
    }
    assert len(pace.steps) == 2  # 2 and 4: the first was compiled, 3 was saved, 5 evaluated, 6 both
    assert threading.active_count() < 50 and not list((tmp_path / "run").glob("stacks*"))


BLOCKED = """
import os, threading, time
from rapo_jax import hangs, peers

hangs.WRITING = 0.5
os.dup2(os.pipe()[1], 1)
threading.Thread(target=lambda: print("x" * 10**6, flush=True), daemon=True).start()  # nobody reads: it waits for ever
time.sleep(0.5)
peers.Peers(None, process=0, num_processes=1, coordinator="").end(76, "the run hangs")
"""


@pytest.mark.slow
def test_a_process_whose_output_nobody_reads_ends_too():
    """When this fails, a run that hangs in printing is noticed, and hangs on."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", BLOCKED]
    ended = subprocess.run(command, env=plain, stderr=subprocess.PIPE, timeout=60, check=False, text=True)
    assert ended.returncode == 76 and "the run hangs" in ended.stderr
