"""Losses of pairs that read the size of the reward gap, t = eta (r_w - r_l); d is the difference of log-ratios."""

from jax import Array
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Float

from rapo_jax.objectives.logps import Logps
from rapo_jax.objectives.options import Beta, Eta


def rpo_sq(logps: Logps, *, beta: Beta = 0.1, eta: Eta = 1.0) -> Float[Array, "*groups"]:
    """Reward-aware preference optimization, squared distance.

        (beta d - t)^2

    Args:
        logps: pairs with rewards and a reference.
        beta: > 0. The implicit reward gap beta d is fitted to t: larger keeps the policy closer to the reference.
        eta: > 0, the scale of the rewards.

    References:
        Adler et al., "Nemotron-4 340B Technical Report", 2024, section 3.3.2.
    """
    return (beta * logps.margin - eta * logps.reward_gap) ** 2


def rpo_bwd_kl(logps: Logps, *, beta: Beta = 0.1, eta: Eta = 1.0) -> Float[Array, "*groups"]:
    """Reward-aware preference optimization, backward KL: the distance that Nemotron-4 trained with.

        KL(sigmoid(t) | sigmoid(beta d)) of two Bernoulli distributions

    Args:
        logps: pairs with rewards and a reference.
        beta: > 0, as in `rpo_sq`: larger keeps the policy closer to the reference.
        eta: > 0, the scale of the rewards.

    References:
        Adler et al., "Nemotron-4 340B Technical Report", 2024, section 3.3.2.
    """
    return coin_divergence(eta * logps.reward_gap, beta * logps.margin)


def rpo_fwd_kl(logps: Logps, *, beta: Beta = 0.1, eta: Eta = 1.0) -> Float[Array, "*groups"]:
    """Reward-aware preference optimization, forward KL.

        KL(sigmoid(beta d) | sigmoid(t)) of two Bernoulli distributions

    Args:
        logps: pairs with rewards and a reference.
        beta: > 0, as in `rpo_sq`: larger keeps the policy closer to the reference.
        eta: > 0, the scale of the rewards.

    References:
        Adler et al., "Nemotron-4 340B Technical Report", 2024, section 3.3.2.
    """
    return coin_divergence(beta * logps.margin, eta * logps.reward_gap)


def coin_divergence(of: Float[Array, "*groups"], by: Float[Array, "*groups"]) -> Float[Array, "*groups"]:
    """KL(of | by) of two Bernoulli distributions, given by their logits (any finite numbers)."""
    heads = sigmoid(of) * (log_sigmoid(of) - log_sigmoid(by))
    return heads + sigmoid(-of) * (log_sigmoid(-of) - log_sigmoid(-by))


def soft_label_dpo(logps: Logps, *, beta: Beta = 0.1, eta: Eta = 1.0) -> Float[Array, "*groups"]:
    """DPO whose label is a probability: `rpo_bwd_kl` plus the entropy of the label, so with the same gradient.

        -sigmoid(t) log sigmoid(beta d) - sigmoid(-t) log sigmoid(-beta d)

    Args:
        logps: pairs with rewards and a reference.
        beta: > 0, as in `dpo`: larger keeps the policy closer to the reference.
        eta: > 0. The label is sigmoid(t), as in the Bradley-Terry model: larger makes it more certain.

    References:
        Adler et al., "Nemotron-4 340B Technical Report", 2024, section 3.3.2 (up to the entropy of the label).
    """
    t, d = eta * logps.reward_gap, beta * logps.margin
    return -sigmoid(t) * log_sigmoid(d) - sigmoid(-t) * log_sigmoid(-d)


def reward_distill(logps: Logps, *, beta: Beta = 0.1) -> Float[Array, "*groups"]:
    """Reward model distillation: the implicit reward gap is fitted to the explicit one.

        (r_w - r_l - beta d)^2

    Args:
        logps: pairs with rewards and a reference.
        beta: > 0, as in `rpo_sq`: larger keeps the policy closer to the reference.

    References:
        Fisch et al., "Robust Preference Optimization through Reward Model Distillation", 2024.
    """
    return rpo_sq(logps, beta=beta, eta=1.0)
