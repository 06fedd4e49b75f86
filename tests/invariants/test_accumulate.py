"""Gradients that are added to a total layer by layer are the true gradients, whatever the layers keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from rapo_jax.models.accumulate import accumulate_over_layers, kept

L, D = 3, 4
RANDOM = np.random.default_rng(0)
X, SHARED = (jnp.float32(RANDOM.normal(size=(2, D))) for _ in range(2))
WEIGHTS, TOTALS = ({"w": jnp.float32(RANDOM.normal(size=(L, D, D)))} for _ in range(2))
SCALES = jnp.float32([1.0, 2.0, 3.0])  # scanned beside the weights


def layer(x, weights, scale, shared):
    return jnp.sin(checkpoint_name(x @ weights["w"], "product") * scale + shared)


def remembering(*names):
    return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(*names), prevent_cse=False)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("function", [layer, remembering("product"), remembering()], ids=["all", "product", "nothing"])
def test_the_cotangent_of_a_total_is_the_total_plus_the_gradient(function, unrolled):
    """When this fails, microbatches after the first are lost or counted twice at some levels of remat.

    In float64: the two programs round differently, by more than one unit in the last place on some processors.
    """

    def joined(totals, x):
        return accumulate_over_layers(function, x, weights, totals, scales, shared, unrolled=unrolled).sum()

    def plain(weights, x):
        return jax.lax.scan(lambda x, each: (layer(x, *each, shared), None), x, (weights, scales))[0].sum()

    with jax.enable_x64(True):
        x, shared, weights, totals, scales = jax.tree.map(jnp.float64, (X, SHARED, WEIGHTS, TOTALS, SCALES))
        summed, d_x = jax.device_get(jax.jit(jax.grad(joined, argnums=(0, 1)))(totals, x))
        gradient, plain_d_x = jax.device_get(jax.jit(jax.grad(plain, argnums=(0, 1)))(weights, x))
    assert np.abs(gradient["w"]).max() > 0.1
    np.testing.assert_allclose(summed["w"], np.asarray(totals["w"]) + gradient["w"], atol=1e-12)
    np.testing.assert_allclose(d_x, plain_d_x, atol=1e-12)


@pytest.mark.parametrize(("names", "expected"), [((), []), (("product",), [(2, D)])])
def test_layers_stack_what_they_keep_but_no_inputs(names, expected):
    """When this fails, every layer stores a copy of its weights or of the mask, memory that no plan accounts for."""

    def shapes(x, weights, scale, shared):
        weights = {"w": weights}
        _, pull_back = jax.vjp(lambda x, w: remembering(*names)(x, w, scale, shared), x, weights)
        found.extend(leaf.shape for leaf in kept(pull_back, (x, weights, scale, shared)))
        return x

    found = []
    jax.eval_shape(partial(shapes, scale=jnp.float32(2.0), shared=SHARED), X, WEIGHTS["w"][0])
    assert found == expected


def test_unrolled_layers_keep_recomputation_apart_from_the_forward_pass():
    """When this fails, the compiler merges the recomputation in straight-line code with the forward pass, and remat
    saves nothing. (tests/plan/test_verb.py measures the memory where a GPU's compiler is installed.)"""

    def joined(totals, unrolled):
        return accumulate_over_layers(remembering(), X, WEIGHTS, totals, SCALES, SHARED, unrolled=unrolled).sum()

    barriers = [
        str(jax.make_jaxpr(jax.grad(partial(joined, unrolled=u)))(TOTALS)).count("barrier") for u in (False, True)
    ]
    assert barriers == [0, L]
