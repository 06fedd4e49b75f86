"""Attention for CPUs: computes only tiles of the mask in which something is visible, never a [T, U] array of scores.

Rows with shared prompts are mostly masked: the future, other groups, siblings. The softmax is accumulated tile by tile,
forward and backward (Milakov and Gimelshein, 2018; Dao et al., "FlashAttention", 2022, algorithms 1 and 4).
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from rapo_jax.models.attention.kernel import Kernel, Schedule
from rapo_jax.models.attention.tiles import visible_tiles

TILE = 64
LOWEST = float(jnp.finfo(jnp.float32).min)


def attend_tiles(
    q_BTNH: Float[Array, "B T N H"],
    k_BUKH: Float[Array, "B U K H"],
    v_BUKH: Float[Array, "B U K H"],
    *,
    mask_BTU: Bool[Array, "B T U"],
    scale: float,
    softcap: float | None,
    schedule: Schedule | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention. T and U must be multiples of TILE, and every query must see some key."""
    B, T, N, H = q_BTNH.shape
    K = k_BUKH.shape[2]
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    k_BKUH, v_BKUH = k_BUKH.transpose(0, 2, 1, 3), v_BUKH.transpose(0, 2, 1, 3)
    schedule = tile_schedule(mask_BTU) if schedule is None else schedule
    out_BKTGH = cast(Array, _attend(q_BKTGH, k_BKUH, v_BKUH, mask_BTU, schedule, scale, softcap))
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def tile_schedule(mask_BTU: Bool[Array, "B T U"]) -> Schedule:
    """For each row and query tile: its key tiles, visible ones first, and the number of visible ones."""
    return visible_tiles(mask_BTU, height=TILE, width=TILE)


def _tile(x: Array, b: Array, *starts: Array | int, size: tuple[int, ...]) -> Array:
    """A tile of x[b]: `size` elements from `starts`, which begin at x's second dimension; missing starts are 0."""
    offsets = (b, *starts, *(0,) * (x.ndim - 1 - len(starts)))
    return jax.lax.dynamic_slice(x, offsets, (1, *size))[0]


def _scores(q_KXH: Array, k_KHY: Array, mask_XY: Array, *, scale: float, softcap: float | None) -> Array:
    """Masked scores of a tile, float32 [K, X, Y]."""
    scores = _product(q_KXH, k_KHY) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(mask_XY, scores, LOWEST)


def _product(a_KMN: Array, b_KNO: Array) -> Array:
    """Batched matrix products [K, M, N] x [K, N, O] without a transpose, summed in float32."""
    return jax.lax.dot_general(a_KMN, b_KNO, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BKTGH, k_BKUH, v_BKUH, mask_BTU, schedule, scale, softcap):
    return _forward(q_BKTGH, k_BKUH, v_BKUH, mask_BTU, schedule, scale, softcap)[0]


def _forward(q_BKTGH, k_BKUH, v_BKUH, mask_BTU, schedule, scale, softcap):
    """Algorithm 1: an online softmax over the key tiles of each query tile. X = TILE * G queries."""
    B, K, T, G, H = q_BKTGH.shape
    X = TILE * G
    order, counts = schedule
    k_BKHU = k_BKUH.swapaxes(2, 3)

    def query_tile(at: Array) -> tuple[Array, Array]:
        b, i = at // (T // TILE), at % (T // TILE)
        q_KXH = _tile(q_BKTGH, b, 0, i * TILE, size=(K, TILE, G, H)).reshape(K, X, H)

        def key_tile(n: Array, carry):
            top_KX, total_KX, out_KXH = carry
            s = order[b, i, n] * TILE
            k_KHY, v_KYH = _tile(k_BKHU, b, 0, 0, s, size=(K, H, TILE)), _tile(v_BKUH, b, 0, s, size=(K, TILE, H))
            scores_KXY = _scores(q_KXH, k_KHY, _mask(mask_BTU, b, i, s, G), scale=scale, softcap=softcap)
            new_top_KX = jnp.maximum(top_KX, scores_KXY.max(-1))
            weights_KXY, decay_KX = jnp.exp(scores_KXY - new_top_KX[..., None]), jnp.exp(top_KX - new_top_KX)
            mixed_KXH = _product(weights_KXY.astype(v_KYH.dtype), v_KYH)
            return new_top_KX, total_KX * decay_KX + weights_KXY.sum(-1), out_KXH * decay_KX[..., None] + mixed_KXH

        start = (jnp.full((K, X), LOWEST), jnp.zeros((K, X)), jnp.zeros((K, X, H)))
        top_KX, total_KX, out_KXH = jax.lax.fori_loop(0, counts[b, i], key_tile, start)
        return (out_KXH / total_KX[..., None]).astype(q_BKTGH.dtype), top_KX + jnp.log(total_KX)

    out, normalizer = jax.lax.map(query_tile, jnp.arange(B * (T // TILE)))
    out_BKTGH = checkpoint_name(_rows(out, B, T, (G, H)), "attention_out")
    normalizer_BKTG = checkpoint_name(_rows(normalizer, B, T, (G,)), "attention_out")
    return out_BKTGH, (q_BKTGH, k_BKUH, v_BKUH, mask_BTU, schedule, out_BKTGH, normalizer_BKTG)


def _backward(scale, softcap, residuals, cotangent_BKTGH):
    """Algorithm 4, one query tile at a time; the gradients of keys and values are accumulated as [B, K, H, U]."""
    q_BKTGH, k_BKUH, v_BKUH, mask_BTU, (order, counts), out_BKTGH, normalizer_BKTG = residuals
    B, K, T, G, H = q_BKTGH.shape
    X = TILE * G
    k_BKHU, v_BKHU = k_BKUH.swapaxes(2, 3), v_BKUH.swapaxes(2, 3)

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
            dk_BKHU, dv_BKHU, dq_KXH = carry
            s = order[b, i, n] * TILE
            k_KHY, v_KHY = (_tile(x, b, 0, 0, s, size=(K, H, TILE)) for x in (k_BKHU, v_BKHU))
            mask_XY = _mask(mask_BTU, b, i, s, G)
            scores_KXY = _scores(q_KXH, k_KHY, mask_XY, scale=scale, softcap=softcap)
            weights_KXY = jnp.exp(scores_KXY - normalizer_KX)
            dv_KHY = _product(d_out_KHX, weights_KXY.astype(d_out_KHX.dtype))
            d_scores_KXY = weights_KXY * (_product(d_out_KXH, v_KHY) - overlap_KX)
            if softcap is not None:
                d_scores_KXY *= jnp.where(mask_XY, 1 - (scores_KXY / softcap) ** 2, 0.0)
            d_scores_KXY = (d_scores_KXY * scale).astype(q_KXH.dtype)
            dk_KHY = _product(q_KHX, d_scores_KXY)
            dq_KXH += _product(d_scores_KXY, _tile(k_BKUH, b, 0, s, size=(K, TILE, H)))
            return _add(dk_BKHU, dk_KHY, b, s), _add(dv_BKHU, dv_KHY, b, s), dq_KXH

        *carry, dq_KXH = jax.lax.fori_loop(0, counts[b, i], key_tile, (*carry, jnp.zeros((K, X, H))))
        return tuple(carry), dq_KXH

    start = (jnp.zeros(k_BKHU.shape), jnp.zeros(v_BKHU.shape))
    (dk_BKHU, dv_BKHU), dq = jax.lax.scan(query_tile, start, jnp.arange(B * (T // TILE)))
    dk_BKUH, dv_BKUH = dk_BKHU.swapaxes(2, 3), dv_BKHU.swapaxes(2, 3)
    dq_BKTGH = _rows(dq, B, T, (G, H))
    return dq_BKTGH.astype(q_BKTGH.dtype), dk_BKUH.astype(k_BKUH.dtype), dv_BKUH.astype(v_BKUH.dtype), None, None


def _mask(mask_BTU: Array, b: Array, i: Array, s: Array, G: int) -> Array:
    """The mask of a tile with every query repeated for its G heads, [X, Y]."""
    mask_tile = _tile(mask_BTU, b, i * TILE, s, size=(TILE, TILE))
    return jnp.broadcast_to(mask_tile[:, None], (TILE, G, TILE)).reshape(TILE * G, TILE)


def _rows(tiles: Array, B: int, T: int, rest: tuple[int, ...]) -> Array:
    """Query tiles [B * T / TILE, K, X, ...] as rows [B, K, T, *rest]."""
    K = tiles.shape[1]
    return tiles.reshape(B, T // TILE, K, TILE, *rest).swapaxes(1, 2).reshape(B, K, T, *rest)


def _add(total_BKHU: Array, part_KHY: Array, b: Array, s: Array) -> Array:
    """total[b, :, :, s : s + TILE] += part, in place inside a loop."""
    old = _tile(total_BKHU, b, 0, 0, s, size=part_KHY.shape)
    return jax.lax.dynamic_update_slice(total_BKHU, (old + part_KHY)[None], (b, 0, 0, s))


_attend.defvjp(_forward, _backward)


def _takes(T: int, U: int, H: int) -> bool:
    return T % TILE == 0 and U % TILE == 0


def _tile_size(T: int) -> tuple[int, int]:
    return TILE, TILE


# XLA compiles the tiles to ordinary products inside loops, so there is no custom call to count by name. The single
# backward pass recomputes the scores once.
TILES = Kernel(
    attend_tiles, tile_schedule, takes=_takes, multiple=TILE, platforms=("cpu",), tile=_tile_size, recomputed_scores=1
)
