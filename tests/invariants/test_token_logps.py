"""Chunked log-probabilities are log_softmax, in value and gradient, however the vocabulary is cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rapo_jax.logprobs import number_of_chunks, token_logps

B, S, D = 2, 5, 16


def by_the_book(hidden_BSD, weight_VD, targets_BS, *, softcap):
    logits_BSV = jnp.einsum("BSD,VD->BSV", hidden_BSD, weight_VD)
    if softcap is not None:
        logits_BSV = softcap * jnp.tanh(logits_BSV / softcap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), targets_BS[..., None], axis=-1)[..., 0]


def inputs(V, *, scale=1.0):
    random = np.random.default_rng(V)
    hidden_BSD = (scale * random.normal(size=(B, S, D))).astype(np.float32)
    targets_BS = random.integers(0, V, (B, S)).astype(np.int32)
    targets_BS[0, :2] = 0, V - 1  # the ends of the first and the last chunk
    return tuple(map(jnp.asarray, (hidden_BSD, random.normal(size=(V, D)).astype(np.float32), targets_BS)))


@pytest.mark.parametrize(("softcap", "keep"), [(None, False), (None, True), (3.0, False)])
@pytest.mark.parametrize(
    ("V", "chunk", "num_shards"), [(103, 16, 1), (103, 16, 3), (104, 30, 4), (96, 7, 8), (103, 4096, 1), (97, 1, 1)]
)
def test_chunks_agree_with_log_softmax_in_value_and_gradient(V, chunk, num_shards, softcap, keep):
    """When this fails, every objective is wrong where no chunk size divides the vocabulary, or a mesh shards it."""
    hidden_BSD, weight_VD, targets_BS = inputs(V)
    cotangent_BS = np.random.default_rng(1).normal(size=(B, S)).astype(np.float32)

    def value_and_gradients(function):
        logps_BS, pull_back = jax.vjp(lambda h, w: function(h, w, targets_BS, softcap=softcap), hidden_BSD, weight_VD)
        return logps_BS, *pull_back(cotangent_BS)

    options = {"chunk": chunk, "num_shards": num_shards, "keep": keep}
    chunked = jax.jit(partial(token_logps, **options), static_argnames="softcap")
    for a, b in zip(value_and_gradients(chunked), value_and_gradients(by_the_book), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("softcap", "keep"), [(None, False), (None, True), (3.0, False)])
def test_gradients_agree_with_finite_differences(softcap, keep):
    """When this fails, the hand-written backward pass is not the derivative of the forward pass."""
    hidden_BSD, weight_VD, targets_BS = inputs(19, scale=0.5)
    function = partial(token_logps, softcap=softcap, chunk=8, keep=keep)
    with jax.enable_x64(True):
        check_grads(  # passes NumPy arrays for its finite differences
            lambda h, w: function(jnp.asarray(h), jnp.asarray(w), targets_BS),
            (hidden_BSD, weight_VD),
            order=1,
            modes=["rev"],
            eps=1e-2,
        )


def test_logits_of_a_hundred_thousand_stay_exact():
    """When this fails, a confident model gives NaN or 0 instead of its log-probability. With one-hot weights the logits
    are the hidden values themselves: the largest has log-probability 0, one that lies d below it has -d."""
    hidden_BSD = jnp.float32([[[1e5, -1e5, 0.0], [-1e5, -1e5, -1e5 + 1]]])
    for target, expected in [(0, [0.0, -1.0]), (1, [-2e5, -1.0]), (2, [-1e5, 0.0])]:
        targets_BS = jnp.full((1, 2), target, jnp.int32)
        logps_BS = token_logps(hidden_BSD, jnp.eye(3), targets_BS, chunk=2)
        log_sum = np.array([0.0, np.log1p(2 * np.exp(-1.0))])
        np.testing.assert_allclose(logps_BS[0], np.array(expected) - log_sum, rtol=1e-6, atol=1e-2)
        gradient = jax.grad(lambda h, t=targets_BS: token_logps(h, jnp.eye(3), t, chunk=2).sum())
        assert np.isfinite(gradient(hidden_BSD)).all()


def test_bfloat16_rounds_the_inputs_and_nothing_else():
    """When this fails, logits or the normalizer are held in bfloat16: with 3 significant digits a preference between
    two responses of a hundred tokens is noise."""
    hidden_BSD, weight_VD, targets_BS = inputs(103)
    half = jnp.asarray(hidden_BSD, jnp.bfloat16)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden_BSD, weight_VD)]
    logps_BS = token_logps(half, weight_VD, targets_BS, chunk=16)
    assert logps_BS.dtype == jnp.float32
    np.testing.assert_allclose(logps_BS, by_the_book(*rounded, targets_BS, softcap=None), atol=1e-5)


def test_keeping_exponentials_saves_a_product_and_costs_no_more_than_rounding():
    """When this fails, memory is spent and the logits are recomputed nevertheless, or what is kept are bfloat16 logits,
    with 3 significant digits, instead of their exponentials."""
    hidden_BSD, weight_VD, targets_BS = inputs(96, scale=4.0)
    half = jnp.asarray(hidden_BSD, jnp.bfloat16)

    def gradients(hidden, keep):
        return jax.grad(lambda h, w: token_logps(h, w, targets_BS, chunk=32, keep=keep).sum(), (0, 1))(
            hidden, weight_VD
        )

    products = [str(jax.make_jaxpr(partial(gradients, keep=keep))(half)).count("dot_general") for keep in (False, True)]
    assert products[0] - products[1] == 1
    rounded = jnp.asarray(half, jnp.float32)
    for kept, computed, true in zip(
        gradients(half, True), gradients(half, False), gradients(rounded, False), strict=True
    ):
        errors = [np.linalg.norm(np.asarray(x, np.float32) - true) / np.linalg.norm(true) for x in (kept, computed)]
        assert errors[0] < 1.5 * errors[1] + 1e-3, errors


def test_chunks_are_aligned_where_the_vocabulary_allows_it():
    """When this fails, products with the vocabulary are up to 15 % slower on CPUs, or are padded needlessly."""
    for V, chunk in [(16_000, 640), (128_256, 16_384), (32_000, 16_384), (152_064, 16_384)]:
        num = number_of_chunks(V, chunk, 1)
        assert V % (32 * num) == 0 and V / num <= chunk
    assert number_of_chunks(151_936, 16_384, 1) == 10  # 64 * 2374: no number near 10 divides it
    assert number_of_chunks(128_256, 16_384, 4) == 8  # a shard holds 32,064: 8 chunks take 4,008 of each
