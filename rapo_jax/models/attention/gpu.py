"""Attention for GPUs: flash attention for rows with shared prompts, as Pallas Triton kernels.

For every tile of queries (or of keys) a kernel visits only the tiles in which something is visible (Dao,
"FlashAttention-2", 2023, algorithms 1 and 2). Rows with shared prompts are mostly masked, and no library's kernel accepts
their mask, skips what it hides, and differentiates soft-caps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Bool, Float

from rapo_jax.models.attention.kernel import Kernel, Schedule
from rapo_jax.models.attention.tiles import visible_tiles

GPU_MULTIPLE = 128  # row lengths must be multiples of it, and thereby of every tile below
LOWEST = float(jnp.finfo(jnp.float32).min)
LOG2_E = 1.4426950408889634  # kernels exponentiate with base 2, as the hardware does


@dataclass(frozen=True)
class TileShape:
    """Queries and keys of a tile, and Triton's launch parameters."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3


# The fastest found on an H200 (jax 0.11.2, bfloat16, heads of 64 and of 128): with 64 x 64 and two stages forward and dq took
# 1.1 to 1.6 times as long, dkv 1.4 to 1.5 times; larger tiles were slower still, as they skip less.
FORWARD, FOR_QUERIES, FOR_KEYS = TileShape(64, 32), TileShape(64, 32), TileShape(32, 64)


def attend_triton(
    q_BTNH: Float[Array, "B T N H"],
    k_BUKH: Float[Array, "B U K H"],
    v_BUKH: Float[Array, "B U K H"],
    *,
    mask_BTU: Bool[Array, "B T U"],
    scale: float,
    softcap: float | None,
    schedule: Schedule | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention. T and U must be multiples of GPU_MULTIPLE, H a power of two of at least 16, and every query
    must see some key. `interpret` runs the kernels on any platform, slowly."""
    schedule = triton_schedule(mask_BTU) if schedule is None else schedule
    return _attend(q_BTNH, k_BUKH, v_BUKH, schedule, scale, softcap, interpret)


def triton_schedule(mask_BTU: Bool[Array, "B T U"]) -> Schedule:
    """The kernels' inputs that follow from the mask: it and its transpose as int8, and each kernel's visible tiles."""
    mask_BUT = mask_BTU.swapaxes(1, 2)
    by_query, for_queries = (visible_tiles(mask_BTU, height=t.queries, width=t.keys) for t in (FORWARD, FOR_QUERIES))
    by_key = visible_tiles(mask_BUT, height=FOR_KEYS.keys, width=FOR_KEYS.queries)
    return mask_BTU.astype(jnp.int8), *by_query, *for_queries, mask_BUT.astype(jnp.int8), *by_key


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BTNH, k_BUKH, v_BUKH, schedule, scale, softcap, interpret):
    return _forward(q_BTNH, k_BUKH, v_BUKH, schedule, scale, softcap, interpret)[0]


def _forward(q_BTNH, k_BUKH, v_BUKH, schedule, scale, softcap, interpret):
    (B, T, N, H), (U, K), tiles = q_BTNH.shape, k_BUKH.shape[1:3], FORWARD
    mask_BTU, order, counts, *_ = schedule
    by_query = pl.BlockSpec((None, tiles.queries, None, H), lambda i, n, b: (b, i, n, 0))
    by_head = pl.BlockSpec((None, U, None, H), lambda i, n, b: (b, 0, n // (N // K), 0))
    out_BTNH, normalizer_BNT = _call(
        partial(_forward_kernel, scale=scale, softcap=softcap, width=tiles.keys),
        name="attention_forward",
        tiles=tiles,
        interpret=interpret,
        grid=(T // tiles.queries, N, B),
        in_specs=[
            by_query,
            by_head,
            by_head,
            *_walked(tiles.queries, U, tiles.keys),
        ],
        out_specs=[by_query, pl.BlockSpec((None, None, tiles.queries), lambda i, n, b: (b, n, i))],
        out_shape=[
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
    )(q_BTNH, k_BUKH, v_BUKH, mask_BTU, order, counts)
    out_BTNH, normalizer_BNT = (checkpoint_name(x, "attention_out") for x in (out_BTNH, normalizer_BNT))
    return out_BTNH, (q_BTNH, k_BUKH, v_BUKH, schedule, out_BTNH, normalizer_BNT)


def _forward_kernel(
    q_ref, k_ref, v_ref, mask_ref, order_ref, count_ref, out_ref, normalizer_ref, *, scale, softcap, width
):
    """One head of a tile of queries: an online softmax over the tiles of keys."""
    q_XH = q_ref[...]

    def tile(n: Array, carry):
        top_X, total_X, out_XH = carry
        keys = pl.ds(order_ref[n] * width, width)
        k_YH, v_YH = k_ref[keys, :], v_ref[keys, :]
        scores_XY, _ = _scores(_product(q_XH, k_YH.T), mask_ref[:, keys], scale=scale, softcap=softcap)
        new_top_X = jnp.maximum(top_X, scores_XY.max(-1))
        weights_XY, decay_X = jnp.exp2(scores_XY - new_top_X[:, None]), jnp.exp2(top_X - new_top_X)
        out_XH = out_XH * decay_X[:, None] + _product(weights_XY.astype(v_YH.dtype), v_YH)
        return new_top_X, total_X * decay_X + weights_XY.sum(-1), out_XH

    X, H = q_XH.shape
    start = jnp.full((X,), LOWEST), jnp.zeros((X,), jnp.float32), jnp.zeros((X, H), jnp.float32)
    top_X, total_X, out_XH = jax.lax.fori_loop(0, count_ref[...], tile, start)
    out_ref[...] = (out_XH / total_X[:, None]).astype(out_ref.dtype)
    normalizer_ref[...] = top_X + jnp.log2(total_X)


def _backward(scale, softcap, interpret, residuals, cotangent_BTNH):
    q_BTNH, k_BUKH, v_BUKH, schedule, out_BTNH, normalizer_BNT = residuals
    mask_BTU, _, _, *for_queries = schedule[:5]
    overlap_BNT = jnp.einsum(
        "BTNH,BTNH->BNT", out_BTNH.astype(jnp.float32), cotangent_BTNH.astype(jnp.float32), precision="highest"
    )
    arguments = (q_BTNH, k_BUKH, v_BUKH, cotangent_BTNH, normalizer_BNT, overlap_BNT)
    options = {"scale": scale, "softcap": softcap}
    dq_BTNH = _gradient_of_queries(*arguments, mask_BTU, *for_queries, interpret=interpret, **options)
    return dq_BTNH, *_gradients_of_keys(*arguments, *schedule[5:], interpret=interpret, **options), None


def _gradient_of_queries(*inputs: Array, interpret: bool, **options) -> Array:
    """`inputs` are the kernel's: q [B, T, N, H]; k and v [B, U, K, H]; the cotangent, and arrays derived from these and the mask."""
    q_BTNH, k_BUKH = inputs[:2]
    (B, T, N, H), (U, K), tiles = q_BTNH.shape, k_BUKH.shape[1:3], FOR_QUERIES
    by_query = pl.BlockSpec((None, tiles.queries, None, H), lambda i, n, b: (b, i, n, 0))
    by_head = pl.BlockSpec((None, U, None, H), lambda i, n, b: (b, 0, n // (N // K), 0))
    per_query = pl.BlockSpec((None, None, tiles.queries), lambda i, n, b: (b, n, i))
    return _call(
        partial(_gradient_of_queries_kernel, width=tiles.keys, **options),
        name="attention_dq",
        tiles=tiles,
        interpret=interpret,
        grid=(T // tiles.queries, N, B),
        in_specs=[
            by_query,
            by_head,
            by_head,
            by_query,
            per_query,
            per_query,
            *_walked(tiles.queries, U, tiles.keys),
        ],
        out_specs=by_query,
        out_shape=jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
    )(*inputs)


def _gradient_of_queries_kernel(
    q_ref, k_ref, v_ref, d_out_ref, normalizer_ref, overlap_ref, mask_ref, order_ref, count_ref, dq_ref, *, scale, softcap, width
):  # fmt: skip
    q_XH, d_out_XH = q_ref[...], d_out_ref[...]
    normalizer_X, overlap_X = normalizer_ref[...], overlap_ref[...]

    def tile(n: Array, dq_XH: Array) -> Array:
        keys = pl.ds(order_ref[n] * width, width)
        k_YH, v_YH = k_ref[keys, :], v_ref[keys, :]
        scores_XY, slope = _scores(_product(q_XH, k_YH.T), mask_ref[:, keys], scale=scale, softcap=softcap)
        weights_XY = jnp.exp2(scores_XY - normalizer_X[:, None])
        d_scores_XY = weights_XY * (_product(d_out_XH, v_YH.T) - overlap_X[:, None]) * slope
        return dq_XH + _product(d_scores_XY.astype(k_YH.dtype), k_YH)

    dq_XH = jax.lax.fori_loop(0, count_ref[...], tile, jnp.zeros(q_XH.shape, jnp.float32))
    dq_ref[...] = (dq_XH * scale).astype(dq_ref.dtype)


def _gradients_of_keys(*inputs: Array, interpret: bool, **options) -> tuple[Array, Array]:
    """`inputs` are the kernel's, with the mask transposed."""
    q_BTNH, k_BUKH = inputs[:2]
    (B, T, N, H), (U, K), tiles = q_BTNH.shape, k_BUKH.shape[1:3], FOR_KEYS
    by_key = pl.BlockSpec((None, tiles.keys, None, H), lambda j, k, b: (b, j, k, 0))
    by_heads = pl.BlockSpec((None, T, N // K, H), lambda j, k, b: (b, 0, k, 0))
    per_query = pl.BlockSpec((None, N // K, T), lambda j, k, b: (b, k, 0))
    return _call(
        partial(_gradients_of_keys_kernel, width=tiles.queries, **options),
        name="attention_dkv",
        tiles=tiles,
        interpret=interpret,
        grid=(U // tiles.keys, K, B),
        in_specs=[
            by_heads,
            by_key,
            by_key,
            by_heads,
            per_query,
            per_query,
            *_walked(tiles.keys, T, tiles.queries),
        ],
        out_specs=[by_key, by_key],
        out_shape=[jax.ShapeDtypeStruct(k_BUKH.shape, k_BUKH.dtype)] * 2,
    )(*inputs)


def _gradients_of_keys_kernel(
    q_ref, k_ref, v_ref, d_out_ref, normalizer_ref, overlap_ref, mask_ref, order_ref, count_ref, dk_ref, dv_ref, *, scale, softcap, width
):  # fmt: skip
    """One key head of a tile of keys, over the tiles of queries that see it and over the query heads that share it."""
    k_YH, v_YH = k_ref[...], v_ref[...]
    num_heads = jnp.int32(q_ref.shape[1])

    def tile(n: Array, carry):
        dk_YH, dv_YH = carry
        queries = pl.ds(order_ref[jax.lax.div(n, num_heads)] * width, width)
        g = jax.lax.rem(n, num_heads)
        q_XH, d_out_XH = q_ref[queries, g, :], d_out_ref[queries, g, :]
        normalizer_X, overlap_X = normalizer_ref[g, queries], overlap_ref[g, queries]
        scores_YX, slope = _scores(_product(k_YH, q_XH.T), mask_ref[:, queries], scale=scale, softcap=softcap)
        weights_YX = jnp.exp2(scores_YX - normalizer_X[None, :])
        dv_YH += _product(weights_YX.astype(d_out_XH.dtype), d_out_XH)
        d_scores_YX = weights_YX * (_product(v_YH, d_out_XH.T) - overlap_X[None, :]) * slope
        return dk_YH + _product(d_scores_YX.astype(q_XH.dtype), q_XH), dv_YH

    zeros_YH = jnp.zeros(k_YH.shape, jnp.float32)
    dk_YH, dv_YH = jax.lax.fori_loop(0, count_ref[...] * num_heads, tile, (zeros_YH, zeros_YH))
    dk_ref[...], dv_ref[...] = (dk_YH * scale).astype(dk_ref.dtype), dv_YH.astype(dv_ref.dtype)


def _walked(height: int, length: int, width: int) -> list[pl.BlockSpec]:
    """Block specs for program i on a mask [B, ., length]: its `height` rows, the order in which to visit their tiles of
    `width`, and how many to visit."""
    return [
        pl.BlockSpec((None, height, length), lambda i, _, b: (b, i, 0)),
        pl.BlockSpec((None, None, length // width), lambda i, _, b: (b, i, 0)),
        pl.BlockSpec((None, None), lambda i, _, b: (b, i)),
    ]


def _scores(products: Array, mask: Array, *, scale: float, softcap: float | None) -> tuple[Array, Array | float]:
    """Masked scores times log2(e), for exp2, and the derivative of the soft-cap (1 without one)."""
    if softcap is None:
        return jnp.where(mask != 0, products * (scale * LOG2_E), LOWEST), 1.0
    share = jnp.tanh(products * (scale / softcap))
    return jnp.where(mask != 0, share * (softcap * LOG2_E), LOWEST), 1.0 - share * share


def _product(a_MN: Array, b_NO: Array) -> Array:
    return jax.lax.dot_general(a_MN, b_NO, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _call(kernel: Callable, *, tiles: TileShape, **options) -> Callable:
    parameters = triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    return pl.pallas_call(kernel, compiler_params=parameters, **options)


_attend.defvjp(_forward, _backward)


def _takes(T: int, U: int, H: int) -> bool:
    return T % GPU_MULTIPLE == 0 and U % GPU_MULTIPLE == 0 and H >= 16 and H & (H - 1) == 0


def _tile_size(T: int) -> tuple[int, int]:
    return FORWARD.queries, FORWARD.keys  # tiles of the backward kernels have the same area


TRITON = Kernel(
    attend_triton,
    triton_schedule,
    takes=_takes,
    multiple=GPU_MULTIPLE,
    platforms=("gpu", "cuda"),
    portable=False,
    tile=_tile_size,
    products={
        "attention_forward": 2,  # q k, p v
        "attention_dq": 3,  # q k, do v, ds k
        "attention_dkv": 4,  # q k, do v, p do, ds q
    },
    recomputed_scores=3,  # the two backward kernels share nothing: both recompute q k, and do v is computed twice
)
