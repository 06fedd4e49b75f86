"""A checkpoint that rotted on disk is noticed, set aside, and costs the steps since the one before it, nothing else."""

import gc
import shutil

import pytest

from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_many_bytes(path):
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 64):
        content[at] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
    path.unlink()


DAMAGES = [flip_a_byte, cut_in_half, delete]


@pytest.fixture(scope="module")
def interrupted(world, tmp_path_factory):
    """A run directory with checkpoints of steps 2, 4 and 5, of 10 steps."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    assert tiny.rapo_until(5, world.train(run_dir)) == runs.INTERRUPTED
    assert runs.steps_of(run_dir) == [2, 4, 5]
    return run_dir


@pytest.fixture
def run_dir(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "run")
    return tmp_path / "run"


def hurt(run_dir, step, damage):
    """Damages the largest file of a checkpoint's arrays."""
    files = [path for path in (run_dir / "checkpoints" / str(step) / "state").rglob("d/*") if path.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(
    damage, world, undisturbed, run_dir, capsys
):
    """When this fails, a run goes on from silently wrong weights, or refuses to start, or trains without ever saving
    again (orbax declines to save a step that is not newer than the newest it knows)."""
    hurt(run_dir, 5, damage)
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    assert "corrupt-5 is damaged and was set aside; going on from step 4" in capsys.readouterr().out
    assert (run_dir / "checkpoints" / "corrupt-5").is_dir()
    assert runs.steps_of(run_dir)[-3:] == [6, 8, 10]
    runs.assert_same_run(run_dir, undisturbed)


def test_a_step_that_is_damaged_a_second_time_is_set_aside_under_another_name(world, run_dir, capsys):
    """When this fails, a run on a bad disk refuses to start for ever: the name is taken."""
    (run_dir / "checkpoints" / "corrupt-5").mkdir()
    hurt(run_dir, 5, flip_a_byte)
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    assert "corrupt-5-2 is damaged and was set aside; going on from step 4" in capsys.readouterr().out


def test_two_damaged_checkpoints_cost_two(world, undisturbed, run_dir, caplog):
    """When this fails, only the newest checkpoint is ever doubted, or a damaged one prints a traceback for each of its arrays."""
    hurt(run_dir, 5, flip_many_bytes)
    hurt(run_dir, 4, delete)
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    gc.collect()
    assert [record.name for record in caplog.records] == ["rapo_jax.checkpoint"] * 2
    runs.assert_same_run(run_dir, undisturbed)


def test_nothing_but_damaged_checkpoints_is_said_and_nothing_is_touched(world, run_dir, capsys):
    """When this fails, a run whose disk died starts from nothing as if it were new and overwrites what could be saved."""
    steps, record = runs.steps_of(run_dir), (run_dir / "metrics.jsonl").read_bytes()
    for step in steps:
        hurt(run_dir, step, flip_a_byte)
    assert tiny.rapo(*world.train(run_dir)) == runs.USER_ERROR
    said = capsys.readouterr().err
    assert "no sound checkpoint" in said and "another run_dir" in said and "Traceback" not in said
    assert runs.steps_of(run_dir) == steps
    assert (run_dir / "metrics.jsonl").read_bytes() == record


def test_export_skips_a_damaged_checkpoint_and_moves_nothing(world, run_dir, tmp_path, capsys):
    """When this fails, wrong weights are published, or reading a run changes it under the hands of who writes it."""
    hurt(run_dir, 5, flip_many_bytes)  # in the parameters too: moments are not read, and may rot
    before = sorted(run_dir.rglob("*"))
    assert tiny.rapo("export", run_dir, tmp_path / "out") == runs.DONE
    assert "step 4 of" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert sorted(run_dir.rglob("*")) == before
