"""`rapo generate`: every row comes back with its answer, asked for as the model was trained to be asked."""

import datetime
import decimal
import json
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import Table, parquet

from rapo_jax.chat.templates import render, tokenize
from rapo_jax.errors import UserError
from rapo_jax.generate.answers import Request, answer_file, identity_of
from rapo_jax.generate.asked import Asked
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.generate.prompts import read_prompts
from rapo_jax.generate.sampling import random_key
from rapo_jax.messages import Message
from rapo_jax.opened import Rendering, open_model, open_tokenizer
from tests import tiny
from tests.opened.exports import as_export, closed

PROMPTS = ["Hi", "What is one plus one?", "Why?"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return as_export(tiny.write_model(directory / "model"), directory / "exported")


def answers(exported, tmp_path, rows=None, **options):
    rows = rows or [{"prompt": prompt, "id": prompt[:2]} for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    options = {"max_new_tokens": 6} | options
    answer_file(closed(exported), Request(str(tmp_path / "prompts.jsonl"), str(out), **options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_row_is_kept_with_its_answer_and_how_it_was_sampled(exported, tmp_path):
    """When this fails, answers cannot be joined to their prompts, or cannot be reproduced."""
    rows = answers(exported, tmp_path, temperature=0.5, seed=3)
    assert [(row["prompt"], row["id"]) for row in rows] == [(prompt, prompt[:2]) for prompt in PROMPTS]
    assert list(rows[0])[2:] == ["response", "finish_reason", "num_tokens", "goal", "temperature", "top_p", "seed"]
    assert [(row["goal"], row["temperature"], row["top_p"], row["seed"]) for row in rows] == [(5, 0.5, 1, 3)] * 3
    assert all(row["num_tokens"] <= 6 and row["finish_reason"] in ("stop", "length") for row in rows)


def test_a_prompt_has_as_many_rows_as_samples_and_the_first_is_that_of_one_sample(exported, tmp_path):
    """When this fails, five answers a prompt are one answer five times, or asking for more changes those that were there."""
    sampled = {"temperature": 1.0, "seed": 3}
    one, three = answers(exported, tmp_path, **sampled), answers(exported, tmp_path, num_samples=3, **sampled)
    assert [(row["prompt"], row["sample"], row["seed"]) for row in three] == [
        (p, n, 3) for p in PROMPTS for n in range(3)
    ]
    assert [{name: row[name] for name in one[0]} for row in three[::3]] == one and "sample" not in one[0]
    assert len({row["response"] for row in three}) > 6
    assert len({tuple(random_key(3, prompt, n)) for prompt in range(9) for n in range(9)}) == 81


@pytest.mark.parametrize(("options", "goal"), [({}, 5.0), ({"goal": 2.0}, 2.0), ({"no_goal": True}, None)])
def test_the_prompt_asks_for_one_goal_or_for_none(exported, tmp_path, options, goal):
    """When this fails, --goal adds a second goal to that of the exported template, and the model obeys either."""
    opened = open_tokenizer(exported)
    texts = [render(opened.tokenizer, opened.goal_prompt.write((Message("user", p),), goal)) for p in PROMPTS]
    assert all(text.count("target score") == (goal is not None) for text in texts)
    tokens = [np.array(ids, np.int32) for ids in tokenize(opened.tokenizer, texts)]
    expected = answer_tokens(open_model(exported), tokens, sampling=Sampling(max_new_tokens=6))
    rows = answers(exported, tmp_path, **options)
    assert [row["goal"] for row in rows] == [goal] * 3
    decoded = [opened.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in expected]
    assert [row["response"] for row in rows] == decoded


def test_raw_texts_are_continued_without_template_or_goal(exported, tmp_path):
    tokenizer = open_tokenizer(exported, Rendering(raw=True)).tokenizer
    tokens = [np.array(tokenizer(prompt).input_ids, np.int32) for prompt in PROMPTS]
    expected = answer_tokens(open_model(exported, raw=True), tokens, sampling=Sampling(max_new_tokens=6))
    rows = answers(exported, tmp_path, raw=True)
    assert [row["goal"] for row in rows] == [None] * 3
    assert [row["response"] for row in rows] == [tokenizer.decode(a.tokens, skip_special_tokens=True) for a in expected]


# Columns of the user's.


def test_a_row_asks_for_its_own_goal_and_sampling_unless_the_command_line_does(exported, tmp_path):
    """When this fails, a file of prompts with a goal each is answered at one goal, and its column is overwritten."""
    rows = [
        {"prompt": PROMPTS[1], "goal": 2, "temperature": 1.5, "seed": 9, "top_p": 0.7, "max_new_tokens": 7},
        {"prompt": PROMPTS[1], "goal": None, "max_new_tokens": 2.0},
        {"prompt": PROMPTS[1], "max_new_tokens": 7},
    ]
    found = answers(exported, tmp_path, rows, max_new_tokens=None)
    asked = [[row[name] for name in ("goal", "temperature", "top_p", "seed")] for row in found]
    assert asked == [[2, 1.5, 0.7, 9], [5, 0, 1, 0], [5, 0, 1, 0]]
    assert [row["num_tokens"] for row in found] == [7, 2, 7] and found[1]["max_new_tokens"] == 2
    (alone,) = answers(exported, tmp_path, rows[:1], max_new_tokens=None, temperature=1.5, seed=9, goal=2.0)
    assert alone == found[0] and found[0]["response"] != found[2]["response"]
    forced = answers(exported, tmp_path, rows, goal=3.0, temperature=0.0, seed=1)
    assert [row["goal"] for row in forced] == [3.0] * 3 and forced[0]["response"] == forced[2]["response"]
    assert (forced[0]["input_goal"], forced[0]["input_temperature"], forced[0]["input_seed"]) == (2, 1.5, 9)


def test_later_settings_come_from_rows_and_are_written_where_any_is_used(exported, tmp_path):
    """When this fails, a row's own top-k or stop string is not heard, or cannot be told from the answers."""
    rows = [
        {"prompt": PROMPTS[1], "temperature": 1.5, "top_k": 1, "stop": "never said", "tokens": "mine"},
        {"prompt": PROMPTS[1]},
        {"prompt": PROMPTS[1], "temperature": 1.5, "min_p": 1, "repetition_penalty": 1},
    ]
    found = answers(exported, tmp_path, rows, logps=True)
    assert len({row["response"] for row in found}) == 1  # the likeliest token, thrice
    assert [(row["top_k"], row["min_p"], row["stop"]) for row in found] == [
        (1, 0, ["never said"]),
        (0, 0, []),
        (0, 1, []),
    ]
    assert all(row["repetition_penalty"] == 1 for row in found) and found[0]["input_tokens"] == "mine"
    assert all(len(row["logps"]) == len(row["tokens"]) == row["num_tokens"] and max(row["logps"]) < 0 for row in found)
    hot = {"temperature": 3.0, "top_k": 0, "max_new_tokens": 12}
    (free,) = answers(exported, tmp_path, rows[1:2], **hot)
    stop = free["response"][-1]
    (ended,) = answers(exported, tmp_path, rows[:1], stop=(stop,), **hot)
    assert ended["response"] == free["response"].split(stop)[0] and "top_k" not in free
    assert (ended["top_k"], ended["input_top_k"]) == (0, 1)
    assert ended["finish_reason"] == "stop" and ended["input_stop"] == "never said"


def test_a_command_that_was_interrupted_before_there_were_later_settings_goes_on(exported, tmp_path):
    """When this fails, an update makes answers that were paid for unusable."""
    sampling = Sampling(seed=1)
    job = type("Job", (), {"asked": [Asked(None, sampling)], "tokens": [np.arange(3)], "engine": None})()
    job.model, job.opened = closed(exported), open_tokenizer(exported)
    names = [name for name in identity_of(job, Request("a", "b")) if name.startswith("--")]
    assert names == ["--dtype", "--prompts", "--max-new-tokens", "--temperature", "--top-p", "--seed"]
    job.asked = [Asked(None, replace(sampling, stop=("x",), logps=True))]
    more = identity_of(job, Request("a", "b"))
    assert [name for name in more if name.startswith("--")][6:] == ["--stop", "--logps"]


def test_a_column_with_the_name_of_one_of_ours_is_kept_under_another(exported, tmp_path, capsys):
    """When this fails, the answers that people wrote are replaced by the model's, in the only copy of their file."""
    rows = [{"prompt": "Hi", "response": "Hello.", "num_tokens": 2, "goal": 3, "note": "x"}]
    (row,) = answers(exported, tmp_path, rows)
    assert (row["input_response"], row["input_num_tokens"], row["goal"], row["note"]) == ("Hello.", 2, 3, "x")
    assert row["response"] != "Hello." and "input_goal" not in row
    assert "note   the prompts' column response is kept as input_response\n" in capsys.readouterr().out
    rows[0]["input_response"] = "Mine."
    message = (
        "columns response, num_tokens have names that answers take .* there is a column input_response too; rename"
    )
    with pytest.raises(UserError, match=message):
        answers(exported, tmp_path, rows)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"goal": "ten"}, {}, "line 1: column goal holds 'ten', and must be a number; mend it, or give --goal or"),
        ({"goal": True}, {}, "line 1: column goal holds True, and must be a number;"),
        (
            {"temperature": -1},
            {},
            "column temperature holds -1, and must be a number of at least 0; mend it, or give --temp",
        ),
        ({"top_p": "high"}, {}, "column top_p holds 'high', and must be a number of at least 1e-06 and at most 1;"),
        (
            {"max_new_tokens": 2.5},
            {"max_new_tokens": None},
            "column max_new_tokens holds 2.5, and must be an integer of at",
        ),
        (
            {"max_new_tokens": 3_000_000_000},
            {"max_new_tokens": None},
            r"max_new_tokens holds 3000000000, and must be an integer of at least 1 and at most 1e\+06;",
        ),
        ({"goal": 6}, {}, "line 1: goal 6 is outside the scale of .*exported, whose goal prompt names 0 to 5; ask for"),
        ({}, {"goal": -1.0}, "--goal -1 is outside the scale of .*, whose goal prompt names 0 to 5; ask .* --any-goal"),
        (
            {"stop": ["a", 1]},
            {},
            r"line 1: column stop holds \['a', 1\], and must be a text that is not empty, or several",
        ),
        ({}, {"stop": ("",)}, r"--stop holds \('',\), and must be a text that is not empty"),
        ({"top_k": 1.5}, {}, r"line 1: column top_k holds 1.5, and must be an integer of at least 0 and at most 2.14"),
        ({"min_p": 2}, {}, r"line 1: column min_p holds 2, .* at most 1; mend it, or give --min-p, which"),
        ({"note": "\ud83d"}, {}, r"line 1: column note cannot be written as JSON \(half a surrogate pair\)"),
    ],
)
def test_what_cannot_be_asked_or_written_is_refused_before_the_model_is_loaded(
    exported, tmp_path, monkeypatch, row, options, message
):
    """When this fails, an hour of answers ends in a traceback, or in answers at a goal that the model never saw."""
    monkeypatch.delattr("rapo_jax.generate.answers.load_model")
    with pytest.raises(UserError, match=message):
        answers(exported, tmp_path, [{"prompt": "Hi"} | row], **options)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_prompt_that_asks_for_a_goal_already_is_not_asked_twice(exported, tmp_path, capsys):
    """When this fails, prompts that `rapo relabel` wrote ask for their own goal and for the highest one."""
    messages = open_tokenizer(exported).goal_prompt.write((Message("user", "Why?"),), 2)
    prompt = [{"role": message.role, "content": message.content} for message in messages]
    rows = [{"prompt": prompt, "goal": 2.0}, {"prompt": "Why?", "goal": 2}, {"prompt": prompt}]
    ours = answers(exported, tmp_path, rows)
    assert [row["goal"] for row in ours] == [2, 2, None] and len({row["response"] for row in ours}) == 1
    assert "note   2 prompts ask for a goal already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"2 of 3 prompts ask for a goal already .*; leave out --goal, or give"):
        answers(exported, tmp_path, rows, goal=3.0)


def test_a_goal_outside_the_scale_is_asked_for_where_that_is_said(exported, tmp_path):
    (row,) = answers(exported, tmp_path, [{"prompt": "Hi"}], goal=7.0, any_goal=True)
    assert row["goal"] == 7


def test_times_decimals_and_bytes_of_a_parquet_file_are_written_as_text(exported, tmp_path):
    """When this fails, prompts from a database give a traceback after the last answer, and all answers are lost."""
    columns = {
        "prompt": ["Hi"],
        "at": [datetime.datetime(2024, 5, 1, 12, 30)],
        "price": [decimal.Decimal("1.50")],
        "picture": [b"\x89PNG"],
        "nested": [{"day": datetime.date(2024, 5, 1), "ratio": float("nan")}],
    }
    parquet.write_table(Table.from_pydict(columns), tmp_path / "prompts.parquet")
    request = Request(str(tmp_path / "prompts.parquet"), str(tmp_path / "out.jsonl"), max_new_tokens=2)
    answer_file(closed(exported), request)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["at"], row["price"], row["picture"]) == ("2024-05-01T12:30:00", "1.50", "iVBORw==")
    assert row["nested"] == {"day": "2024-05-01", "ratio": None}


def test_prompts_are_read_as_training_reads_them(exported, tmp_path, capsys):
    """When this fails, a model that was trained with tools, reasoning or parts of text is asked in other words than it knows."""
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
        {"role": "assistant", "content": "I add.", "reasoning_content": "Easy."},
        {"role": "user", "content": "Well?"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [
        {"prompt": turns, "tools": tools},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"},
    ]
    tiny.write_rows(tmp_path / "some.jsonl", rows)
    first, second = read_prompts(str(tmp_path / "some.jsonl"))
    assert first.messages[0] == Message("user", "2 + 2?") and first.tools == json.dumps(tools)
    assert first.messages[1] == Message("assistant", "I add.", json.dumps({"reasoning_content": "Easy."}))
    assert [turn.content for turn in second.messages] == ["Hi", "Hello", "Bye"]
    assert read_prompts(str(tmp_path / "some.jsonl"), raw=True)[1].messages == (Message("user", rows[1]["prompt"]),)
    answers(exported, tmp_path, rows[:1])
    assert "note: 1 prompt holds 'reasoning_content', which the chat template does not write" in capsys.readouterr().out
    tiny.write_rows(
        tmp_path / "old.jsonl", [{"prompt": [{"role": "user", "content": "Hi", "function_call": {"name": "f"}}]}]
    )
    with pytest.raises(UserError, match=r"old.jsonl line 1: a turn in prompt has a function_call, which is not read"):
        read_prompts(str(tmp_path / "old.jsonl"))
