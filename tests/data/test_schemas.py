"""Every format of published preference data is recognized by its columns and read into the same record."""

import json

import pytest

from rapo_jax.config.tree import Columns, Data
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from tests.data.reading import read_file

HI = (Message("user", "Hi"),)


@pytest.fixture
def read(tmp_path):
    """A function (*rows, **options) -> the Source."""

    def read(*rows, **options):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_file(str(file), **{"scores": True, **options})

    return read


@pytest.fixture
def refusal(read):
    def refusal(*rows, **options):
        with pytest.raises(UserError) as caught:
            read(*rows, **options)
        return str(caught.value)

    return refusal


def completion(response, overall, ratings="3333", fine=None, **more):
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    names = [rating if rating != "n" else "N/A" for rating in ratings]
    annotations = {aspect: {"Rating": rating} for aspect, rating in zip(aspects, names, strict=True)}
    row = {"response": response, "overall_score": overall, "annotations": annotations, **more}
    return row if fine is None else row | {"fine-grained_score": fine}


def feedback(*completions, **more):
    return {"source": "sharegpt", "instruction": "Hi", "completions": list(completions), **more}


# UltraFeedback as it was published.


def test_ultrafeedback_gives_all_responses_with_overall_scores_and_ratings(read):
    source = read(feedback(completion("A", 8.0, "5432"), completion("B", 6.5), completion("C", 2.0)))
    (record,) = source.records
    assert source.schema == "ultrafeedback"
    assert (record.prompt, record.responses, record.rewards) == (HI, ("A", "B", "C"), (8.0, 6.5, 2.0))
    assert record.attributes[0] == {
        "helpfulness": 5, "honesty": 4, "instruction_following": 3, "truthfulness": 2
    }  # fmt: skip
    assert (record.source, record.ranked) == ("sharegpt", False)
    assert source.reward_source == "overall_score of completions"


def test_a_completion_without_all_ratings_is_left_out_and_counted(read):
    source = read(feedback(completion("A", 8.0), completion("B", 6.5, "33n3"), completion("C", 2.0)))
    assert source.records[0].responses == ("A", "C")
    assert source.notes == {"rating_not_available": 1}


def test_a_row_with_only_one_completion_left_is_dropped_and_counted(read):
    source = read(
        feedback(completion("A", 8.0), completion("B", 6.5, "nnnn")), feedback(completion("A", 8), completion("B", 1))
    )
    assert [record.row for record in source.records] == [2]
    assert source.dropped == {"fewer_than_two_responses": 1}


@pytest.mark.parametrize(
    ("defect", "responses", "rewards", "note"),
    [
        ("repair", ("A", "B"), (1.0, 6.0), "score_10_for_1_repaired"),
        ("drop", ("B", "C"), (6.0, 10.0), "score_10_for_1_left_out"),
        ("keep", ("A", "B"), (10, 6.0), "score_10_for_1_kept"),
    ],
)
def test_a_score_of_10_beside_low_ratings_is_treated_as_a_mistaken_1(read, defect, responses, rewards, note):
    """When this fails, the worst responses of the set get the goal that the model is asked for in the end."""
    row = feedback(completion("A", 10, "2222"), completion("B", 6.0), completion("C", 10.0, "5555"))
    source = read(row, data=Data(score_defect=defect))
    assert source.records[0].responses[:2] == responses
    assert source.records[0].rewards[:2] == rewards
    assert source.notes == {note: 1}


def test_the_fine_grained_score_of_the_source_decides_where_there_is_one(read):
    source = read(feedback(completion("A", 10, "3333", fine=1.75), completion("B", 6.0)))
    assert source.records[0].rewards == (1.0, 6.0)


@pytest.mark.parametrize("rating", ["N/A", None, "", "inf", 10**400, [3]])
def test_a_rating_that_is_not_a_number_counts_as_missing(read, rating):
    odd = completion("B", 6.5)
    odd["annotations"]["honesty"]["Rating"] = rating
    source = read(feedback(completion("A", 8.0), odd, completion("C", 2.0)))
    assert source.notes == {"rating_not_available": 1}


def test_responses_written_under_a_hidden_instruction_are_counted(read):
    hidden = completion("A", 8.0, custom_system_prompt="Answer as a pirate.")
    assert read(feedback(hidden, completion("B", 6.5))).notes == {"written_under_a_hidden_instruction": 1}


def test_completions_without_annotations_have_no_attributes(read):
    rows = [{"response": text, "overall_score": score} for text, score in (("A", 1.5), ("B", 7.25))]
    (record,) = read({"instruction": "Hi", "completions": rows}).records
    assert (record.rewards, record.attributes) == ((1.5, 7.25), None)


def test_empty_and_repeated_responses_of_many_are_left_out_and_counted(read):
    source = read(feedback(completion("A", 8.0), completion(" ", 3.0), completion("A", 5.0), completion("B", 2.0)))
    assert (source.records[0].responses, source.records[0].rewards) == (("A", "B"), (8.0, 2.0))
    assert source.notes == {"empty_response_left_out": 1, "repeated_response_left_out": 1}


def test_a_completion_without_a_score_is_a_bad_row(refusal):
    message = refusal(feedback(completion("A", 8.0), completion("B", None)))
    assert "rows.jsonl line 1: completions[1].overall_score is missing, not a finite number" in message


# Other published sets.


def test_responses_sampled_from_a_model_come_with_a_list_of_scores(read):
    row = {"prompt": "Hi", "all_generated_responses": ["A", "B", "C"], "all_rm_scores": [0.1, 0.3, 0.2]}
    source = read(row | {"chosen": [{"role": "assistant", "content": "B"}]})
    assert source.schema == "sampled"
    assert (source.records[0].responses, source.records[0].rewards) == (("A", "B", "C"), (0.1, 0.3, 0.2))


def test_ranks_become_rewards_from_ten_to_one(read):
    answers = [{"answer": f" {text}", "model": "m", "rank": rank} for text, rank in (("C", 7), ("A", 1.0), ("B", 4))]
    source = read({"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers, "source": ["a", "b"]})
    (record,) = source.records
    assert (record.prompt, record.responses) == (HI, (" C", " A", " B"))
    assert (record.rewards, record.source) == ((1.0, 10.0, 5.5), "a, b")


def test_rows_of_one_response_with_named_scores_are_joined_by_prompt(read):
    scores = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
    rows = [{"prompt": p, "response": r, "helpfulness": h, **scores} for p, r, h in (("Hi", "A", 4), ("Ho", "C", 1))]
    source = read(rows[0], rows[1], rows[0] | {"response": "B", "helpfulness": 0}, rows[1] | {"response": "D"})
    first, second = source.records
    assert (first.row, first.responses, first.rewards) == (1, ("A", "B"), (10, 1))
    assert first.attributes[1] == {"helpfulness": 0, **scores}
    assert (second.row, second.responses) == (2, ("C", "D"))
    assert (source.num_rows, source.merged, source.reward_source) == (4, 2, "helpfulness 0-4 as 1-10")


def test_the_marked_turns_of_a_flattened_prompt_are_separated(read):
    prompt = "c#\n<extra_id_1>Assistant\nWhat about it?\n<extra_id_1>User\nexplain"
    rows = [{"prompt": prompt, "response": text, "helpfulness": 3} for text in "AB"]
    assert [turn.content for turn in read(*rows).records[0].prompt] == ["c#", "What about it?", "explain"]


def test_numbered_columns_are_read_as_one_set_of_responses(read):
    row = {"prompt": "Hi", "response_0": "A", "response_1": "B", "response_2": "C"}
    row |= {"response_0_reward": 0.5, "response_1_reward": -1, "response_2_reward": 2}
    source = read(row)
    assert (source.schema, source.records[0].rewards) == ("numbered", (0.5, -1, 2))


def test_list_columns_of_any_name_can_be_given(read):
    row = {"question": "Hi", "texts": ["A", "B", "C"], "points": [1, 2, 3]}
    columns = Columns(prompt="question", responses="texts", rewards="points")
    (record,) = read(row, columns=columns).records
    assert (record.prompt, record.responses, record.rewards) == (HI, ("A", "B", "C"), (1, 2, 3))


def test_lists_of_different_lengths_are_a_bad_row(refusal):
    message = refusal({"prompt": "Hi", "responses": ["A", "B"], "rewards": [1]})
    assert "line 1: responses has 2 entries, rewards has 1" in message


def test_responses_without_scores_are_refused_with_the_remedies(refusal, read):
    message = refusal({"prompt": "Hi", "responses": ["A", "B", "C"]})
    assert "data.columns.rewards=..." in message and "data.rewards=FILE.jsonl" in message
    assert message.endswith("or train without goals by relabel.goals=[].")
    assert read({"prompt": "Hi", "responses": ["A", "B"]}, scores=False).records[0].rewards is None


@pytest.mark.parametrize("response", ["completion", "response"])
def test_single_responses_with_a_label(read, response):
    rows = [{"prompt": "Hi", response: "Good", "label": True}, {"prompt": "Hi", response: "Bad", "label": False}]
    source = read(*rows, scores=False, want="labelled")
    assert [(record.responses, record.labels) for record in source.records] == [
        (("Good",), (True,)),
        (("Bad",), (False,)),
    ]


@pytest.mark.parametrize("labels", [(1, 0), (1.0, 0.0), ("true", "False"), ("1", "0")])
def test_labels_as_people_write_them_are_read(read, labels):
    """When this fails, KTO's usual data, labels of 0 and 1, is asked for chosen and rejected."""
    rows = [{"prompt": "Hi", "completion": "A", "label": label} for label in labels]
    assert [record.labels for record in read(*rows, scores=False, want="labelled").records] == [(True,), (False,)]


def test_a_number_called_label_is_a_class_where_no_labels_are_wanted(read):
    """When this fails, data with class ids is read as if it said what is desirable, and older runs refuse to resume."""
    rows = [{"prompt": "Hi", "response": "A", "score": 3.0, "label": label} for label in (0, 1, 2)]
    assert read(*rows, scores=True, want="one").schema == "single"


def test_a_label_that_is_neither_true_nor_false_is_a_bad_row(refusal):
    rows = [{"prompt": "Hi", "completion": "A", "label": label} for label in (True, "yes")]
    assert "line 2: label is 'yes', neither true nor false" in refusal(*rows, scores=False, want="labelled")


def test_labelled_rows_are_refused_where_responses_are_compared(refusal):
    message = refusal({"prompt": "Hi", "completion": "A", "label": True}, scores=False)
    assert message.endswith("dropped: 1 fewer_than_two_responses. The objective compares several; rows of "
                            "data.schema=labels have one, as for objective.name=kto or sft.")  # fmt: skip


def test_pairs_are_accepted_where_labels_are_wanted(read):
    row = {"prompt": "Hi", "chosen": "Good", "rejected": "Bad", "label": True}
    source = read(row, scores=False, want="labelled")
    assert (source.schema, source.records[0].responses) == ("pairs", ("Good", "Bad"))


def test_a_given_schema_overrides_detection_and_rows_must_fit_it(read, refusal):
    row = {"prompt": "Hi", "chosen": "A", "rejected": "B", "responses": ["A", "B", "C"], "rewards": [1, 2, 3]}
    assert read(row).schema == "lists"
    assert read(row, schema="pairs", scores=False).records[0].responses == ("A", "B")
    assert "data.schema=ultrafeedback needs instruction and completions" in refusal(row, schema="ultrafeedback")


def test_a_row_can_give_its_source_its_weight_and_named_scores(read):
    row = {"prompt": "Hi", "chosen": "A", "rejected": "B", "score_chosen": 3, "score_rejected": 1, "w": 0.25}
    row |= {"origin": "web", "attributes": [{"wit": 4, "truth": 2}, {"wit": 1, "truth": 2}]}
    (record,) = read(row, columns=Columns(source="origin", weight="w")).records
    assert (record.source, record.weight) == ("web", 0.25)
    assert record.attributes == ({"wit": 4, "truth": 2}, {"wit": 1, "truth": 2})


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"w": -1}, "w is -1, less than 0"),
        ({"attributes": [{"wit": 1}]}, "attributes is [{'wit': 1}], not a list with named scores for 2 responses"),
        ({"attributes": [{"wit": 1}, {"wit": "high"}]}, "attributes[1].wit is 'high', not a finite number"),
    ],
)
def test_bad_weights_and_named_scores_are_named(refusal, change, fact):
    row = {"prompt": "Hi", "chosen": "A", "rejected": "B", "w": 1, **change}
    assert fact in refusal(row, columns=Columns(weight="w"), scores=False)


def test_single_scored_responses_are_accepted_where_one_is_enough(read, refusal):
    rows = [{"prompt": "Hi", "response": text, "score": score} for text, score in (("A", 7), ("B", 2.5))]
    for want in ("one", "any"):
        assert [record.rewards for record in read(*rows, want=want).records] == [(7,), (2.5,)]
    assert "needed: chosen and rejected" in refusal(*rows, want="all")


# ShareGPT, and OpenAI's preferences.

SHARED = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
ASKED = (Message("system", "Be brief."), Message("user", "Hi"))


def written(tmp_path, *rows) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


def test_sharegpt_is_read_as_one_response_or_as_a_pair(tmp_path):
    """When this fails, the layout that most published conversations have must be converted by hand."""
    alone = read_file(written(tmp_path, {"conversations": SHARED, "score": 7}), want="one", scores=True)
    assert alone.schema == "sharegpt"
    assert [(r.prompt, r.responses, r.rewards) for r in alone.records] == [(ASKED, ("Hello",), (7,))]
    row = {"conversations": SHARED[:2], "chosen": SHARED[2], "rejected": {"from": "gpt", "value": "No"}}
    pair = read_file(written(tmp_path, row | {"score_chosen": 8, "score_rejected": 2}), scores=True)
    assert [(r.prompt, r.responses, r.rewards) for r in pair.records] == [(ASKED, ("Hello", "No"), (8, 2))]
    chosen = read_file(written(tmp_path, row), want="one")
    assert [(r.prompt, r.responses) for r in chosen.records] == [(ASKED, ("Hello",))]


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({"conversations": SHARED}, "data.schema=sharegpt needs conversations, chosen and rejected."),
        (
            {"conversations": [{"from": "tool", "value": "x"}], "chosen": "A", "rejected": "B"},
            "conversations[0] is from 'tool'; known: system, human, user, gpt, chatgpt, assistant",
        ),
        (
            {"conversations": [{"from": "human", "value": None}], "chosen": "A", "rejected": "B"},
            "a content in chosen is None, not a string",
        ),
        (
            {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []},
            "preferred_output must end with an assistant turn",
        ),
        (
            {
                "input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [5]},
                "preferred_output": [{"role": "assistant", "content": "A"}],
                "non_preferred_output": [{"role": "assistant", "content": "B"}],
            },
            "tools is [5], not a list of tools",
        ),
    ],
)
def test_what_these_rows_lack_is_told(tmp_path, row, fact):
    with pytest.raises(UserError) as refused:
        read_file(written(tmp_path, row))
    assert fact in str(refused.value)


def test_openais_preferences_are_read(tmp_path):
    """When this fails, data prepared for OpenAI's preference fine-tuning is refused without a way out."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = {
        "input": {"messages": turns, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "Hello"}],
        "non_preferred_output": [{"role": "assistant", "content": "No"}],
    }
    found = read_file(written(tmp_path, row))
    assert (found.schema, found.notes) == ("openai", {})
    tools = [{"type": "function", "function": {"name": "add"}}]
    (record,) = read_file(written(tmp_path, row | {"input": {"messages": turns, "tools": tools}})).records
    assert record.tools == json.dumps(tools)
    assert [(r.prompt, r.responses, r.rewards) for r in found.records] == [(ASKED, ("Hello", "No"), None)]
    assert read_file(written(tmp_path, row), want="one").records[0].responses == ("Hello",)
    with pytest.raises(UserError, match=r"name their columns with data.columns.score_chosen=\.\.\."):
        read_file(written(tmp_path, row), scores=True)
