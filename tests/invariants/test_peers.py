"""Of two processes, the one that lives says what became of the other."""

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from rapo_jax import distributed, peers
from rapo_jax.distributed import Pod, join
from rapo_jax.errors import Lost, UserError
from tests.invariants.test_two_processes import free_port
from tests.tiny import runs

# A verb of 60 steps in which the processes wait for each other, and the second does something at its fourth.
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


@pytest.mark.slow
def test_a_process_that_is_waited_for_in_vain_is_named(tmp_path):
    """When this fails, a host whose storage hangs keeps a pod, and its bill, for ever."""
    (code, last), (other, _) = fails(1, 'peers.at("reading its data"); time.sleep(1000)', tmp_path, patience=6)
    assert code == other == peers.LOST
    assert "process 0 has waited 0 minutes at a question to all for the others: process 1 (host " in last
    assert ") is at reading its data. All processes stop;" in last


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
