"""A run that finds its tokens is the run that makes them."""

import json

import pytest

from rapo_jax.cli import CRASHED
from rapo_jax.runs import setup
from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


@pytest.fixture
def forbid(monkeypatch):
    """From its call on, nothing may be tokenized."""

    def refuse(*_, **__):
        raise AssertionError("tokenized again")

    return lambda: monkeypatch.setattr("rapo_jax.batching.pipeline.encode_all", refuse)


def test_runs_that_share_tokens_are_those_that_tokenize(world, undisturbed, tmp_path, forbid, capsys):
    """When this fails, the second run of a sweep trains on, or reports, something else than the first would have."""
    cache = f"data.cache={tmp_path / 'tokens'}"
    assert tiny.rapo(*world.train(tmp_path / "first", cache, "train.max_steps=2")) == runs.DONE
    assert "kept for later starts in" in capsys.readouterr().out
    forbid()
    assert tiny.rapo(*world.train(tmp_path / "second", cache)) == runs.DONE
    said = capsys.readouterr().out
    assert [said.count(f"found in {tmp_path / 'tokens' / kind}-") for kind in ("train", "eval", "eval_plain")] == [
        1,
        1,
        1,
    ]
    runs.assert_same_run(tmp_path / "second", undisturbed)
    reports = [(run / "data_report.json").read_text() for run in (tmp_path / "second", undisturbed)]
    assert reports[0] == reports[1]
    assert (tmp_path / "second" / "data_report.png").exists()


def test_a_run_that_is_interrupted_finds_the_tokens_in_its_directory(world, undisturbed, tmp_path, forbid, monkeypatch):
    """When this fails, a preempted run tokenizes all its data again, or takes its own directory for something else."""
    monkeypatch.setattr(setup, "KEPT_FROM", 0)
    arguments = world.train(tmp_path / "run")
    assert tiny.rapo_until(3, arguments) == runs.INTERRUPTED
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "run" / "tokens").iterdir()) == [
        "eval",
        "eval_plain",
        "train",
    ]
    forbid()
    assert tiny.rapo(*arguments) == runs.DONE
    runs.assert_same_run(tmp_path / "run", undisturbed)


def test_a_directory_with_tokens_alone_is_not_foreign(world, tmp_path, monkeypatch, capsys):
    """When this fails, a run that was killed while it loaded its model cannot be started again."""
    monkeypatch.setattr(setup, "KEPT_FROM", 0)
    arguments = world.train(tmp_path / "run", "train.max_steps=2")
    with monkeypatch.context() as dying:
        dying.setattr("rapo_jax.runs.train.starting_parameters", lambda setup: 1 / 0)
        assert tiny.rapo(*arguments) == CRASHED
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokens"]
    assert tiny.rapo(*arguments) == runs.DONE


def test_little_data_and_an_empty_key_keep_nothing(undisturbed, world, tmp_path, monkeypatch):
    assert not (undisturbed / "tokens").exists()
    monkeypatch.setattr(setup, "KEPT_FROM", 0)
    assert tiny.rapo(*world.train(tmp_path / "run", "data.cache=", "train.max_steps=1")) == runs.DONE
    assert not (tmp_path / "run" / "tokens").exists()
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["train"]["rows_read"]
