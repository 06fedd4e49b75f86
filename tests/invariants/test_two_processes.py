"""Two processes with four devices each are one process with eight."""

import socket
import time
from contextlib import ExitStack

import pytest

from tests.invariants import runs, tiny

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_in_two(world, run_dir, tmp_path, *more, meanwhile=lambda processes, log: None) -> list[int]:
    """Runs `rapo train` in two processes that know each other; both exit codes."""
    coordinator = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        processes, logs = [], [tmp_path / f"log-{index}" for index in range(2)]
        for index, log in enumerate(logs):
            join = ["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(index)]
            arguments = [*world.train(run_dir, *more), *join]
            processes.append(stack.enter_context(runs.started(world, arguments, num_devices=4, log=log)))
        meanwhile(processes, logs[0])
        deadline = time.monotonic() + runs.PATIENCE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for log in logs:
        print(log.read_text()[-3000:])
    return codes


def test_two_processes_are_one(world, undisturbed, tmp_path):
    """When this fails, a pod trains on other rows than a single host, or counts them twice: a process supplies the wrong
    part of the batch, or reads the wrong slice of the weights."""
    run_dir = tmp_path / "run"
    assert train_in_two(world, run_dir, tmp_path) == [runs.DONE, runs.DONE]
    tiny.assert_same_metrics(runs.metrics_of(run_dir), runs.metrics_of(undisturbed), atol=1e-6, rtol=1e-6)
    assert runs.steps_of(run_dir) == runs.steps_of(undisturbed)


def test_notice_to_one_of_two_processes_saves_both_and_one_process_goes_on(world, undisturbed, tmp_path):
    """When this fails, the preemption of one host costs the pod its work since the last checkpoint, or hangs it, or a
    run cannot move from a pod to a single host."""
    run_dir = tmp_path / "run"

    def notify_the_second(processes, log):
        runs.wait_for(lambda: len(runs.metrics_of(run_dir)) >= 2, *processes, log=log)
        processes[1].terminate()

    codes = train_in_two(world, run_dir, tmp_path, meanwhile=notify_the_second)
    assert codes == [runs.INTERRUPTED, runs.INTERRUPTED]
    step = runs.steps_of(run_dir)[-1]
    assert 2 <= step < runs.NUM_STEPS and len(runs.metrics_of(run_dir)) == step
    assert runs.rapo(*world.train(run_dir)) == runs.DONE
    tiny.assert_same_metrics(runs.metrics_of(run_dir), runs.metrics_of(undisturbed), atol=1e-6, rtol=1e-6)
