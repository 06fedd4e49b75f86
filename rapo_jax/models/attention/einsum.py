"""Attention by two einsums: the reference that every faster kernel is compared with. Materializes all scores."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from rapo_jax.models.attention.kernel import Kernel


def attend_einsum(
    q_BTNH: Float[Array, "B T N H"],
    k_BUKH: Float[Array, "B U K H"],
    v_BUKH: Float[Array, "B U K H"],
    *,
    mask_BTU: Bool[Array, "B T U"],
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention; scores and softmax in float32.

    softcap: scores become softcap * tanh(scores / softcap) before the mask (Gemma 2, 2024, section 2).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BUKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTU = jnp.einsum("BTKGH,BUKH->BKGTU", q_BTKGH, k_BUKH, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores_BKGTU = softcap * jnp.tanh(scores_BKGTU / softcap)
    scores_BKGTU = jnp.where(mask_BTU[:, None, None], scores_BKGTU, jnp.finfo(jnp.float32).min)
    weights_BKGTU = jax.nn.softmax(scores_BKGTU, axis=-1).astype(v_BUKH.dtype)
    out_BTNH = jnp.einsum("BKGTU,BUKH->BTKGH", weights_BKGTU, v_BUKH).reshape(B, T, N, H)
    return checkpoint_name(out_BTNH, "attention_out")


EINSUM = Kernel(attend_einsum, recomputed_scores=1)
