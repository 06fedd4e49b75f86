"""Confidence intervals by the bootstrap over prompts (Efron, "Bootstrap methods", 1979): pairs of one prompt are not independent,
so whole prompts are drawn again, with replacement."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

NUM_RESAMPLES = 1000
LEVEL = 0.95

Draw = Int[np.ndarray, " n"]  # indices, some of them several times


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and the number of prompts behind it; NaN where there are none."""

    value: float
    low: float
    high: float
    n: int


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def mean_of(values_N: Float[np.ndarray, " N"], prompt_N: Int[np.ndarray, " N"]) -> Estimate:
    """The mean over pairs, those with NaN left out. `prompt_N` numbers the prompt of each pair."""
    known_N = ~np.isnan(values_N)
    if not known_N.any():
        return NOTHING
    _, prompt = np.unique(prompt_N[known_N], return_inverse=True)
    sums_P, counts_P = np.bincount(prompt, values_N[known_N]), np.bincount(prompt)
    return interval(len(counts_P), lambda drawn: float(sums_P[drawn].sum() / counts_P[drawn].sum()))


def estimate(prompt_N: Int[np.ndarray, " N"], statistic: Callable[[Draw], float]) -> Estimate:
    """A statistic of pairs, given by their indices; those of one prompt are drawn together."""
    order = np.argsort(prompt_N, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(prompt_N[order])) + 1)
    return interval(len(members), lambda drawn: statistic(np.concatenate([members[prompt] for prompt in drawn])))


def interval(num_prompts: int, statistic: Callable[[Draw], float], *, seed: int = 0) -> Estimate:
    """A statistic of prompts, given by their indices, with its percentile interval.

    Draws in which the statistic is NaN (a rank correlation of equal numbers) count for nothing.
    """
    value = statistic(np.arange(num_prompts))
    random = np.random.default_rng(seed)
    drawn = np.array([statistic(random.integers(0, num_prompts, num_prompts)) for _ in range(NUM_RESAMPLES)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Estimate(value, float("nan"), float("nan"), num_prompts)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), num_prompts)
