"""A run that was interrupted, killed or moved to another mesh is the run that it would have been."""

import os
import signal

import pytest

from rapo_jax.locks import claimed
from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 6)])
def test_an_interrupted_run_saves_and_exits_with_75_and_resumes_bit_for_bit(number, step, world, undisturbed, tmp_path):
    """When this fails, preemption costs work, or the resumed run is a different experiment: a moment of Adam, the data
    position or the learning rate was lost. N + N steps = 2N. Step 5 falls between two checkpoints, step 6 on one."""
    run_dir = tmp_path / "run"
    previous = signal.getsignal(number)
    assert tiny.rapo_until(step, world.train(run_dir), number) == runs.INTERRUPTED
    assert signal.getsignal(number) == previous
    assert runs.steps_of(run_dir)[-1] == step
    assert runs.metrics_of(run_dir) == runs.metrics_of(undisturbed)[:step]
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    runs.assert_same_run(run_dir, undisturbed)


def test_a_run_killed_again_and_again_is_the_run_that_was_never_killed(world, undisturbed, tmp_path):
    """When this fails, a node that dies at the wrong moment ends the run, or changes it. Killed before the first
    checkpoint, while a checkpoint is being written, and between two, without any notice."""
    run_dir = tmp_path / "run"
    unfinished = lambda: list((run_dir / "checkpoints").glob("*tmp*"))  # noqa: E731

    def kill_when(condition, **how):
        log = tmp_path / "log"
        with runs.started(world.train(run_dir), log=log, **how) as process:
            runs.wait_for(condition, process, log=log)
            process.kill()
            assert process.wait() == -signal.SIGKILL

    kill_when(lambda: len(runs.metrics_of(run_dir)) == 1, program=("-m", "rapo_jax"))
    for _ in range(4):  # a tiny checkpoint is written in milliseconds: it may be whole by the time the signal arrives
        kill_when(unfinished)
        if unfinished():
            break
    assert unfinished()
    assert runs.steps_of(run_dir)[-1:] < [8]
    kill_when(lambda: len(runs.metrics_of(run_dir)) == 9 or 9 in runs.steps_of(run_dir))
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    runs.assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize(
    "other_mesh",
    [
        ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
        ["mesh.fsdp=2", "mesh.tensor=2", "mesh.context=2", "rows.length=256"],
    ],
    ids=["tensor", "context"],
)
def test_a_run_resumes_on_another_mesh(other_mesh, world, undisturbed, tmp_path):
    """When this fails, a run is tied to the machine it was started on: after a preemption the other slice has to wait."""
    run_dir = tmp_path / "run"
    assert tiny.rapo_until(5, world.train(run_dir)) == runs.INTERRUPTED
    assert tiny.rapo(*world.train(run_dir, *other_mesh)) == runs.DONE
    runs.assert_same_metrics(run_dir, undisturbed, same_rows=False)


def test_a_finished_run_has_nothing_left_to_do(world, undisturbed, capsys):
    """When this fails, repeating a command trains further than was asked, or rewrites what is there."""
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*") if path.is_file()}
    assert tiny.rapo(*world.train(undisturbed)) == runs.DONE
    assert "nothing to do" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*") if path.is_file()}
    assert before == after


def test_a_run_that_is_extended_is_the_run_that_was_longer_from_the_start(world, tmp_path, capsys):
    """When this fails, more steps mean starting over, or an extended run repeats data. With a constant learning rate 4 + 4
    steps are 8; a schedule stretches, which is said."""
    constant = ["optimizer.schedule=constant", "optimizer.warmup_ratio=0", "train.eval_every=4"]
    assert tiny.rapo(*world.train(tmp_path / "once", *constant, "train.max_steps=8")) == runs.DONE
    assert tiny.rapo(*world.train(tmp_path / "run", *constant, "train.max_steps=4")) == runs.DONE
    capsys.readouterr()
    assert tiny.rapo(*world.train(tmp_path / "run", *constant, "train.max_steps=8")) == runs.DONE
    assert "note   extended from 4 to 8 steps; the learning rate" in capsys.readouterr().out
    runs.assert_same_metrics(tmp_path / "run", tmp_path / "once", same_rows=False, num_steps=8)


def test_a_second_run_in_the_same_directory_is_refused_with_the_name_of_the_first(world, undisturbed, capsys):
    """When this fails, two runs write one directory, and what is left belongs to neither."""
    with claimed(undisturbed, said="run_dir"):
        assert tiny.rapo(*world.train(undisturbed)) == runs.USER_ERROR
        assert f"run_dir={undisturbed} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert tiny.rapo(*world.train(undisturbed)) == runs.DONE
    assert not (undisturbed / "in_use").exists()


def test_a_directory_whose_holder_died_is_taken_over(world, tmp_path):
    """When this fails, a run that was killed before its first checkpoint is taken for something else for ever."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "in_use").write_text("process 1 on a host that is gone")
    assert tiny.rapo(*world.train(tmp_path / "run", "train.max_steps=1")) == runs.DONE


def test_a_run_without_finite_gradients_stops_and_says_what_to_do(world, tmp_path, capsys):
    """When this fails, a diverged run burns its whole budget, or a user reads a traceback. beta = 1e38 leaves the first
    loss at ln 2 and its gradient beyond float32."""
    limits = ["objective.beta=1e38", "train.max_skipped_steps=3"]
    assert tiny.rapo(*world.train(tmp_path / "run", *limits)) == runs.USER_ERROR
    said = capsys.readouterr()
    assert said.out.count("the update was skipped") == 3 and said.out.count("its rows: ") == 3
    assert "3 steps in a row up to step 3 had no finite gradient" in said.err
    assert "optimizer.learning_rate" in said.err and "Traceback" not in said.err


def test_a_run_without_any_update_is_never_complete_however_often_it_is_started(world, tmp_path, capsys):
    """When this fails, a user who repeats the command after "no finite gradient" is told that the run is complete, and
    exports the model that it started from."""
    diverged = world.train(tmp_path / "run", "objective.beta=1e38", "train.save_every=1", "train.eval_every=null")
    for _ in range(3):
        assert tiny.rapo(*diverged, "train.max_skipped_steps=3") == runs.USER_ERROR
        assert "3 steps in a row up to step 3 had no finite gradient" in capsys.readouterr().err
    assert runs.steps_of(tmp_path / "run") == [1, 2]
    short = world.train(tmp_path / "short", "objective.beta=1e38", "train.max_steps=2", "train.eval_every=null")
    for _ in range(2):
        assert tiny.rapo(*short) == runs.USER_ERROR
        assert "none of the 2 steps had a finite gradient" in capsys.readouterr().err
    assert [line["skipped_steps"] for line in runs.metrics_of(tmp_path / "short")] == [1, 2]
