"""Records of many responses become pairs: the same ones in any order, on any number of processes."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.data.pairs import fine_grained_agree, reduce_record
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record

HI = (Message("user", "Hi"),)
MANY = Record(1, HI, ("A", "B", "C", "D"), (3.0, 9.0, 1.0, 9.0), source="s", weight=0.5, ranked=False)
PAIR = Record(1, HI, ("A", "B"), (3.0, 9.0))


def reduced(record, want="pair", pairs="auto", seed=0):
    return reduce_record(record, want=want, pairs=pairs, seed=seed)


def test_the_chosen_one_is_the_first_maximum():
    for pairs in ("auto", "best_random", "best_worst"):
        (record,) = reduced(MANY, pairs=pairs)
        assert (record.responses[0], record.rewards[0]) == ("B", 9.0)


def test_best_worst_takes_the_lowest():
    (record,) = reduced(MANY, pairs="best_worst")
    assert (record.responses, record.rewards, record.source, record.weight) == (("B", "C"), (9.0, 1.0), "s", 0.5)


def test_all_pairs_the_best_with_every_other():
    assert [record.responses for record in reduced(MANY, pairs="all")] == [("B", "D"), ("B", "A"), ("B", "C")]


@given(st.integers(1, 10**6))
def test_the_random_partner_depends_on_the_texts_not_on_the_row(row):
    """When this fails, pairs depend on the number of processes, as with the random state of the released code."""
    assert reduced(replace(MANY, row=row))[0].responses == reduced(MANY)[0].responses


def test_random_partners_are_drawn_evenly_and_change_with_the_seed():
    records = [replace(MANY, prompt=(Message("user", f"Question {n}"),)) for n in range(300)]
    partners = [reduced(record)[0].responses[1] for record in records]
    count = Counter(partners)
    assert set(count) == {"A", "C", "D"} and min(count.values()) > 70
    assert partners != [reduced(record, seed=1)[0].responses[1] for record in records]


def test_a_pair_from_the_source_is_kept_whatever_its_scores():
    for pairs in ("auto", "best_worst", "all"):
        assert reduced(PAIR, pairs=pairs) == [PAIR]


def test_two_responses_that_nobody_ranked_are_ranked_by_score():
    assert reduced(replace(PAIR, ranked=False))[0].responses == ("B", "A")


def test_all_responses_are_sorted_best_first_and_ties_keep_their_order():
    (record,) = reduced(MANY, want="all")
    assert (record.responses, record.rewards, record.ranked) == (("B", "D", "A", "C"), (9.0, 9.0, 3.0, 1.0), True)


def test_a_single_response_is_the_best_one_or_each_in_turn():
    assert [record.responses for record in reduced(MANY, want="one")] == [("B",)]
    assert [record.rewards for record in reduced(MANY, want="one", pairs="each")] == [(3.0,), (9.0,), (1.0,), (9.0,)]
    assert reduced(PAIR, want="one")[0].responses == ("A",)


def test_an_undesirable_response_is_not_learnt_as_the_best():
    bad = Record(1, HI, ("A",), None, labels=(False,))
    assert reduced(bad, want="one") == []
    assert reduced(bad, want="labelled") == [bad]


def test_attributes_go_with_their_responses():
    marks = tuple({"wit": float(n)} for n in range(4))
    (record,) = reduced(replace(MANY, attributes=marks), want="all")
    assert [each["wit"] for each in record.attributes] == [1, 3, 0, 2]
    (record,) = reduced(replace(MANY, rewards=None, attributes=marks), pairs="best_worst")
    assert record.responses == ("D", "A")  # without rewards the mean of the attributes decides


def test_responses_that_nothing_tells_apart_are_refused_with_the_remedies():
    with pytest.raises(UserError) as caught:
        reduced(replace(MANY, rewards=None))
    assert str(caught.value) == (
        "row 1 has 4 responses and no rewards to choose among them; name the column of their scores with "
        "data.columns.rewards=..., or give a file of them with data.rewards=FILE.jsonl."
    )


@pytest.mark.parametrize(("chosen", "agree"), [(3, False), (4, True), (5, True)])
def test_fine_grained_scores_may_equal_those_of_the_rejected_response(chosen, agree):
    marks = ({"wit": chosen, "truth": 4.0}, {"wit": 4.0, "truth": 4.0})
    assert fine_grained_agree(replace(PAIR, attributes=marks)) == agree
    assert fine_grained_agree(PAIR)
