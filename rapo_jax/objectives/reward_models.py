"""Losses that train a scalar head: `policy` holds scores s in place of log-probabilities."""

from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid
from jaxtyping import Float

from rapo_jax.intervals import NOT_NEGATIVE
from rapo_jax.objectives.logps import Logps


def bradley_terry(
    logps: Logps,
    *,
    margin_weight: Annotated[float, NOT_NEGATIVE, "factor of the reward gap as a margin"] = 0.0,
    centre_weight: Annotated[float, NOT_NEGATIVE, "factor of the penalty that centres scores on 0"] = 0.0,
) -> Float[Array, "*groups"]:
    """Reward model of pairwise preferences.

        -log sigmoid(s_w - s_l - m (r_w - r_l)) + c (s_w + s_l)^2

    Args:
        logps: pairs of scores; rewards only where `margin_weight` is not 0.
        margin_weight: m >= 0. Larger demands a larger difference of scores for a larger reward gap.
        centre_weight: c >= 0. Larger centres scores on 0; with 0 only differences of scores are trained.

    References:
        Bradley and Terry, "Rank Analysis of Incomplete Block Designs", 1952.
        Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023, eq. 2 (the margin).
        Eisenstein et al., "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
        2023 (the centring).
    """
    chosen, rejected = logps.policy[..., 0], logps.policy[..., 1]
    gap = jnp.nan_to_num(margin_weight * logps.reward_gap) if margin_weight else 0.0
    return -log_sigmoid(chosen - rejected - gap) + centre_weight * (chosen + rejected) ** 2
