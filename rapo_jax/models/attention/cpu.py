"""Attention of a processor: only the tiles of the mask with something in them, and never a [T, S] array of scores.

The same function as `attend_einsum` in rapo_jax/models/attention/dispatch.py. Shared-prompt rows are mostly empty: no future, no
other group, no sibling. Softmax is accumulated tile by tile, forward and backward
(Milakov and Gimelshein, 2018; Dao et al., "FlashAttention", 2022, algorithms 1 and 4).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from rapo_jax.models.attention.tiles import visible_tiles

TILE = 64
LOWEST = float(jnp.finfo(jnp.float32).min)


def attend_tiles(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    mask_BTS: Array,
    scale: float,
    softcap: float | None,
    schedule: tuple[Array, ...] | None = None,
) -> Array:
    """Grouped-query attention -> [B, T, N, H]; T and S must be multiples of TILE, and every query must see some key."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    schedule = tile_schedule(mask_BTS) if schedule is None else schedule
    out_BKTGH = _attend(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, schedule, scale, softcap)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def tile_schedule(mask_BTS: Array) -> tuple[Array, Array]:
    """For each row and query tile: its key tiles, those with anything visible first, and how many those are."""
    return visible_tiles(mask_BTS, height=TILE, width=TILE)


def _tile(x: Array, b: Array, *starts: Array, size: tuple[int, ...]) -> Array:
    """x[b, ...] cut at `starts`, which are given for the trailing dimensions from the second on; x[b] has rank len(size)."""
    offsets = (b, *starts, *(0,) * (x.ndim - 1 - len(starts)))
    return jax.lax.dynamic_slice(x, offsets, (1, *size))[0]


def _scores(q_KXH: Array, k_KHR: Array, mask_XR: Array, *, scale: float, softcap: float | None) -> Array:
    """Masked scores of a tile, float32 [K, X, R]."""
    scores = _product(q_KXH, k_KHR) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(mask_XR, scores, LOWEST)


def _product(a_KMN: Array, b_KNO: Array) -> Array:
    """Matrix products [K, M, N] x [K, N, O] with nothing to transpose, summed in float32."""
    return jax.lax.dot_general(a_KMN, b_KNO, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, schedule, scale, softcap):
    return _forward(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, schedule, scale, softcap)[0]


def _forward(q_BKTGH, k_BKSH, v_BKSH, mask_BTS, schedule, scale, softcap):
    """Algorithm 1: for each query tile a running maximum, sum and mixture over its key tiles. X = TILE * G queries."""
    B, K, T, G, H = q_BKTGH.shape
    X = TILE * G
    order, counts = schedule
    k_BKHS = k_BKSH.swapaxes(2, 3)

    def query_tile(at: Array) -> tuple[Array, Array]:
        b, i = at // (T // TILE), at % (T // TILE)
        q_KXH = _tile(q_BKTGH, b, 0, i * TILE, size=(K, TILE, G, H)).reshape(K, X, H)

        def key_tile(n: Array, carry):
            top_KX, total_KX, out_KXH = carry
            s = order[b, i, n] * TILE
            k_KHR, v_KRH = _tile(k_BKHS, b, 0, 0, s, size=(K, H, TILE)), _tile(v_BKSH, b, 0, s, size=(K, TILE, H))
            scores_KXR = _scores(q_KXH, k_KHR, _mask(mask_BTS, b, i, s, G), scale=scale, softcap=softcap)
            new_top_KX = jnp.maximum(top_KX, scores_KXR.max(-1))
            weights_KXR, decay_KX = jnp.exp(scores_KXR - new_top_KX[..., None]), jnp.exp(top_KX - new_top_KX)
            mixed_KXH = _product(weights_KXR.astype(v_KRH.dtype), v_KRH)
            return new_top_KX, total_KX * decay_KX + weights_KXR.sum(-1), out_KXH * decay_KX[..., None] + mixed_KXH

        start = (jnp.full((K, X), LOWEST), jnp.zeros((K, X)), jnp.zeros((K, X, H)))
        top_KX, total_KX, out_KXH = jax.lax.fori_loop(0, counts[b, i], key_tile, start)
        return (out_KXH / total_KX[..., None]).astype(q_BKTGH.dtype), top_KX + jnp.log(total_KX)

    out, normalizer = jax.lax.map(query_tile, jnp.arange(B * (T // TILE)))
    out_BKTGH = checkpoint_name(_rows(out, B, T, (G, H)), "attention_out")
    normalizer_BKTG = checkpoint_name(_rows(normalizer, B, T, (G,)), "attention_out")
    return out_BKTGH, (q_BKTGH, k_BKSH, v_BKSH, mask_BTS, schedule, out_BKTGH, normalizer_BKTG)


def _backward(scale, softcap, residuals, cotangent_BKTGH):
    """Algorithm 4, one query tile at a time; the gradients of keys and values are summed as [B, K, H, S]."""
    q_BKTGH, k_BKSH, v_BKSH, mask_BTS, (order, counts), out_BKTGH, normalizer_BKTG = residuals
    B, K, T, G, H = q_BKTGH.shape
    X = TILE * G
    k_BKHS, v_BKHS = k_BKSH.swapaxes(2, 3), v_BKSH.swapaxes(2, 3)

    def query_tile(carry, at: Array):
        b, i = at // (T // TILE), at % (T // TILE)
        q_KXH, out_KXH, d_out_KXH = (
            _tile(x, b, 0, i * TILE, size=(K, TILE, G, H)).reshape(K, X, H)
            for x in (q_BKTGH, out_BKTGH, cotangent_BKTGH)
        )
        normalizer_KX = _tile(normalizer_BKTG, b, 0, i * TILE, size=(K, TILE, G)).reshape(K, X, 1)
        overlap_KX = (out_KXH.astype(jnp.float32) * d_out_KXH.astype(jnp.float32)).sum(-1, keepdims=True)
        q_KHX, d_out_KHX = q_KXH.swapaxes(1, 2), d_out_KXH.swapaxes(1, 2)

        def key_tile(n: Array, carry):
            dk_BKHS, dv_BKHS, dq_KXH = carry
            s = order[b, i, n] * TILE
            k_KHR, v_KHR = (_tile(x, b, 0, 0, s, size=(K, H, TILE)) for x in (k_BKHS, v_BKHS))
            mask_XR = _mask(mask_BTS, b, i, s, G)
            scores_KXR = _scores(q_KXH, k_KHR, mask_XR, scale=scale, softcap=softcap)
            weights_KXR = jnp.exp(scores_KXR - normalizer_KX)
            dv_KHR = _product(d_out_KHX, weights_KXR.astype(d_out_KHX.dtype))
            d_scores_KXR = weights_KXR * (_product(d_out_KXH, v_KHR) - overlap_KX)
            if softcap is not None:
                d_scores_KXR *= jnp.where(mask_XR, 1 - (scores_KXR / softcap) ** 2, 0.0)
            d_scores_KXR = (d_scores_KXR * scale).astype(q_KXH.dtype)
            dk_KHR = _product(q_KHX, d_scores_KXR)
            dq_KXH += _product(d_scores_KXR, _tile(k_BKSH, b, 0, s, size=(K, TILE, H)))
            return _add(dk_BKHS, dk_KHR, b, s), _add(dv_BKHS, dv_KHR, b, s), dq_KXH

        *carry, dq_KXH = jax.lax.fori_loop(0, counts[b, i], key_tile, (*carry, jnp.zeros((K, X, H))))
        return tuple(carry), dq_KXH

    start = (jnp.zeros(k_BKHS.shape), jnp.zeros(v_BKHS.shape))
    (dk_BKHS, dv_BKHS), dq = jax.lax.scan(query_tile, start, jnp.arange(B * (T // TILE)))
    dk_BKSH, dv_BKSH = dk_BKHS.swapaxes(2, 3), dv_BKHS.swapaxes(2, 3)
    dq_BKTGH = _rows(dq, B, T, (G, H))
    return dq_BKTGH.astype(q_BKTGH.dtype), dk_BKSH.astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype), None, None


def _mask(mask_BTS: Array, b: Array, i: Array, s: Array, G: int) -> Array:
    """The mask of a tile with every query repeated for its G heads, [X, R]."""
    mask_QR = _tile(mask_BTS, b, i * TILE, s, size=(TILE, TILE))
    return jnp.broadcast_to(mask_QR[:, None], (TILE, G, TILE)).reshape(TILE * G, TILE)


def _rows(tiles: Array, B: int, T: int, rest: tuple[int, ...]) -> Array:
    """Query tiles [B * T / TILE, K, X, ...] as rows [B, K, T, *rest]."""
    K = tiles.shape[1]
    return tiles.reshape(B, T // TILE, K, TILE, *rest).swapaxes(1, 2).reshape(B, K, T, *rest)


def _add(total_BKHS: Array, part_KHR: Array, b: Array, s: Array) -> Array:
    """total[b, :, :, s : s + TILE] += part, in place inside a loop."""
    old = _tile(total_BKHS, b, 0, 0, s, size=part_KHR.shape)
    return jax.lax.dynamic_update_slice(total_BKHS, (old + part_KHR)[None], (b, 0, 0, s))


_attend.defvjp(_forward, _backward)
