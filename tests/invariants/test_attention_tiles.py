"""The tiled kernel computes what the einsum computes, whatever the mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.models.attention import attend_einsum
from rapo_jax.models.block_attention import TILE, attend_tiles

B, N, K, H = 2, 4, 2, 16


def random_mask(random, T, S):
    """One key in twenty; whole tiles with nothing in them, others with a single key, so that each kind of tile occurs."""
    mask_BTS = random.random((B, T, S)) < 0.05
    empty = random.random((B, T // TILE, S // TILE)) < 0.4
    mask_BTS &= ~empty.repeat(TILE, axis=1).repeat(TILE, axis=2)
    mask_BTS[:, np.arange(T), random.integers(0, S, T)] = True  # every query sees some key
    return mask_BTS


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("T", "S"), [(256, 256), (384, 384), (128, 384)])
def test_tiles_agree_with_einsum_forward_and_backward_on_random_masks(T, S, softcap):
    """When this fails, training on CPU follows other gradients than training on accelerators."""
    random = np.random.default_rng(T + S)
    array = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    inputs = array(B, T, N, H), array(B, S, K, H), array(B, S, K, H)
    cotangent_BTNH, mask_BTS = array(B, T, N, H), random_mask(random, T, S)

    def value_and_gradients(kernel):
        function = jax.jit(partial(kernel, mask_BTS=mask_BTS, scale=0.5, softcap=softcap))
        out_BTNH, pull_back = jax.vjp(function, *inputs)
        return out_BTNH, *pull_back(cotangent_BTNH)

    names = ("out", "q gradient", "k gradient", "v gradient")
    tiles, einsum = value_and_gradients(attend_tiles), value_and_gradients(attend_einsum)
    for name, a, b in zip(names, tiles, einsum, strict=True):
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_tiles_keep_bfloat16_as_close_to_the_truth_as_einsum_does():
    """When this fails, long bfloat16 runs on CPU drift because scores or sums are rounded on the way."""
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(B, 256, heads, H)).astype(np.float32) for heads in (N, K, K))
    options = {"mask_BTS": random_mask(random, 256, 256), "scale": 0.25, "softcap": None}
    truth = attend_einsum(q, k, v, **options)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    tiles, einsum = (
        float(np.abs(np.asarray(jax.jit(partial(kernel, **options))(*halves), np.float32) - truth).max())
        for kernel in (attend_tiles, attend_einsum)
    )
    assert tiles <= 1.5 * einsum and einsum < 0.05
