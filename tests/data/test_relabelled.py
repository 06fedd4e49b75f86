"""The paper's rule applied to records, for objectives of one response, of two, of labelled responses and of all."""

import math

import pytest

from rapo_jax.batching.pipeline import without_goals
from rapo_jax.chat.goal_prompt import configured_goal_prompt
from rapo_jax.config.files import from_dict
from rapo_jax.data import relabelled
from rapo_jax.data.relabelled import relabel_records
from rapo_jax.data.row_needs import responses_wanted, rewards_wanted
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record

HI = (Message("user", "Hi"),)
PAIR = Record(1, HI, ("A", "B"), (9.0, 6.0), source="gpt4", weight=0.5)
MANY = Record(2, HI, ("A", "B", "C"), (9.0, 7.0, 4.0))
MARKED = Record(3, HI, ("A", "B"), (9.0, 6.0), ({"wit": 3.0, "truth": 8.0}, {"wit": 5.0, "truth": 5.0}))


OBJECTIVE = {"any": "dro_pointwise", "one": "sft", "pair": "dpo", "labelled": "kto", "all": "rrhf"}


def relabel(record, want="pair", pairs="auto", **options):
    """The preferences of one record for an objective that wants these responses."""
    tree = {"relabel": options, "data": {"pairs": pairs}, "objective": {"name": OBJECTIVE[want]}}
    return relabel_records([record], from_dict(tree))[0]


def told(found):
    return [(one.preference.goal, one.preference.goal_of, "".join(one.responses)) for one in found]


def sentence_of(found, config):
    """What a prompt says about this preference's goal and source."""
    prompt = configured_goal_prompt(config.relabel, placement="system", chat_template="")
    return prompt.sentence(found.preference.goal, source=found.record.source)


def test_a_pair_becomes_two_preferences_with_its_weight():
    found = relabel(PAIR)
    assert told(found) == [(9, "chosen", "AB"), (6, "rejected", "BA")]
    assert [(one.rewards, one.weight, one.labels) for one in found] == [((9, 6), 0.5, None), ((6, 9), 0.5, None)]


def test_the_highest_goal_joins_the_goals_and_leaves_plain_data_plain():
    """When this fails, an evaluation called plain asks for a score of 10 in a third of its rows."""
    config = from_dict({"objective": {"name": "dpo", "best_goal_weight": 0.5}})
    assert told(relabel_records([PAIR], config)[0]) == [(9, "chosen", "AB"), (6, "rejected", "BA"), (10, "best", "A")]
    assert told(relabel_records([PAIR], without_goals(config))[0]) == [(None, None, "AB")]


def test_a_loss_term_that_the_data_cannot_supply_is_refused():
    """When this fails, a weight is set but nothing reads it, because no response was chosen over another."""
    config = from_dict({"objective": {"name": "kto", "best_goal_weight": 0.5}})
    alone = Record(1, HI, ("A",), (9.0,), labels=(True,))
    with pytest.raises(
        UserError, match=r"best_goal_weight=0\.5 is of the responses that were chosen over others, and this"
    ):
        relabel_records([alone], config)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"goals": ["chosen"]}, ["AB"]),
        ({"goals": ["rejected"]}, ["BA"]),
        ({"goals": []}, ["AB"]),
        ({"rejected_goals": {"max": 5}}, ["AB"]),
        ({"rejected_goals": {"min": 5}}, ["AB", "BA"]),
        ({"goals": ["rejected"], "rejected_goals": {"min": 7}}, []),
    ],
)
def test_the_papers_ablations_are_settings(options, expected):
    assert ["".join(one.responses) for one in relabel(PAIR, **options)] == expected


def test_a_goal_that_is_filtered_out_is_not_a_tie():
    """When this fails, the report counts rows as ties that the user's limits left out."""
    config = from_dict({"relabel": {"goals": ["rejected"], "rejected_goals": {"min": 7}}})
    assert relabel_records([PAIR], config) == ([], 0)
    assert relabelled.num_limited([PAIR], config) == 1
    tied = Record(1, HI, ("A", "B"), (3.0, 3.0))
    assert relabel_records([tied], config) == ([], 1)


def test_all_responses_are_ordered_by_their_distance_to_each_ones_reward():
    assert told(relabel(MANY, "all")) == [(9, "chosen", "ABC"), (7, "rejected", "BAC"), (4, "rejected", "CBA")]
    assert told(relabel(MANY, "all", goals=[])) == [(None, None, "ABC")]


def test_one_response_is_asked_for_at_its_own_reward():
    own = Record(1, HI, ("A",), (9.0,))
    assert told(relabel(own, "one", goals=["chosen"])) == [(9, "chosen", "A")]
    assert told(relabel(own, "one", goals=[])) == [(None, None, "A")]


def test_a_tie_is_kept_where_each_response_is_learnt_from_by_itself():
    """When this fails, an objective of absolute rewards loses every row whose responses are equally good."""
    tied = Record(1, HI, ("A", "B"), (7.0, 7.0))
    assert told(relabel(tied, "any")) == [(7, "chosen", "AB")]
    assert told(relabel(tied, "any", goals=[])) == [(None, None, "AB")]
    assert relabel(tied, "all") == []


# Labels.


def test_what_is_preferred_under_a_goal_is_desirable():
    assert [(one.preference.goal, one.responses, one.labels) for one in relabel(PAIR, "labelled")] == [
        (9, ("A", "B"), (True, False)),
        (6, ("B", "A"), (True, False)),
    ]


def test_pairs_can_be_split_into_single_labelled_responses():
    found = relabel(PAIR, "labelled", pairs="each")
    assert [(one.preference.goal, one.responses, one.labels) for one in found] == [
        (9, ("A",), (True,)), (9, ("B",), (False,)), (6, ("B",), (True,)), (6, ("A",), (False,))
    ]  # fmt: skip


def test_a_single_label_is_kept_without_goals():
    for label in (True, False):
        (one,) = relabel(Record(1, HI, ("A",), None, labels=(label,)), "labelled", goals=[])
        assert (one.responses, one.labels, one.preference.goal) == (("A",), (label,), None)


def test_a_single_undesirable_response_is_wrong_at_the_highest_goal_and_right_at_its_own():
    good, bad = (Record(1, HI, ("A",), (3.0,), labels=(label,)) for label in (True, False))
    assert [(one.preference.goal, one.labels) for one in relabel(good, "labelled")] == [(3, (True,))]
    assert [(one.preference.goal, one.labels) for one in relabel(bad, "labelled")] == [(10, (False,)), (3, (True,))]
    assert relabel(good, "labelled", goals=["rejected"]) == []


def test_an_undesirable_response_of_the_highest_reward_is_dropped():
    """When this fails, one response is both desirable and undesirable under one goal."""
    bad = Record(1, HI, ("A",), (10.0,), labels=(False,))
    assert relabel(bad, "labelled") == []
    assert relabel_records([bad], from_dict({"objective": {"name": "kto"}})) == ([], 1)


# Several attributes.


def test_a_goal_may_be_a_number_for_each_attribute():
    found = relabel(MARKED, attributes=["truth", "wit"])
    assert told(found) == [((8, 3), "chosen", "AB"), ((5, 5), "rejected", "BA")]
    config = from_dict({"relabel": {"attributes": ["truth", "wit"]}})
    assert sentence_of(found[0], config).endswith("10 is highest):\nTruth: 8\nWit: 3")


def test_attributes_of_one_response_can_be_written_as_in_steerlm():
    options = {"attributes": ["wit", "truth"], "goals": ["chosen"], "template": "quality:{wit},truth:{truth}"}
    one = Record(1, HI, ("A",), None, ({"wit": 3.0, "truth": 8.0},))
    (found,) = relabel(one, "one", **options)
    assert sentence_of(found, from_dict({"relabel": options})) == "quality:3,truth:8"


def test_a_tie_in_all_attributes_is_a_tie_whatever_the_rewards():
    tied = Record(3, HI, ("A", "B"), (9.0, 6.0), ({"wit": 3.0}, {"wit": 3.0}))
    assert relabel(tied, attributes=["wit"]) == []
    assert len(relabel(tied)) == 2


def test_a_direction_orders_responses_by_their_reward_along_it():
    options = {"attributes": ["wit", "truth"], "goal_kind": "directions"}
    options["template"] = "Your response should maximize wit*{wit} + truth*{truth}."
    (found,) = relabel(MARKED, **options)
    x, y = found.preference.goal
    assert abs(math.hypot(x, y) - 100) < 1 and x >= 70 and -71 <= y <= 71
    along = {"A": 3 * x + 8 * y, "B": 5 * x + 5 * y}
    assert list(found.responses) == sorted(along, key=along.get, reverse=True)
    (best,) = relabel(MARKED, "one", **options | {"goals": ["chosen"]})
    assert best.responses == found.responses[:1]
    sentence = sentence_of(found, from_dict({"relabel": options}))
    assert sentence == f"Your response should maximize wit*{x} + truth*{y}."


def test_another_prompt_has_another_direction():
    options = {"attributes": ["wit", "truth"], "goal_kind": "directions", "template": "{goals}"}
    records = [Record(1, (Message("user", f"{n}?"),), MARKED.responses, None, MARKED.attributes) for n in range(20)]
    assert len({relabel(record, **options)[0].preference.goal for record in records}) > 10


# Classes.


def test_a_source_can_take_the_place_of_a_goal():
    """C-RLFT: the prompt says where a response is from, and its loss is weighted by that."""
    options = {"goals": [], "template": "Answer as {source} would."}
    (found,) = relabel(PAIR, **options)
    assert sentence_of(found, from_dict({"relabel": options})) == "Answer as gpt4 would."


# What objectives want.


@pytest.mark.parametrize(
    ("name", "wanted", "rewards"),
    [
        ("dpo", "pair", False), ("sft", "one", False), ("kto", "labelled", False), ("nca", "all", True),
        ("rrhf", "all", False), ("dro_pointwise", "any", True),
    ],
)  # fmt: skip
def test_an_objective_declares_which_responses_and_rewards_it_needs(name, wanted, rewards):
    config = from_dict({"objective": {"name": name}, "relabel": {"goals": []}})
    assert responses_wanted(config) == wanted
    assert rewards_wanted(config) == rewards
