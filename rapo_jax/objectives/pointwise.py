"""Losses that judge each response by itself."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid
from jaxtyping import Float

from rapo_jax.intervals import FINITE, NOT_NEGATIVE, POSITIVE
from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Beta


def dro_pointwise(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    log_z0: Annotated[float, FINITE, "logarithm of the initial partition function Z0"] = 50.0,
    joint: Annotated[bool, "train the prompt's log-ratio as well: eq. 8 in place of algorithm 1"] = False,
    reward_scale: Annotated[float, POSITIVE, "factor of the rewards"] = 1.0,
    reward_shift: Annotated[float, FINITE, "added to the scaled rewards"] = 0.0,
) -> Float[Array, "*groups"]:
    """Direct reward optimization: log-ratios are fitted to explicit rewards, response by response.

        mean_j (r_j - beta (lr_j + log Z0 + q))^2,  q the prompt's log-ratio

    q leaves out the prompt's first token, and is detached unless `joint`. The paper searches Z0 in [-50, 500]; as only
    its logarithm can be negative, the option is `log_z0`.

    Args:
        logps: any number of responses with rewards, their prompt, and a reference.
        beta: > 0. A reward gap of r asks for a log-ratio gap of r / beta: larger stays closer to the reference.
        log_z0: finite, the logarithm of the initial partition function.
        joint: train q too (eq. 8) instead of detaching it (algorithm 1).
        reward_scale: > 0. Rewards enter as reward_scale r + reward_shift.
        reward_shift: finite, added to the scaled rewards.

    References:
        "Direct Reward Optimization: A Point-wise Alignment Approach", algorithm 1 and eq. 8.
    """
    prompt = logps.prompt if joint else jax.lax.stop_gradient(logps.prompt)
    predicted = beta * (logps.ratios + (log_z0 + prompt)[..., None])
    rewards = jnp.where(logps.present, reward_scale * logps.rewards + reward_shift, 0)
    errors = jnp.where(logps.present, rewards - predicted, 0) ** 2
    return errors.sum(-1) / jnp.maximum(logps.present.sum(-1), 1)


def kto(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    desirable_weight: Annotated[float, NOT_NEGATIVE, "factor of desirable responses"] = 1.0,
    undesirable_weight: Annotated[float, NOT_NEGATIVE, "factor of undesirable responses"] = 1.0,
) -> Float[Array, "*groups"]:
    """Kahneman-Tversky optimization: desirable and undesirable responses, paired or not.

        w_d (1 - sigmoid(beta (lr - z))) for desirable, w_u (1 - sigmoid(beta (z - lr))) for undesirable responses

    z, `divergence`, is max(0, mean log-ratio of responses to other prompts) over the optimizer batch. A pair gives the
    mean of its two responses.

    Args:
        logps: a desirable response first, an undesirable one second, either or both; a reference; the divergence.
        beta: > 0, the risk aversion. Larger lets the gradient vanish sooner as lr leaves z, closer to the reference.
        desirable_weight: w_d >= 0, the weight of desirable responses.
        undesirable_weight: w_u >= 0, of undesirable ones. Raise one of the two to balance classes of different size.

    References:
        Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024.
    """
    signs, weights = jnp.array([[1.0, -1.0], [desirable_weight, undesirable_weight]], logps.policy.dtype)
    losses = weights * sigmoid(-beta * signs * (logps.ratios[..., :2] - logps.divergence))
    present = logps.present[..., :2]
    return jnp.where(present, losses, 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
