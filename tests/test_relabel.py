"""The paper's rule and the paper's sentence: which response is preferred at which goal, and how the goal is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.relabel import SIDES, TEMPLATES, Preference, format_score, goal_reward, goal_text, prefer, relabel

FORWARD, BACKWARD = (0, 1), (1, 0)
rewards = st.floats(allow_nan=False, allow_infinity=False)
grades = st.integers(1, 20).map(lambda half: half / 2)  # 0.5, 1, ... 10: scores as judges give them


# The rule.


def test_a_pair_becomes_two_preferences_and_the_second_is_reversed():
    """Breaks: the whole method. Without the reversed pair the model never learns what a low goal asks for."""
    assert relabel((9, 6)) == [
        Preference(goal=9, goal_of="chosen", order=FORWARD),
        Preference(goal=6, goal_of="rejected", order=BACKWARD),
    ]


def test_scores_win_over_labels_when_they_contradict():
    """Breaks: rows whose "chosen" scores lower (label noise) would teach that 3 is closer to 8 than 8 is."""
    assert relabel((3, 8)) == [
        Preference(goal=3, goal_of="chosen", order=FORWARD),
        Preference(goal=8, goal_of="rejected", order=BACKWARD),
    ]


def test_the_goal_reward_is_the_negative_squared_distance():
    assert [goal_reward(9, reward) for reward in (9, 6, 10, 7.5)] == [0, -9, -1, -2.25]


@pytest.mark.parametrize(
    ("goal", "order"),
    [(9, FORWARD), (6, BACKWARD), (10, FORWARD), (1, BACKWARD), (7.6, FORWARD), (7.4, BACKWARD), (7.5, None)],
)
def test_the_response_nearer_to_the_goal_is_preferred(goal, order):
    assert prefer(goal, (9, 6)) == order


@given(rewards, rewards)
def test_at_its_own_reward_a_response_is_never_the_rejected_one(chosen, rejected):
    """Breaks: at some scale of scores (overflow, underflow) pairs would be turned round."""
    assert prefer(chosen, (chosen, rejected)) != BACKWARD
    assert prefer(rejected, (chosen, rejected)) != FORWARD
    if abs(chosen - rejected) > 1e-100:
        assert prefer(chosen, (chosen, rejected)) == FORWARD
        assert prefer(rejected, (chosen, rejected)) == BACKWARD


@given(rewards, rewards, rewards)
def test_swapping_the_responses_swaps_the_order(goal, first, second):
    swapped = {None: None, FORWARD: BACKWARD, BACKWARD: FORWARD}
    assert prefer(goal, (second, first)) == swapped[prefer(goal, (first, second))]


@given(grades, grades, grades, st.integers(-5, 5))
def test_only_distances_matter_not_where_the_scale_begins(goal, first, second, shift):
    assert prefer(goal + shift, (first + shift, second + shift)) == prefer(goal, (first, second))


@given(grades, grades, st.lists(st.sampled_from(SIDES), unique=True), st.sampled_from(["drop", "keep"]))
def test_every_preference_asks_for_the_reward_of_the_response_it_prefers(chosen, rejected, goals, ties):
    """Breaks: a goal of 6 beside a preferred response of 9 is a wrong label, whatever the goals and ties asked for."""
    pair = (chosen, rejected)
    found = relabel(pair, goals=goals, ties=ties)
    assert [p.goal_of for p in found] == ([] if chosen == rejected and ties == "drop" else goals or [None])
    for preference in found:
        if preference.goal is not None:
            assert preference.goal == pair[preference.order[0]]
        assert sorted(preference.order) == [0, 1]


# Ties.


def test_a_tie_says_nothing_and_is_dropped_with_and_without_goals():
    """Breaks: a baseline that keeps the ties trains on other rows than the method it is compared with."""
    assert relabel((7, 7)) == []
    assert relabel((7, 7), goals=()) == []


def test_kept_ties_are_two_contradicting_preferences_at_one_goal_as_in_the_released_code():
    assert relabel((7, 7), ties="keep") == [
        Preference(goal=7, goal_of="chosen", order=FORWARD),
        Preference(goal=7, goal_of="rejected", order=BACKWARD),
    ]


# Which goals are asked for.


@pytest.mark.parametrize(
    ("goals", "expected"),
    [
        (("chosen",), [Preference(9, "chosen", FORWARD)]),
        (("rejected",), [Preference(6, "rejected", BACKWARD)]),
        (("rejected", "chosen"), [Preference(6, "rejected", BACKWARD), Preference(9, "chosen", FORWARD)]),
    ],
)
def test_the_ablations_are_other_sets_of_goals(goals, expected):
    assert relabel((9, 6), goals=goals) == expected


@pytest.mark.parametrize("scores", [(9, 6), (6, 9), None])
def test_the_plain_baseline_keeps_the_rows_own_order_and_needs_no_scores(scores):
    assert relabel(scores, goals=()) == [Preference(goal=None, goal_of=None, order=FORWARD)]


def test_goals_without_scores_are_an_error():
    with pytest.raises(ValueError, match="goals come from rewards; this row has none"):
        relabel(None)


# The sentence.


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (8, "8"),
        (8.0, "8"),
        (7.5, "7.5"),
        (10, "10"),
        (-3.0, "-3"),
        (0, "0"),
        (6.25, "6.25"),
        (0.1 + 0.2, f"{0.1 + 0.2}"),
    ],
)
def test_a_whole_score_has_no_decimal_point(score, text):
    """Breaks: "8.0" is other tokens than "8", so a model trained on one does not know the other."""
    assert format_score(score) == text


def test_the_papers_sentence_stands_here_word_for_word():
    """Breaks: comparisons with the paper, and every exported model that was trained with the old words."""
    assert goal_text(8.0) == (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target score (on a scale of 1-10, where 1 is lowest and 10 is highest): Overall score: 8."
    )


def test_the_released_codes_sentence_stands_here_word_for_word():
    assert goal_text(7.5, template="released_code") == (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target scores (on a scale of 1-10, where 1 is lowest and 10 is highest):\nOverall score: 7.5."
    )


def test_the_scale_follows_goal_max():
    assert "(on a scale of 1-5, where 1 is lowest and 5 is highest)" in goal_text(4, goal_max=5.0)


def test_a_template_of_ones_own_is_filled_in_and_its_other_braces_stay():
    assert goal_text(3, template="{goal} of {goal_max} {stars} {}") == "3 of 10 {stars} {}"
    assert goal_text(9.5, template="Score={goal}") == "Score=9.5"


@pytest.mark.parametrize("template", ["Score: {score}", "papr", ""])
def test_a_template_without_a_goal_is_an_error_that_names_the_presets(template):
    """Breaks: a misspelt preset would be said to the model as it is, at every goal the same."""
    with pytest.raises(ValueError, match=r"has no \{goal\}; write one with \{goal\} or name one of: paper, released"):
        goal_text(8, template=template)


@given(grades, grades, st.sampled_from([*TEMPLATES, "Score {goal}"]))
def test_two_goals_never_sound_the_same(first, second, template):
    same = goal_text(first, template=template) == goal_text(second, template=template)
    assert same == (first == second)
