"""Rotary position embedding (Su et al., "RoFormer", 2021) and the ways in which its context is extended.

Its numbers, read from config.json, are in rapo_jax/models/rope_config.py. By kind:

    linear    all frequencies divided by one factor
    llama3    the slow ones alone, with a smooth transition by wavelength (Llama 3.1, 2024)
    yarn      the same by the dimension's number, and attention sharpened (Peng et al., "YaRN", 2023)
    longrope  each by its own factor, of which there are two sets: for sequences up to the original length, and for longer
              ones (Ding et al., "LongRoPE", 2024)
    dynamic   none up to the original length; beyond it, by the length of the sequence ("NTK-aware" scaling)

Under the last two a position turns by an angle that depends on the length of the whole sequence. Where a prompt is laid out
once for several responses, that is the longest sequence of the group: what transformers computes from the group as a batch.
Responses on both sides of the original length therefore share the set of the longer one.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.rope_config import Rope

Angles = tuple[Array, Array]  # cos and sin, float32 [B, T, half of a head's dimensions that turn]


def rotary_angles(layout: Layout, *, rope: Rope, H: int, prompt_B: Int[Array, " B"] | None = None) -> Angles:
    """cos and sin of the rotary angles (eq. 15), float32, times the attention factor.

    prompt_B: the lengths of the rows' prompts, where the layout may be a part of one, as in generation.
    """
    if rope.by_length:
        frequency = frequencies_by_length(rope, H, sequence_lengths(layout, prompt_B))
    else:
        frequency = rope_frequencies(rope, H)
    angle = layout.position[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rope.attention_factor == 1:
        return cos, sin
    return cos * rope.attention_factor, sin * rope.attention_factor


def rope_frequencies(rope: Rope, H: int) -> Float[Array, " half"]:
    """float32, radians per position, one for each pair of dimensions that turns."""
    turning = rope.turning_dimensions(H)
    frequency = 1.0 / rope.theta ** (jnp.arange(0, turning, 2, dtype=jnp.float32) / turning)
    if rope.kind == "default":
        return frequency
    if rope.kind == "linear":
        return frequency / rope.factor
    kept = yarn_kept(rope, turning) if rope.kind == "yarn" else llama3_kept(rope, frequency)
    return (1 - kept) * frequency / rope.factor + kept * frequency


def llama3_kept(rope: Rope, frequency: Float[Array, " half"]) -> Float[Array, " half"]:
    """How much of each frequency is kept, from 0 for those of long wavelengths, which `factor` slows, to 1."""
    turns = rope.original_max_positions * frequency / (2 * jnp.pi)  # within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return jnp.clip(smooth, 0.0, 1.0)


def yarn_kept(rope: Rope, turning: int) -> Float[Array, " half"]:
    """The same for YaRN (section 3.2): a ramp between the pairs that turn `beta_fast` and `beta_slow` times."""

    def pair_that_turns(times: float) -> float:
        return turning * math.log(rope.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turning - 1)
    last += 0.001 if first == last else 0
    ramp = (jnp.arange(turning // 2, dtype=jnp.float32) - first) / (last - first)
    return 1 - jnp.clip(ramp, 0.0, 1.0)


def frequencies_by_length(rope: Rope, H: int, length_BT: Int[Array, "B T"]) -> Float[Array, "B T half"]:
    """`rope_frequencies` for each token, by the length of its sequence."""
    turning, original = rope.turning_dimensions(H), rope.original_max_positions
    exponent = jnp.arange(0, turning, 2, dtype=jnp.float32) / turning
    if rope.kind == "dynamic":
        longest_BT = jnp.maximum(length_BT, original).astype(jnp.float32)
        stretch_BT = (rope.factor * longest_BT / original - (rope.factor - 1)) ** (turning / (turning - 2))
        return 1.0 / (rope.theta * stretch_BT)[..., None] ** exponent
    short, long = (
        1.0 / (jnp.asarray(factors, jnp.float32) * rope.theta**exponent)
        for factors in (rope.short_factors, rope.long_factors)
    )
    return jnp.where((length_BT > original)[..., None], long, short)


def sequence_lengths(layout: Layout, prompt_B: Int[Array, " B"] | None = None) -> Int[Array, "B T"]:
    """For each token, the length of the longest sequence of its group: a prompt and one of its responses.

    In generation, where rows hold one sequence that is computed in parts, it is that of the prompt or, after it, of the
    sequence up to the token: keys stay in the cache as they were when their token was the last.

    >>> # prompt p0 p1, responses a0 a1 a2 and b0: all of the group's tokens get 5
    """
    if prompt_B is not None:
        return jnp.maximum(layout.position + 1, prompt_B[:, None])

    def of_row(position: Array, group: Array) -> Array:
        return jnp.zeros(position.shape[0] + 1, position.dtype).at[group].max(position + 1)[group]

    return jax.vmap(of_row)(layout.position, layout.group)


def rotate(x_BTNH: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + R / 2) of the first R dimensions of every head, as Hugging Face checkpoints pair them;
    computed in float32. R is twice the number of angles."""
    cos, sin = (angle[:, :, None, :] for angle in angles)
    turning = 2 * cos.shape[-1]
    if turning < x_BTNH.shape[-1]:
        return jnp.concatenate([rotate(x_BTNH[..., :turning], angles), x_BTNH[..., turning:]], axis=-1)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
