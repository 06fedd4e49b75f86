"""Losses of pairs that read only d, the chosen response's log-ratio minus the rejected one's.

A log-ratio is lr = log pi(y | x) - log pi_ref(y | x), and d = lr_w - lr_l.
"""

from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, relu, sigmoid
from jaxtyping import Float

from rapo_jax.intervals import FINITE, Interval
from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Beta, PerToken, Smoothing


def dpo(logps: Logps, *, beta: Beta = 0.01, label_smoothing: Smoothing = 0.0) -> Float[Array, "*groups"]:
    """Direct preference optimization; with label smoothing, conservative DPO.

        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)

    Args:
        logps: pairs with a reference.
        beta: > 0. The implicit reward is beta lr: the larger beta, the smaller the change in log-ratio that satisfies a
            preference, and the closer the policy stays to the reference.
        label_smoothing: e in [0, 0.5). With e > 0 the minimum is finite, at beta d = log((1 - e) / e).

    References:
        Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023, eq. 7.
        Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023 (e > 0).
    """
    d = beta * logps.margin
    return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing * log_sigmoid(-d)


def robust_dpo(logps: Logps, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.1) -> Float[Array, "*groups"]:
    """Robust DPO: unbiased where labels are flipped at a known rate.

        [-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)] / (1 - 2e)

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        label_smoothing: e in [0, 0.5), the rate of flipped labels.

    References:
        Chowdhury et al., "Provably Robust DPO: Aligning Language Models with Noisy Feedback", 2024.
    """
    d = beta * logps.margin
    return (-(1 - label_smoothing) * log_sigmoid(d) + label_smoothing * log_sigmoid(-d)) / (1 - 2 * label_smoothing)


def ipo(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    average: PerToken = False,
) -> Float[Array, "*groups"]:
    """Identity preference optimization: regression of d on a finite target.

        (d - 1 / (2 beta))^2

    Args:
        logps: pairs with a reference.
        beta: > 0, the paper's tau. The target margin is 1 / (2 beta): the larger beta, the nearer to the reference.
        average: use log-ratios per token instead of sums.

    References:
        Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, eq. 17.
    """
    ratios = logps.mean_ratios if average else logps.ratios
    return (ratios[..., 0] - ratios[..., 1] - 1 / (2 * beta)) ** 2


def hinge(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Hinge on the difference of log-ratios, the loss of RSO.

        max(0, 1 - beta d)

    Args:
        logps: pairs with a reference.
        beta: > 0. A pair has no gradient beyond d = 1 / beta: larger stops earlier, closer to the reference.

    References:
        Liu et al., "Statistical Rejection Sampling Improves Preference Optimization", 2023.
    """
    return relu(1 - beta * logps.margin)


def exo_pair(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    label_smoothing: Annotated[
        float,
        Interval(0, 0.5, low_open=True, high_open=True, because="exo_pair takes its logarithm"),
        "target probability of the rejected response",
    ] = 1e-3,
) -> Float[Array, "*groups"]:
    """Efficient exact optimization on pairs: a reverse KL divergence to smoothed labels.

        KL of (sigmoid(beta d), sigmoid(-beta d)) from (1 - e, e)

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        label_smoothing: e in (0, 0.5). The minimum is at beta d = log((1 - e) / e).

    References:
        Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", 2024, eq. 16.
    """
    d = beta * logps.margin
    agree = sigmoid(d) * (log_sigmoid(d) - jnp.log1p(-label_smoothing))
    return agree + sigmoid(-d) * (log_sigmoid(-d) - jnp.log(label_smoothing))


def discopop(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    temperature: Annotated[
        float,
        Interval(0, 1, low_open=True, high_open=True, because="discopop's exponential overflows from 1 on"),
        "how sharply the logistic loss gives way to the exponential one",
    ] = 0.05,
) -> Float[Array, "*groups"]:
    """DiscoPOP: the logistic loss for wrong pairs, an exponential one for right pairs.

        (1 - m) (-log sigmoid(l)) + m exp(-l),  l = beta d,  m = sigmoid(l / temperature)

    The exponential is taken of -l + log m, which does not overflow for temperatures below 1.

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        temperature: in (0, 1). Smaller switches more sharply at d = 0.

    References:
        Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language Models", 2024, eq. 5.
    """
    d = beta * logps.margin
    blend = d / temperature
    return -sigmoid(-blend) * log_sigmoid(d) + jnp.exp(log_sigmoid(blend) - d)


def sigmoid_norm(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Length-normalized DPO: `dpo` on log-ratios per token.

        -log sigmoid(beta (lr_w / |y_w| - lr_l / |y_l|))

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`. Log-ratios per token are small, so larger values are usual (5 in the paper).

    References:
        Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", 2024.
    """
    return -log_sigmoid(beta * (logps.mean_ratios[..., 0] - logps.mean_ratios[..., 1]))


def r_dpo(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    length_weight: Annotated[float, FINITE, "reward subtracted per token (the paper's alpha)"] = 0.05,
) -> Float[Array, "*groups"]:
    """Length-regularized DPO: the reward is r - a |y|, so that longer chosen responses weigh less.

        -log sigmoid(beta d + a (|y_w| - |y_l|))

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        length_weight: a, finite. 0 is `dpo`; larger favours short responses.

    References:
        Park et al., "Disentangling Length from Quality in Direct Preference Optimization", 2024.
    """
    gap = (logps.num_tokens[..., 0] - logps.num_tokens[..., 1]).astype(logps.policy.dtype)
    return -log_sigmoid(beta * logps.margin + length_weight * gap)
