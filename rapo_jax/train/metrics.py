"""What a step reports: sums over groups on the device, means and names for the reader.

Names are those that users of TRL know. `rewards/*` are the implicit rewards beta * (log pi - log pi_ref); an accuracy
counts strictly larger chosen rewards. Each is also given apart for groups whose goal is the chosen response's reward
(`goal_chosen/...`) and those whose goal is the rejected one's (`goal_rejected/...`), where the preference is reversed.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from rapo_jax.batch import CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE
from rapo_jax.objectives import Logps

SIDE_PREFIX = {NO_SIDE: None, CHOSEN_SIDE: "goal_chosen/", REJECTED_SIDE: "goal_rejected/"}
NUM_SIDES = len(SIDE_PREFIX)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupSums:
    """For each metric its sum over groups, apart by goal side: float32 [3]; `count` is the number of groups."""

    sums: dict[str, Array]
    count: Array

    def total(self, name: str) -> Array:
        return self.sums[name].sum()

    def means(self) -> dict[str, Array]:
        """Means over all groups and, where a side has groups, over each side; NaN marks an absent side."""
        means = {name: sums.sum() / self.count.sum() for name, sums in self.sums.items()}
        for side, prefix in SIDE_PREFIX.items():
            if prefix:
                means |= {prefix + name: sums[side] / self.count[side] for name, sums in self.sums.items()}
        return means


def group_sums(loss_BP: Array, logps: Logps, side_BP: Array, *, beta: float | None) -> GroupSums:
    """The metrics of one microbatch. `beta` is None for objectives without implicit rewards."""
    metrics = {"loss": loss_BP, "logps/chosen": logps.chosen}
    if beta is not None:
        chosen = beta * (logps.chosen - logps.reference_chosen)
        rejected = beta * (logps.rejected - logps.reference_rejected)
        metrics |= {
            "logps/rejected": logps.rejected,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        }
    on_side_BPs = side_BP[..., None] == jnp.arange(NUM_SIDES)
    by_side = lambda x_BP: jnp.where(on_side_BPs, x_BP[..., None], 0.0).sum((0, 1))  # noqa: E731
    return GroupSums({name: by_side(value) for name, value in metrics.items()}, by_side(jnp.ones_like(loss_BP)))
