"""Keys inside messages: tool calls, reasoning, names and parts of a content are kept for the chat template, or refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rapo_jax.data.notes import notes_on_rows
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from tests.data.reading import read_file

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}
PROMPT = [
    {"role": "user", "content": "2 + 2?", "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "1"},
]
ROW = {
    "prompt": PROMPT,
    "chosen": [{"role": "assistant", "content": "Four", "reasoning_content": "The tool says 4."}],
    "rejected": [{"role": "assistant", "content": "Five"}],
    "tools": [TOOL],
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(record):
    assert record.prompt == (
        Message("user", "2 + 2?", json.dumps({"name": "Ann"})),
        Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
        Message("tool", "4", json.dumps({"tool_call_id": "1"})),
    )
    assert record.responses == ("Four", "Five")
    assert record.more == (json.dumps({"reasoning_content": "The tool says 4."}), "")
    assert record.tools == json.dumps([TOOL])


def test_tool_calls_reasoning_names_and_tools_are_kept(tmp_path):
    """When this fails, a conversation with tools is read as one without, in silence."""
    found = read_file(write(tmp_path / "rows.jsonl", ROW, ROW | {"tools": json.dumps([TOOL])}))
    for record in found.records:
        check(record)
    assert found.notes == {}


def test_nulls_that_a_columnar_file_adds_are_no_keys(tmp_path):
    """When this fails, every message of a parquet file has tool_calls, because one of them has."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "rows.parquet")
    (record,) = read_file(str(tmp_path / "rows.parquet")).records
    check(record)


def test_rows_of_one_prompt_are_merged_with_what_their_answers_hold(tmp_path):
    """When this fails, HelpSteer's rows with reasoning end in a traceback, or rows with other tools lose theirs in silence."""
    ratings = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)

    def row(text, *, tools=None, **more):
        return {"prompt": "Hi", "response": [{"role": "assistant", "content": text, **more}], "tools": tools, **ratings}

    rows = [row("A"), row("A", reasoning_content="Why not."), row("A"), row("B", tools=[TOOL]), row("C", tools=[TOOL])]
    plain, with_tools = read_file(write(tmp_path / "rows.jsonl", *rows)).records
    assert (plain.responses, plain.more) == (("A", "A"), ("", json.dumps({"reasoning_content": "Why not."})))
    assert (with_tools.responses, with_tools.more, with_tools.tools) == (("B", "C"), None, json.dumps([TOOL]))


def test_keys_that_nobody_reads_are_counted(tmp_path):
    """When this fails, what a message holds besides its text is lost without a word."""
    answer = {"role": "assistant", "content": "Four", "refusal": "No.", "audio": None}
    found = read_file(write(tmp_path / "rows.jsonl", ROW | {"chosen": [answer]}, ROW))
    assert found.notes == {"unread_key_refusal": 1}
    assert list(notes_on_rows({"notes": found.notes})) == ["1 row holds messages with 'refusal', which is not read"]


def test_responses_that_differ_in_their_reasoning_alone_are_two(tmp_path):
    again = ROW | {"rejected": [{"role": "assistant", "content": "Four", "reasoning_content": "A guess."}]}
    (record,) = read_file(write(tmp_path / "rows.jsonl", again)).records
    assert record.responses == ("Four", "Four")


def test_parts_of_text_are_one_text(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}]
    (record,) = read_file(write(tmp_path / "rows.jsonl", ROW | {"prompt": parts})).records
    assert record.prompt == (Message("user", "Hi\nthere"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "has a part of type 'image'; only text is read",
        ),
        (
            {"chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
            "the response in chosen is a tool call without a text, which is not trained",
        ),
        ({"prompt": [{"role": "user", "content": None}]}, "a content in prompt is None, not a string"),
        ({"prompt": [PROMPT[0], PROMPT[2]]}, "turn 2 of the prompt is of role tool, must be of role assistant"),
        ({"prompt": PROMPT[:2]}, "the prompt does not end with a user turn"),
        ({"tools": 7}, "tools is 7, not a list of tools"),
        ({"tools": '{"name": "add"}'}, "tools is .*, not a list of tools"),
        ({"tools": [7]}, r"tools is \[7\], not a list of tools"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"line 1: .*{message}"):
        read_file(write(tmp_path / "rows.jsonl", ROW | change))


@pytest.mark.parametrize("tools", [None, "", " ", [], {}, "[]", "{}", "null", " [ ]\n"])
def test_no_tools_however_they_are_written_are_none(tmp_path, tools):
    """When this fails, a template introduces tools where there are none, or a null in one row stops the run."""
    found = read_file(write(tmp_path / "rows.jsonl", ROW | {"tools": tools}))
    assert (found.records[0].tools, found.notes) == ("", {})


@pytest.mark.parametrize("text", ["hammer, saw", "7", '"add"', "[add]"])
def test_a_column_of_that_name_that_holds_other_texts_is_left_out_and_counted(tmp_path, text):
    """When this fails, a data set about tools cannot be trained on."""
    found = read_file(write(tmp_path / "rows.jsonl", ROW | {"tools": text}, ROW))
    assert [record.tools for record in found.records] == ["", json.dumps([TOOL])]
    assert found.notes == {"unread_column_tools": 1}
