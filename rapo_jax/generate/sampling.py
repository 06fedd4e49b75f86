"""How the next token is drawn from the logits: greedy, by temperature, or from the nucleus. Every row has its own settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32, UInt32

Method = Literal["greedy", "sampled", "nucleus"]


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn.

    `temperature` 0 is greedy decoding. `top_p` keeps the smallest set of tokens whose probability reaches it (nucleus
    sampling). `max_new_tokens` limits the length of an answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSampling:
    """The settings of a batch's rows: keys uint32 [B, 2] (of seed and prompt), temperature and top_p [B], the limit of new
    tokens int32 [B], and how many tokens of each answer were drawn before, int32 [B]. numpy until
    they are put on the devices."""

    keys_B2: Array | np.ndarray
    temperature_B: Array | np.ndarray
    top_p_B: Array | np.ndarray
    limit_B: Array | np.ndarray
    drawn_B: Array | np.ndarray


def method_of(samplings: Sequence[Sampling]) -> Method:
    """What has to be compiled for these: the nucleus needs a sort of the vocabulary, greedy decoding no random numbers."""
    if all(sampling.temperature == 0 for sampling in samplings):
        return "greedy"
    return "nucleus" if any(sampling.top_p < 1 for sampling in samplings) else "sampled"


def row_sampling(
    samplings: Sequence[Sampling],
    keys: Sequence[UInt32[np.ndarray, "2"]],
    *,
    limits: Sequence[int],
    earlier: Sequence[int],
) -> RowSampling:
    """The settings of rows with these random keys, as numpy. limits: of new tokens. earlier: how many tokens of each answer were
    drawn before and now end the prompt."""
    return RowSampling(
        keys_B2=np.stack(keys),
        temperature_B=np.array([each.temperature for each in samplings], np.float32),
        top_p_B=np.array([each.top_p for each in samplings], np.float32),
        limit_B=np.array(limits, np.int32),
        drawn_B=np.array(earlier, np.int32),
    )


def random_key(seed: int, prompt: int, sample: int) -> UInt32[np.ndarray, "2"]:
    """The random key of a sample, which follows from these three alone; the token at position n is drawn with n folded into it.

    Numbers of samples are beyond those of positions, so that no sample's key is that of another's token.
    """
    key = jax.random.fold_in(jax.random.key(seed), prompt)
    return np.asarray(jax.random.key_data(jax.random.fold_in(key, 2**31 + sample) if sample else key))


def draw(logits_BV: Float[Array, "B V"], rows: RowSampling, *, method: Method) -> Int32[Array, " B"]:
    """Each row's next token, at the position `drawn_B` of its answer."""
    greedy_B = logits_BV.argmax(-1).astype(jnp.int32)
    if method == "greedy":
        return greedy_B
    temperature_B, top_p_B, keys_B2 = map(jnp.asarray, (rows.temperature_B, rows.top_p_B, rows.keys_B2))
    is_greedy_B = temperature_B == 0
    scaled_BV = logits_BV / jnp.where(is_greedy_B, 1.0, temperature_B)[:, None]
    if method == "nucleus":
        kept_BV = in_nucleus(scaled_BV, top_p_B) | (top_p_B >= 1)[:, None]
        scaled_BV = jnp.where(kept_BV, scaled_BV, -jnp.inf)
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2), jnp.asarray(rows.drawn_B))
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)
    return jnp.where(is_greedy_B, greedy_B, drawn_B)


def in_nucleus(logits_BV: Float[Array, "B V"], top_p_B: Float[Array, " B"]) -> Bool[Array, "B V"]:
    """The most probable tokens until `top_p` is reached (Holtzman et al., 2020, section 3.1)."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    lowest_B1 = jnp.where(before_BV < top_p_B[:, None], sorted_BV, jnp.inf).min(-1, keepdims=True)
    return logits_BV >= lowest_B1
