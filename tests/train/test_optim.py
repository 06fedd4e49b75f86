"""The learning rate is transformers', the update is torch's, and clipping is by the global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from rapo_jax.config.tree import Optimizer
from rapo_jax.models.parameters import parameter_letters, pick, place, shape_of
from rapo_jax.models.spec import spec_from_config
from rapo_jax.train.optim import adamw, clip, learning_rate
from tests.tiny.families import OLMO2, QWEN2

SCHEDULES = {
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "linear": transformers.get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, _: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
}


def their_rates(schedule, *, peak, num_warmup, num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = SCHEDULES[schedule](optimizer, num_warmup, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("num_steps", "warmup_ratio", "num_warmup"), [(50, 0.1, 5), (47, 0.1, 5), (7, 0.0, 0), (1, 0.1, 1), (10, 1.0, 10)]
)
def test_the_rate_is_that_of_transformers_at_every_step(schedule, num_steps, warmup_ratio, num_warmup):
    """When this fails, a run "with the paper's settings" follows another schedule; an off-by-one shifts all of it."""
    rate = learning_rate(Optimizer(5e-7, warmup_ratio, schedule), num_steps=num_steps)
    ours = [float(rate(jnp.int32(step))) for step in range(num_steps)]
    theirs = their_rates(schedule, peak=5e-7, num_warmup=num_warmup, num_steps=num_steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * 5e-7)


def test_the_rate_climbs_from_zero_and_falls_to_zero():
    rate = learning_rate(Optimizer(1.0, 0.2, "linear"), num_steps=10)
    assert [round(float(rate(jnp.int32(s))), 3) for s in range(11)] == [
        0,
        0.5,
        1,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
        0,
    ]


def test_beyond_the_last_step_the_rate_stays_zero():
    """When this fails, a negative rate climbs the loss."""
    rate = learning_rate(Optimizer(1.0, 0.0, "linear"), num_steps=10)
    assert float(rate(jnp.int32(15))) == 0


def test_gradients_beyond_the_norm_are_scaled_down_to_it():
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    clipped = clip(gradients, jnp.float32(5.0), 1.0)
    assert clipped["a"].tolist() == pytest.approx([0.6])
    assert clipped["b"].tolist() == [pytest.approx([0.8])]


@pytest.mark.parametrize("max_norm", [5.0, 100.0, None])
def test_gradients_within_the_norm_are_left_alone(max_norm):
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    clipped = clip(gradients, jnp.float32(5.0), max_norm)
    assert (clipped["a"].tolist(), clipped["b"].tolist()) == ([3.0], [[4.0]])


def test_zero_gradients_are_clipped_to_zero_not_to_nan():
    assert clip({"a": jnp.zeros(2)}, jnp.float32(0.0), 1.0)["a"].tolist() == [0, 0]


def parameters_like(spec, seed):
    """A tree of random arrays with the shapes of the parameters."""
    random, tree = np.random.default_rng(seed), {}
    for path, letters in parameter_letters(spec).items():
        place(tree, path, jnp.asarray(random.normal(size=shape_of(spec, letters)), jnp.float32))
    return tree


@pytest.mark.parametrize(
    ("family", "weight_decay"), [(QWEN2, 0.0), (QWEN2, 0.3), (OLMO2, 0.3)], ids=["0", "0.3", "olmo2"]
)
def test_three_steps_are_those_of_torchs_adamw_and_norms_and_biases_do_not_decay(family, weight_decay):
    """When this fails, decay shrinks norms towards zero, or another epsilon or bias correction changes every run."""
    spec = spec_from_config(family)  # OLMo 2's norms of queries and keys have two dimensions
    config = Optimizer(weight_decay=weight_decay, b1=0.8, b2=0.95, eps=1e-6)
    ours, transform = parameters_like(spec, 0), adamw(config, spec)
    paths = list(parameter_letters(spec))
    theirs = {path: torch.nn.Parameter(torch.tensor(np.asarray(pick(ours, path)))) for path in paths}
    decays = [path for path in paths if "norm" not in path[-1] and not path[-1].endswith("bias")]
    assert 0 < len(decays) < len(paths)
    optimizer = torch.optim.AdamW(
        [
            {"params": [theirs[path] for path in decays], "weight_decay": weight_decay},
            {"params": [theirs[path] for path in paths if path not in decays], "weight_decay": 0.0},
        ],
        lr=0.1,
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    state, update = transform.init(ours), jax.jit(transform.update)
    for step in range(3):
        gradients = parameters_like(spec, step + 1)
        for path in paths:
            theirs[path].grad = torch.tensor(np.asarray(pick(gradients, path)))
        optimizer.step()
        updates, state = update(gradients, state, ours)
        ours = optax.apply_updates(ours, optax.tree.scale(-0.1, updates))
    for path in paths:
        np.testing.assert_allclose(pick(ours, path), theirs[path].detach().numpy(), atol=1e-5, err_msg=str(path))
