"""Rewards that a file or a constant gives in place of the source's own."""

import json

import pytest

from rapo_jax.data.rewards import origin_in_words, read_scores, with_constants, with_scores
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record

HI = (Message("user", "Hi"),)
RECORDS = [Record(1, HI, ("A", "B"), None), Record(3, HI, ("C", "D"), None)]


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        file = tmp_path / "scores.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)

    return write


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_a_file_gives_rewards_by_row_whatever_its_order(write):
    scores = read_scores(write({"row": 3, "rewards": [1, 2]}, {"row": 1, "rewards": [0.5, -1]}))
    assert [record.rewards for record in with_scores(RECORDS, scores, num_rows=3)] == [(0.5, -1), (1, 2)]


def test_a_first_line_or_a_file_beside_it_says_what_produced_the_rewards(write, tmp_path):
    lines = [{"row": 1, "rewards": [0, 1]}]
    path = write({"kind": "implicit_reward", "beta": 0.01}, *lines)
    assert origin_in_words(read_scores(path)) == f"{path} (kind implicit_reward, beta 0.01)"
    path = write(*lines)
    assert origin_in_words(read_scores(path)) == path
    (tmp_path / "scores.json").write_text('{"kind": "reward_model"}')
    assert read_scores(path).origin == {"kind": "reward_model"}
    (tmp_path / "scores.json").write_text("{")
    assert "scores.json is not JSON" in refusal(read_scores, path)


def test_a_file_may_give_named_scores(write):
    marks = [{"wit": 1, "truth": 2}, {"wit": 3, "truth": 4}]
    scores = read_scores(write({"row": 1, "attributes": marks}, {"row": 3, "attributes": marks, "rewards": [1, 2]}))
    first, second = with_scores(RECORDS, scores, num_rows=3)
    assert (first.rewards, first.attributes[1]["truth"], second.rewards) == (None, 4, (1, 2))


def test_a_file_of_another_data_set_is_refused_with_what_does_not_fit(write):
    """When this fails, scores of other responses silently become the goals of these."""
    scores = read_scores(write({"row": 1, "rewards": [1, 2, 3]}, {"row": 9, "rewards": [1, 2]}))
    message = refusal(with_scores, RECORDS, scores, num_rows=3)
    assert message.splitlines()[0].endswith("scores.jsonl does not belong to this data; score it anew.")
    assert [line.strip() for line in message.splitlines()[1:]] == [
        "it has row 9, and the data 3 rows",
        "it has 3 rewards for the 2 responses of row 1",
        "it has no scores of row 3",
    ]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ({"row": 1}, "line 2: it needs a row and a list of rewards or attributes"),
        ({"row": "1", "rewards": [1]}, "line 2: it needs a row and a list"),
        ({"row": 1, "rewards": [1, None]}, "line 2: rewards[1] is missing, not a finite number"),
        ({"row": 1, "rewards": [1, "x"]}, "line 2: rewards[1] is 'x', not a finite number"),
        ({"row": 1, "attributes": [1, 2]}, "line 2: each of attributes must be named numbers"),
        ({"row": 3, "rewards": [1, 2]}, "line 2: row 3 has scores already"),
    ],
)
def test_a_line_that_is_not_a_score_is_named(write, line, fact):
    message = refusal(read_scores, write({"row": 3, "rewards": [1, 2]}, line))
    assert fact in message and 'each must be like {"row": 3, "rewards": [0.2, 1.7]}' in message


def test_a_missing_file_is_refused_with_the_choices():
    message = refusal(read_scores, "nowhere.jsonl")
    assert message == "data.rewards=nowhere.jsonl: no such file; it must be constant, or a .jsonl file of scores."


def test_constants_follow_preference_and_label():
    liked, disliked = (Record(n, HI, ("A",), None, labels=(label,)) for n, label in ((1, True), (2, False)))
    assert [r.rewards for r in with_constants([*RECORDS, liked, disliked], 10, 1)] == [(10, 1), (10, 1), (10,), (1,)]
    several = Record(7, HI, ("A", "B", "C"), None, ranked=False)
    assert "row 7 has 3 responses in no order of preference" in refusal(with_constants, [several], 10, 1)
