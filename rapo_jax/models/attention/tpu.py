"""Attention of a TPU: jax's splash attention with a mask that is data, the same function as `attend_einsum` in
rapo_jax/models/attention/dispatch.py.

It skips blocks in which nothing is visible, which on shared-prompt rows is most of them, and keeps what the backward pass
needs under the name "attention_out".
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

SPLASH_MULTIPLE = 128  # the TPU kernel takes rows of multiples of this
MAX_BLOCK = 512  # queries or keys that it takes at a time


def attend_splash(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    mask_BTS: Array,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> Array:
    """Attention of rows to themselves -> [B, T, N, H]; T = S must be a multiple of SPLASH_MULTIPLE.

    All heads of a row share its mask, so the kernel is made for one head and mapped over the others.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    make = partial(splash_kernel, softcap=softcap, interpret=interpret)

    def row(q_KGTH: Array, k_KTH: Array, v_KTH: Array, mask_TT: Array) -> Array:
        kernel = make(mask_TT)
        one_head = lambda q_TH, k_TH, v_TH: kernel(q_TH[None], k_TH, v_TH)[0]  # noqa: E731
        return jax.vmap(jax.vmap(one_head, (0, None, None)))(q_KGTH, k_KTH, v_KTH)

    out_BKGTH = jax.vmap(row)(q_BKGTH, k_BKTH, v_BKTH, mask_BTS)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def block_size(T: int) -> int:
    """The largest power of two up to MAX_BLOCK that divides T."""
    return min(MAX_BLOCK, T & -T)


def splash_kernel(mask_TT: Array, *, softcap: float | None, interpret: bool) -> splash.SplashAttentionKernel:
    """The kernel for one head of one row."""
    block = block_size(mask_TT.shape[0])
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    names += ("block_q_dq", "block_kv_dq")
    kernel = splash.make_splash_mqa_single_device(
        mask_TT[None],
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention_out",
        interpret=interpret,
    )
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        # Converted to arrays with the rest of the mask's description, this flag would be traced; it is a Python bool.
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    return kernel
