"""A response's log-probability depends on its prompt and itself: not on its row, its siblings or its neighbours."""

import functools
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from rapo_jax.models.attention.dispatch import KERNELS
from rapo_jax.models.attention.gpu import attend_triton
from rapo_jax.models.attention.tpu import attend_splash
from tests import tiny

# The kernels of TPU and GPU, step by step on this processor.
INTERPRETED = {"splash": partial(attend_splash, interpret=True), "triton": partial(attend_triton, interpret=True)}
GROUPS = tiny.random_groups(7)
WEIGHTS_GC = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)


@pytest.fixture(params=["llama3", "mistral-v0.1-window", "gemma2"])
def spec(request):
    return tiny.tiny_spec(request.param)


@pytest.fixture(params=["einsum", "tiles", "splash", "triton"])
def kernel(request, monkeypatch):
    """A kernel, with all others but the one for plain sequences taken away."""

    def refuse(*_, **__):
        raise AssertionError("another kernel was called")

    for name in KERNELS:
        attend = INTERPRETED.get(name, KERNELS[name].attend) if name in (request.param, "einsum") else refuse
        monkeypatch.setitem(KERNELS, name, replace(KERNELS[name], attend=attend))
    return request.param


def value_and_gradient(logps, parameters, *inputs):
    """The log-probabilities [group, response], and the gradient of a random combination of them."""

    def combination(parameters, *inputs):
        logps_GC = logps(parameters, *inputs)
        return (logps_GC * WEIGHTS_GC).sum(), logps_GC

    gradient, logps_GC = jax.jit(jax.grad(combination, has_aux=True))(parameters, *inputs)
    return logps_GC, gradient


@functools.cache
def plain_value_and_gradient(spec):
    """By definition: from plain sequences."""
    logps = functools.partial(tiny.plain_logps, spec)
    return value_and_gradient(logps, tiny.random_parameters(spec), *tiny.plain_sequences(GROUPS))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [tiny.packed, tiny.one_group_a_row], ids=["packed", "one group a row"])
def test_rows_agree_with_plain_sequences_in_value_and_gradient(layout, spec, kernel):
    """When this fails, the loss depends on what shares a row, or a shared prompt is not the prompt repeated for each
    response: every reported number is wrong in a way that no curve shows."""
    rows, shape = layout(GROUPS, row_length=256)
    logps_GC, gradient = value_and_gradient(
        lambda parameters, batch: tiny.by_group(tiny.branch_logps(spec, parameters, batch, kernel=kernel), rows),
        tiny.random_parameters(spec),
        tiny.microbatch(GROUPS, rows, shape),
    )
    plain_GC, plain_gradient = plain_value_and_gradient(spec)
    assert np.abs(plain_GC).min() > 5
    np.testing.assert_allclose(logps_GC, plain_GC, rtol=2e-6, atol=2e-5)
    largest = jax.tree.map(lambda x: np.abs(x).max(), plain_gradient)
    assert min(jax.tree.leaves(largest)) > 1e-2
    in_units_of_the_largest = lambda tree: jax.tree.map(lambda x, scale: x / scale, tree, largest)  # noqa: E731
    tiny.assert_same_trees(in_units_of_the_largest(gradient), in_units_of_the_largest(plain_gradient), atol=2e-5)


def test_a_siblings_tokens_and_another_groups_tokens_never_change_a_response(spec, kernel):
    """When this fails, a response is scored with knowledge of the answer it competes with. Bit for bit, because a
    leak of any size is a leak."""
    rows, shape = tiny.packed(GROUPS, row_length=256)
    first = GROUPS[0]
    changed = [replace(first, responses=((first.responses[0] + 1) % tiny.V, first.responses[1])), *GROUPS[1:]]
    logps = jax.jit(functools.partial(tiny.branch_logps, spec, kernel=kernel))
    before, after = (
        tiny.by_group(np.asarray(logps(tiny.random_parameters(spec), tiny.microbatch(g, rows, shape))), rows)
        for g in (GROUPS, changed)
    )
    only_its_own = np.zeros((7, 2), bool)
    only_its_own[0, 0] = True
    assert any(0 in row and len(row) > 1 for row in rows)
    np.testing.assert_array_equal(before != after, only_its_own)
