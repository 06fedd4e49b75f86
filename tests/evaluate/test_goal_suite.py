"""The suite `goals` as a function of scored answers: every measure by an example that can be checked by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from rapo_jax.evaluate.figures import draw
from rapo_jax.evaluate.goals.best_of import at_number, best_of
from rapo_jax.evaluate.goals.suite import Plain, Scored, Verdict, goals
from rapo_jax.evaluate.result import Result, result_of, table

# Two prompts, goals 2, 6 and 10 of a scale from 1 to 10, and 12 beyond it; one answer each. Prompt 1 follows, prompt 2 less so.
FOLLOWS = Scored(
    model="m",
    goals=(2.0, 6.0, 10.0, 12.0),
    scale=(1.0, 10.0),
    scores_PGN=np.array([[2.0, 6.0, 9.0, 10.0], [4.0, 5.0, 7.0, 8.0]])[..., None],
    tokens_PGN=np.array([[10.0, 10.0, 30.0, 40.0], [10.0, 20.0, 50.0, 60.0]])[..., None],
    cut_PGN=np.array([[False, False, True, False], [False, False, False, False]])[..., None],
    attributes={"warmth": np.array([[1.0, 2.0, 3.0, 9.0], [5.0, 3.0, 1.0, 9.0]])[..., None]},
    plain=Plain(np.array([[4.0, 6.0], [8.0, 2.0]]), np.array([[20.0, 20.0], [20.0, 20.0]])),
)
BASE = Scored(
    model="base",
    goals=(),
    scale=(1.0, 10.0),
    scores_PGN=np.empty((2, 0, 1)),
    tokens_PGN=np.empty((2, 0, 1)),
    cut_PGN=np.empty((2, 0, 1), bool),
    plain=Plain(np.array([[3.0], [4.0]]), np.array([[80.0], [80.0]])),
)
IN_WORDS = Scored(
    model="base, goal in the prompt",
    goals=(10.0,),
    scale=(1.0, 10.0),
    scores_PGN=np.array([[[5.0]], [[4.0]]]),
    tokens_PGN=np.array([[[8.0]], [[8.0]]]),
    cut_PGN=np.zeros((2, 1, 1), bool),
)
VERDICT = Verdict("judge", True, (FOLLOWS, BASE, IN_WORDS), 1)
RESULT = goals([VERDICT])


def found(quantity: str, *, model: str = "m", where: str = "all", result: Result = RESULT) -> float:
    values = [
        m.estimate.value
        for m in result.measures
        if m.quantity.startswith(quantity) and (m.model, m.where) == (model, where)
    ]
    assert len(values) == 1, f"{len(values)} measures of {quantity}, {model}, {where}"
    return values[0]


def test_the_control_curve_errors_and_bias():
    assert [found("judged score", where=f"goal {goal}") for goal in (2, 6, 10)] == [3.0, 5.5, 8.0]
    assert found("judged score", where="goal 12, outside the scale") == 9.0
    assert found("judged score", where="no goal") == 5.0 and found("judged score", model="base", where="no goal") == 3.5
    # Score less goal: 0, 0, -1 and 2, -1, -3; the goal beyond the scale is in no error.
    assert found("score less goal, mean absolute") == pytest.approx((0 + 0 + 1 + 2 + 1 + 3) / 6)
    assert found("score less goal, mean: bias") == pytest.approx((0 + 0 - 1 + 2 - 1 - 3) / 6)
    assert found("score less goal at each goal", where="goal 10") == -2.0


def test_slope_and_rank_correlation_are_those_of_all_answers_on_the_scale():
    asked, scores = [2, 6, 10] * 2, [2, 6, 9, 4, 5, 7]
    # Prompt 1 rises by 7 over 8 points, prompt 2 by 3: the least-squares slopes of three even points.
    assert found("slope of the score") == pytest.approx((7 / 8 + 3 / 8) / 2) == np.polyfit(asked, scores, 1)[0]
    assert found("rank correlation of goal and score") == pytest.approx(spearmanr(asked, scores).statistic)


def test_lengths_and_side_effects_are_between_the_ends_of_the_scale():
    assert found("tokens of an answer", where="goal 10") == 40.0
    assert found("tokens at the highest less at the lowest goal") == (20 + 40) / 2
    assert found("answers cut at the longest length") == (1 / 4 + 0) / 2
    assert found("attribute at the highest less at the lowest goal", where="warmth") == (2 - 4) / 2


def test_the_best_of_n_pays_for_the_same_tokens():
    # At goal 10 answers take 30 and 50 tokens, plain ones 20: 80 tokens buy 2 answers a prompt, the best of which is 6 and 8.
    quantity = "score at the highest goal less the best of n plain answers at equal tokens"
    assert found(quantity, where="against m, n 2.0") == 8.0 - 7.0
    # The base's take 80 tokens: half an answer is not to be had, so one it is.
    assert found(quantity, where="against base, n 1, not 0.5") == 8.0 - 3.5
    # All three goals take 50 and 80 tokens, which is 3.25 answers, and there are 2.
    quantity = "best score over all goals less the best of n plain answers at equal tokens"
    assert found(quantity, where="against m, n 2, not 3.2") == (9 + 7) / 2 - 7.0
    assert RESULT.curves["m"]["plain"] == {"n": [1, 2], "best": [5.0, 7.0], "tokens": [20.0, 40.0]}


def test_a_model_is_compared_with_those_that_know_no_goals():
    assert found("score at the highest goal less that of", where="against base") == ((9 - 3) + (7 - 4)) / 2
    where = "against base, goal in the prompt"
    assert found("score at the highest goal less that of", where=where) == ((9 - 5) + (7 - 4)) / 2
    assert {m.model for m in RESULT.measures if "less that of" in m.quantity} == {"m"}


def test_the_best_of_n_is_the_mean_over_all_choices():
    """By enumeration, and between whole numbers."""
    scores = np.random.default_rng(0).normal(size=(3, 5))
    for n in range(1, 6):
        expected = [np.mean([max(each) for each in itertools.combinations(row, n)]) for row in scores]
        np.testing.assert_allclose(best_of(scores)[:, n - 1], expected)
    means = best_of(scores).mean(axis=0)
    assert at_number(best_of(scores), 2.5) == pytest.approx((means[1] + means[2]) / 2)


def test_of_an_unknown_scale_there_are_no_errors_and_of_equal_scores_no_correlation():
    flat = Scored(**vars(FOLLOWS) | {"scores_PGN": np.ones((2, 4, 1))})
    result = goals([Verdict("reward_model:rm", False, (flat,), 1)])
    assert not any("less goal" in m.quantity for m in result.measures)
    assert math.isnan(found("rank correlation of goal and score", result=result))
    assert found("slope of the score over the goal (points of the scorer", result=result) == 0.0
    assert result.curves["m"]["on_scale"] is False


def test_two_scorers_are_told_apart_and_their_agreement_is_kendalls():
    """Of prompt 1 the second scorer turns two neighbours of four round: tau 4/6. Of prompt 2 it says the opposite."""
    plainless = Scored(**vars(FOLLOWS) | {"plain": None})
    other = Scored(
        **vars(plainless) | {"scores_PGN": np.array([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 1.0]])[..., None]}
    )
    result = goals([Verdict("a", True, (plainless,), 1), Verdict("b", False, (other,), 1)])
    assert found("agreement of a and b (Kendall's tau within prompts)", result=result) == pytest.approx((4 / 6 - 1) / 2)
    assert found("judged score, by a", where="goal 2", result=result) == 3.0
    assert found("judged score, by b", where="goal 2", result=result) == 2.5
    assert found("tokens of an answer", where="goal 2", result=result) == 10.0, "lengths are told once"


def test_the_result_is_read_back_and_drawn(tmp_path):
    again = result_of(RESULT.tree())
    assert again.curves == RESULT.curves and len(again.measures) == len(RESULT.measures)
    text = table(again)
    assert "base, goal in the prompt, goal 10" in text
    draw(again, tmp_path / "goals.png")
    assert (tmp_path / "goals.png").read_bytes().startswith(b"\x89PNG")
