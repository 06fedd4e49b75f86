"""Of two processes, the one that lives says what became of the other."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

from rapo_jax import cli, distributed, peers
from rapo_jax.distributed import Pod, join
from rapo_jax.errors import Lost, UserError
from rapo_jax.train import loop
from tests.chaos.commands import Ended
from tests.chaos.kills import fault_of
from tests.tiny import runs
from tests.tiny.runs import free_port

# A verb of 60 steps in which the processes wait for each other, and the one at fault does something at step 30.
VERB = """
import os, signal, sys, time
from rapo_jax import cli, distributed, peers
from rapo_jax.errors import UserError

process, port, at_fault, fault = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
peers.SILENT, peers.PATIENCE = 3, float(sys.argv[5])

def verb(options):
    for step in range(1, 61):
        peers.at(f"step {step}", "waits")
        if process == at_fault and step == 30:
            exec(fault)
        distributed.anywhere(False)
        time.sleep(0.1)
    return 0

cli.VERBS["train"] = verb
cli.main(["train", "x.yaml", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(process)])
"""


def fails(at_fault: int, fault: str, tmp_path: Path, *, patience: float = 100) -> list[tuple[int, str]]:
    """Exit code and last line of the two processes."""
    arguments = [str(free_port()), str(at_fault), fault, str(patience)]
    logs = [tmp_path / f"log-{process}" for process in range(2)]
    with ExitStack() as stack:
        processes = []
        for process, log in enumerate(logs):
            output = stack.enter_context(log.open("w"))
            command = [sys.executable, "-c", VERB, str(process), *arguments]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output))
            stack.callback(processes[-1].kill)
        codes = [process.wait(runs.PATIENCE) for process in processes]
    said = [log.read_text() for log in logs]
    print(*said)
    return [(code, (text.splitlines() or [""])[-1]) for code, text in zip(codes, said, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_named_by_the_other(killed, tmp_path):
    """When this fails, a host that the kernel killed ends a pod with fifty lines of C++ that name nobody, after minutes, or
    with a code that a scheduler takes for a bug."""
    ends = fails(killed, "os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert ends[killed][0] == -signal.SIGKILL
    code, last = ends[1 - killed]
    assert code == peers.LOST
    assert last.startswith(f"process {killed} (host ") and " was last seen at s" in last
    assert last.endswith("This process stops too; run the same command on all of them to go on.")


@pytest.mark.slow
@pytest.mark.parametrize("failed", [0, 1])
def test_an_error_of_one_process_is_told_by_the_other(failed, tmp_path):
    """When this fails, a file that one host alone lacks leaves the others waiting for it, or ends them with an error about
    sockets."""
    ends = fails(failed, 'raise UserError("model.path=x does not exist.")', tmp_path)
    assert ends[failed] == (2, "rapo train: model.path=x does not exist.")
    code, last = ends[1 - failed]
    assert code == 2
    assert last.startswith(f"process {failed} (host ")
    assert last.endswith(" stopped at step 30, and with it this one: model.path=x does not exist.")


def test_a_process_that_waits_is_still_at_its_step(two):
    """When this fails, whoever reads of a host that was killed does not learn how far the run came."""
    mine = two(other("step 3"))
    assert mine.mine.where == "at start"
    peers.at("reading the data")
    with peers.waiting("comparing settings"):
        assert mine.mine.where == "while reading the data, comparing settings"
        with peers.waiting("gathering an array"):
            assert mine.mine.where == "while reading the data, gathering an array"
        assert (mine.mine.at, mine.mine.kind) == ("comparing settings", "waits")
    assert mine.mine.where == "while reading the data" and mine.mine.kind == "works"


@pytest.mark.slow
def test_a_process_that_is_waited_for_in_vain_is_named(tmp_path):
    """When this fails, a host whose storage hangs keeps a pod, and its bill, for ever."""
    (code, last), (other, _) = fails(1, 'peers.at("reading its data"); time.sleep(1000)', tmp_path, patience=6)
    assert code == other == peers.LOST
    assert "process 0 has waited 0 minutes for the others at step 30, comparing flags: process 1 (host " in last
    assert ") is reading its data. All processes stop;" in last


def test_nobody_at_the_address_of_a_pod_is_said_within_a_bound(monkeypatch):
    """When this fails, a mistyped address is a hang, and then a stack of C++."""
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0.1)
    with pytest.raises(Lost, match=r"could not join 127\.0\.0\.1:1 as process 1 of 2: nothing answered there"):
        join(Pod("127.0.0.1:1", 2, 1))


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (Pod("localhost", 2, 0), "--coordinator=localhost must be HOST:PORT, with a port from 1 to 65535."),
        (Pod("localhost:70000", 2, 0), "--coordinator=localhost:70000 must be HOST:PORT"),
        (Pod("localhost:8476", 2, 2), "--process-id=2 must be from 0 to 1, because --num-processes=2."),
    ],
)
def test_what_cannot_be_an_address_is_refused(pod, said):
    """When this fails, a slip in an address or a number costs five minutes, and is not named."""
    with pytest.raises(UserError) as refusal:
        join(pod)
    assert said in str(refusal.value)


def test_a_port_in_use_is_refused_and_a_loopback_address_is_not_opened_to_the_network():
    """When this fails, a second run on a host aborts in C++, or anyone in the network can speak to a coordinator that was
    told to listen to this host alone: it asks for no password."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match="process 0 cannot listen there \\(Address already in use\\)"):
            join(Pod(f"127.0.0.1:{port}", 2, 0))
    assert distributed.address_to_bind(Pod(f"127.0.0.1:{port}", 2, 0)) == f"127.0.0.1:{port}"
    assert distributed.address_to_bind(Pod(f"localhost:{port}", 2, 0)) == f"127.0.0.1:{port}"
    assert distributed.address_to_bind(Pod(f"[::]:{port}", 2, 0)) is None


class Store:
    """A key-value store as JAX's client has it, within one process; `others` are records by process."""

    def __init__(self, others: dict[int, dict] | None = None):
        self.texts = {f"{peers.PLACE}{process}": json.dumps(record) for process, record in (others or {}).items()}
        self.barriers: list[str] = []

    def key_value_set(self, key, text, allow_overwrite=False):
        self.texts[key] = text

    def key_value_dir_get(self, place):
        return [(key, text) for key, text in self.texts.items() if key.startswith(place)]

    def wait_at_barrier(self, name, milliseconds):
        self.barriers.append(name)


class Ends(BaseException):
    """Raised in place of the end of the process."""


def other(at: str = "step 3", **more) -> dict:
    return {"process": 1, "host": "b", "pid": 7, "at": at, "kind": "waits", **more}


@pytest.fixture
def two(monkeypatch):
    """Makes process 0 of two that sees the given record of process 1 `age` seconds after its last change; no thread runs."""

    def exits(code):
        raise Ends(code)

    monkeypatch.setattr(os, "_exit", exits)

    def make(record: dict | None = None, *, age: float = 0.0, client=None) -> peers.Peers:
        mine = peers.Peers(client or Store({1: record} if record else None), process=0, num_processes=2, coordinator="")
        mine.farewell = 0.0  # the other is a record, and never leaves
        mine.look()
        for process, seen in mine.seen.items():
            mine.seen[process] = peers.Seen(seen.record, seen.since - age)
        monkeypatch.setattr(peers, "_peers", mine)
        return mine

    return make


def test_the_last_record_that_is_stored_is_the_newest(two):
    """When this fails, the others see no exit code and no last words of a process whose watcher wrote at the same time."""
    started, go_on = threading.Event(), threading.Event()

    class Slow(Store):
        def key_value_set(self, key, text, allow_overwrite=False):
            if not started.is_set():
                started.set()
                go_on.wait(10)
            super().key_value_set(key, text)

    mine = two(client=Slow())
    watcher = threading.Thread(target=mine.publish, kwargs={"beat": 1})
    watcher.start()
    started.wait(10)
    ending = threading.Thread(target=mine.publish, kwargs={"code": 2, "words": "x does not exist."})
    ending.start()
    time.sleep(0.1)  # without the lock, it would be stored by now
    go_on.set()
    watcher.join(10), ending.join(10)
    stored = json.loads(mine.client.texts[f"{peers.PLACE}0"])
    assert (stored["beat"], stored["code"], stored["words"]) == (1, 2, "x does not exist.")


def test_no_beat_follows_the_end(two):
    """When this fails, a process that ended looks alive to the others."""
    mine = two()
    mine.leaving.set()
    mine.keep()
    assert mine.client.texts == {}


def test_an_interruption_of_all_is_not_followed_and_an_error_gives_time_to_close(two, capsys):
    """When this fails, process 0 of an interrupted pod is ended in the middle of closing its logs, because another process
    had less to close."""
    two(other(code=peers.INTERRUPTED), age=1000).turn()
    mine = two(other(code=2, words="y does not exist."), age=peers.GRACE + 1)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        mine.turn()
    with pytest.raises(Ends, match="2"):
        mine.turn()
    assert (
        "process 1 (host b, pid 7) stopped at step 3, and with it this one: y does not exist."
        in capsys.readouterr().err
    )
    mine = two(other(code=2), age=peers.CLOSING + 1)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(Ends, match="2"):
            mine.turn()


def test_processes_that_are_all_at_the_same_place_are_not_given_up(two, capsys):
    """When this fails, a compilation of half an hour, or a slow save, ends a healthy pod."""
    mine = two(other("step 1"))
    mine.go("step 1", "waits")
    mine.since -= peers.PATIENCE
    mine.give_up()
    mine = two(other("loading the model", kind="works"))
    mine.go("comparing settings", "waits")
    mine.since -= peers.PATIENCE
    with pytest.raises(Ends, match="76"):
        mine.give_up()
    assert capsys.readouterr().err == (
        "process 0 has waited 30 minutes for the others while comparing settings: process 1 (host b, pid 7) is loading the "
        "model. All processes stop; run the same command on all of them to go on.\n"
    )


@pytest.mark.parametrize("place", ["step 1", "step 2"])
@pytest.mark.parametrize("kind", ["works", "waits", "long"])
def test_the_longest_wait_has_a_bound_too(kind, place, two, capsys):
    """When this fails, a pod whose processes all hang in one exchange, or of which one hangs where it may take long, burns its
    hours until somebody looks."""
    mine = two(other("step 1", kind="long"))
    mine.go(place, kind)
    mine.since -= peers.STUCK - 60
    mine.give_up()
    mine.since -= 60
    with pytest.raises(Ends, match="76"):
        mine.give_up()
    assert f"process 0 has waited 360 minutes for the others at {place}: process 1" in capsys.readouterr().err


def test_a_first_step_and_a_save_may_take_long_and_other_steps_wait(monkeypatch):
    """When this fails, the others of a pod give up while one compiles, or while it writes a large checkpoint."""
    places = []
    monkeypatch.setattr(loop, "at", lambda place, kind="works": places.append((place, kind)))
    for name in ("write_metrics", "to_device", "as_dict"):
        monkeypatch.setattr(loop, name, Mock())
    monkeypatch.setattr(loop, "profile_of", lambda *_: nullcontext(Mock()))
    train = SimpleNamespace(eval_every=None, save_every=2, sample_every=None, keep_best_by="eval_loss")
    run = Mock(num_steps=2, evaluations={}, config=SimpleNamespace(train=train), batches=lambda first: iter([1, 2]))
    run.mesh, run.train_step = jax.make_mesh((1,), ("data",)), lambda state, *_: (state, {})
    loop.run_loop(run, SimpleNamespace(step=0), reference={}, store=Mock(), journal=Mock())  # pyright: ignore[reportArgumentType]
    assert places == [
        ("step 1", "long"),
        ("the batch after step 1", "works"),
        ("step 2", "waits"),
        ("the checkpoint of step 2", "long"),
        ("the batch after step 2", "works"),
        ("the end of the last save", "long"),
    ]


def test_a_record_of_another_version_and_an_error_do_not_end_the_watcher(two, monkeypatch, capsys):
    """When this fails, a process stops watching without a word, and its own timer ends it half an hour later."""
    mine = two(other(mood="a field that this version lacks"))
    assert mine.seen[1].record.host == "b"
    turns = []

    def turn():
        turns.append(1)
        if len(turns) == 2:
            mine.leaving.set()
        raise RuntimeError("https://me:secret@host: dictionary changed size during iteration")

    mine.period = 0.01
    mine.turn = turn
    timer = Mock()
    monkeypatch.setattr(peers, "faulthandler", timer)
    mine.keep()
    assert len(turns) == 2 and timer.cancel_dump_traceback_later.called
    said = capsys.readouterr().err
    assert "https://***@host: dictionary changed size" in said and "secret@" not in said


def test_a_client_that_refuses_is_as_one_that_is_gone(two):
    """When this fails, the watcher's log fills with tracebacks as soon as process 0 ends."""

    class Gone(Store):
        def key_value_set(self, key, text, allow_overwrite=False):
            raise ValueError("UNAVAILABLE: the service is gone")

        def key_value_dir_get(self, place):
            raise ValueError("UNAVAILABLE: the service is gone")

    two(client=Gone()).turn()


def test_secrets_are_masked_in_what_the_others_are_told_and_in_what_they_say(two, capsys):
    """When this fails, a token of one host's address stands in the logs of all."""
    mine = two()
    with pytest.raises(UserError), peers.told_to_others():
        raise UserError("https://me:secret@host/rows.jsonl does not answer.")
    assert mine.words == "https://***@host/rows.jsonl does not answer."
    mine = two(other(code=2, words="https://me:secret@host/rows.jsonl does not answer."))
    with pytest.raises(Ends):
        mine.follow(mine.seen[1].record)
    assert "with it this one: https://***@host/rows.jsonl does not answer." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer"), True),
        (ValueError("DEADLINE_EXCEEDED: Barrier timed out."), True),
        (RuntimeError("Barrier timed out."), True),
        (TimeoutError("the others"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), False),
        (UserError("Barrier and Gloo are no objectives."), False),
        (ValueError("data.path=barrier_reef.jsonl does not exist."), False),
        (FileNotFoundError(errno.ENOENT, "Gloo"), False),
    ],
)
def test_only_what_an_exchange_raises_is_put_down_to_the_others(error, expected):
    """When this fails, the report of an error of one's own is late, or names an innocent process."""
    assert peers.is_exchange(error) is expected


def test_versions_are_compared_without_a_computation(monkeypatch):
    """When this fails, hosts with other versions of JAX hang where they were to say so."""
    client = Store()
    client.texts["rapo_jax/versions/1"] = json.dumps({"the version of jax": "0.11.0"})
    monkeypatch.setattr(distributed, "state", SimpleNamespace(client=client, process_id=0, num_processes=2))
    monkeypatch.setattr(distributed, "each_process", None)
    with pytest.raises(UserError, match=r"the version of jax is 0\.10\.2 in process 0 and 0\.11\.0 in process 1"):
        distributed.require_same_versions({"the version of jax": "0.10.2"})
    assert client.barriers == ["rapo_jax/versions"]


def test_an_error_while_joining_is_told_to_the_others(two, monkeypatch, capsys):
    """When this fails, a process that dies while options are compared leaves the others with a traceback."""
    mine = two()

    def fails_to_connect(options):
        raise UserError("the processes were not started with the same: seed")

    monkeypatch.setattr(cli, "connect", fails_to_connect)
    assert cli.exit_code_of(SimpleNamespace(name="train", distributed=True)) == 2  # pyright: ignore[reportArgumentType]
    assert mine.words == "the processes were not started with the same: seed"


def test_a_host_without_ipv6_listens_at_all_its_addresses(monkeypatch):
    """When this fails, a host name as --coordinator is a traceback where IPv6 is off."""

    def refuses(family, *_):
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(distributed.socket, "socket", refuses)
    assert distributed.address_to_bind(Pod("host-a:8476", 2, 0)) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("process 1 (host b, pid 7) was last seen at step 3, 12 s ago: it was killed.", None),
        ("rapo train: could not join 127.0.0.1:1 as process 0 of 2: nothing answered there within 40 s.", None),
        ("rapo score: /w/out.jsonl exists; nothing was written. Choose another --out.", None),
        ("rapo train: out of memory (x); lower rows.per_shard.", "SURVIVOR ended with 76: rapo train: out of memory"),
        ("process 0 (host a, pid 6) was last seen at step 3", "SURVIVOR ended with 76: process 0 (host a"),
    ],
)
def test_a_survivor_has_to_name_the_process_that_was_killed(last, expected):
    """When this fails, the harness of kills takes any error of the survivor for a good end."""
    found = fault_of(Ended([76, -9], [last, ""], 5.0, killed=1))
    assert found is None if expected is None else found is not None and found.startswith(expected)
