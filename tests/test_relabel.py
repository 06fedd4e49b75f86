"""The paper's rule and the paper's sentence: which response is preferred at which goal, and how the goal is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.relabel import (
    SIDES,
    TEMPLATES,
    Preference,
    Scale,
    fit_range,
    format_score,
    goal_direction,
    goal_reward,
    goal_text,
    order_along,
    prefer,
    relabel,
)

FORWARD, BACKWARD = (0, 1), (1, 0)
rewards = st.floats(allow_nan=False, allow_infinity=False)
grades = st.integers(1, 20).map(lambda half: half / 2)  # 0.5, 1, ... 10: scores as judges give them


# The rule.


def test_a_pair_becomes_two_preferences_and_the_second_is_reversed():
    """When this fails, the method is lost: without the reversed pair no model learns what a low goal asks for."""
    assert relabel((9, 6)) == [
        Preference(goal=9, goal_of="chosen", order=FORWARD),
        Preference(goal=6, goal_of="rejected", order=BACKWARD),
    ]


def test_scores_win_over_labels_when_they_contradict():
    """When this fails, rows whose "chosen" scores lower (label noise) teach that 3 is closer to 8 than 8 is."""
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
    """When this fails, scores of some magnitude overflow or underflow, and their pairs are reversed."""
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
    """When this fails, some setting of goals and ties mislabels pairs, such as preferring a 9 under a goal of 6."""
    pair = (chosen, rejected)
    found = relabel(pair, goals=goals, ties=ties)
    assert [p.goal_of for p in found] == ([] if chosen == rejected and ties == "drop" else goals or [None])
    for preference in found:
        if preference.goal is not None:
            assert preference.goal == pair[preference.order[0]]
        assert sorted(preference.order) == [0, 1]


# Ties.


def test_a_tie_is_dropped_with_and_without_goals():
    """When this fails, a baseline that keeps ties trains on other rows than the method it is compared with."""
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


# More than two responses.


def test_all_responses_are_ordered_by_their_distance_to_the_goal():
    assert prefer(7, (9, 6, 7)) == (2, 1, 0)
    assert prefer(8, (9, 7, 3)) == (0, 1, 2)  # equally far: their own order
    assert prefer(8, (7, 9, 7)) is None


@given(st.lists(grades, min_size=3, max_size=6))
def test_every_response_is_first_at_its_own_reward(scores):
    for preference in relabel(scores, ties="drop"):
        assert scores[preference.order[0]] == preference.goal
        assert sorted(preference.order) == list(range(len(scores)))
    assert {p.goal for p in relabel(scores)} == (set(scores) if len(set(scores)) > 1 else set())


def test_equal_rewards_of_several_responses_give_one_goal():
    assert [(p.goal, p.goal_of, p.order) for p in relabel((9, 6, 6, 9))] == [
        (9, "chosen", (0, 3, 1, 2)),
        (6, "rejected", (1, 2, 0, 3)),
    ]


def test_without_rewards_many_responses_keep_their_order():
    assert relabel(None, goals=(), num_responses=4) == [Preference(None, None, (0, 1, 2, 3))]


# Limits, and the best goal.


@pytest.mark.parametrize(("limits", "goals"), [((-10, 5), [9]), ((5, 100), [9, 6]), ((6, 6), [9, 6]), ((7, 100), [9])])
def test_only_goals_of_rejected_responses_have_limits(limits, goals):
    assert [p.goal for p in relabel((9, 6), rejected_goals=limits)] == goals


def test_the_best_goal_asks_for_the_chosen_response_alone():
    assert relabel((9, 6), best_goal=10)[-1] == Preference(goal=10, goal_of="best", order=(0,))
    assert relabel((9, 6), goals=(), best_goal=10)[-1].goal_of == "best"
    assert relabel((6, 6), best_goal=10) == []
    assert len(relabel((9, 6))) == 2


# Several attributes.


def test_the_goal_of_several_attributes_is_a_goal_for_each():
    rewards = ((8, 3), (5, 5))
    assert goal_reward((8, 3), (5, 5)) == -13
    assert relabel(rewards) == [
        Preference(goal=(8, 3), goal_of="chosen", order=FORWARD),
        Preference(goal=(5, 5), goal_of="rejected", order=BACKWARD),
    ]
    assert relabel(((8, 3), (8, 3))) == []


def test_limits_apply_to_the_mean_of_the_attributes():
    assert [p.goal for p in relabel(((8, 3), (5, 6)), rejected_goals=(5.6, 10))] == [(8, 3)]
    assert len(relabel(((8, 3), (5, 6)), rejected_goals=(5.5, 10))) == 2


@given(st.floats(0, 1))
def test_a_direction_is_of_length_one_and_within_its_arc(share):
    x, y = goal_direction(share)
    assert abs((x * x + y * y) ** 0.5 - 100) < 1 and x >= 70 and abs(y) <= 71
    assert goal_direction(0.5) == (100, 0) and goal_direction(1.0) == (71, 71) and goal_direction(0.0) == (71, -71)


def test_along_a_direction_the_larger_inner_product_is_preferred():
    assert order_along((100, 0), [(3, 9), (4, 0), (5, 1)]) == (2, 1, 0)
    assert order_along((71, -71), [(3, 9), (4, 0), (5, 1)]) == (1, 2, 0)
    assert order_along((100, 0), [(3, 9), (3, 0)]) is None


# The scale.


def test_a_scale_is_a_line_through_its_ends():
    scale = Scale(low=0, high=4)
    assert [scale(reward) for reward in (0, 1, 2, 4, 9, -1)] == [1, 3.25, 5.5, 10, 10, 1]
    assert Scale(low=0, high=4, clip=False)(8) == 19
    assert Scale(low=1, high=10)(7.3) == 7.3  # from a scale to itself nothing changes, not even in the last digit


def test_a_scale_of_zero_width_is_refused():
    with pytest.raises(ValueError, match="zero width"):
        Scale(low=2, high=2)


def test_a_scale_wider_than_a_number_is_refused():
    with pytest.raises(ValueError, match=r"a scale from -1e.308 to 1e.308 is wider than a number goes"):
        Scale(low=-1e308, high=1e308)


def test_the_ends_of_a_scale_can_leave_outliers_out():
    rewards = [0, 1, 2, 3, 100]
    assert fit_range(rewards, "minmax") == (0, 100)
    assert fit_range(rewards, "quantile", quantile=0.25) == (1, 3)
    assert fit_range([1, 3, 1, 3], "zscore", deviations=2) == (0, 4)


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
    """When this fails, goals are written "8.0", other tokens than the "8" that a trained model knows."""
    assert format_score(score) == text


def test_the_papers_sentence_is_reproduced_word_for_word():
    """When this fails, runs are not comparable with the paper, and models exported with the old words read others."""
    assert goal_text(8.0) == (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target score (on a scale of 1-10, where 1 is lowest and 10 is highest): Overall score: 8."
    )


def test_the_released_codes_sentence_is_reproduced_word_for_word():
    assert goal_text(7.5, template="released_code") == (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target scores (on a scale of 1-10, where 1 is lowest and 10 is highest):\nOverall score: 7.5."
    )


def test_the_sentence_names_goal_max_as_the_end_of_the_scale():
    assert "(on a scale of 1-5, where 1 is lowest and 5 is highest)" in goal_text(4, goal_max=5.0)


def test_a_custom_template_is_filled_in_and_its_other_braces_stay():
    assert goal_text(3, template="{goal} of {goal_max} {stars} {}") == "3 of 10 {stars} {}"
    assert goal_text(9.5, template="Score={goal}") == "Score=9.5"


@pytest.mark.parametrize("template", ["Score: {score}", "papr", ""])
def test_a_template_without_a_goal_is_an_error_that_names_the_presets(template):
    """When this fails, a misspelt preset is taken as the prompt's text, the same at every goal."""
    with pytest.raises(ValueError, match=r"has no \{goal\}; write one with \{goal\} or name one of: paper, released"):
        goal_text(8, template=template)


@given(grades, grades, st.sampled_from([*TEMPLATES, "Score {goal}"]))
def test_two_goals_never_read_the_same(first, second, template):
    same = goal_text(first, template=template) == goal_text(second, template=template)
    assert same == (first == second)


def test_a_scale_that_does_not_begin_at_one_is_stated():
    text = goal_text(0.5, goal_min=0, goal_max=1)
    assert "(on a scale of 0-1, where 0 is lowest and 1 is highest): Overall score: 0.5." in text


def test_each_of_several_attributes_has_a_line():
    text = goal_text((8, 7.5), attributes=("instruction_following", "wit"))
    assert text.endswith("target scores (on a scale of 1-10, where 1 is lowest and 10 is highest):\n"
                         "Instruction following: 8\nWit: 7.5")  # fmt: skip
    assert goal_text(10, attributes=("a", "wit")).endswith("A: 10\nWit: 10")
    assert goal_text((3, 4), template="{wit}/{a}", attributes=("a", "wit")) == "4/3"


def test_a_template_without_a_place_for_every_attribute_is_an_error():
    with pytest.raises(
        ValueError, match=r"has no \{goals\} and no \{wit\}; write one with \{goals\} or name one of: paper"
    ):
        goal_text((3, 4), template="{a}: {goal}", attributes=("a", "wit"))


def test_a_source_is_inserted_as_it_is_and_not_read_as_a_template():
    assert goal_text(None, template="As {source}, of {goal_max}.", source="{goal}") == "As {goal}, of 10."
