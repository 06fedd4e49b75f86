"""How the next token is drawn from the logits. Every row has its own settings.

In this order, that of transformers: the repetition penalty, then (unless the row is greedy) the temperature, top-k, top-p and
min-p, each of what those before it left. vLLM cuts by min-p before top-p; with one of the two the order does not matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32, UInt32


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn.

    `temperature` 0 is greedy decoding. `top_k` keeps so many of the most probable tokens (0: all), `top_p` the smallest set
    whose probability reaches it (nucleus sampling), `min_p` the tokens of at least so many times the highest probability.
    `repetition_penalty` divides the positive logits of tokens that prompt or answer hold already, and multiplies the
    negative ones (1: none). `stop` are texts that end an answer, of which they are no part. `max_new_tokens` limits its length.
    `logps` asks for the log-probabilities of its tokens, those of the model itself: before penalty, temperature and cuts.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logps: bool = False


LANES = 128  # numbers that are added up side by side

# Settings that did not exist at first: where they are off, nothing is written of them.
LATER = ("top_k", "min_p", "repetition_penalty", "stop", "logps")


def used(samplings: Sequence[Sampling]) -> list[str]:
    """Those of the later settings that any of these uses."""
    off = Sampling()
    return [name for name in LATER if any(getattr(each, name) != getattr(off, name) for each in samplings)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSampling:
    """The settings of a batch's rows: keys uint32 [B, 2] (of seed and prompt), temperature, top_p, top_k, min_p and the repetition
    penalty [B], the limit of new tokens int32 [B], and how many tokens of each answer were drawn before, int32 [B]. numpy until
    they are put on the devices."""

    keys_B2: Array | np.ndarray
    temperature_B: Array | np.ndarray
    top_p_B: Array | np.ndarray
    top_k_B: Array | np.ndarray
    min_p_B: Array | np.ndarray
    penalty_B: Array | np.ndarray
    limit_B: Array | np.ndarray
    drawn_B: Array | np.ndarray


@dataclass(frozen=True)
class Method:
    """What has to be compiled for some samplings: random numbers, top-k, top-p, min-p, which tokens a row holds already (for the
    repetition penalty), and log-probabilities."""

    is_random: bool = False
    top_k: bool = False
    top_p: bool = False
    has_floor: bool = False
    penalizes: bool = False
    logps: bool = False


def method_of(samplings: Sequence[Sampling]) -> Method:
    """What has to be compiled for these. A setting that a row leaves off leaves its tokens as they are in any case."""
    drawn = [sampling for sampling in samplings if sampling.temperature > 0]
    return Method(
        is_random=bool(drawn),
        top_k=any(sampling.top_k for sampling in drawn),
        top_p=any(sampling.top_p < 1 for sampling in drawn),
        has_floor=any(sampling.min_p for sampling in drawn),
        penalizes=any(sampling.repetition_penalty != 1 for sampling in samplings),
        logps=any(sampling.logps for sampling in samplings),
    )


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
        top_k_B=np.array([each.top_k for each in samplings], np.int32),
        min_p_B=np.array([each.min_p for each in samplings], np.float32),
        penalty_B=np.array([each.repetition_penalty for each in samplings], np.float32),
        limit_B=np.array(limits, np.int32),
        drawn_B=np.array(earlier, np.int32),
    )


def random_key(seed: int, prompt: int, sample: int) -> UInt32[np.ndarray, "2"]:
    """The random key of a sample, which follows from these three alone; the token at position n is drawn with n folded into it.

    Numbers of samples are beyond those of positions, so that no sample's key is that of another's token.
    """
    key = jax.random.fold_in(jax.random.key(seed), prompt)
    return np.asarray(jax.random.key_data(jax.random.fold_in(key, 2**31 + sample) if sample else key))


def draw(
    logits_BV: Float[Array, "B V"], rows: RowSampling, *, method: Method, held_BV: Bool[Array, "B _"] | None = None
) -> Int32[Array, " B"]:
    """Each row's next token, at the position `drawn_B` of its answer. held_BV: the tokens that it holds already, where any row
    has a repetition penalty."""
    if method.penalizes:
        assert held_BV is not None
        logits_BV = penalized(logits_BV, held_BV, jnp.asarray(rows.penalty_B))
    greedy_B = logits_BV.argmax(-1).astype(jnp.int32)
    if not method.is_random:
        return greedy_B
    temperature_B, keys_B2 = map(jnp.asarray, (rows.temperature_B, rows.keys_B2))
    is_greedy_B = temperature_B == 0
    scaled_BV = logits_BV / jnp.where(is_greedy_B, 1.0, temperature_B)[:, None]
    if method.top_k or method.top_p:
        scaled_BV = jnp.where(in_top(scaled_BV, rows, method=method), scaled_BV, -jnp.inf)
    if method.has_floor:
        floor_B1 = scaled_BV.max(-1, keepdims=True) + jnp.log(jnp.asarray(rows.min_p_B))[:, None]
        scaled_BV = jnp.where(scaled_BV >= floor_B1, scaled_BV, -jnp.inf)
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2), jnp.asarray(rows.drawn_B))
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)
    return jnp.where(is_greedy_B, greedy_B, drawn_B)


def penalized(
    logits_BV: Float[Array, "B V"], held_BV: Bool[Array, "B V"], penalty_B: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Logits whose tokens are held already made less probable (Keskar et al., 2019, section 4.1; negative ones as transformers
    and vLLM do)."""
    penalty_B1 = penalty_B[:, None]
    return jnp.where(held_BV, jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1), logits_BV)


def in_top(logits_BV: Float[Array, "B V"], rows: RowSampling, *, method: Method) -> Bool[Array, "B V"]:
    """The `top_k` most probable tokens (Fan et al., 2018), and of these the most probable until `top_p` of their probability is
    reached (Holtzman et al., 2020, section 3.1). Those that are as probable as the last one belong to them.

    The probability of the last one is searched for: CPUs sort a vocabulary slowly.
    """
    weight_BV = jnp.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    lowest_B1 = jnp.zeros_like(weight_BV[:, :1])
    if method.top_k:
        top_k_B1 = jnp.asarray(rows.top_k_B)[:, None]
        most_B1 = jnp.where(top_k_B1 > 0, top_k_B1.astype(jnp.float32), jnp.inf)
        lowest_B1 = lowest_of(weight_BV, jnp.ones_like(weight_BV), most_B1)
    if method.top_p:
        top_p_B1 = jnp.asarray(rows.top_p_B)[:, None]
        whole_B1 = jnp.where(weight_BV >= lowest_B1, weight_BV, 0).sum(-1, keepdims=True)
        most_B1 = jnp.where(top_p_B1 < 1, top_p_B1 * whole_B1, jnp.inf)
        lowest_B1 = jnp.maximum(lowest_B1, lowest_of(weight_BV, weight_BV, most_B1))
    return weight_BV >= lowest_B1


def lowest_of(
    weight_BV: Float[Array, "B V"], share_BV: Float[Array, "B V"], most_B1: Float[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """The lowest number above which there are weights (from 0 to 1) whose shares add up to less than `most`: float32 numbers are
    in the order of their bits, of which each step finds one."""
    B, V = weight_BV.shape
    padded = [jnp.pad(each, ((0, 0), (0, -V % LANES))).reshape(B, -1, LANES) for each in (weight_BV, share_BV)]
    number = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.float32)

    def halved(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B1, high_B1 = ends
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        above_BIX = jnp.where(padded[0] > number(middle_B1)[:, :, None], padded[1], 0)
        is_enough_B1 = above_BIX.sum(1).sum(-1, keepdims=True) < most_B1
        return jnp.where(is_enough_B1, low_B1, middle_B1 + 1), jnp.where(is_enough_B1, middle_B1, high_B1)

    one = np.float32(1).view(np.int32)
    ends = jnp.zeros((B, 1), jnp.int32), jnp.full((B, 1), one)
    return number(jax.lax.fori_loop(0, int(one).bit_length(), halved, ends)[1])


def logps_of(logits_BV: Float[Array, "B V"], token_B: Int32[Array, " B"]) -> Float[Array, " B"]:
    """The log-probability of each row's token under the model itself."""
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def stopped_at(
    tokens: Sequence[int], checked: int, stop: Sequence[str], text_of: Callable[[Sequence[int]], str]
) -> tuple[int, str] | None:
    """After how many tokens an answer holds a stop string, and its text before it; None where it holds none.

    Its first `checked` tokens hold none. A stop string may begin and end within tokens.
    """
    if not any(each in text_of(tokens) for each in stop):
        return None
    for number in range(checked + 1, len(tokens) + 1):
        text = text_of(tokens[:number])
        begins = [at for each in stop if (at := text.find(each)) >= 0]
        if begins:
            return number, text[: min(begins)]
    return None
