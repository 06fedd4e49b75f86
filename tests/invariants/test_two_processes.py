"""Two processes with four devices each are one process with eight."""

import shutil
import socket
import time
from contextlib import ExitStack

import pytest

from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_in_two(world, run_dir, *, meanwhile=lambda processes, log: None) -> tuple[list[int], str]:
    """Runs `rapo train` in two processes that know each other: both exit codes, and what process 0 said."""
    coordinator = f"127.0.0.1:{free_port()}"
    logs = [run_dir.with_name(f"log-{index}") for index in range(2)]
    with ExitStack() as stack:
        processes = []
        for index, log in enumerate(logs):
            join = ["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(index)]
            arguments = [*world.train(run_dir), *join]
            processes.append(stack.enter_context(runs.started(arguments, num_devices=4, log=log)))
        meanwhile(processes, logs[0])
        deadline = time.monotonic() + runs.PATIENCE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for log in logs:
        print(log.read_text()[-3000:])
    return codes, logs[0].read_text()


@pytest.fixture(scope="module")
def in_two(world, tmp_path_factory):
    """The run directory of a run by two processes from start to end."""
    run_dir = tmp_path_factory.mktemp("in_two") / "run"
    codes, said = train_in_two(world, run_dir)
    assert codes == [runs.DONE, runs.DONE]
    assert "8 cpu" in said
    return run_dir


def test_two_processes_are_one(undisturbed, in_two):
    """When this fails, a pod trains on other rows than a single host, or counts them twice: a process supplies the wrong
    part of the batch, or reads the wrong slice of the weights."""
    runs.assert_same_metrics(in_two, undisturbed)
    assert runs.steps_of(in_two) == runs.steps_of(undisturbed)


def test_notice_to_one_of_two_processes_saves_both_and_one_process_goes_on(world, undisturbed, tmp_path):
    """When this fails, the preemption of one host costs the pod its work since the last checkpoint, or hangs it, or a
    run cannot move from a pod to a single host."""
    run_dir = tmp_path / "run"

    def notify_the_second(processes, log):
        runs.wait_for(lambda: len(runs.metrics_of(run_dir)) >= 2, *processes, log=log)
        processes[1].terminate()

    codes, _ = train_in_two(world, run_dir, meanwhile=notify_the_second)
    assert codes == [runs.INTERRUPTED, runs.INTERRUPTED]
    step = runs.steps_of(run_dir)[-1]
    assert 2 <= step < runs.NUM_STEPS and len(runs.metrics_of(run_dir)) == step
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    runs.assert_same_metrics(run_dir, undisturbed)


def test_damage_that_only_one_process_sees_sets_the_checkpoint_aside_on_both(world, undisturbed, in_two, tmp_path):
    """When this fails, one rotten file hangs a pod at every start: the host that reads it goes on to the checkpoint
    before, and the others wait for it for ever."""
    run_dir = tmp_path / "run"
    shutil.copytree(in_two, run_dir)
    newest = run_dir / "checkpoints" / str(runs.NUM_STEPS)
    (written_by_the_second,) = (newest / "state" / "ocdbt.process_1" / "d").iterdir()
    written_by_the_second.unlink()
    codes, said = train_in_two(world, run_dir)
    assert codes == [runs.DONE, runs.DONE]
    assert f"going on from step {runs.NUM_STEPS - 2}" in said
    runs.assert_same_metrics(run_dir, undisturbed)
