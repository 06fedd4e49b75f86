"""Every loss as a pure function of log-probabilities: elementwise, unreduced, ignorant of devices and configuration.

Inputs are summed log-probabilities of whole responses, one value per group (any shape, all equal). Reduction over groups
belongs to the step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax import Array


@dataclass(frozen=True)
class Logps:
    """What an objective may read, per group. Natural logarithms, summed over response tokens, end-of-turn included.

    `reference_*` are zeros for objectives that need no reference; `rejected` fields are zeros where a group has a single
    response. `num_chosen_tokens` counts the scored tokens of the chosen response.
    """

    chosen: Array
    rejected: Array
    reference_chosen: Array
    reference_rejected: Array
    num_chosen_tokens: Array


def dpo(logps: Logps, *, beta: float, label_smoothing: float = 0.0, sft_weight: float = 0.0) -> Array:
    """-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), d = difference of the policy/reference log-ratios.

    e = 0: Rafailov et al., "Direct Preference Optimization", 2023, eq. 7. e > 0: Mitchell, "A note on DPO with noisy
    preferences and relationship to IPO", 2023 (conservative DPO), whose minimum lies at beta d = log((1 - e) / e).

    `sft_weight` adds so much of `sft`, which keeps what both responses share (format, length) from being unlearned:
    Pang et al., "Iterative Reasoning Preference Optimization", 2024, eq. 2.
    """
    difference = (logps.chosen - logps.reference_chosen) - (logps.rejected - logps.reference_rejected)
    agree = jax.nn.log_sigmoid(beta * difference)
    disagree = jax.nn.log_sigmoid(-beta * difference)
    return -(1 - label_smoothing) * agree - label_smoothing * disagree + sft_weight * sft(logps)


def sft(logps: Logps) -> Array:
    """-log pi(y | x) / |y|: negative log-likelihood per token of the (chosen) response."""
    return -logps.chosen / jax.numpy.maximum(logps.num_chosen_tokens, 1)


@dataclass(frozen=True)
class Objective:
    """A loss and what the step has to compute for it. `options` names the keyword arguments that it reads."""

    loss: Callable[..., Array]
    options: tuple[str, ...]
    needs_reference: bool
    num_responses: int


OBJECTIVES = {
    "dpo": Objective(dpo, ("beta", "label_smoothing", "sft_weight"), needs_reference=True, num_responses=2),
    "sft": Objective(sft, (), needs_reference=False, num_responses=1),
}
