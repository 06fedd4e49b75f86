"""Which records take part: shares, held-out prompts, forbidden prompts; neither chance nor order decides."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.data import mixture
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record


def record(question, row=1, **more):
    return Record(row, (Message("user", question),), ("A", "B"), (2.0, 1.0), **more)


RECORDS = [record(f"Question {n}", n) for n in range(1, 401)]


def test_a_prompt_is_held_out_wherever_it_occurs():
    """When this fails, a prompt is on both sides and the evaluation measures memorization."""
    held = [one for one in RECORDS if mixture.is_held_out(one, 0.25, seed=0)]
    assert 70 < len(held) < 130
    for one in held:
        assert mixture.is_held_out(replace(one, row=999, responses=("C", "D"), source="other"), 0.25, seed=0)


def test_a_larger_fraction_holds_out_the_same_prompts_and_more():
    small, large = ({one.row for one in RECORDS if mixture.is_held_out(one, f, seed=0)} for f in (0.1, 0.3))
    assert small < large
    assert small != {one.row for one in RECORDS if mixture.is_held_out(one, 0.1, seed=1)}


def test_the_fraction_trained_on_is_drawn_independently_of_the_held_out_one():
    """When this fails, one hash decides both, and training on half of the prompts holds out none of the other half."""
    half = {one.row for one in RECORDS if mixture.is_within(one, 0.5, seed=0)}
    held = {one.row for one in RECORDS if mixture.is_held_out(one, 0.5, seed=0)}
    assert 150 < len(half) < 250 and 60 < len(half & held) < 140
    assert all(mixture.is_within(one, 1.0, seed=0) for one in RECORDS)


@given(st.permutations(range(40)), st.integers(0, 45))
def test_a_sample_is_the_same_in_any_order(order, number):
    few = RECORDS[:40]
    taken = mixture.sample([few[index] for index in order], number, seed=0)
    assert {one.row for one in taken} == {one.row for one in mixture.sample(few, number, seed=0)}
    assert len(taken) == min(number, 40)


def test_a_sample_keeps_the_order_of_its_records():
    rows = [one.row for one in mixture.sample(RECORDS, 50, seed=0)]
    assert rows == sorted(rows)


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ([100, 60], [None, None], [100, 60]),
        ([100, 60], [1.0, 1.0], [60, 60]),
        ([100, 60], [1.0, 3.0], [20, 60]),
        ([100, 60, 7], [2.0, 1.0, None], [100, 50, 7]),
        ([10], [0.3], [10]),
    ],
)
def test_shares_are_exact_and_no_row_is_taken_twice(sizes, weights, expected):
    assert mixture.mixture_sizes(sizes, weights) == expected


def test_records_of_excluded_sources_and_questions_are_dropped(tmp_path):
    (tmp_path / "list.txt").write_text("  What is true?  \n\n")
    (tmp_path / "list.jsonl").write_text(json.dumps({"question": "What is true?", "id": 1}) + "\n")
    for name in ("list.txt", "list.jsonl"):
        questions = mixture.read_questions(str(tmp_path / name))
        assert questions == {"What is true?"}
        found = {"sources": ["truthful_qa"], "questions": questions}
        assert mixture.contamination(record("What is true? "), **found) == "prompt_dropped"
        assert mixture.contamination(record("What is true", source="a, truthful_qa"), **found) == "source_dropped"
        assert mixture.contamination(record("What is true", source="truthful"), **found) is None


def test_a_missing_or_invalid_list_of_questions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.drop_prompts=nowhere.txt: no such file"):
        mixture.read_questions("nowhere.txt")
    with pytest.raises(UserError, match=r"^mine=x+ is not a usable path"):
        mixture.read_questions("x" * 300, option="mine")
    (tmp_path / "list.jsonl").write_text('{"text": "Hi"}\n')
    with pytest.raises(UserError, match="no question in a column question or prompt or instruction"):
        mixture.read_questions(str(tmp_path / "list.jsonl"))
