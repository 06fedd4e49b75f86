"""Every loss: value and gradient against independent numbers, identities between losses, finite results at extremes.

Case A: log pi = (-20, -25), log pi_ref = (-22, -24), tokens (10, 8), rewards (8, 5): log-ratios (2, -1), difference 3.
Case B: log pi = (-24, -22), log pi_ref = (-22, -23), tokens (12, 6), rewards (5, 4.5): log-ratios (-2, 1), difference -3.
"""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax import objectives
from rapo_jax.objectives import OBJECTIVES, Logps
from rapo_jax.objectives.likelihood import sft
from rapo_jax.objectives.reference_free import log1mexp

POLICY, REFERENCE = [[-20.0, -25.0], [-24.0, -22.0]], [[-22.0, -24.0], [-22.0, -23.0]]
NUM_TOKENS, REWARDS = [[10, 8], [12, 6]], [[8.0, 5.0], [5.0, 4.5]]
CHOSEN_ONLY, REJECTED_ONLY = [[10, 0], [12, 0]], [[0, 8], [0, 6]]


def group(policy, reference=None, num_tokens=None, rewards=None, dtype=jnp.float32, **others):
    """Groups [..., C]; fields that are not given have no effect."""
    policy = jnp.asarray(policy, dtype)

    def fill(value, default):
        return jnp.broadcast_to(jnp.asarray(default if value is None else value, dtype), policy.shape)

    zero = jnp.zeros((), dtype)
    fields = {"prompt": jnp.zeros(policy.shape[:-1], dtype)}
    fields |= {"divergence": zero, "progress": zero} | {k: jnp.asarray(v, dtype) for k, v in others.items()}
    return Logps(policy, fill(reference, 0.0), fill(num_tokens, 1.0), fill(rewards, jnp.nan), **fields)


def cases(dtype=jnp.float32, **changes):
    fields = {
        "policy": POLICY,
        "reference": REFERENCE,
        "num_tokens": NUM_TOKENS,
        "rewards": REWARDS,
        "prompt": [0.5, 0.5],
    }
    fields |= {"divergence": 0.5} | changes
    return group(**fields, dtype=dtype)


@functools.cache
def of(name, **options):
    """The objective's loss with these options; the same function each time, so that what was compiled is found again."""
    return lambda logps: OBJECTIVES[name].loss(logps, **options)


def slopes(loss, logps):
    """d loss / d log pi, [..., C], group by group."""
    return losses_and_slopes(loss, logps)[1]


def losses_and_slopes(loss, logps):
    """Losses [...] and their slopes."""
    return compiled(loss)(vars(logps))


@functools.cache
def compiled(loss):
    """Losses and slopes as one program, of the fields of Logps: operation by operation takes several times as long."""

    def losses_and_slopes(fields):
        logps = Logps(**fields)
        losses, gradient_of = jax.vjp(lambda policy: loss(replace(logps, policy=policy)), logps.policy)
        return losses, *gradient_of(jnp.ones_like(losses))

    return jax.jit(losses_and_slopes)


# name: (objective, options, changes of the cases, (loss of A, of B), gradient of A by chosen and rejected).
# From a float64 NumPy script; gradients by central difference.
GOLDEN = {
    "dpo": ("dpo", {"beta": 0.1}, {}, (0.55435524, 0.85435524), (-0.042556, 0.042556)),
    "dpo, the paper's beta": ("dpo", {}, {}, (0.67825968, 0.70825968), (-0.004925, 0.004925)),
    "conservative dpo": ("dpo", {"beta": 0.1, "label_smoothing": 0.3}, {}, (0.64435524, 0.76435524), (-0.012556, 0.012556)),
    "robust_dpo": ("robust_dpo", {"label_smoothing": 0.3}, {}, (0.32935524, 1.07935524), (-0.117556, 0.117556)),
    "hinge": ("hinge", {}, {}, (0.7, 1.3), (-0.1, 0.1)),
    "ipo": ("ipo", {}, {}, (4.0, 64.0), (-4.0, 4.0)),
    "ipo per token": ("ipo", {"average": True}, {}, (21.855625, 28.44444444), (-0.935, 1.16875)),
    "exo_pair": ("exo_pair", {}, {}, (2.25819919, 3.28651161), (-0.161508, 0.161508)),
    "nca_pair": ("nca_pair", {}, {}, (1.31940663, 1.46940663), (-0.017525, 0.023751)),
    "bco_pair": ("bco_pair", {}, {}, (1.24253553, 1.54253553), (-0.045017, 0.047502)),
    "sppo_hard": ("sppo_hard", {}, {}, (25.0, 85.0), (-6.0, 8.0)),
    "apo_zero": ("apo_zero", {}, {}, (0.92518682, 1.07481318), (-0.024752, 0.024938)),
    "apo_down": ("apo_down", {}, {}, (0.97539148, 1.02460852), (0.000306, 0.024446)),
    "discopop": ("discopop", {}, {}, (0.74035717, 0.85558044), (-0.073084, 0.073084)),
    "sigmoid_norm": ("sigmoid_norm", {}, {}, (0.67702921, 0.70995273), (-0.004919, 0.006148)),
    "simpo": ("simpo", {}, {}, (0.16022415, 0.05715175), (-0.029609, 0.037012)),
    "orpo": ("orpo", {}, {}, (2.02574415, 2.01549488), (-0.102625, 0.002968)),
    "slic_hf": ("slic_hf", {}, {}, (2.0, 5.4), (-0.1, 0.0)),
    "cpo": ("cpo", {}, {}, (20.47407698, 24.79813887), (-1.037754, 0.037754)),
    "cpo per token": ("cpo", {"average": True}, {}, (2.47407698, 2.79813887), (-0.137754, 0.037754)),
    "rrhf": ("rrhf", {}, {}, (20.0, 24.0), (-1.0, 0.0)),
    "r_dpo": ("r_dpo", {}, {}, (0.51301525, 0.69314718), (-0.040131, 0.040131)),
    "kto, chosen": ("kto", {}, {"num_tokens": CHOSEN_ONLY}, (0.46257015, 0.56217650), (-0.024860, 0.0)),
    "kto, rejected": ("kto", {}, {"num_tokens": REJECTED_ONLY}, (0.46257015, 0.51249740), (0.0, 0.024860)),
    "rpo_sq": ("rpo_sq", {}, {}, (7.29, 0.64), (-0.54, 0.54)),
    "rpo_bwd_kl": ("rpo_bwd_kl", {}, {}, (0.37771804, 0.07824573), (-0.037813, 0.037813)),
    "rpo_fwd_kl": ("rpo_fwd_kl", {}, {}, (0.64323731, 0.07927575), (-0.066004, 0.066004)),
    "soft_label_dpo": ("soft_label_dpo", {}, {}, (0.56858301, 0.74109304), (-0.037813, 0.037813)),
    "reward_distill": ("reward_distill", {}, {}, (7.29, 0.64), (-0.54, 0.54)),
    "cal_dpo, the paper": ("cal_dpo", {"beta": 0.1}, {}, (25.04858735, 88.04858735), (-6.047426, 8.047426)),
    "cal_dpo, its code": ("cal_dpo", {"beta": 0.1, "calibration": 0.5}, {}, (12.54858735, 45.54858735), (-3.047426, 4.047426)),
    "dpop": ("dpop", {}, {}, (0.34115387, 30.9), (-0.086715, 0.086715)),
    "dpo_shift": ("dpo_shift", {}, {}, (0.55648609, 0.85148609), (-0.042678, 0.040544)),
    "infonca": ("infonca", {"beta": 0.1, "temperature": 1.0}, {}, (0.56858301, 0.74109304), (-0.037813, 0.037813)),
    "nca": ("nca", {"beta": 0.1, "temperature": 1.0}, {}, (1.32634304, 1.41136270), (-0.015390, 0.021261)),
    "dro_pointwise, log Z0 = log 50": (
        "dro_pointwise", {"log_z0": math.log(50)}, {}, (37.92814979, 19.15911738), (-0.735880, -0.465880)
    ),
    "dro_pointwise": ("dro_pointwise", {}, {}, (3.7825, 0.2225), (-0.275, -0.005)),
    "bradley_terry": ("bradley_terry", {}, {"policy": REWARDS}, (0.04858735, 0.47407698), (-0.047426, 0.047426)),
    "sft": ("sft", {}, {}, (2.0, 2.0), (-0.1, 0.0)),
    "weighted_sft": ("weighted_sft", {}, {}, (2.0, 2.0), (-0.1, 0.0)),
}  # fmt: skip


def test_every_objective_has_golden_numbers():
    assert {objective for objective, *_ in GOLDEN.values()} == set(OBJECTIVES)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_values_and_gradients(name):
    """When this fails, a loss has a wrong sign, no beta or a swapped reference; it still trains, to a wrong model."""
    objective, options, changes, losses, gradients = GOLDEN[name]
    with jax.enable_x64(True):
        found, found_gradients = losses_and_slopes(of(objective, **options), cases(jnp.float64, **changes))
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found_gradients[0], gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_gradient_is_the_slope_of_the_value(name):
    """Central differences of every log-probability, all in one call."""
    objective, options, changes, *_ = GOLDEN[name]
    options = options | {"joint": True} if objective == "dro_pointwise" else options
    loss, step = of(objective, **options), 1e-4
    with jax.enable_x64(True):
        logps = cases(jnp.float64, **changes)
        nudges = step * np.stack([np.eye(2), -np.eye(2)])[:, :, None, :]  # up and down, which response, any group, C
        moved = jnp.asarray(logps.policy + nudges)
        (up, down), _ = losses_and_slopes(loss, spread(logps, moved.shape[:2], policy=moved))
        np.testing.assert_allclose(slopes(loss, logps), (up - down).T / (2 * step), rtol=1e-6, atol=1e-7)


def spread(logps, shape, **changes):
    """The groups repeated along new leading axes of `shape`."""
    scalars = ("divergence", "progress")
    fields = {
        name: value if value is None or name in scalars else jnp.broadcast_to(value, (*shape, *value.shape))
        for name, value in vars(logps).items()
    }
    return Logps(**fields | changes)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_objective_returns_one_loss_per_group(name):
    """When this fails, an objective averages over its microbatch, and the loss depends on how rows were packed."""
    objective, options, changes, losses_in_float64, _ = GOLDEN[name]
    logps = cases(**changes)
    loss = of(objective, **options)
    (alone, _), (stacked, _) = losses_and_slopes(loss, logps), losses_and_slopes(loss, spread(logps, (3,)))
    assert stacked.shape == (3, 2)
    np.testing.assert_allclose(stacked[1], alone, rtol=1e-6)
    np.testing.assert_allclose(alone, losses_in_float64, rtol=2e-5)


# Identities, on arbitrary numbers.

LOGP = st.floats(-200, -0.01)
GROUPS = st.tuples(LOGP, LOGP, LOGP, LOGP, st.integers(1, 50), st.integers(1, 50), st.floats(-5, 5), st.floats(-5, 5))


def any_group(numbers):
    """The fields of one group."""
    policy, reference, tokens, rewards = (np.asarray(numbers[i : i + 2], np.float64) for i in (0, 2, 4, 6))
    fields = {"policy": policy, "reference": reference, "num_tokens": tokens, "rewards": rewards}
    return fields | dict.fromkeys(("prompt", "divergence", "progress"), np.float64(0))


def same(first, second, fields, *, gradient_only=False):
    with jax.enable_x64(True):
        (losses, gradient), (others, other_gradient) = compiled(first)(fields), compiled(second)(fields)
    if not gradient_only:
        np.testing.assert_allclose(losses, others, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, other_gradient, rtol=1e-9, atol=1e-12)


def without_reference(logps):
    return replace(logps, reference=jnp.zeros_like(logps.reference))


def per_token(logps):
    return replace(without_reference(logps), policy=logps.policy / logps.num_tokens)


EQUAL = {
    "robust_dpo without noise is dpo": (of("robust_dpo", beta=0.1, label_smoothing=0.0), of("dpo", beta=0.1)),
    "r_dpo that ignores length is dpo": (of("r_dpo", beta=0.1, length_weight=0.0), of("dpo", beta=0.1)),
    "dpop without penalty is dpo": (of("dpop", beta=0.1, penalty=0.0), of("dpo", beta=0.1)),
    "dpo_shift by 1 is dpo": (of("dpo_shift", beta=0.1, shift=1.0), of("dpo", beta=0.1)),
    "reward distillation is rpo_sq": (of("reward_distill", beta=0.1), of("rpo_sq", beta=0.1, eta=1.0)),
    "infonca of two is soft-label dpo": (of("infonca", beta=0.1, temperature=2.0), of("soft_label_dpo", beta=0.1, eta=0.5)),
    "cpo without likelihood is dpo against nothing": (
        of("cpo", beta=0.1, sft_weight=0.0), lambda logps: of("dpo", beta=0.1)(without_reference(logps))
    ),
    "simpo without margin is dpo of means against nothing": (
        of("simpo", beta=0.5, gamma=0.0), lambda logps: of("dpo", beta=0.5)(per_token(logps))
    ),
    "cal_dpo is dpo and sppo_hard": (
        of("cal_dpo", beta=0.1), lambda logps: of("dpo", beta=1.0)(logps) + of("sppo_hard", beta=0.1)(logps)
    ),
    "rrhf of two is a hinge of means and a likelihood": (
        of("rrhf", sft_weight=0.5), lambda logps: jax.nn.relu(logps.means[..., 1] - logps.means[..., 0]) - 0.5 * logps.policy[..., 0]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
@given(numbers=GROUPS)
@settings(max_examples=30, deadline=None)
def test_special_cases_of_losses_are_other_losses(name, numbers):
    if numbers[6] != numbers[7] or "rrhf" not in name:  # equal rewards are not compared
        same(*EQUAL[name], any_group(numbers))


@given(numbers=GROUPS)
@settings(max_examples=30, deadline=None)
def test_soft_labels_and_the_backward_divergence_have_the_same_gradient(numbers):
    same(of("rpo_bwd_kl", beta=0.1), of("soft_label_dpo", beta=0.1), any_group(numbers), gradient_only=True)


@pytest.mark.parametrize(
    "name", [n for n, o in OBJECTIVES.items() if o.needs_reference and n not in ("kto", "dro_pointwise")]
)
@given(numbers=GROUPS, shift=st.floats(-20, 20))
@settings(max_examples=10, deadline=None)
def test_a_shift_of_policy_and_reference_changes_nothing(name, numbers, shift):
    """When this fails, whatever policy and reference have in common, such as the prompt, changes the loss."""
    fields = any_group(numbers)
    moved = fields | {name: fields[name] + shift for name in ("policy", "reference")}
    with jax.enable_x64(True):
        (losses, _), (others, _) = compiled(of(name))(fields), compiled(of(name))(moved)
    np.testing.assert_allclose(losses, others, rtol=1e-6, atol=1e-9)


def test_infonca_of_rewards_far_apart_is_dpo():
    """With the temperature of the released code the target is the better response alone."""
    np.testing.assert_allclose(
        of("infonca", beta=0.1, temperature=1e-3)(cases()), of("dpo", beta=0.1)(cases()), rtol=1e-6
    )


# At the first step, where the policy is the reference.

LN2 = math.log(2)
FIRST = {
    "dpo": LN2, "robust_dpo": LN2, "hinge": 1.0, "ipo": 25.0, "sigmoid_norm": LN2, "dpo_shift": LN2, "dpop": LN2,
    "nca_pair": 2 * LN2, "bco_pair": 2 * LN2, "sppo_hard": 50.0, "apo_zero": 1.0, "apo_down": 1.0, "infonca": LN2,
    "nca": 2 * LN2, "kto": 0.5, "discopop": 0.5 * LN2 + 0.5, "soft_label_dpo": LN2, "rpo_sq": 9.0, "reward_distill": 9.0,
    "cal_dpo": LN2 + 2 * 500.0**2,
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_the_loss_before_training_is_known(name):
    """When this fails, the first line of a run's log no longer shows users whether policy and reference start equal."""
    logps = group([-700.0, -1400.0], [-700.0, -1400.0], [10, 20], [8.0, 5.0])
    np.testing.assert_allclose(of(name)(logps), FIRST[name], rtol=1e-6)


def test_exo_starts_at_the_divergence_of_a_fair_coin_from_the_label():
    start = 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001)
    np.testing.assert_allclose(of("exo_pair")(group([-3.0, -4.0], [-3.0, -4.0])), start, rtol=1e-6)


# What distinguishes each loss.


def test_conservative_dpo_has_its_minimum_where_the_margin_is_the_log_odds():
    """log(0.7 / 0.3) = 0.8473: beyond it the gradient changes sign, and the minimum is the entropy of the labels."""
    beta, smoothing = 0.1, 0.3
    best = math.log((1 - smoothing) / smoothing) / beta
    assert best == pytest.approx(8.472979)
    with jax.enable_x64(True):
        logps = group([[best - 1, 0], [best, 0], [best + 1, 0]], dtype=jnp.float64)
        loss = of("dpo", beta=beta, label_smoothing=smoothing)
        below, at, above = slopes(loss, logps)[:, 0]
        assert below < 0 < above
        assert abs(at) < 1e-12
        np.testing.assert_allclose(loss(logps)[1], -0.7 * math.log(0.7) - 0.3 * math.log(0.3), atol=1e-12)


def test_r_dpo_has_smaller_gradients_where_the_chosen_response_is_longer():
    shorter, longer = (abs(slopes(of("r_dpo"), group([-20.0, -25.0], num_tokens=n))[0]) for n in ([8, 10], [10, 8]))
    assert longer < shorter


def test_dpop_has_larger_gradients_only_where_the_chosen_response_lost_probability():
    rose, fell = group([-20.0, -25.0], [-21.0, -25.0]), group([-20.0, -25.0], [-19.0, -25.0])
    np.testing.assert_allclose(of("dpop")(rose), of("dpo", beta=0.3)(rose))
    assert -slopes(of("dpop"), fell)[0] > 40 * slopes(of("dpop"), fell)[1]


def test_dpo_shift_interpolates_linearly_to_its_last_value():
    halfway = cases(progress=0.5)
    np.testing.assert_allclose(
        of("dpo_shift", shift=0.5, shift_end=1.0)(halfway), of("dpo_shift", shift=0.75)(halfway), rtol=1e-6
    )


def test_dro_raises_a_rejected_response_that_is_below_its_target():
    """Rewards (8, 5), log Z0 = 50: the predicted rewards are 5.25 and 4.95, so both responses have to rise."""
    gradient = slopes(of("dro_pointwise"), cases())[0]
    assert (gradient < 0).all()
    below = slopes(of("dro_pointwise", log_z0=100.0), cases())[0]  # predictions 10.25 and 9.95: both have to fall
    assert (below > 0).all()


def test_dro_takes_no_gradient_through_the_prompt_unless_it_is_joint():
    gradient = lambda joint: jax.grad(lambda prompt: of("dro_pointwise", joint=joint)(cases(prompt=prompt)).sum())  # noqa: E731
    prompt = jnp.asarray([0.5, 0.5])
    assert gradient(False)(prompt).tolist() == [0, 0]
    assert (gradient(True)(prompt) != 0).all()


def test_dro_is_the_mean_over_the_responses_that_a_group_has():
    three = group(
        [[-20.0, -25.0, -7.0], [-20.0, -25.0, 0.0]], 0.0, [[10, 8, 3], [10, 8, 0]], [[8.0, 5.0, 2.0], [8.0, 5.0, 0.0]]
    )
    by_hand = [(r - 0.1 * (p + 50)) ** 2 for p, r in ((-20, 8), (-25, 5), (-7, 2))]
    np.testing.assert_allclose(of("dro_pointwise")(three), [sum(by_hand) / 3, sum(by_hand[:2]) / 2], rtol=1e-6)


def test_dro_scales_and_shifts_rewards():
    plain = of("dro_pointwise")(cases(rewards=[[5.0, 3.5], [3.5, 3.25]]))
    np.testing.assert_allclose(of("dro_pointwise", reward_scale=0.5, reward_shift=1.0)(cases()), plain, rtol=1e-6)


def test_kto_of_a_pair_is_the_mean_of_its_two_responses():
    one, other = (of("kto")(cases(num_tokens=n)) for n in (CHOSEN_ONLY, REJECTED_ONLY))
    np.testing.assert_allclose(of("kto")(cases()), (one + other) / 2, rtol=1e-6)
    np.testing.assert_allclose(of("kto", desirable_weight=3.0)(cases()), (3 * one + other) / 2, rtol=1e-6)


def test_kto_reads_two_responses_only():
    with_third = group([[-20.0, -25.0, -3.0]], [[-22.0, -24.0, -9.0]], [[10, 8, 4]], divergence=0.5)
    np.testing.assert_allclose(of("kto")(with_third), of("kto")(cases())[:1], rtol=1e-6)
    assert slopes(of("kto"), with_third)[0, 2] == 0


def test_rrhf_compares_all_pairs_except_equal_rewards_and_absent_responses():
    """Means -3, -1, -2: the first should exceed both others, 2 + 1 = 3; the second rightly exceeds the third."""
    policy, tokens = [[-3.0, -1.0, -2.0]] * 3, [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    rewards = [[3.0, 2.0, 1.0], [3.0, 3.0, 1.0], [3.0, 2.0, 0.0]]
    np.testing.assert_allclose(of("rrhf", sft_weight=0.0)(group(policy, 0.0, tokens, rewards)), [3.0, 1.0, 2.0])


@pytest.mark.parametrize("name", ["infonca", "nca"])
def test_an_absent_response_changes_nothing(name):
    """When this fails, groups of four responses among groups of seven share probability with three empty ones."""
    pair = cases()
    padded = group(
        jnp.pad(pair.policy, ((0, 0), (0, 2))), jnp.pad(pair.reference, ((0, 0), (0, 2))),
        jnp.pad(pair.num_tokens, ((0, 0), (0, 2))), jnp.pad(pair.rewards, ((0, 0), (0, 2))),
    )  # fmt: skip
    loss = of(name, beta=0.1, temperature=1.0)
    np.testing.assert_allclose(loss(padded), loss(pair), rtol=1e-6)
    np.testing.assert_allclose(slopes(loss, padded), jnp.pad(slopes(loss, pair), ((0, 0), (0, 2))), atol=1e-7)


def test_nca_counts_every_response_as_noise_once():
    """Three responses with log-ratio 0: (1/3 + 1/3 + 1/3) ln 2 as data and ln 2 as noise."""
    np.testing.assert_allclose(
        of("nca", temperature=1.0)(group([-1.0] * 3, [-1.0] * 3, 5, [2.0] * 3)), 2 * LN2, rtol=1e-6
    )


def test_a_reward_models_margin_raises_the_loss_and_centring_pulls_scores_to_zero():
    scores = cases(policy=[[3.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(of("bradley_terry")(scores), [np.log1p(np.exp(-2)), np.log1p(np.exp(2))], rtol=1e-6)
    by_hand = [np.log1p(np.exp(-2 + 3)), np.log1p(np.exp(2 + 0.5))]
    np.testing.assert_allclose(of("bradley_terry", margin_weight=1.0)(scores), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        of("bradley_terry", centre_weight=0.01)(scores) - of("bradley_terry")(scores), [0.16, 0.0], atol=1e-7
    )


def test_sft_reads_only_the_chosen_response():
    np.testing.assert_allclose(slopes(sft, cases()), [[-1 / 10, 0], [-1 / 12, 0]], rtol=1e-6)


def test_log1mexp_is_accurate_on_both_sides_of_its_switch():
    with jax.enable_x64(True):
        x = np.array([-1e-12, -0.1, -0.6931, -0.6932, -5.0, -800.0])
        by_hand = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x]
        np.testing.assert_allclose(log1mexp(jnp.asarray(x)), by_hand, rtol=1e-14)


# Extremes.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", GOLDEN)
def test_extreme_log_probabilities_give_finite_losses_and_gradients(name, dtype):
    """When this fails, one outlier skips the step: in float32 a naive log(sigmoid(x)) is -inf below x = -104."""
    objective, options, changes, *_ = GOLDEN[name]
    extremes = [[-1e4, -1e-3], [-1e-3, -1e4], [-1e-30, -1e-30], [-1e4, -1e4]]
    tokens = jnp.tile(jnp.asarray(changes.get("num_tokens", NUM_TOKENS))[:1], (4, 1))
    logps = group(extremes, -50.0, tokens, [8.0, 5.0], dtype, prompt=jnp.zeros(4), divergence=0.5)
    losses, gradient = losses_and_slopes(of(objective, **options), logps)
    assert losses.dtype == gradient.dtype == dtype
    assert np.isfinite(np.asarray(losses, np.float32)).all() and np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_absent_group_gives_no_nan(name):
    """When this fails, rows with fewer groups than others divide 0 by 0 and make the sum's gradient NaN."""
    losses, gradient = losses_and_slopes(of(name), group([0.0, 0.0], 0.0, 0.0, 0.0))
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if not o.needs_rewards])
def test_losses_that_need_no_rewards_do_not_read_them(name):
    """When this fails, data without scores trains on NaN."""
    losses, gradient = losses_and_slopes(of(name), cases(rewards=jnp.nan))
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


def test_only_losses_that_read_the_reference_ask_for_one():
    """When this fails, a second model is in memory for nothing, or zeros stand in for the reference."""
    logps = cases()

    @jax.jit
    def losses(reference):
        return {name: of(name)(replace(logps, reference=reference)).sum() for name in OBJECTIVES}

    read = {name: bool((slope != 0).any()) for name, slope in jax.jacrev(losses)(logps.reference).items()}
    assert read == {name: objective.needs_reference for name, objective in OBJECTIVES.items()}


def test_only_losses_that_read_rewards_or_the_prompt_ask_for_them():
    for name, objective in OBJECTIVES.items():
        for field, needed in (("rewards", objective.needs_rewards is True), ("prompt", objective.needs_prompt)):
            changed = cases(**{field: {"rewards": [[1.0, 7.0], [9.0, 2.0]], "prompt": [3.0, -3.0]}[field]})
            differs = bool((of(name)(changed) != of(name)(cases())).any())
            assert differs == needed, (name, field)


def test_an_ambiguous_name_is_not_an_objective_but_points_to_some():
    for name, meanings in objectives.AMBIGUOUS.items():
        assert name not in OBJECTIVES
        assert all(ids.split(",")[0].split(" ")[0] in OBJECTIVES for ids in meanings)
