"""Confidence intervals by the bootstrap over prompts (Efron, "Bootstrap methods", 1979): responses to one prompt are not
independent, so whole prompts are drawn again, with replacement."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

NUM_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and the number of prompts behind it; NaN where there are none."""

    value: float
    low: float
    high: float
    n: int


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def mean_of(values: Float[np.ndarray, " prompts"], *, seed: int = 0) -> Estimate:
    """The mean over prompts, those with NaN left out, with its percentile interval."""
    known = values[~np.isnan(values)]
    return estimate(len(known), lambda drawn: float(known[drawn].mean()), seed=seed) if len(known) else NOTHING


def estimate(num_prompts: int, statistic: Callable[[Int[np.ndarray, " n"]], float], *, seed: int = 0) -> Estimate:
    """A statistic of the prompts, given by their indices, with its percentile interval.

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
