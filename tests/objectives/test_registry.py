"""The registry: options are read off signatures, and a loss from outside the package works from a file to a gradient."""

import inspect
import re
from dataclasses import replace
from typing import Annotated

import jax
import numpy as np
import pytest
import yaml

from rapo_jax.batch import CHOSEN_SIDE
from rapo_jax.config.files import as_dict, from_dict, load_config, to_yaml
from rapo_jax.errors import UserError
from rapo_jax.intervals import POSITIVE, Interval
from rapo_jax.objectives import AMBIGUOUS, OBJECTIVES, LossSpec, register
from rapo_jax.objectives.options import options_of, papers_of, title_of
from tests import tiny


def reach(
    logps,
    *,
    target: Annotated[float, POSITIVE, "the log-ratio margin to reach"] = 2.0,
    absolute: Annotated[bool, "by absolute in place of squared distance"] = False,
):
    """Regression of the margin on a target.

    Args:
        target: > 0.
        absolute: absolute errors.

    References:
        A test, 2026.
    """
    error = logps.margin - target
    return abs(error) if absolute else error**2


@pytest.fixture
def outsider():
    """A loss with options that is registered as a user of the package registers it."""
    register("reach", LossSpec(reach))
    yield
    del OBJECTIVES["reach"]


def test_options_are_the_keyword_arguments_with_type_range_default_and_meaning():
    smoothing = OBJECTIVES["dpo"].options["label_smoothing"]
    assert (smoothing.type, smoothing.default, str(smoothing.allowed)) == (float, 0.0, "[0, 0.5)")
    assert smoothing.meaning == "share of preferences assumed to be flipped"
    assert {name: option.default for name, option in OBJECTIVES["dpo_shift"].options.items()} == {
        "beta": 0.1,
        "shift": 0.95,
        "shift_end": None,
    }
    assert OBJECTIVES["sft"].options == {}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_loss_is_documented_where_it_is_defined(name):
    """When this fails, `rapo keys objective.NAME` shows an option without a meaning, or a loss without its paper."""
    spec = OBJECTIVES[name]
    text = inspect.getdoc(spec.loss)
    said = re.findall(r"^    (\w+): ", text.partition("References:")[0].partition("Args:")[2], re.MULTILINE)
    assert said in ([], ["logps", *spec.options]) and bool(said) == bool(spec.options)
    assert title_of(spec.loss).endswith(".") and re.search(r"(19|20)\d\d|Direct Reward", papers_of(spec.loss))
    for option in spec.options.values():
        assert option.default is None or option.allowed is None or option.default in option.allowed


def bare(logps, *, beta=0.1):
    return logps.margin


def unbounded(logps, *, beta: Annotated[float, "strength"] = 0.1):
    return logps.margin


def outside(logps, *, beta: Annotated[float, Interval(0, 1), "strength"] = 2.0):
    return logps.margin


def reserved(logps, *, weight: Annotated[float, POSITIVE, "strength"] = 2.0):
    return logps.margin


@pytest.mark.parametrize(
    ("name", "loss", "fault"),
    [
        ("mine", bare, "beta must be annotated"),
        ("mine", unbounded, "beta must be annotated"),
        ("mine", outside, r"the default beta=2.0 must lie in \[0, 1\]"),
        ("mine", reserved, "'weight' is a key of every objective"),
        ("dpo", reach, "'dpo' exists"),
        ("rpo", reach, "'rpo' exists or is ambiguous"),
    ],
)
def test_a_loss_that_does_not_describe_itself_is_not_registered(name, loss, fault):
    before = dict(OBJECTIVES)
    with pytest.raises(ValueError, match=fault):
        register(name, LossSpec(loss))
    assert before == OBJECTIVES


def test_a_loss_from_outside_is_configured_like_any_other(outsider, tmp_path):
    """When this fails, whoever adds an objective has to change the configuration as well."""
    path = tmp_path / "run.yaml"
    path.write_text("objective: {name: reach, target: 3, plus: [{name: sft, weight: 0.5}]}")
    config = load_config(path, ["objective.absolute=true"])
    assert config.objective.options == {"target": 3.0, "absolute": True}
    assert from_dict(as_dict(config)) == config == from_dict(yaml.safe_load(to_yaml(config)))
    for override, message in {
        "objective.target=-1": "objective.target=-1.0 must be positive and finite.",
        "objective.targt=1": "unknown key objective.targt; did you mean objective.target?",
        "objective.beta=1": "objective.name=reach does not read objective.beta=1.0; remove it or set it to null "
        "(it reads target, absolute).",
        "objective.absolute=1": "objective.absolute=1: expected true or false.",
    }.items():
        with pytest.raises(UserError) as caught:
            load_config(path, [override])
        assert str(caught.value) == message


def test_a_loss_from_outside_trains(outsider):
    """When this fails, only losses that the step knows by name can be trained."""
    groups = [replace(group, side=CHOSEN_SIDE) for group in tiny.random_groups(4)]
    config = tiny.tiny_config(train={"batch_size": 4}, optimizer={"learning_rate": 1e-3})
    objective = from_dict({"objective": {"name": "reach", "target": 0.5}}).objective
    config, spec = replace(config, objective=objective), tiny.tiny_spec("llama3")
    trained = tiny.train_steps(config, spec, tiny.mesh_of(1, 1, 1), groups, num_steps=2, row_length=128)
    first, second = (metrics["loss"] for metrics in trained.metrics)
    assert np.isfinite(first) and second < first
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.state.parameters))


def test_an_unregistered_loss_leaves_nothing_behind():
    assert "reach" not in OBJECTIVES and "reach" not in AMBIGUOUS
    assert options_of(reach)["target"].default == 2.0
