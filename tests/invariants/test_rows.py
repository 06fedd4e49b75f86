"""A response's log-probability depends on its prompt and itself: not on its row, its siblings or its neighbours."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from rapo_jax.models import attention
from rapo_jax.models.block_attention import TILE
from tests.invariants import tiny

ROW_LENGTH = {"attend_einsum": 200, "attend_tiles": 256}
EINSUM = attention.attend_einsum


@pytest.fixture(params=["llama3", "mistral-v0.1-window", "gemma2"])
def spec(request):
    return tiny.tiny_spec(request.param)


@pytest.fixture(params=ROW_LENGTH)
def row_length(request, monkeypatch):
    """A row length for which one of the kernels serves, with the other one taken away."""
    length = ROW_LENGTH[request.param]
    (other,) = ROW_LENGTH.keys() - {request.param}
    assert (length % TILE == 0) == (request.param == "attend_tiles")

    def refuse(*_, **__):
        raise AssertionError(f"{other} was called for rows of {length}")

    monkeypatch.setattr(attention, other, refuse)
    return length


def test_packed_rows_and_one_group_a_row_and_plain_sequences_agree_in_value_and_gradient(spec, row_length):
    """When this fails, the loss depends on who shares a row, or a shared prompt is not the prompt repeated: every
    reported number is wrong in a way no curve shows."""
    groups = tiny.random_groups(7)
    parameters = tiny.random_parameters(spec)
    weights_GC = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)

    def weighted(logps, *inputs):
        """The gradient of a random combination of all log-probabilities, and these."""

        def combination(parameters, *inputs):
            logps_GC = logps(parameters, *inputs)
            return (logps_GC * weights_GC).sum(), logps_GC

        return jax.jit(jax.grad(combination, has_aux=True))(parameters, *inputs)

    with pytest.MonkeyPatch.context() as patch:  # plain sequences are no multiple of a tile
        patch.setattr(attention, "attend_einsum", EINSUM)
        plain_gradient, plain_GC = weighted(partial(tiny.plain_logps, spec), *tiny.plain_sequences(groups))
    assert np.abs(plain_GC).min() > 5
    for layout in (tiny.packed, tiny.one_group_a_row):
        rows, shape = layout(groups, row_length=row_length)
        batch = tiny.microbatch(groups, rows, shape)
        gradient, logps_GC = weighted(
            lambda parameters, batch, rows=rows: tiny.by_group(tiny.branch_logps(spec, parameters, batch), rows), batch
        )
        np.testing.assert_allclose(logps_GC, plain_GC, rtol=2e-6, atol=2e-5, err_msg=layout.__name__)
        largest = jax.tree.map(lambda x: np.abs(x).max(), plain_gradient)
        assert min(jax.tree.leaves(largest)) > 1e-2
        normed = [jax.tree.map(lambda x, scale: x / scale, tree, largest) for tree in (gradient, plain_gradient)]
        tiny.assert_same_trees(*normed, atol=2e-5)


def test_a_siblings_tokens_and_another_groups_tokens_never_change_a_response(spec, row_length):
    """When this fails, a response is scored with knowledge of the answer it competes with. Bit for bit, because a
    leak of any size is a leak."""
    groups = tiny.random_groups(7)
    rows, shape = tiny.packed(groups, row_length=row_length)
    first = groups[0]
    changed = [replace(first, responses=((first.responses[0] + 1) % tiny.V, first.responses[1])), *groups[1:]]
    logps = jax.jit(partial(tiny.branch_logps, spec))
    before, after = (
        tiny.by_group(np.asarray(logps(tiny.random_parameters(spec), tiny.microbatch(g, rows, shape))), rows)
        for g in (groups, changed)
    )
    only_its_own = np.zeros((7, 2), bool)
    only_its_own[0, 0] = True
    assert any(0 in row and len(row) > 1 for row in rows)
    np.testing.assert_array_equal(before != after, only_its_own)
