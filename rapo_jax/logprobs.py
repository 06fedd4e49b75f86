"""Log-probabilities of the scored tokens, computed over chunks of the vocabulary, forward and backward.

The forward pass keeps one float32 logsumexp per position; the backward pass recomputes each chunk's logits and turns them
into gradients at once. No array [positions, vocabulary] exists, so memory is positions * chunk for a vocabulary of any size
(besides the gradient of the vocabulary matrix). With enough memory, keep=True stores the logits in the dtype of the hidden
states: three products with the vocabulary matrix instead of four. Which tokens are scored is decided by the batch.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

CHUNK = 16_384  # vocabulary entries at a time, over all shards
CHUNK_IN_CACHE = 640  # the same on CPUs, whose caches are small and whose loops are cheap
ALIGNED = 32  # products whose width is a multiple of it are up to 15 % faster on CPUs


def token_logps(
    hidden_BSD: Float[Array, "B S D"],
    weight_VD: Float[Array, "V D"],
    targets_BS: Int[Array, "B S"],
    *,
    softcap: float | None = None,
    num_shards: int = 1,
    chunk: int = CHUNK,
    keep: bool = False,
) -> Float[Array, "B S"]:
    """log softmax(softcap(hidden @ weight.T))[target], float32.

    `num_shards` is the number of shards of V on the mesh; each chunk takes an equal part of every shard, so no chunk has to
    be gathered from one device. Matrix products run in hidden's dtype and accumulate in float32; the weight's gradient keeps
    the float32 sums. With `keep` the backward pass reads the logits' exponentials, stored in hidden's dtype, instead of
    recomputing the logits; not with a soft-cap, whose derivative needs the logits themselves.
    """
    assert softcap is None or not keep
    num_chunks = number_of_chunks(weight_VD.shape[0], chunk, num_shards)
    hidden_XD, targets_X = hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), targets_BS.reshape(-1)
    logps_X = cast(Array, _token_logps(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks, keep))
    return logps_X.reshape(targets_BS.shape)


def number_of_chunks(V: int, chunk: int, num_shards: int) -> int:
    """The smallest number of chunks of at most `chunk` entries, or a few more if those divide V evenly and are aligned.

    >>> number_of_chunks(16000, 640, 1), number_of_chunks(16000, 700, 1), number_of_chunks(103, 16, 1)
    (25, 25, 7)
    """
    fewest = max(1, -(-V // max(chunk, num_shards)))
    exact = (n for n in range(fewest, 2 * fewest) if V % (n * num_shards * ALIGNED) == 0)
    return next(exact, fewest)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _token_logps(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks, keep):
    return _forward(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks, keep=False)[0]


def _chunks(weight_VD: Array, num_shards: int, num_chunks: int) -> tuple[Array, Array]:
    """The vocabulary in chunks of c entries: weights [num_chunks, num_shards, c / num_shards, D] and ids [num_chunks, c].

    Ids >= V are padding. With V = 8, two shards and two chunks, chunk 0 holds ids 0 1 | 4 5 and chunk 1 holds 2 3 | 6 7.
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


def _forward(hidden_XD, weight_VD, targets_X, softcap, num_shards, num_chunks, keep):
    V, D = weight_VD.shape

    def step(carry, chunk):
        top_X, total_X, target_X = carry
        weight_cD, ids_c = chunk[0].astype(hidden_XD.dtype).reshape(-1, D), chunk[1]
        logits_Xc = _chunk_logits(hidden_XD, weight_cD, ids_c, softcap=softcap, V=V, padded=num_chunks * ids_c.size)
        new_top_X = jnp.maximum(top_X, logits_Xc.max(-1))
        exponential_Xc = jnp.exp(logits_Xc - new_top_X[:, None])
        total_X = total_X * jnp.exp(top_X - new_top_X) + exponential_Xc.sum(-1)
        is_target = ids_c == targets_X[:, None]
        target_X += jnp.where(is_target, logits_Xc, 0.0).sum(-1)
        kept = (exponential_Xc.astype(hidden_XD.dtype), new_top_X) if keep else None
        return (new_top_X, total_X, target_X), kept

    zeros_X = jnp.zeros(targets_X.shape, jnp.float32)
    start = (jnp.full_like(zeros_X, jnp.finfo(jnp.float32).min), zeros_X, zeros_X)
    (top_X, total_X, target_X), kept = jax.lax.scan(step, start, _chunks(weight_VD, num_shards, num_chunks))
    normalizer_X = top_X + jnp.log(total_X)
    return target_X - normalizer_X, (hidden_XD, weight_VD, targets_X, normalizer_X, kept)


def _backward(softcap, num_shards, num_chunks, keep, residuals, cotangent_X):
    hidden_XD, weight_VD, targets_X, normalizer_X, kept = residuals
    V, D = weight_VD.shape

    def step(hidden_gradient_XD, chunk):
        (weight, ids_c), kept = chunk
        weight_cD, logits_Xc = weight.astype(hidden_XD.dtype).reshape(-1, D), None
        if keep:
            exponential_Xc, top_X = kept
            probability_Xc = exponential_Xc.astype(jnp.float32) * jnp.exp(top_X - normalizer_X)[:, None]
        else:
            logits_Xc = _chunk_logits(hidden_XD, weight_cD, ids_c, softcap=softcap, V=V, padded=num_chunks * ids_c.size)
            probability_Xc = jnp.exp(logits_Xc - normalizer_X[:, None])
        is_target = ids_c == targets_X[:, None]
        gradient_Xc = cotangent_X[:, None] * (is_target.astype(jnp.float32) - probability_Xc)
        if softcap is not None:
            assert logits_Xc is not None
            slope = 1 - (logits_Xc / softcap) ** 2
            gradient_Xc *= jnp.where(ids_c < V, slope, 0.0)
        gradient_Xc = gradient_Xc.astype(hidden_XD.dtype)
        accumulate = {"preferred_element_type": jnp.float32}
        hidden_gradient_XD += jnp.einsum("Xc,cD->XD", gradient_Xc, weight_cD, **accumulate)
        weight_gradient_Dc = jnp.einsum("XD,Xc->Dc", hidden_XD, gradient_Xc, **accumulate)
        return hidden_gradient_XD, weight_gradient_Dc.T.reshape(weight.shape).astype(weight_VD.dtype)

    start = jnp.zeros(hidden_XD.shape, jnp.float32)
    chunks = _chunks(weight_VD, num_shards, num_chunks), kept
    hidden_gradient_XD, weight_gradient = jax.lax.scan(step, start, chunks)
    weight_gradient_VD = weight_gradient.swapaxes(0, 1).reshape(-1, D)[:V]
    return hidden_gradient_XD.astype(hidden_XD.dtype), weight_gradient_VD, None


_token_logps.defvjp(_forward, _backward)
