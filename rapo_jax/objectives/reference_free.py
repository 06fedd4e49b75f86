"""Losses of pairs without a reference model. m = log pi(y | x) / |y| is the log-probability per token."""

from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, relu
from jaxtyping import Float

from rapo_jax.intervals import FINITE, NOT_NEGATIVE, POSITIVE
from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import PerToken, SftWeight, Smoothing

# `orpo` clips log-probabilities per token here: the odds are infinite at 0.
LARGEST_MEAN = -1e-6


def simpo(
    logps: Logps,
    *,
    beta: Annotated[float, POSITIVE, "scale of the reward, the log-probability per token"] = 2.0,
    gamma: Annotated[float, FINITE, "target margin of the rewards"] = 0.5,
    label_smoothing: Smoothing = 0.0,
) -> Float[Array, "*groups"]:
    """Simple preference optimization: a margin between log-probabilities per token.

        -(1 - e) log sigmoid(l) - e log sigmoid(-l),  l = beta (m_w - m_l) - gamma

    Args:
        logps: pairs.
        beta: > 0. The scale of the reward; there is no reference to stay close to.
        gamma: finite. An absolute margin, not a multiple of beta as in some implementations.
        label_smoothing: e in [0, 0.5), the share of preferences assumed to be flipped.

    References:
        Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", 2024, eq. 6.
    """
    d = beta * (logps.means[..., 0] - logps.means[..., 1]) - gamma
    return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing * log_sigmoid(-d)


def orpo(
    logps: Logps,
    *,
    odds_weight: Annotated[float, NOT_NEGATIVE, "factor of the odds ratio (the paper's lambda)"] = 0.1,
) -> Float[Array, "*groups"]:
    """Odds ratio preference optimization: likelihood of the chosen response plus an odds ratio.

        -m_w - w log sigmoid(log odds(m_w) - log odds(m_l)),  odds(m) = e^m / (1 - e^m)

    The likelihood is that of the response; the authors' code, and TRL, add the prompt's.

    Args:
        logps: pairs.
        odds_weight: w >= 0, the paper's lambda. 0 is `sft` on the chosen response.

    References:
        Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", 2024, eq. 6 and 7.
    """
    means = jnp.minimum(logps.means, LARGEST_MEAN)
    odds = means - log1mexp(means)
    return -logps.means[..., 0] - odds_weight * log_sigmoid(odds[..., 0] - odds[..., 1])


def log1mexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - e^x) for x < 0, computed without cancellation on either side of -log 2.

    References:
        Maechler, "Accurately Computing log(1 - exp(-|a|))", 2012.
    """
    near = x > -0.6931
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def cpo(
    logps: Logps,
    *,
    beta: Annotated[float, POSITIVE, "scale of the difference of log-probabilities"] = 0.1,
    sft_weight: SftWeight = 1.0,
    average: PerToken = False,
) -> Float[Array, "*groups"]:
    """Contrastive preference optimization: `dpo` with a uniform reference, plus likelihood.

        -log sigmoid(beta (log pi_w - log pi_l)) - w log pi_w

    Args:
        logps: pairs.
        beta: > 0. The larger, the smaller the difference of log-probabilities that satisfies a preference.
        sft_weight: w >= 0, the weight of the likelihood term.
        average: use the likelihood per token in that term.

    References:
        Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
        Translation", 2024.
    """
    likelihood = (logps.means if average else logps.policy)[..., 0]
    return -log_sigmoid(beta * (logps.policy[..., 0] - logps.policy[..., 1])) - sft_weight * likelihood


def slic_hf(
    logps: Logps,
    *,
    delta: Annotated[float, FINITE, "target margin of the log-probabilities"] = 1.0,
    sft_weight: SftWeight = 0.1,
) -> Float[Array, "*groups"]:
    """Sequence likelihood calibration: a hinge on log-probabilities, plus likelihood.

        max(0, delta - log pi_w + log pi_l) - w log pi_w

    Args:
        logps: pairs.
        delta: finite. The hinge is inactive once the log-probabilities differ by at least this much.
        sft_weight: w >= 0, the weight of the likelihood term.

    References:
        Zhao et al., "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", 2023.
    """
    return relu(delta - logps.policy[..., 0] + logps.policy[..., 1]) - sft_weight * logps.policy[..., 0]
