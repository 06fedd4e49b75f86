"""What a step reports: sums over groups on the device, means and names for the reader.

Names are those that users of TRL know. `rewards/*` are the implicit rewards beta * (log pi - log pi_ref), without the
reference for objectives that have none, or a reward model's scores; an accuracy counts strictly larger chosen rewards.
`rewards/prompt` is the same of the prompt itself (without its first token), for objectives that read it.
`chosen` is the most preferred response, `rejected` the least preferred one; what a group lacks counts nowhere. Each is
also given apart for groups whose goal is the chosen response's reward (`goal_chosen/...`) and those whose goal is the
rejected one's (`goal_rejected/...`), where the preference is reversed.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from rapo_jax.batch import BEST_SIDE, CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE
from rapo_jax.config.objective import Objective
from rapo_jax.objectives import Logps

SIDE_PREFIX = {NO_SIDE: None, CHOSEN_SIDE: "goal_chosen/", REJECTED_SIDE: "goal_rejected/", BEST_SIDE: "goal_best/"}
NUM_SIDES = len(SIDE_PREFIX)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupSums:
    """For each metric its sum over the groups that have it, and their number, both apart by goal side: float32 [4]."""

    sums: dict[str, Array]
    counts: dict[str, Array]

    def total(self, name: str) -> Array:
        return self.sums[name].sum()

    def means(self) -> dict[str, Array]:
        """Means over all groups and, where a side has groups, over each side; NaN marks an absent side."""
        means = {name: sums.sum() / self.counts[name].sum() for name, sums in self.sums.items()}
        for side, prefix in SIDE_PREFIX.items():
            if prefix:
                means |= {prefix + name: sums[side] / self.counts[name][side] for name, sums in self.sums.items()}
        return means


def group_sums(loss_BP: Array, logps: Logps, side_BP: Array, objective: Objective) -> GroupSums:
    """The metrics of one microbatch."""
    everywhere = jnp.ones(loss_BP.shape, bool)
    metrics = {"loss": (loss_BP, everywhere)}
    if not objective.is_reward_model:
        metrics["logps/chosen"] = (logps.policy[..., 0], logps.present[..., 0])
    if objective.responses != "one":
        metrics |= preference_metrics(logps, objective, ~(side_BP == BEST_SIDE))
    if objective.needs("prompt"):  # what DRO's mean stands at is this and the responses' rewards together
        metrics["rewards/prompt"] = (objective.options["beta"] * logps.prompt, everywhere)
    if objective.needs("divergence"):
        metrics["kl"] = (jnp.broadcast_to(logps.divergence, loss_BP.shape), everywhere)
    on_side_BPs = side_BP[..., None] == jnp.arange(NUM_SIDES)
    by_side = lambda x_BP, has_BP: jnp.where(on_side_BPs & has_BP[..., None], x_BP[..., None], 0.0).sum((0, 1))  # noqa: E731
    return GroupSums(
        sums={name: by_side(value, has) for name, (value, has) in metrics.items()},
        counts={name: by_side(jnp.ones_like(loss_BP), has) for name, (_, has) in metrics.items()},
    )


def preference_metrics(logps: Logps, objective: Objective, is_preference_BP: Array) -> dict[str, tuple[Array, Array]]:
    """Name -> (values, which groups have one)."""
    present = logps.present
    if objective.needs("divergence"):  # the last response answers another prompt
        present = present[..., :-1]
    last_BP = jnp.where(present, jnp.arange(present.shape[-1]), 1).max(-1)  # the least preferred one
    rejected = lambda x_BPC: jnp.take_along_axis(x_BPC, last_BP[..., None], -1)[..., 0]  # noqa: E731
    has_chosen, has_rejected = present[..., 0] & is_preference_BP, rejected(present) & is_preference_BP
    both, metrics = has_chosen & has_rejected, {}
    is_reward_model = objective.is_reward_model
    if not is_reward_model:
        metrics["logps/rejected"] = (rejected(logps.policy), has_rejected)
    beta = 1.0 if is_reward_model else objective.options.get("beta")
    if beta is not None:
        implied = beta * logps.ratios
        chosen_BP, rejected_BP = implied[..., 0], rejected(implied)
        metrics |= {
            "rewards/chosen": (chosen_BP, has_chosen),
            "rewards/rejected": (rejected_BP, has_rejected),
            "rewards/margins": (chosen_BP - rejected_BP, both),
            "rewards/accuracies": ((chosen_BP > rejected_BP).astype(jnp.float32), both),
        }
    return metrics
