"""Losses as pure functions of log-probabilities: elementwise over groups, unreduced, unaware of devices and configuration.

A group is a prompt with its responses, the preferred one first. Reduction over groups belongs to the train step. A
loss's keyword-only arguments are its options, with the defaults of its paper or of its public implementation.

To add one, write the function and register it:

    def squared(logps: Logps, *, beta: Annotated[float, POSITIVE, "target margin"] = 1.0) -> Array:
        return (logps.margin - beta) ** 2

    register("squared", LossSpec(squared))
"""

from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Option
from rapo_jax.objectives.registry import AMBIGUOUS, OBJECTIVES, LossSpec, register

__all__ = ["AMBIGUOUS", "OBJECTIVES", "Logps", "LossSpec", "Option", "register"]
