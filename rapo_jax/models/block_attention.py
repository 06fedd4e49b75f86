"""Attention that computes only the tiles of the mask with something in them, and never holds a [T, S] array of scores.

The same function as `attend` in rapo_jax/models/attention.py, for processors without a fused kernel. Shared-prompt rows
are mostly empty: no future, no other group, no sibling. Softmax is accumulated tile by tile, forward and backward
(Milakov and Gimelshein, 2018; Dao et al., "FlashAttention", 2022, algorithms 1 and 4).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

TILE = 128
LOWEST = float(jnp.finfo(jnp.float32).min)


def attend_tiles(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, mask_BTS: Array, scale: float, softcap: float | None
) -> Array:
    """Grouped-query attention -> [B, T, N, H]; T and S must be multiples of TILE, and every query must see some key."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out_BKTGH = _attend(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, scale, softcap)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _schedule(mask_BTS: Array) -> tuple[Array, Array]:
    """For each row and query tile: its key tiles, those with anything visible first, and how many those are."""
    B, T, S = mask_BTS.shape
    full = mask_BTS.reshape(B, T // TILE, TILE, S // TILE, TILE).any((2, 4))
    return jnp.argsort(~full, axis=-1, stable=True).astype(jnp.int32), full.sum(-1, dtype=jnp.int32)


def _tile(x: Array, b: Array, *starts: Array, size: tuple[int, ...]) -> Array:
    """x[b, ...] cut at `starts`, which are given for the trailing dimensions from the second on; x[b] has rank len(size)."""
    offsets = (b, *starts, *(0,) * (x.ndim - 1 - len(starts)))
    return jax.lax.dynamic_slice(x, offsets, (1, *size))[0]


def _scores(q_KQGH: Array, k_KRH: Array, mask_QR: Array, *, scale: float, softcap: float | None) -> Array:
    """Masked scores of a tile, float32 [K, Q, G, R]."""
    scores = jnp.einsum("KQGH,KRH->KQGR", q_KQGH, k_KRH, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(mask_QR[None, :, None, :], scores, LOWEST)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, scale, softcap):
    return _forward(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, scale, softcap)[0]


def _forward(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, scale, softcap):
    B, K, T, G, H = q_BKTGH.shape
    order, counts = _schedule(mask_BTS)

    def query_tile(at: Array) -> tuple[Array, Array]:
        b, i = at // (T // TILE), at % (T // TILE)
        q_KQGH = _tile(q_BKTGH, b, 0, i * TILE, size=(K, TILE, G, H))

        def key_tile(n: Array, carry):
            top, total, out = carry
            s = order[b, i, n] * TILE
            mask_QR = _tile(mask_BTS, b, i * TILE, s, size=(TILE, TILE))
            scores = _scores(q_KQGH, _tile(k_BKSH, b, 0, s, size=(K, TILE, H)), mask_QR, scale=scale, softcap=softcap)
            new_top = jnp.maximum(top, scores.max(-1))
            weights, decay = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
            v_KRH = _tile(v_BKSH, b, 0, s, size=(K, TILE, H))
            mixed = jnp.einsum("KQGR,KRH->KQGH", weights.astype(v_KRH.dtype), v_KRH, preferred_element_type=jnp.float32)
            return new_top, total * decay + weights.sum(-1), out * decay[..., None] + mixed

        start = (jnp.full((K, TILE, G), LOWEST), jnp.zeros((K, TILE, G)), jnp.zeros((K, TILE, G, H)))
        top, total, out = jax.lax.fori_loop(0, counts[b, i], key_tile, start)
        return (out / total[..., None]).astype(q_BKTGH.dtype), top + jnp.log(total)

    out, normalizer = jax.lax.map(query_tile, jnp.arange(B * (T // TILE)))
    out_BKTGH = out.reshape(B, T // TILE, K, TILE, G, H).transpose(0, 2, 1, 3, 4, 5).reshape(B, K, T, G, H)
    normalizer_BKTG = normalizer.reshape(B, T // TILE, K, TILE, G).transpose(0, 2, 1, 3, 4).reshape(B, K, T, G)
    return out_BKTGH, (q_BKTGH, k_BKSH, v_BKSH, mask_BTS, order, counts, out_BKTGH, normalizer_BKTG)


def _backward(scale, softcap, residuals, cotangent_BKTGH):
    q_BKTGH, k_BKSH, v_BKSH, mask_BTS, order, counts, out_BKTGH, normalizer_BKTG = residuals
    B, K, T, G, H = q_BKTGH.shape
    overlap_BKTG = (out_BKTGH.astype(jnp.float32) * cotangent_BKTGH.astype(jnp.float32)).sum(-1)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def query_tile(carry, at: Array):
        b, i = at // (T // TILE), at % (T // TILE)
        q_KQGH, d_out = (_tile(x, b, 0, i * TILE, size=(K, TILE, G, H)) for x in (q_BKTGH, cotangent_BKTGH))
        normalizer, overlap = (_tile(x, b, 0, i * TILE, size=(K, TILE, G)) for x in (normalizer_BKTG, overlap_BKTG))

        def key_tile(n: Array, carry):
            dk_BKSH, dv_BKSH, dq = carry
            s = order[b, i, n] * TILE
            mask_QR = _tile(mask_BTS, b, i * TILE, s, size=(TILE, TILE))
            k_KRH, v_KRH = (_tile(x, b, 0, s, size=(K, TILE, H)) for x in (k_BKSH, v_BKSH))
            scores = _scores(q_KQGH, k_KRH, mask_QR, scale=scale, softcap=softcap)
            weights = jnp.exp(scores - normalizer[..., None])
            dv = product("KQGR,KQGH->KRH", weights.astype(d_out.dtype), d_out)
            d_scores = weights * (product("KQGH,KRH->KQGR", d_out, v_KRH) - overlap[..., None])
            if softcap is not None:
                d_scores *= jnp.where(mask_QR[None, :, None, :], 1 - (scores / softcap) ** 2, 0.0)
            d_scores = (d_scores * scale).astype(q_KQGH.dtype)
            dk = product("KQGR,KQGH->KRH", d_scores, q_KQGH)
            return _add(dk_BKSH, dk, b, s), _add(dv_BKSH, dv, b, s), dq + product("KQGR,KRH->KQGH", d_scores, k_KRH)

        *carry, dq = jax.lax.fori_loop(0, counts[b, i], key_tile, (*carry, jnp.zeros((K, TILE, G, H))))
        return tuple(carry), dq

    start = (jnp.zeros(k_BKSH.shape), jnp.zeros(v_BKSH.shape))
    (dk_BKSH, dv_BKSH), dq = jax.lax.scan(query_tile, start, jnp.arange(B * (T // TILE)))
    dq_BKTGH = dq.reshape(B, T // TILE, K, TILE, G, H).transpose(0, 2, 1, 3, 4, 5).reshape(B, K, T, G, H)
    return dq_BKTGH.astype(q_BKTGH.dtype), dk_BKSH.astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype), None


def _add(total_BKSH: Array, part_KRH: Array, b: Array, s: Array) -> Array:
    """total[b, :, s : s + TILE] += part, in place inside a loop."""
    old = _tile(total_BKSH, b, 0, s, size=part_KRH.shape)
    return jax.lax.dynamic_update_slice(total_BKSH, (old + part_KRH)[None], (b, 0, s, 0))


_attend.defvjp(_forward, _backward)
