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

CHUNK = 16_384  # vocabulary entries at a time, over all shards
CHUNK_IN_CACHE = 1024  # the same for a processor whose caches are small and whose loops cost nothing


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
    no chunk has to be fetched from one device. Matrix products run in hidden's dtype and accumulate in float32; the
    gradient of the weight keeps the float32 sums.
    """
    num_chunks = max(1, -(-weight_VD.shape[0] // max(chunk, num_shards)))
    hidden_XD, targets_X = hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), targets_BS.reshape(-1)
    return _token_logps(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks).reshape(targets_BS.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _token_logps(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks):
    return _forward(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks)[0]


def _chunks(weight_VD: Array, num_shards: int, num_chunks: int) -> tuple[Array, Array]:
    """Vocabulary in chunks: weights [num_chunks, R, c / R, D] and ids [num_chunks, c]; ids >= V are padding.

    With V = 8, R = 2 shards and two chunks, chunk 0 holds ids 0 1 | 4 5 and chunk 1 holds 2 3 | 6 7.
    """
    V, D = weight_VD.shape
    size = -(-V // (num_shards * num_chunks))
    padded = num_shards * num_chunks * size
    weight = jnp.pad(weight_VD, ((0, padded - V), (0, 0))) if padded > V else weight_VD
    shape = (num_shards, num_chunks, size)
    ids = jnp.arange(padded, dtype=jnp.int32).reshape(shape)
    return weight.reshape(*shape, D).swapaxes(0, 1), ids.swapaxes(0, 1).reshape(num_chunks, -1)


def _chunk_logits(
    hidden_XD: Array, weight_cD: Array, ids_c: Array, *, softcap: float | None, V: int, padded: int
) -> Array:
    logits = jnp.einsum("XD,cD->Xc", hidden_XD, weight_cD, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return logits if padded == V else jnp.where(ids_c < V, logits, -jnp.inf)


def _forward(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks):
    V, D = weight_VD.shape

    def step(carry, chunk):
        top_X, total_X, target_X = carry
        weight_cD, ids_c = chunk[0].astype(hidden_XD.dtype).reshape(-1, D), chunk[1]
        logits_Xc = _chunk_logits(hidden_XD, weight_cD, ids_c, softcap=softcap, V=V, padded=num_chunks * ids_c.size)
        new_top_X = jnp.maximum(top_X, logits_Xc.max(-1))
        total_X = total_X * jnp.exp(top_X - new_top_X)
        total_X += jnp.exp(logits_Xc - new_top_X[:, None]).sum(-1)
        is_target = ids_c == targets_X[:, None]
        target_X += jnp.where(is_target, logits_Xc, 0.0).sum(-1)
        return (new_top_X, total_X, target_X), None

    zeros_X = jnp.zeros(targets_X.shape, jnp.float32)
    start = (jnp.full_like(zeros_X, jnp.finfo(jnp.float32).min), zeros_X, zeros_X)
    (top_X, total_X, target_X), _ = jax.lax.scan(step, start, _chunks(weight_VD, num_shards, num_chunks))
    normalizer_X = top_X + jnp.log(total_X)
    return target_X - normalizer_X, (hidden_XD, weight_VD, targets_X, normalizer_X)


def _backward(softcap, num_shards, num_chunks, residuals, cotangent_X):
    hidden_XD, weight_VD, targets_X, normalizer_X = residuals
    V, D = weight_VD.shape

    def step(hidden_gradient_XD, chunk):
        weight_cD, ids_c = chunk[0].astype(hidden_XD.dtype).reshape(-1, D), chunk[1]
        logits_Xc = _chunk_logits(hidden_XD, weight_cD, ids_c, softcap=softcap, V=V, padded=num_chunks * ids_c.size)
        probability_Xc = jnp.exp(logits_Xc - normalizer_X[:, None])
        is_target = ids_c == targets_X[:, None]
        gradient_Xc = cotangent_X[:, None] * (is_target.astype(jnp.float32) - probability_Xc)
        if softcap is not None:
            slope = 1 - (logits_Xc / softcap) ** 2
            gradient_Xc *= jnp.where(ids_c < V, slope, 0.0)
        gradient_Xc = gradient_Xc.astype(hidden_XD.dtype)
        accumulate = {"preferred_element_type": jnp.float32}
        hidden_gradient_XD += jnp.einsum("Xc,cD->XD", gradient_Xc, weight_cD, **accumulate)
        weight_gradient_Dc = jnp.einsum("XD,Xc->Dc", hidden_XD, gradient_Xc, **accumulate)
        return hidden_gradient_XD, weight_gradient_Dc.T.reshape(chunk[0].shape).astype(weight_VD.dtype)

    start = jnp.zeros(hidden_XD.shape, jnp.float32)
    hidden_gradient_XD, weight_gradient = jax.lax.scan(step, start, _chunks(weight_VD, num_shards, num_chunks))
    weight_gradient_VD = weight_gradient.swapaxes(0, 1).reshape(-1, D)[:V]
    return hidden_gradient_XD.astype(hidden_XD.dtype), weight_gradient_VD, None


_token_logps.defvjp(_forward, _backward)
