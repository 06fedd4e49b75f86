"""Attention for TPUs: JAX's splash attention, with the mask passed as an array.

It skips blocks in which nothing is visible, which is most blocks of a row with shared prompts, and names the arrays that
its backward pass needs "attention_out".
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jaxtyping import Bool, Float

from rapo_jax.models.attention.kernel import Kernel

SPLASH_MULTIPLE = 128  # row lengths must be multiples of it
MAX_BLOCK = 512  # queries or keys per block, at most


def attend_splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BUKH: Float[Array, "B U K H"],
    v_BUKH: Float[Array, "B U K H"],
    *,
    mask_BTU: Bool[Array, "B T U"],
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention; T and U must be multiples of SPLASH_MULTIPLE.

    All heads of a row share its mask, so the kernel is made for one head and mapped over the others. `interpret` runs it
    on any platform, slowly.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BUKH.shape[2]
    q_BKGTH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKUH, v_BKUH = k_BUKH.swapaxes(1, 2), v_BUKH.swapaxes(1, 2)
    make = partial(splash_kernel, softcap=softcap, interpret=interpret)

    def row(q_KGTH: Array, k_KUH: Array, v_KUH: Array, mask_TU: Array) -> Array:
        kernel = make(mask_TU)

        def one_head(q_TH: Array, k_UH: Array, v_UH: Array) -> Array:
            return kernel(q_TH[None], k_UH, v_UH)[0]

        return jax.vmap(jax.vmap(one_head, (0, None, None)))(q_KGTH, k_KUH, v_KUH)

    out_BKGTH = jax.vmap(row)(q_BKGTH, k_BKUH, v_BKUH, mask_BTU)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def block_size(T: int) -> int:
    """The largest power of two up to MAX_BLOCK that divides T."""
    return min(MAX_BLOCK, T & -T)


def splash_kernel(
    mask_TU: Bool[Array, "T U"], *, softcap: float | None, interpret: bool
) -> splash.SplashAttentionKernel:
    """The kernel for one head of one row."""
    queries, keys = map(block_size, mask_TU.shape)
    of_queries = ("block_q", "block_q_dkv", "block_q_dq")
    of_keys = ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq")
    kernel = splash.make_splash_mqa_single_device(
        mask_TU[None],
        block_sizes=splash.BlockSizes(**dict.fromkeys(of_queries, queries), **dict.fromkeys(of_keys, keys)),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        # splash converts this flag to an array together with the mask; as a Python bool it is not traced.
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    return kernel


def _takes(T: int, U: int, H: int) -> bool:
    return T % SPLASH_MULTIPLE == 0 and U % SPLASH_MULTIPLE == 0


def _tile_size(T: int) -> tuple[int, int]:
    return block_size(T), block_size(T)


SPLASH = Kernel(
    attend_splash,
    takes=_takes,
    multiple=SPLASH_MULTIPLE,
    platforms=("tpu",),
    portable=False,
    tile=_tile_size,
    products={
        "splash_mqa_fwd": 2,  # q k, p v
        "splash_mqa_dq": 3,  # q k, do v, ds k
        "splash_mqa_dkv": 4,  # q k, do v, p do, ds q
    },
    recomputed_scores=3,  # the two backward kernels share nothing: both recompute q k, and do v is computed twice
)
