"""Suites, each by an example that can be checked by hand, and intervals that hold what they promise."""

import math

import numpy as np
import pytest

from rapo_jax.evaluate.bootstrap import Estimate, estimate, mean_of
from rapo_jax.evaluate.figures import draw
from rapo_jax.evaluate.likelihoods import Likelihoods
from rapo_jax.evaluate.result import Measure, Result, as_csv, result_of, shown, table
from rapo_jax.evaluate.suites import buckets, calibration, likelihood, preference, reliability, unlearning

# Two pairs with rewards 9 > 3 and 5 > 1 on a grid of three goals; tokens 2 and 4. The first pair's likelihoods follow the goals,
# those of the second one do the opposite.
FOLLOWS = Likelihoods(
    model="m",
    prompt_N=np.array([0, 1]),
    rewards_N2=np.array([[9.0, 3.0], [5.0, 1.0]]),
    tokens_N2=np.array([[2, 4], [2, 4]]),
    grid=(1.0, 5.0, 9.0),
    none_N2=np.array([[-4.0, -8.0], [-4.0, -8.0]]),
    grid_NG2=np.array([[[-6.0, -5.0], [-5.0, -6.0], [-4.0, -7.0]], [[-3.0, -4.0], [-4.0, -3.5], [-5.0, -3.0]]]),
    own_N22=np.array([[[-4.0, -7.0], [-6.0, -4.0]], [[-4.0, -3.0], [-3.0, -5.0]]]),
    highest_N2=np.array([[-4.0, -7.0], [-6.0, -3.0]]),
)
FLAT = Likelihoods(
    model="base",
    prompt_N=FOLLOWS.prompt_N,
    rewards_N2=FOLLOWS.rewards_N2,
    tokens_N2=FOLLOWS.tokens_N2,
    grid=FOLLOWS.grid,
    none_N2=np.full((2, 2), -5.0),
    grid_NG2=np.full((2, 3, 2), -5.0),
    own_N22=np.full((2, 2, 2), -5.0),
    highest_N2=np.full((2, 2), -5.0),
)


def found(result: Result, quantity: str, *, model: str = "m", where: str = "all") -> float:
    (value,) = (
        m.estimate.value
        for m in result.measures
        if m.quantity.startswith(quantity) and (m.model, m.where) == (model, where)
    )
    return value


def test_likelihood_says_where_it_peaks_and_whether_the_lead_follows_the_goal():
    result = likelihood([FOLLOWS])
    # Peaks: pair 1 at 9 and 1 (rewards 9, 3), pair 2 at 1 and 9 (rewards 5, 1): errors 0, 2, 4, 8.
    assert found(result, "likeliest goal against reward, mean absolute error") == (1 + 6) / 2
    # The chosen one leads by 3 at its reward and by -2 at the other's; in pair 2 by -1 and by 2.
    assert found(result, "lead of the chosen response grows") == 0.5
    # Pair 1, goals 1, 5, 9: nearer are rejected, rejected (2 against 4), chosen; likelier rejected, chosen, chosen: 2 of 3.
    # Pair 2: nearer rejected, chosen, chosen; likelier chosen, rejected, rejected: 0 of 3.
    assert found(result, "likelier response is the one nearer") == pytest.approx((2 / 3 + 0) / 2)
    # Ranks of the peaks 9, 1, 1, 9 and of the rewards 9, 3, 5, 1: covariance 0.
    assert found(result, "likeliest goal against reward, rank correlation") == pytest.approx(
        np.corrcoef([3.5, 1.5, 1.5, 3.5], [4, 2, 3, 1])[0, 1]
    )
    assert result.curves["m"]["rewards"] == ["1", "3", "5", "9"]
    assert result.curves["m"]["logp_per_token"][3] == [-0.5, 0.0, 0.5]  # (-6, -5, -4) / 2 tokens, less the mean


def test_unlearning_says_what_responses_lost_against_the_first_model():
    result = unlearning([FLAT, FOLLOWS])
    per_token = [m for m in result.measures if m.quantity == "log-probability under no goal, nats a token"]
    assert {(m.model, m.where): m.estimate.value for m in per_token} == {
        ("base", "chosen"): -2.5,
        ("base", "rejected"): -1.25,
        ("m", "chosen"): -2.0,
        ("m", "rejected"): -2.0,
    }
    changed = [m for m in result.measures if m.quantity.startswith("change against base under the highest goal")]
    assert {(m.where, m.estimate.n): m.estimate.value for m in changed} == {
        ("chosen", 2): pytest.approx(((-4 + 5) / 2 + (-6 + 5) / 2) / 2),
        ("chosen with a high reward", 2): pytest.approx(0.0),  # 9 and 5, above the quantile of 5
        ("rejected", 2): pytest.approx(((-7 + 5) / 4 + (-3 + 5) / 4) / 2),
        ("rejected with a high reward", 0): pytest.approx(math.nan, nan_ok=True),
    }


def test_preference_counts_each_goal_side():
    result = preference([FOLLOWS], [FLAT], beta=0.5, reference="base")
    assert {m.model for m in result.measures} == {"m"}
    # The reference is flat, so margins are those of the model: at the goal of chosen 3 and -1, at that of rejected 2 and -2.
    assert found(result, "accuracy of the implicit reward", where="goal of chosen") == 0.5
    assert found(result, "accuracy of the implicit reward", where="goal of rejected") == 0.5
    assert found(result, "margin of the implicit reward", where="goal of chosen") == 0.5 * (3 - 1) / 2
    assert found(result, "margin of the implicit reward", where="goal of rejected") == 0.5 * (2 - 2) / 2


def test_pairs_of_equal_rewards_and_margins_of_nothing_say_nothing():
    tied = Likelihoods(**vars(FLAT) | {"rewards_N2": np.array([[5.0, 5.0], [5.0, 1.0]]), "model": "m"})
    result = preference([tied], [FLAT], beta=1.0, reference="base")
    assert found(result, "accuracy", where="goal of chosen") == 0.5 and result.measures[0].estimate.n == 1
    assert found(likelihood([tied]), "lead of the chosen response grows") == 0.0


def test_many_rewards_are_rows_of_a_heat_map_that_all_have_responses():
    """When this fails, a row without responses ends the command after everything was computed."""
    rewards = np.concatenate([np.full(15, 3.0), np.arange(4, 9, 0.25)])[:34].reshape(17, 2)
    names, members = zip(*buckets(rewards), strict=True)
    assert len(names) <= 10 and all(inside.any() for inside in members)
    assert sum(inside.sum() for inside in members) == rewards.size


def test_reliability_and_calibration_error():
    """Four margins whose sigmoids are 0.6 and 0.9: of those at 0.6 half are right, of those at 0.9 all."""
    sure, unsure = math.log(9), math.log(1.5)
    margins = np.array([[sure, unsure], [sure, -unsure]])
    curve = reliability(margins.ravel())
    assert (
        curve["said"] == pytest.approx([0.6, 0.9]) and curve["right"] == [0.5, 1.0] and curve["preferences"] == [2, 2]
    )
    assert calibration(margins, np.arange(2)).value == pytest.approx((0.1 + 0.1) / 2)


@pytest.mark.parametrize("pairs_a_prompt", [1, 3])
def test_intervals_cover_the_truth_as_often_as_they_say(pairs_a_prompt):
    """When this fails, a difference that is chance is taken for an effect. 200 experiments of 60 prompts, whose pairs all have the
    same skewed number with mean 1."""
    random = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        values = np.repeat(random.gamma(2.0, 0.5, 60), pairs_a_prompt)
        found = mean_of(values, np.repeat(np.arange(60), pairs_a_prompt))
        covered.append(found.low <= 1.0 <= found.high)
        assert found.n == 60
    assert 0.90 <= np.mean(covered) <= 0.98


def test_estimates_leave_out_what_is_unknown():
    known = mean_of(np.array([1.0, math.nan, 3.0]), np.arange(3))
    assert (known.value, known.n) == (2.0, 2)
    assert mean_of(np.array([math.nan]), np.arange(1)).n == 0
    never = estimate(np.array([0, 1, 0]), lambda drawn: math.nan)
    assert math.isnan(never.low) and never.n == 2
    drawn = set()
    estimate(np.array([7, 5, 7]), lambda each: drawn.add(tuple(each.tolist())) or 0.0)
    assert drawn == {(1, 0, 2), (0, 2, 1), (1, 1), (0, 2, 0, 2)}, "pairs of a prompt are drawn together"


def test_tables_and_files_show_every_number():
    measures = (
        Measure("accuracy (share)", "m", Estimate(0.5, 0.25, 0.75, 12)),
        Measure("accuracy (share)", "m", Estimate(math.nan, math.nan, math.nan, 0), "goal of chosen", detail=True),
    )
    result = Result("preference", "Look.", measures)
    assert table(result, details=False).splitlines() == [
        "preference",
        "  accuracy (share)",
        f"    {'m':<38}   0.500 [0.250, 0.750] n 12",
        "  Look.",
    ]
    assert "m, goal of chosen" in table(result) and "no prompts" in table(result)
    assert as_csv([result]).splitlines()[1:] == [
        "preference,accuracy (share),all,m,0.5,0.25,0.75,12",
        "preference,accuracy (share),goal of chosen,m,,,,0",
    ]
    assert result.tree()["measures"][1]["value"] is None
    assert result_of(result.tree()).tree() == result.tree()
    assert shown(Estimate(-123.456, -130.0, -110.0, 1000)) == " -123.5 [-130.0, -110.0] n 1,000"
    assert shown(Estimate(math.nan, math.nan, math.nan, 12)) == "not defined, n 12"


@pytest.mark.parametrize("suite", ["likelihood", "unlearning", "preference"])
def test_every_suite_has_a_figure(suite, tmp_path):
    results = {
        "likelihood": likelihood([FLAT, FOLLOWS]),
        "unlearning": unlearning([FLAT, FOLLOWS]),
        "preference": preference([FOLLOWS], [FLAT], beta=1.0, reference="base"),
    }
    draw(results[suite], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
