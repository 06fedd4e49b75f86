"""Losses of pairs that read both log-ratios, not only their difference.

lr_w and lr_l are log pi(y | x) - log pi_ref(y | x) of the chosen and the rejected response, d = lr_w - lr_l.
"""

from typing import Annotated

from jax import Array
from jax.nn import log_sigmoid, relu, sigmoid
from jaxtyping import Float

from rapo_jax.intervals import NOT_NEGATIVE, POSITIVE
from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Beta


def dpop(
    logps: Logps,
    *,
    beta: Beta = 0.3,
    penalty: Annotated[float, NOT_NEGATIVE, "factor of the loss of likelihood of the chosen response"] = 50.0,
) -> Float[Array, "*groups"]:
    """DPO-Positive: `dpo` that punishes making the chosen response less likely.

        -log sigmoid(beta (d - penalty max(0, -lr_w)))

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        penalty: >= 0, the paper's lambda: the weight of a decrease of the chosen log-ratio. 0 is `dpo`.

    References:
        Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", 2024.
    """
    return -log_sigmoid(beta * (logps.margin - penalty * relu(-logps.ratios[..., 0])))


def dpo_shift(
    logps: Logps,
    *,
    beta: Beta = 0.1,
    shift: Annotated[float, NOT_NEGATIVE, "factor of the rejected log-ratio"] = 0.95,
    shift_end: Annotated[float | None, NOT_NEGATIVE, "its value at the last step; null keeps it constant"] = None,
) -> Float[Array, "*groups"]:
    """DPO-Shift: `dpo` that pushes the rejected response down less, so that the chosen one falls less with it.

        -log sigmoid(beta (lr_w - f lr_l))

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        shift: f >= 0. 1 is `dpo`; smaller favours likely chosen responses over a large margin.
        shift_end: >= 0. Where given, f goes linearly from `shift` to it over the training.

    References:
        Yang et al., "DPO-Shift: Shifting the Distribution of Direct Preference Optimization", 2025.
    """
    factor = shift if shift_end is None else shift + (shift_end - shift) * logps.progress
    return -log_sigmoid(beta * (logps.ratios[..., 0] - factor * logps.ratios[..., 1]))


def nca_pair(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Noise contrastive alignment on preferences: `nca` for pairs without rewards.

        -log sigmoid(b_w) - log sigmoid(-b_w) / 2 - log sigmoid(-b_l) / 2,  b = beta lr

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.

    References:
        Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", 2024.
    """
    chosen, rejected = beta * logps.ratios[..., 0], beta * logps.ratios[..., 1]
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Binary classifier optimization on pairs: each response is classified by itself.

        -log sigmoid(b_w) - log sigmoid(-b_l),  b = beta lr

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.

    References:
        Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", 2024.
    """
    return -log_sigmoid(beta * logps.ratios[..., 0]) - log_sigmoid(-beta * logps.ratios[..., 1])


def sppo_hard(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Self-play preference optimization with hard labels: a log-ratio target for each response.

        (lr_w - 1 / (2 beta))^2 + (lr_l + 1 / (2 beta))^2

    Args:
        logps: pairs with a reference.
        beta: > 0. The targets are +-1 / (2 beta): the larger beta, the nearer to the reference.

    References:
        Wu et al., "Self-Play Preference Optimization for Language Model Alignment", 2024, eq. 4.7 with P = 1 and 0.
    """
    return (logps.ratios[..., 0] - 0.5 / beta) ** 2 + (logps.ratios[..., 1] + 0.5 / beta) ** 2


def apo_zero(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Anchored preference optimization for chosen responses that are better than the model's own.

        1 - sigmoid(b_w) + sigmoid(b_l),  b = beta lr

    Args:
        logps: pairs with a reference.
        beta: > 0. A response's gradient vanishes once |b| is large: larger keeps the policy closer to the reference.

    References:
        D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", 2024, eq. 7.
    """
    return sigmoid(-beta * logps.ratios[..., 0]) + sigmoid(beta * logps.ratios[..., 1])


def apo_down(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Anchored preference optimization for chosen responses that are worse than the model's own.

        sigmoid(b_w) + 1 - sigmoid(b_w - b_l),  b = beta lr

    Args:
        logps: pairs with a reference.
        beta: > 0, as in `apo_zero`: larger keeps the policy closer to the reference.

    References:
        D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", 2024, eq. 8.
    """
    return sigmoid(beta * logps.ratios[..., 0]) + sigmoid(-beta * logps.margin)


def cal_dpo(
    logps: Logps,
    *,
    beta: Annotated[float, POSITIVE, "sets the targets 1 / (2 beta) of the log-ratios"] = 0.001,
    calibration: Annotated[float, POSITIVE, "factor of the calibration: 1 in the paper, 0.5 in its code"] = 1.0,
) -> Float[Array, "*groups"]:
    """Calibrated DPO: `dpo` with beta = 1, and log-ratios pulled to the scale of the rewards.

        -log sigmoid(d) + c [(lr_w - 1 / (2 beta))^2 + (lr_l + 1 / (2 beta))^2]

    Args:
        logps: pairs with a reference.
        beta: > 0. It sets only the targets +-1 / (2 beta): the larger, the nearer to the reference.
        calibration: c > 0, the weight of the squared distances to the targets.

    References:
        Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment", 2024.
    """
    return -log_sigmoid(logps.margin) + calibration * sppo_hard(logps, beta=beta)
