"""Rotary position embedding (Su et al., "RoFormer", 2021). Its numbers, read from config.json, are in
rapo_jax/models/rope_config.py."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rapo_jax.models.rope_config import Rope

Angles = tuple[Array, Array]  # cos and sin, float32 [B, T, H / 2]


def rotary_angles(position_BT: Int[Array, "B T"], *, rope: Rope, H: int) -> Angles:
    """cos and sin of the rotary angles, float32 [B, T, H / 2] (eq. 15)."""
    frequency = rope_frequencies(rope, H)
    angle = position_BT[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope_frequencies(rope: Rope, H: int) -> Float[Array, " half"]:
    """float32 [H / 2], radians per position. llama3 slows long wavelengths by `factor`, with a smooth transition."""
    frequency = 1.0 / rope.theta ** (jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    if rope.kind == "default":
        return frequency
    if rope.kind == "linear":
        return frequency / rope.factor
    turns = rope.original_max_positions * frequency / (2 * jnp.pi)  # within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * frequency / rope.factor + smooth * frequency


def rotate(x_BTNH: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head, as Hugging Face checkpoints pair them; computed in float32."""
    cos, sin = (angle[:, :, None, :] for angle in angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
