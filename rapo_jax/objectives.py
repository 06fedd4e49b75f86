"""Every loss as a pure function of log-probabilities: elementwise over groups, unreduced, ignorant of devices and configuration.

A group is a prompt with its responses, the preferred one first. Reduction over groups belongs to the step. The keyword
arguments of a loss are its options, with the defaults of its paper or of its public implementation.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, relu, sigmoid

Responses = Literal["one", "pair", "labelled", "all"]

# A mean log-probability per token above this counts as this in `orpo`, whose odds are infinite at 0.
MOST_CERTAIN = -1e-6


@dataclass(frozen=True)
class Logps:
    """What an objective may read, for groups of any shape [...] with C responses, most preferred first.

    `policy` and `reference` are natural logarithms summed over a response's tokens, end-of-turn included; `num_tokens`
    counts these tokens, 0 where a group has no such response. `rewards` are those under the group's goal, -(g - r)^2,
    or r where no goal is asked for; NaN where unknown. `prompt` is the policy's log-probability of the prompt without
    its first token minus the reference's. `divergence` estimates KL(policy | reference) over the whole batch, `progress`
    is the share of the training steps that are done; both are scalars. What an objective does not ask for is zero.
    """

    policy: Array  # [..., C]
    reference: Array  # [..., C]
    num_tokens: Array  # [..., C]
    rewards: Array  # [..., C]
    prompt: Array  # [...]
    divergence: Array  # []
    progress: Array  # []

    @property
    def ratios(self) -> Array:
        """log pi(y | x) - log pi_ref(y | x), [..., C]."""
        return self.policy - self.reference

    @property
    def margin(self) -> Array:
        """The chosen response's log-ratio minus the rejected one's, [...]."""
        return self.ratios[..., 0] - self.ratios[..., 1]

    @property
    def means(self) -> Array:
        """log pi(y | x) per token, [..., C]."""
        return self.policy / jnp.maximum(self.num_tokens, 1)

    @property
    def mean_ratios(self) -> Array:
        """The log-ratio per token, [..., C]."""
        return self.ratios / jnp.maximum(self.num_tokens, 1)

    @property
    def present(self) -> Array:
        """Which responses a group has, [..., C]."""
        return self.num_tokens > 0

    @property
    def reward_gap(self) -> Array:
        """The chosen response's reward minus the rejected one's, [...]."""
        return self.rewards[..., 0] - self.rewards[..., 1]


# A single response.


def sft(logps: Logps) -> Array:
    """-log pi(y | x) / |y|: negative log-likelihood per token of the (chosen) response.

    Weighted by the class of a source's quality, and with the class in the prompt, it is C-RLFT: Wang et al., "OpenChat:
    Advancing Open-source Language Models with Mixed-Quality Data", 2023.
    """
    return -logps.means[..., 0]


# Pairs, through the difference of log-ratios.


def dpo(logps: Logps, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Array:
    """-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), d = difference of the policy/reference log-ratios.

    e = 0: Rafailov et al., "Direct Preference Optimization", 2023, eq. 7. e > 0: Mitchell, "A note on DPO with noisy
    preferences and relationship to IPO", 2023 (conservative DPO), whose minimum lies at beta d = log((1 - e) / e).
    """
    d = beta * logps.margin
    return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing * log_sigmoid(-d)


def robust_dpo(logps: Logps, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Array:
    """[-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)] / (1 - 2e): unbiased where labels are flipped at rate e.

    Chowdhury et al., "Provably Robust DPO: Aligning Language Models with Noisy Feedback", 2024.
    """
    d = beta * logps.margin
    return (-(1 - label_smoothing) * log_sigmoid(d) + label_smoothing * log_sigmoid(-d)) / (1 - 2 * label_smoothing)


def ipo(logps: Logps, *, beta: float = 0.1, average: bool = False) -> Array:
    """(d - 1 / (2 beta))^2, d of summed log-ratios, or of log-ratios per token with `average` (as TRL has it).

    Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, eq. 17 (tau = beta).
    """
    ratios = logps.mean_ratios if average else logps.ratios
    return (ratios[..., 0] - ratios[..., 1] - 1 / (2 * beta)) ** 2


def hinge(logps: Logps, *, beta: float = 0.1) -> Array:
    """max(0, 1 - beta d). Liu et al., "Statistical Rejection Sampling Improves Preference Optimization", 2023."""
    return relu(1 - beta * logps.margin)


def exo_pair(logps: Logps, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Array:
    """KL of (sigmoid(beta d), sigmoid(-beta d)) from (1 - e, e), e > 0.

    Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", 2024, eq. 16.
    """
    d = beta * logps.margin
    agree = sigmoid(d) * (log_sigmoid(d) - jnp.log1p(-label_smoothing))
    return agree + sigmoid(-d) * (log_sigmoid(-d) - jnp.log(label_smoothing))


def discopop(logps: Logps, *, beta: float = 0.1, temperature: float = 0.05) -> Array:
    """(1 - m) (-log sigmoid(l)) + m exp(-l), l = beta d, m = sigmoid(l / temperature).

    The exponential is taken of -l + log m, which does not overflow for temperatures below 1.
    Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language Models", 2024, eq. 5.
    """
    d = beta * logps.margin
    blend = d / temperature
    return -sigmoid(-blend) * log_sigmoid(d) + jnp.exp(log_sigmoid(blend) - d)


def sigmoid_norm(logps: Logps, *, beta: float = 0.1) -> Array:
    """DPO on log-ratios per token. Lambert et al., "Tulu 3", 2024 (length-normalized DPO)."""
    return -log_sigmoid(beta * (logps.mean_ratios[..., 0] - logps.mean_ratios[..., 1]))


def r_dpo(logps: Logps, *, beta: float = 0.1, length_weight: float = 0.05) -> Array:
    """-log sigmoid(beta d + a (|y_w| - |y_l|)): DPO whose reward is r - a |y|, so longer chosen responses teach less.

    Park et al., "Disentangling Length from Quality in Direct Preference Optimization", 2024.
    """
    gap = (logps.num_tokens[..., 0] - logps.num_tokens[..., 1]).astype(logps.policy.dtype)
    return -log_sigmoid(beta * logps.margin + length_weight * gap)


def dpop(logps: Logps, *, beta: float = 0.3, penalty: float = 50.0) -> Array:
    """-log sigmoid(beta (d - penalty max(0, -lr_w))), lr_w the chosen response's log-ratio.

    Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", 2024.
    """
    return -log_sigmoid(beta * (logps.margin - penalty * relu(-logps.ratios[..., 0])))


def dpo_shift(logps: Logps, *, beta: float = 0.1, shift: float = 0.95, shift_end: float | None = None) -> Array:
    """-log sigmoid(beta (lr_w - f lr_l)), f = `shift`, or going linearly to `shift_end` at the last step.

    Yang et al., "DPO-Shift: Shifting the Distribution of Direct Preference Optimization", 2025.
    """
    factor = shift if shift_end is None else shift + (shift_end - shift) * logps.progress
    return -log_sigmoid(beta * (logps.ratios[..., 0] - factor * logps.ratios[..., 1]))


# Pairs, through the log-ratios of both.


def nca_pair(logps: Logps, *, beta: float = 0.1) -> Array:
    """-log sigmoid(b_w) - log sigmoid(-b_w) / 2 - log sigmoid(-b_l) / 2, b = beta lr: `nca` on preferences.

    Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", 2024.
    """
    chosen, rejected = beta * logps.ratios[..., 0], beta * logps.ratios[..., 1]
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair(logps: Logps, *, beta: float = 0.1) -> Array:
    """-log sigmoid(b_w) - log sigmoid(-b_l), b = beta lr. Jung et al., "Binary Classifier Optimization for
    Large Language Model Alignment", 2024.
    """
    return -log_sigmoid(beta * logps.ratios[..., 0]) - log_sigmoid(-beta * logps.ratios[..., 1])


def sppo_hard(logps: Logps, *, beta: float = 0.1) -> Array:
    """(lr_w - 1 / (2 beta))^2 + (lr_l + 1 / (2 beta))^2.

    Wu et al., "Self-Play Preference Optimization for Language Model Alignment", 2024, eq. 4.7 with P = 1 and 0.
    """
    return (logps.ratios[..., 0] - 0.5 / beta) ** 2 + (logps.ratios[..., 1] + 0.5 / beta) ** 2


def apo_zero(logps: Logps, *, beta: float = 0.1) -> Array:
    """1 - sigmoid(b_w) + sigmoid(b_l): for chosen responses that are better than the model's own.

    D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", 2024, eq. 7.
    """
    return sigmoid(-beta * logps.ratios[..., 0]) + sigmoid(beta * logps.ratios[..., 1])


def apo_down(logps: Logps, *, beta: float = 0.1) -> Array:
    """sigmoid(b_w) + 1 - sigmoid(b_w - b_l): for chosen responses that are worse than the model's own (eq. 8)."""
    return sigmoid(beta * logps.ratios[..., 0]) + sigmoid(-beta * logps.margin)


def cal_dpo(logps: Logps, *, beta: float = 0.001, calibration: float = 1.0) -> Array:
    """-log sigmoid(d) + c [(lr_w - 1 / (2 beta))^2 + (lr_l + 1 / (2 beta))^2]; beta sets only the target.

    Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment", 2024; c = 1 in the
    paper, 1/2 in its released code.
    """
    return -log_sigmoid(logps.margin) + calibration * sppo_hard(logps, beta=beta)


# Pairs, without a reference.


def simpo(logps: Logps, *, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0) -> Array:
    """-log sigmoid(beta (m_w - m_l) - gamma), m = log pi per token; gamma is absolute, not a multiple of beta.

    Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", 2024, eq. 6.
    """
    d = beta * (logps.means[..., 0] - logps.means[..., 1]) - gamma
    return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing * log_sigmoid(-d)


def orpo(logps: Logps, *, odds_weight: float = 0.1) -> Array:
    """-m_w - w log sigmoid(log odds(m_w) - log odds(m_l)), m = log pi per token, odds(m) = e^m / (1 - e^m).

    Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", 2024, eq. 6 and 7. The likelihood is
    that of the response; the authors' code, and TRL, add the prompt's.
    """
    means = jnp.minimum(logps.means, MOST_CERTAIN)
    odds = means - log1mexp(means)
    return -logps.means[..., 0] - odds_weight * log_sigmoid(odds[..., 0] - odds[..., 1])


def log1mexp(x: Array) -> Array:
    """log(1 - e^x) for x < 0, without cancellation on either side of -log 2."""
    near = x > -0.6931
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def cpo(logps: Logps, *, beta: float = 0.1, sft_weight: float = 1.0, average: bool = False) -> Array:
    """-log sigmoid(beta (log pi_w - log pi_l)) - w log pi_w, the last per token with `average` (as TRL has it).

    Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
    Translation", 2024.
    """
    likelihood = (logps.means if average else logps.policy)[..., 0]
    return -log_sigmoid(beta * (logps.policy[..., 0] - logps.policy[..., 1])) - sft_weight * likelihood


def slic_hf(logps: Logps, *, delta: float = 1.0, sft_weight: float = 0.1) -> Array:
    """max(0, delta - log pi_w + log pi_l) - w log pi_w. Zhao et al., "SLiC-HF: Sequence Likelihood Calibration with Human
    Feedback", 2023.
    """
    return relu(delta - logps.policy[..., 0] + logps.policy[..., 1]) - sft_weight * logps.policy[..., 0]


# Pairs, with the size of the difference of their rewards.


def rpo_sq(logps: Logps, *, beta: float = 0.1, eta: float = 1.0) -> Array:
    """(beta d - eta (r_w - r_l))^2. Adler et al., "Nemotron-4 340B", 2024, section 3.3.2, squared distance."""
    return (beta * logps.margin - eta * logps.reward_gap) ** 2


def rpo_bwd_kl(logps: Logps, *, beta: float = 0.1, eta: float = 1.0) -> Array:
    """KL(sigmoid(t) | sigmoid(beta d)) of two coins, t = eta (r_w - r_l): the distance that Nemotron-4 trained with."""
    return coin_divergence(eta * logps.reward_gap, beta * logps.margin)


def rpo_fwd_kl(logps: Logps, *, beta: float = 0.1, eta: float = 1.0) -> Array:
    """KL(sigmoid(beta d) | sigmoid(t)): the same the other way round."""
    return coin_divergence(beta * logps.margin, eta * logps.reward_gap)


def coin_divergence(of: Array, by: Array) -> Array:
    """KL of two coins that show heads with probability sigmoid(of) and sigmoid(by)."""
    heads = sigmoid(of) * (log_sigmoid(of) - log_sigmoid(by))
    return heads + sigmoid(-of) * (log_sigmoid(-of) - log_sigmoid(-by))


def soft_label_dpo(logps: Logps, *, beta: float = 0.1, eta: float = 1.0) -> Array:
    """-sigmoid(t) log sigmoid(beta d) - sigmoid(-t) log sigmoid(-beta d), t = eta (r_w - r_l): the label is a probability.

    `rpo_bwd_kl` plus the entropy of the label: another value, the same gradient.
    """
    t, d = eta * logps.reward_gap, beta * logps.margin
    return -sigmoid(t) * log_sigmoid(d) - sigmoid(-t) * log_sigmoid(-d)


def reward_distill(logps: Logps, *, beta: float = 0.1) -> Array:
    """(r_w - r_l - beta d)^2. Fisch et al., "Robust Preference Optimization through Reward Model Distillation", 2024."""
    return rpo_sq(logps, beta=beta, eta=1.0)


# Any number of responses.


def rrhf(logps: Logps, *, sft_weight: float = 1.0) -> Array:
    """Sum over i preferred to j of max(0, m_j - m_i), minus w log pi of the best; m = log pi per token.

    Where rewards are known, equal ones are not compared.
    Yuan et al., "RRHF: Rank Responses to Align Language Models with Human Feedback without tears", 2023, eq. 2 to 4.
    """
    before = jnp.triu(jnp.ones((logps.policy.shape[-1],) * 2, bool), 1)
    pairs = logps.present[..., :, None] & logps.present[..., None, :] & before
    pairs &= logps.rewards[..., :, None] != logps.rewards[..., None, :]  # NaN, unknown, differs from everything
    overtaken = relu(logps.means[..., None, :] - logps.means[..., :, None])
    return jnp.where(pairs, overtaken, 0).sum((-2, -1)) - sft_weight * logps.policy[..., 0]


def infonca(logps: Logps, *, beta: float = 0.01, temperature: float = 1e-3) -> Array:
    """-sum_i s_i log softmax(beta lr)_i, s = softmax(r / temperature). Chen et al., 2024 (see `nca_pair`).

    For pairs without rewards it is `dpo`.
    """
    shares = jax.nn.log_softmax(jnp.where(logps.present, beta * logps.ratios, -jnp.inf), axis=-1)
    return -jnp.where(logps.present, reward_shares(logps, temperature) * shares, 0).sum(-1)


def nca(logps: Logps, *, beta: float = 0.01, temperature: float = 1e-3) -> Array:
    """-sum_i s_i log sigmoid(beta lr_i) - mean_i log sigmoid(-beta lr_i), s as in `infonca`."""
    present, ratios = logps.present, beta * jnp.where(logps.present, logps.ratios, 0)
    noise = jnp.where(present, log_sigmoid(-ratios), 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
    return -jnp.where(present, reward_shares(logps, temperature) * log_sigmoid(ratios), 0).sum(-1) - noise


def reward_shares(logps: Logps, temperature: float) -> Array:
    """softmax(r / temperature) over the responses that a group has, [..., C]."""
    scaled = logps.rewards / temperature
    return jax.nn.softmax(jnp.where(logps.present, scaled, jnp.finfo(scaled.dtype).min), axis=-1)


def dro_pointwise(
    logps: Logps,
    *,
    beta: float = 0.1,
    log_z0: float = 50.0,
    joint: bool = False,
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
) -> Array:
    """mean_j (r_j - beta (lr_j + log Z0 + q))^2 with q the prompt's log-ratio: no gradient passes it, unless `joint`.

    "Direct Reward Optimization: A Point-wise Alignment Approach", algorithm 1 (q detached, without the prompt's first
    token) and eq. 8 (`joint`). The paper searches Z0 in [-50, 500]: what can be negative is a logarithm, hence `log_z0`.
    The rewards are `reward_scale` r + `reward_shift`.
    """
    prompt = logps.prompt if joint else jax.lax.stop_gradient(logps.prompt)
    predicted = beta * (logps.ratios + (log_z0 + prompt)[..., None])
    rewards = jnp.where(logps.present, reward_scale * logps.rewards + reward_shift, 0)
    errors = jnp.where(logps.present, rewards - predicted, 0) ** 2
    return errors.sum(-1) / jnp.maximum(logps.present.sum(-1), 1)


# Desirable and undesirable responses.


def kto(logps: Logps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Array:
    """w_d (1 - sigmoid(beta (lr - z))) for desirable, w_u (1 - sigmoid(beta (z - lr))) for undesirable responses.

    z, `divergence`, is max(0, mean log-ratio of responses to other prompts) over the batch. A pair gives the mean of its
    two. Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024.
    """
    signs, weights = jnp.array([[1.0, -1.0], [desirable_weight, undesirable_weight]], logps.policy.dtype)
    losses = weights * sigmoid(-beta * signs * (logps.ratios[..., :2] - logps.divergence))
    present = logps.present[..., :2]
    return jnp.where(present, losses, 0).sum(-1) / jnp.maximum(present.sum(-1), 1)


# Reward models: `policy` holds scores instead of log-probabilities.


def bradley_terry(logps: Logps, *, margin_weight: float = 0.0, centre_weight: float = 0.0) -> Array:
    """-log sigmoid(s_w - s_l - m (r_w - r_l)) + c (s_w + s_l)^2 of scores s.

    Bradley and Terry, 1952; the margin: Touvron et al., "Llama 2", 2023, eq. 2; the centring: Eisenstein et al.,
    "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking", 2023.
    """
    chosen, rejected = logps.policy[..., 0], logps.policy[..., 1]
    gap = jnp.nan_to_num(margin_weight * logps.reward_gap) if margin_weight else 0.0
    return -log_sigmoid(chosen - rejected - gap) + centre_weight * (chosen + rejected) ** 2


@dataclass(frozen=True)
class Objective:
    """A loss and what the step and the data have to supply for it.

    `responses`: "one" (the preferred one), "pair", "labelled" (desirable and undesirable ones, paired or not) or "all".
    `needs_rewards` may name the option without which rewards are not read.
    """

    loss: Callable[..., Array]
    responses: Responses = "pair"
    needs_reference: bool = True
    needs_rewards: bool | str = False
    needs_prompt: bool = False  # the log-probabilities of the prompt itself
    needs_divergence: bool = False  # responses to other prompts, as a last response of each group
    needs_weight: bool = False  # weights from the data, by which the step multiplies the loss of whatever objective
    is_reward_model: bool = False  # scores of a scalar head in place of log-probabilities

    @property
    def options(self) -> dict[str, float | bool | None]:
        """The keyword arguments of the loss with their defaults."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


OBJECTIVES = {
    "dpo": Objective(dpo),
    "robust_dpo": Objective(robust_dpo),
    "ipo": Objective(ipo),
    "hinge": Objective(hinge),
    "exo_pair": Objective(exo_pair),
    "discopop": Objective(discopop),
    "sigmoid_norm": Objective(sigmoid_norm),
    "r_dpo": Objective(r_dpo),
    "dpop": Objective(dpop),
    "dpo_shift": Objective(dpo_shift),
    "nca_pair": Objective(nca_pair),
    "bco_pair": Objective(bco_pair),
    "sppo_hard": Objective(sppo_hard),
    "apo_zero": Objective(apo_zero),
    "apo_down": Objective(apo_down),
    "cal_dpo": Objective(cal_dpo),
    "simpo": Objective(simpo, needs_reference=False),
    "orpo": Objective(orpo, needs_reference=False),
    "cpo": Objective(cpo, needs_reference=False),
    "slic_hf": Objective(slic_hf, needs_reference=False),
    "rpo_sq": Objective(rpo_sq, needs_rewards=True),
    "rpo_bwd_kl": Objective(rpo_bwd_kl, needs_rewards=True),
    "rpo_fwd_kl": Objective(rpo_fwd_kl, needs_rewards=True),
    "soft_label_dpo": Objective(soft_label_dpo, needs_rewards=True),
    "reward_distill": Objective(reward_distill, needs_rewards=True),
    "rrhf": Objective(rrhf, responses="all", needs_reference=False),
    "infonca": Objective(infonca, responses="all", needs_rewards=True),
    "nca": Objective(nca, responses="all", needs_rewards=True),
    "dro_pointwise": Objective(dro_pointwise, responses="all", needs_rewards=True, needs_prompt=True),
    "kto": Objective(kto, responses="labelled", needs_divergence=True),
    "sft": Objective(sft, responses="one", needs_reference=False),
    "weighted_sft": Objective(sft, responses="one", needs_reference=False, needs_weight=True),
    "bradley_terry": Objective(
        bradley_terry, needs_reference=False, needs_rewards="margin_weight", is_reward_model=True
    ),
}

# Names that mean different things to different people, with the ids of what they may mean.
AMBIGUOUS = {
    "rpo": {
        "rpo_sq, rpo_bwd_kl, rpo_fwd_kl": "Nemotron-4's reward-aware preference optimization",
        "reward_distill": "Fisch's robust preference optimization",
        "dpo with objective.plus=[{name: sft, weight: ...}]": "Liu's regularized preference optimization",
    },
    "dro": {
        "dro_pointwise": "direct reward optimization, explicit rewards",
        "robust_dpo": "distributionally or noise-robust DPO",
    },
    "slic": {"slic_hf": "SLiC-HF's calibration on log-probabilities", "hinge": "RSO's hinge on log-ratios"},
    "cdpo": {"dpo with objective.label_smoothing": "conservative DPO"},
    "ipo_avg": {"ipo with objective.average=true": "IPO per token"},
}
