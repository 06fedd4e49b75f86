"""Which of two evaluations is better: the metric that train.keep_best_by or train.stop_on names, and when a run ends early."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rapo_jax.checkpoint import Best

LOWER = ("loss", "kl", "error")  # what ends so is better where it is lower
DIRECTIONS = ("lowest", "highest")


@dataclass(frozen=True)
class Aim:
    """A metric of evaluations, and whether its highest or its lowest value is the best."""

    metric: str
    highest: bool

    @property
    def said(self) -> str:
        return f"{'highest' if self.highest else 'lowest'} {self.metric}"

    def rank(self, metrics: Mapping[str, float]) -> float:
        """A number that is lower for the better of two; infinite where the metric is absent or not finite."""
        value = metrics.get(self.metric, math.nan)
        return math.inf if not math.isfinite(value) else -value if self.highest else value

    def after(self, best: Best, metrics: Mapping[str, float], *, step: int) -> Best:
        """The best so far, with the evaluation of another step. What is no better, or no number, counts as none better."""
        if best.metric != self.said:  # the run was about another metric before
            best = Best(self.said)
        rank = self.rank(metrics)
        if rank < (math.inf if best.value is None else self.rank({self.metric: best.value})):
            return Best(self.said, metrics[self.metric], step)
        return Best(self.said, best.value, best.step, best.since + 1)


def aim_of(text: str) -> Aim:
    """The aim of "NAME", "lowest NAME" or "highest NAME".

    >>> aim_of("eval_loss").said, aim_of("eval_rewards/accuracies").said, aim_of("lowest eval_logps/chosen").said
    ('lowest eval_loss', 'highest eval_rewards/accuracies', 'lowest eval_logps/chosen')
    """
    first, _, rest = text.strip().partition(" ")
    if first in DIRECTIONS and rest.strip():
        return Aim(rest.strip(), first == "highest")
    return Aim(text.strip(), not text.strip().endswith(LOWER))
