"""Log-probabilities of the tokens that are scored, without ever holding a [rows, positions, vocabulary] array.

The vocabulary is walked in chunks, forward and backward. The forward pass keeps one float32 logsumexp a position; the
backward pass recomputes each chunk's logits and turns them into gradients at once. Memory is positions * chunk, whatever
the size of the vocabulary (beyond the gradient of the vocabulary matrix itself).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

CHUNK = 4096  # vocabulary entries at a time, over all shards


def token_logps(
    hidden_BSD: Float[Array, "B S D"],
    weight_VD: Float[Array, "V D"],
    targets_BS: Int[Array, "B S"],
    *,
    softcap: float | None = None,
    num_shards: int = 1,
    chunk: int = CHUNK,
) -> Float[Array, "B S"]:
    """log softmax(softcap(hidden @ weight.T))[target], float32.

    `num_shards` is the number of pieces in which the mesh holds V; each chunk takes an equal part of every piece, so that
    no chunk has to be fetched from one device. Matrix products run in hidden's dtype and accumulate in float32.
    """
    num_chunks = max(1, -(-weight_VD.shape[0] // max(chunk, num_shards)))
    weight_VD = weight_VD.astype(hidden_BSD.dtype)
    return _token_logps(hidden_BSD, weight_VD, targets_BS, softcap, num_shards, num_chunks)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _token_logps(hidden_BSD, weight_VD, targets_BS, softcap, num_shards, num_chunks):
    return _forward(hidden_BSD, weight_VD, targets_BS, softcap, num_shards, num_chunks)[0]


def _chunks(weight_VD: Array, num_shards: int, num_chunks: int) -> tuple[Array, Array]:
    """Vocabulary in chunks: weights [num_chunks, R, c, D] and ids [num_chunks, R, c]; ids >= V are padding.

    With V = 8, two shards and two chunks, chunk 0 holds ids (0 1 | 4 5) and chunk 1 holds (2 3 | 6 7).
    """
    V, D = weight_VD.shape
    size = -(-V // (num_shards * num_chunks))
    padded = num_shards * num_chunks * size
    weight = jnp.pad(weight_VD, ((0, padded - V), (0, 0))) if padded > V else weight_VD
    shape = (num_shards, num_chunks, size)
    ids = jnp.arange(padded, dtype=jnp.int32).reshape(shape)
    return weight.reshape(*shape, D).swapaxes(0, 1), ids.swapaxes(0, 1)


def _chunk_logits(hidden_BSD: Array, weight_RcD: Array, ids_Rc: Array, *, softcap: float | None, V: int) -> Array:
    logits = jnp.einsum("BSD,RcD->BSRc", hidden_BSD, weight_RcD, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return jnp.where(ids_Rc < V, logits, -jnp.inf)


def _forward(hidden_BSD, weight_VD, targets_BS, softcap, num_shards, num_chunks):
    V = weight_VD.shape[0]

    def step(carry, chunk):
        top_BS, total_BS, target_BS = carry
        weight_RcD, ids_Rc = chunk
        logits_BSRc = _chunk_logits(hidden_BSD, weight_RcD, ids_Rc, softcap=softcap, V=V)
        new_top_BS = jnp.maximum(top_BS, logits_BSRc.max((-2, -1)))
        total_BS = total_BS * jnp.exp(top_BS - new_top_BS)
        total_BS += jnp.exp(logits_BSRc - new_top_BS[..., None, None]).sum((-2, -1))
        is_target = ids_Rc == targets_BS[..., None, None]
        target_BS += jnp.where(is_target, logits_BSRc, 0.0).sum((-2, -1))
        return (new_top_BS, total_BS, target_BS), None

    zeros_BS = jnp.zeros(targets_BS.shape, jnp.float32)
    start = (jnp.full_like(zeros_BS, jnp.finfo(jnp.float32).min), zeros_BS, zeros_BS)
    (top_BS, total_BS, target_BS), _ = jax.lax.scan(step, start, _chunks(weight_VD, num_shards, num_chunks))
    normalizer_BS = top_BS + jnp.log(total_BS)
    return target_BS - normalizer_BS, (hidden_BSD, weight_VD, targets_BS, normalizer_BS)


def _backward(softcap, num_shards, num_chunks, residuals, cotangent_BS):
    hidden_BSD, weight_VD, targets_BS, normalizer_BS = residuals
    V, D = weight_VD.shape

    def step(hidden_gradient_BSD, chunk):
        weight_RcD, ids_Rc = chunk
        logits_BSRc = _chunk_logits(hidden_BSD, weight_RcD, ids_Rc, softcap=softcap, V=V)
        probability_BSRc = jnp.exp(logits_BSRc - normalizer_BS[..., None, None])
        is_target = ids_Rc == targets_BS[..., None, None]
        gradient_BSRc = cotangent_BS[..., None, None] * (is_target.astype(jnp.float32) - probability_BSRc)
        if softcap is not None:
            slope = 1 - (logits_BSRc / softcap) ** 2
            gradient_BSRc *= jnp.where(ids_Rc < V, slope, 0.0)
        gradient_BSRc = gradient_BSRc.astype(hidden_BSD.dtype)
        accumulate = {"preferred_element_type": jnp.float32}
        hidden_gradient_BSD += jnp.einsum("BSRc,RcD->BSD", gradient_BSRc, weight_RcD, **accumulate)
        weight_gradient_RcD = jnp.einsum("BSRc,BSD->RcD", gradient_BSRc, hidden_BSD, **accumulate)
        return hidden_gradient_BSD, weight_gradient_RcD.astype(weight_VD.dtype)

    start = jnp.zeros(hidden_BSD.shape, jnp.float32)
    hidden_gradient_BSD, weight_gradient = jax.lax.scan(step, start, _chunks(weight_VD, num_shards, num_chunks))
    weight_gradient_VD = weight_gradient.swapaxes(0, 1).reshape(-1, D)[:V]
    return hidden_gradient_BSD.astype(hidden_BSD.dtype), weight_gradient_VD, None


_token_logps.defvjp(_forward, _backward)
