"""Losses that compare any number of responses with each other."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, relu
from jaxtyping import Float

from rapo_jax.intervals import POSITIVE
from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Beta, SftWeight

Temperature = Annotated[float, POSITIVE, "of the softmax over rewards (the paper's alpha)"]


def rrhf(logps: Logps, *, sft_weight: SftWeight = 1.0) -> Float[Array, "*groups"]:
    """Rank responses to align: a hinge for every pair in the wrong order, plus likelihood of the best.

        sum over i preferred to j of max(0, m_j - m_i) - w log pi_best,  m = log pi per token

    Responses with equal known rewards are not compared.

    Args:
        logps: any number of responses.
        sft_weight: w >= 0, the weight of the best response's likelihood.

    References:
        Yuan et al., "RRHF: Rank Responses to Align Language Models with Human Feedback without tears", 2023, eq. 2-4.
    """
    before = jnp.triu(jnp.ones((logps.policy.shape[-1],) * 2, bool), 1)
    pairs = logps.present[..., :, None] & logps.present[..., None, :] & before
    pairs &= logps.rewards[..., :, None] != logps.rewards[..., None, :]  # NaN, unknown, differs from everything
    overtaken = relu(logps.means[..., None, :] - logps.means[..., :, None])
    return jnp.where(pairs, overtaken, 0).sum((-2, -1)) - sft_weight * logps.policy[..., 0]


def infonca(logps: Logps, *, beta: Beta = 0.01, temperature: Temperature = 1e-3) -> Float[Array, "*groups"]:
    """InfoNCA: cross entropy between softmaxes of rewards and of log-ratios; for pairs and temperature -> 0, `dpo`.

        -sum_i s_i log softmax(beta lr)_i,  s = softmax(r / temperature)

    Args:
        logps: any number of responses with rewards, and a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        temperature: > 0. The smaller, the more the target is the best response alone.

    References:
        Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", 2024.
    """
    shares = jax.nn.log_softmax(jnp.where(logps.present, beta * logps.ratios, -jnp.inf), axis=-1)
    return -jnp.where(logps.present, reward_shares(logps, temperature) * shares, 0).sum(-1)


def nca(logps: Logps, *, beta: Beta = 0.01, temperature: Temperature = 1e-3) -> Float[Array, "*groups"]:
    """NCA: like `infonca`, but every log-ratio is anchored by itself, so that the best response does not become unlikely.

        -sum_i s_i log sigmoid(beta lr_i) - mean_i log sigmoid(-beta lr_i),  s = softmax(r / temperature)

    Args:
        logps: any number of responses with rewards, and a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        temperature: > 0. The smaller, the more the target is the best response alone.

    References:
        Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", 2024.
    """
    present, ratios = logps.present, beta * jnp.where(logps.present, logps.ratios, 0)
    noise = jnp.where(present, log_sigmoid(-ratios), 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
    return -jnp.where(present, reward_shares(logps, temperature) * log_sigmoid(ratios), 0).sum(-1) - noise


def reward_shares(logps: Logps, temperature: float) -> Float[Array, "*groups C"]:
    """softmax(r / temperature), temperature > 0, over the responses that a group has; 0 for the others."""
    scaled = logps.rewards / temperature
    return jax.nn.softmax(jnp.where(logps.present, scaled, jnp.finfo(scaled.dtype).min), axis=-1)
