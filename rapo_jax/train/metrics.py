"""What a step reports: sums over groups on the device, and named means of them. A metric is one entry of METRICS.

Names are those that users of TRL know. `rewards/*` are the implicit rewards beta * (log pi - log pi_ref), without the
reference for objectives that have none, or a reward model's scores; an accuracy counts strictly larger chosen rewards.
`rewards/prompt` is the implicit reward of the prompt itself (without its first token), for objectives that read it.
`chosen` is the most preferred response, `rejected` the least preferred one; absent responses are not counted. Each
metric is also given for the groups whose goal is the chosen response's reward (`goal_chosen/...`) and for those whose
goal is the rejected one's (`goal_rejected/...`), where the preference is reversed.

To add one:

    def response_tokens(groups: Microbatch) -> Values:
        return groups.logps.num_tokens.sum(-1), groups.everywhere

    register_metric("tokens/responses", Metric(response_tokens))
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rapo_jax.batch import BEST_SIDE, CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE
from rapo_jax.config.objective import Objective
from rapo_jax.objectives import Logps

SIDE_PREFIX = {NO_SIDE: None, CHOSEN_SIDE: "goal_chosen/", REJECTED_SIDE: "goal_rejected/", BEST_SIDE: "goal_best/"}
NUM_SIDES = len(SIDE_PREFIX)

Values = tuple[Float[Array, "B P"], Bool[Array, "B P"]]  # a number for every group, and whether the group has one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupSums:
    """For each metric its sum over the groups that have it, and their number, both by goal side: float32 [4]."""

    sums: dict[str, Array]
    counts: dict[str, Array]

    def total(self, name: str) -> Float[Array, ""]:
        return self.sums[name].sum()

    def means(self) -> dict[str, Float[Array, ""]]:
        """Means over all groups and, where a side has groups, over each side; NaN marks an absent side."""
        means = {name: sums.sum() / self.counts[name].sum() for name, sums in self.sums.items()}
        for side, prefix in SIDE_PREFIX.items():
            if prefix:
                means |= {prefix + name: sums[side] / self.counts[name][side] for name, sums in self.sums.items()}
        return means


@dataclass(frozen=True)
class Microbatch:
    """What a metric may read: the groups of one microbatch, [B, P], under an objective."""

    loss_BP: Float[Array, "B P"]
    logps: Logps
    side_BP: Int[Array, "B P"]
    objective: Objective

    @property
    def everywhere(self) -> Bool[Array, "B P"]:
        """A mask for metrics that every group has."""
        return jnp.ones(self.loss_BP.shape, bool)

    @property
    def is_preference_BP(self) -> Bool[Array, "B P"]:
        return ~(self.side_BP == BEST_SIDE)

    @property
    def has_chosen_BP(self) -> Bool[Array, "B P"]:
        return self.logps.present[..., 0] & self.is_preference_BP

    @property
    def has_rejected_BP(self) -> Bool[Array, "B P"]:
        return self.rejected(self.logps.present) & self.is_preference_BP

    def rejected(self, x_BPC: Shaped[Array, "B P C"]) -> Shaped[Array, "B P"]:
        """The entries of the least preferred response of each group."""
        present = self.logps.present
        last_BP = jnp.where(present, jnp.arange(present.shape[-1]), 1).max(-1)
        return jnp.take_along_axis(x_BPC, last_BP[..., None], -1)[..., 0]

    @property
    def implied_BPC(self) -> Float[Array, "B P C"]:
        """The implicit rewards, or a reward model's scores."""
        beta = 1.0 if self.objective.is_reward_model else self.objective.options["beta"]
        return beta * self.logps.ratios


def always(objective: Objective) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """A function of a microbatch's groups, and for which objectives it is reported."""

    values: Callable[[Microbatch], Values]
    applies_to: Callable[[Objective], bool] = always


# The metrics.


def loss(groups: Microbatch) -> Values:
    return groups.loss_BP, groups.everywhere


def chosen_logps(groups: Microbatch) -> Values:
    return groups.logps.policy[..., 0], groups.logps.present[..., 0]


def rejected_logps(groups: Microbatch) -> Values:
    return groups.rejected(groups.logps.policy), groups.has_rejected_BP


def chosen_rewards(groups: Microbatch) -> Values:
    return groups.implied_BPC[..., 0], groups.has_chosen_BP


def rejected_rewards(groups: Microbatch) -> Values:
    return groups.rejected(groups.implied_BPC), groups.has_rejected_BP


def reward_margins(groups: Microbatch) -> Values:
    (chosen_BP, has_chosen_BP), (rejected_BP, has_rejected_BP) = chosen_rewards(groups), rejected_rewards(groups)
    return chosen_BP - rejected_BP, has_chosen_BP & has_rejected_BP


def accuracies(groups: Microbatch) -> Values:
    (chosen_BP, has_chosen_BP), (rejected_BP, has_rejected_BP) = chosen_rewards(groups), rejected_rewards(groups)
    return (chosen_BP > rejected_BP).astype(jnp.float32), has_chosen_BP & has_rejected_BP


def prompt_rewards(groups: Microbatch) -> Values:
    """beta q, where DRO fits beta (lr + log Z0 + q) to the reward (rapo_jax/objectives/pointwise.py)."""
    return groups.objective.options["beta"] * groups.logps.prompt, groups.everywhere


def divergence(groups: Microbatch) -> Values:
    return jnp.broadcast_to(groups.logps.divergence, groups.loss_BP.shape), groups.everywhere


# Which objectives report them.


def of_language_models(objective: Objective) -> bool:
    return not objective.is_reward_model


def of_compared_responses(objective: Objective) -> bool:
    return of_language_models(objective) and objective.responses != "one"


def of_compared_rewards(objective: Objective) -> bool:
    return objective.responses != "one" and (objective.is_reward_model or "beta" in objective.options)


def of_prompts(objective: Objective) -> bool:
    return objective.needs("prompt")


def of_divergences(objective: Objective) -> bool:
    return objective.needs("divergence")


METRICS: dict[str, Metric] = {
    "loss": Metric(loss),
    "logps/chosen": Metric(chosen_logps, of_language_models),
    "logps/rejected": Metric(rejected_logps, of_compared_responses),
    "rewards/chosen": Metric(chosen_rewards, of_compared_rewards),
    "rewards/rejected": Metric(rejected_rewards, of_compared_rewards),
    "rewards/margins": Metric(reward_margins, of_compared_rewards),
    "rewards/accuracies": Metric(accuracies, of_compared_rewards),
    "rewards/prompt": Metric(prompt_rewards, of_prompts),
    "kl": Metric(divergence, of_divergences),
}


def register_metric(name: str, metric: Metric) -> None:
    """Adds a metric, which every step and evaluation compiled from now on reports. Raises ValueError for a taken name."""
    if name in METRICS:
        raise ValueError(f"the metric {name!r} exists; choose another name")
    METRICS[name] = metric


def sums_of_no_groups(objective: Objective) -> GroupSums:
    """What the sums of microbatches are added to."""
    zeros = {name: jnp.zeros(NUM_SIDES) for name, metric in METRICS.items() if metric.applies_to(objective)}
    return GroupSums(sums=zeros, counts=zeros)


def group_sums(
    loss_BP: Float[Array, "B P"], logps: Logps, side_BP: Int[Array, "B P"], objective: Objective
) -> GroupSums:
    """The metrics of one microbatch."""
    groups = Microbatch(loss_BP, logps, side_BP, objective)
    metrics = {name: metric.values(groups) for name, metric in METRICS.items() if metric.applies_to(objective)}
    on_side_BPs = side_BP[..., None] == jnp.arange(NUM_SIDES)

    def by_side(x_BP: Array, has_BP: Array) -> Array:
        return jnp.where(on_side_BPs & has_BP[..., None], x_BP[..., None], 0.0).sum((0, 1))

    return GroupSums(
        sums={name: by_side(values_BP, has_BP) for name, (values_BP, has_BP) in metrics.items()},
        counts={name: by_side(jnp.ones_like(loss_BP), has_BP) for name, (_, has_BP) in metrics.items()},
    )
