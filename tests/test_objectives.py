"""Every loss: its value and gradient on numbers worked out elsewhere, its limits, and that it stays finite.

Case A: log pi = (-20, -25), log pi_ref = (-22, -24), so the log-ratios are (2, -1) and their difference is 3.
Case B: log pi = (-24, -22), log pi_ref = (-22, -23), so the log-ratios are (-2, 1) and their difference is -3.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rapo_jax.objectives import OBJECTIVES, Logps, dpo, sft

CHOSEN, REJECTED = [-20.0, -24.0], [-25.0, -22.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-22.0, -22.0], [-24.0, -23.0]
NUM_TOKENS = [10, 12]


def cases(dtype=jnp.float32, chosen=CHOSEN, rejected=REJECTED):
    fields = (chosen, rejected, REFERENCE_CHOSEN, REFERENCE_REJECTED, NUM_TOKENS)
    return Logps(*(jnp.asarray(field, dtype) for field in fields))


def gradients(loss, logps):
    """d loss / d log pi of (chosen, rejected), group by group."""

    def total(chosen, rejected):
        whole = Logps(chosen, rejected, logps.reference_chosen, logps.reference_rejected, logps.num_chosen_tokens)
        return loss(whole).sum()

    return jax.grad(total, argnums=(0, 1))(logps.chosen, logps.rejected)


# (options, loss of case A and B, gradient of case A by chosen and rejected), from a float64 NumPy script.
GOLDEN = {
    "dpo": ({"beta": 0.1}, (0.55435524, 0.85435524), (-0.042556, 0.042556)),
    "dpo, the paper's beta": ({"beta": 0.01}, (0.67825968, 0.70825968), (-0.004925, 0.004925)),
    "conservative dpo": ({"beta": 0.1, "label_smoothing": 0.3}, (0.64435524, 0.76435524), (-0.012556, 0.012556)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_dpo_has_the_golden_values_and_gradients(name):
    """Breaks: a sign, a missing beta or swapped reference still trains, and everything downstream is wrong."""
    options, losses, slopes = GOLDEN[name]
    with jax.enable_x64(True):
        logps = cases(jnp.float64)
        np.testing.assert_allclose(dpo(logps, **options), losses, rtol=0, atol=1e-8)
        chosen, rejected = gradients(lambda x: dpo(x, **options), logps)
        np.testing.assert_allclose([chosen[0], rejected[0]], slopes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_gradient_is_the_slope_of_the_value(name):
    with jax.enable_x64(True):
        options, _, _ = GOLDEN[name]
        loss = lambda chosen: dpo(cases(jnp.float64, chosen=chosen), **options)  # noqa: E731
        check_grads(loss, (jnp.asarray(CHOSEN, jnp.float64),), order=2)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_where_the_policy_is_the_reference_the_loss_is_ln_2(beta, label_smoothing):
    """Breaks: the first line of every run's log. Another number there means that policy and reference differ."""
    same = jnp.asarray([-1.0, -700.0])
    logps = Logps(same, 2 * same, same, 2 * same, jnp.ones(2))
    np.testing.assert_allclose(dpo(logps, beta=beta, label_smoothing=label_smoothing), [math.log(2)] * 2, rtol=1e-6)


def test_conservative_dpo_is_least_where_the_margin_is_the_log_odds():
    """log(0.7 / 0.3) = 0.8473: beyond it the gradient turns round, which is what makes it conservative."""
    beta, smoothing = 0.1, 0.3
    best = math.log((1 - smoothing) / smoothing) / beta
    assert best == pytest.approx(8.472979)
    with jax.enable_x64(True):
        difference = jnp.asarray([best - 1, best, best + 1])
        zero = jnp.zeros(3)
        logps = Logps(difference, zero, zero, zero, zero + 1)
        loss = lambda x: dpo(x, beta=beta, label_smoothing=smoothing)  # noqa: E731
        below, at, above = gradients(loss, logps)[0]
        assert below < 0 < above
        assert abs(at) < 1e-12
        assert loss(logps)[1] < min(loss(logps)[0], loss(logps)[2])
        # ... and there it is the entropy of the labels, which no policy can beat.
        entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
        np.testing.assert_allclose(loss(logps)[1], entropy, atol=1e-12)


def test_without_smoothing_conservative_dpo_is_dpo():
    np.testing.assert_array_equal(dpo(cases(), beta=0.1, label_smoothing=0.0), dpo(cases(), beta=0.1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_extreme_log_probabilities_give_finite_losses_and_gradients(dtype, label_smoothing):
    """Breaks: log(sigmoid(x)) spelt out is -inf below x = -104 in float32: one odd pair would skip the step."""
    logps = cases(dtype, chosen=[-1e5, -1e-3], rejected=[-1e-3, -1e5])
    loss = lambda x: dpo(x, beta=1.0, label_smoothing=label_smoothing)  # noqa: E731
    losses, slopes = loss(logps), gradients(loss, logps)
    assert losses.dtype == dtype
    assert jnp.isfinite(losses).all() and all(jnp.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(losses[0].astype(float), (1 - label_smoothing) * 1e5, rtol=0.01)
    np.testing.assert_allclose(slopes[0].astype(float), [label_smoothing - 1, label_smoothing], atol=0.01)


def test_sft_is_the_negative_log_likelihood_per_token_and_knows_only_the_chosen_response():
    logps = cases()
    np.testing.assert_allclose(sft(logps), [2.0, 2.0])
    chosen, rejected = gradients(sft, logps)
    np.testing.assert_allclose(chosen, [-1 / 10, -1 / 12], rtol=1e-6)
    np.testing.assert_array_equal(rejected, [0, 0])


def test_dpo_with_a_likelihood_term_is_the_sum_of_both_losses_and_both_gradients():
    """0.55435524 + 0.5 * 2.0 and 0.85435524 + 0.5 * 2.0; the term pulls on the chosen response alone, by 0.5 / 10."""
    np.testing.assert_allclose(dpo(cases(), beta=0.1, sft_weight=0.5), [1.55435524, 1.85435524], rtol=1e-6)
    chosen, rejected = gradients(lambda logps: dpo(logps, beta=0.1, sft_weight=0.5), cases())
    np.testing.assert_allclose(chosen[0], -0.042556 - 0.05, atol=1e-5)
    np.testing.assert_allclose(rejected[0], 0.042556, atol=1e-5)


def test_sft_of_an_absent_group_is_zero_not_nan():
    """Breaks: rows with fewer groups than others have slots without tokens; 0 / 0 there would poison the sum."""
    nothing = jnp.zeros(1)
    assert sft(Logps(nothing, nothing, nothing, nothing, nothing)).tolist() == [0.0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_reduces(name):
    """Breaks: a mean inside would be taken per microbatch, and the loss would depend on how rows were packed."""
    objective = OBJECTIVES[name]
    options = {option: {"beta": 0.1, "label_smoothing": 0.2, "sft_weight": 0.5}[option] for option in objective.options}
    logps = jax.tree.map(lambda x: jnp.stack([x, x, x]), vars(cases()))
    stacked = objective.loss(Logps(**logps), **options)
    assert stacked.shape == (3, 2)
    np.testing.assert_array_equal(stacked[1], objective.loss(cases(), **options))


def test_only_what_needs_a_reference_asks_for_one():
    """Breaks: a second model in memory for nothing, or zeros where the reference should be."""
    assert {name for name, objective in OBJECTIVES.items() if objective.needs_reference} == {"dpo"}
    assert {name: objective.num_responses for name, objective in OBJECTIVES.items()} == {"dpo": 2, "sft": 1}
