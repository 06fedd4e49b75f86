"""The cached reference is the resident one, is computed once, and is never mistaken for another."""

import json
import signal

import numpy as np
import pytest

from rapo_jax.passes import forward_pass
from rapo_jax.passes.column import Column
from rapo_jax.runs import setup as opening
from rapo_jax.train.reference import resident_reference
from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def filled(world, tmp_path_factory):
    """A cache, and the run that filled it."""
    place = tmp_path_factory.mktemp("filled")
    assert tiny.rapo(*world.train(place / "run", f"reference.cache={place / 'cache'}")) == runs.DONE
    return place


@pytest.fixture
def forbidden(monkeypatch):
    """No pass of the reference may start."""

    def refuse(*_, **__):
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr("rapo_jax.passes.forward_pass.run_pass", refuse)


def test_a_run_with_the_cache_has_the_metrics_of_one_that_computes_the_reference_in_every_step(filled, undisturbed):
    """When this fails, a sweep on cached log-probabilities is compared with something else than its reference."""
    runs.assert_same_metrics(filled / "run", undisturbed, exact_ties=False)


def test_a_run_with_the_cache_holds_no_reference_weights(filled, monkeypatch):
    """When this fails, the cache saves no memory."""
    config = opening.open_run_dir(filled / "run")
    setup = opening.set_up(config)
    assert resident_reference(opening.starting_parameters(setup), config, setup.spec, setup.mesh) == {}


def test_sweeps_over_beta_and_learning_rate_share_the_cache(filled, world, tmp_path, forbidden):
    """When this fails, every run of a sweep pays for the same forward pass."""
    changes = ["objective.beta=0.3", "optimizer.learning_rate=1e-4", "seed=0", "train.batch_size=4"]
    cache = f"reference.cache={filled / 'cache'}"
    assert tiny.rapo(*world.train(tmp_path / "run", cache, *changes, "train.max_steps=2")) == runs.DONE


def test_an_interrupted_pass_goes_on_where_it_stopped(world, filled, tmp_path, monkeypatch, capsys):
    """When this fails, a preemption during the pass over 61k pairs starts it from the beginning, or a cache inside run_dir is
    taken for something else than a run."""
    cache, computed = tmp_path / "run" / "cache", []
    write = Column.write

    def write_and_count(column, members, logps):
        write(column, members, logps)
        computed.extend(members)

    monkeypatch.setattr(Column, "write", write_and_count)
    monkeypatch.setattr("rapo_jax.passes.forward_pass.WRITE_EVERY", 0.0)
    make = forward_pass.make_logps_step

    def stop_after_two_calls(*arguments):
        step, calls = make(*arguments), []

        def counted(*inputs):
            calls.append(1)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGTERM)
            return step(*inputs)

        return counted

    arguments = world.train(
        tmp_path / "run", f"reference.cache={cache}", "rows.per_shard=1", "mesh.fsdp=1", "mesh.tensor=8"
    )
    monkeypatch.setattr("rapo_jax.passes.forward_pass.make_logps_step", stop_after_two_calls)
    assert tiny.rapo(*arguments) == runs.INTERRUPTED
    assert "what was computed is kept" in capsys.readouterr().out
    first = len(computed)
    assert 0 < first < len(np.load(filled / "cache" / "train.npy"))
    monkeypatch.setattr("rapo_jax.passes.forward_pass.make_logps_step", make)
    assert tiny.rapo(*arguments) == runs.DONE
    in_evaluations = sum(len(np.load(cache / f"{name}.npy")) for name in ("eval", "eval_plain"))
    in_training = computed[: len(computed) - in_evaluations]
    assert len(in_training) == len(set(in_training)) and len(computed) > first
    np.testing.assert_allclose(np.load(cache / "train.npy"), np.load(filled / "cache" / "train.npy"), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("relabel.template=released_code", "relabel.template ('paper' -> 'released_code')"),
        ("model.random_init=true", "the model ("),
        ("data.max_length=100 data.max_prompt_length=60", "data.max_length (1024 -> 100)"),
        ("model.dtype=bfloat16", "model.dtype ('float32' -> 'bfloat16')"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(change, named, filled, world, tmp_path, capsys, forbidden):
    """When this fails, a policy is compared with the log-probabilities of another model, or of other texts."""
    before = (filled / "cache" / "train.npy").read_bytes()
    cache = f"reference.cache={filled / 'cache'}"
    assert tiny.rapo(*world.train(tmp_path / "run", cache, *change.split())) == runs.USER_ERROR
    message = capsys.readouterr().err
    assert f"reference.cache={filled / 'cache'} holds log-probabilities of something else; changed: " in message
    assert named in message and "Choose another reference.cache" in message and "Traceback" not in message
    assert (filled / "cache" / "train.npy").read_bytes() == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut file", "no file"])
def test_a_damaged_cache_is_computed_again(damage, filled, world, tmp_path):
    """When this fails, one flipped bit on a disk moves a gradient, unseen."""
    numbers, record = ((filled / "cache" / f"train.{kind}") for kind in ("npy", "json"))
    whole, complete = numbers.read_bytes(), record.read_text()
    column = Column(
        filled / "cache", "train", shape=np.load(numbers).shape, identity=json.loads(record.read_text())["identity"]
    )
    assert not column.is_damaged()
    if damage == "no file":
        numbers.unlink()
    else:
        numbers.write_bytes(whole[:-5] if damage == "a cut file" else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    try:
        assert column.is_damaged()
        column.open()
        assert np.isnan(column.values).all() and column.values.shape == column.shape
    finally:
        numbers.write_bytes(whole)
        record.write_text(complete)


def test_a_flipped_bit_in_a_column_that_is_not_complete_costs_one_group(tmp_path):
    """When this fails, a cache of all groups but one has no checksum, and a flipped bit moves a gradient, unseen."""
    column = Column(tmp_path, "train", shape=(5, 2), identity={})
    column.open()
    column.write(np.array([0, 1, 3]), np.arange(6, dtype=np.float32).reshape(3, 2))
    del column.values, column.crcs
    content = bytearray((tmp_path / "train.npy").read_bytes())
    content[-3 * 8 - 1] ^= 1  # in group 1 of 5, whose two numbers are 8 bytes
    (tmp_path / "train.npy").write_bytes(content)
    again = Column(tmp_path, "train", shape=(5, 2), identity={})
    again.open()
    assert np.isnan(again.values).all(1).tolist() == [False, True, True, False, True]
    (tmp_path / "train.crc.npy").unlink()  # as an earlier version left it
    column.open()
    assert np.isnan(column.values).all(1).tolist() == [False, True, True, False, True]


def test_an_objective_without_a_reference_refuses_a_cache(world, tmp_path, capsys):
    """When this fails, reference.cache is an option that nothing reads."""
    assert (
        tiny.rapo(
            *world.train(
                tmp_path / "run", "reference.cache=x", "objective.name=sft", "objective.beta=null", "relabel.goals=[]"
            )
        )
        == 2
    )
    assert "objective.name=sft has no reference; remove reference.cache" in capsys.readouterr().err
