"""`rapo generate`: every row comes back with its answer, asked for as the model was trained to be asked."""

import json

import numpy as np
import pytest

from rapo_jax.chat.templates import render, tokenize
from rapo_jax.generate.answers import Request, answer_file
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.messages import Message
from rapo_jax.opened import open_model, open_tokenizer
from tests import tiny
from tests.opened.exports import as_export

PROMPTS = ["Hi", "What is one plus one?", "Why?"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return as_export(tiny.write_model(directory / "model"), directory / "exported")


def answers(exported, tmp_path, **options):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "id": p[:2]}) + "\n" for p in PROMPTS))
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    answer_file(str(exported), Request(str(tmp_path / "prompts.jsonl"), str(out), max_new_tokens=6, **options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_row_is_kept_with_its_answer_and_how_it_was_sampled(exported, tmp_path):
    """When this fails, answers cannot be joined to their prompts, or cannot be reproduced."""
    rows = answers(exported, tmp_path, temperature=0.5, seed=3)
    assert [(row["prompt"], row["id"]) for row in rows] == [(prompt, prompt[:2]) for prompt in PROMPTS]
    assert list(rows[0])[2:] == ["response", "finish_reason", "num_tokens", "goal", "temperature", "top_p", "seed"]
    assert [(row["goal"], row["temperature"], row["top_p"], row["seed"]) for row in rows] == [(5, 0.5, 1, 3)] * 3
    assert all(row["num_tokens"] <= 6 and row["finish_reason"] in ("stop", "length") for row in rows)


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
    tokenizer = open_tokenizer(exported, raw=True).tokenizer
    tokens = [np.array(tokenizer(prompt).input_ids, np.int32) for prompt in PROMPTS]
    expected = answer_tokens(open_model(exported, raw=True), tokens, sampling=Sampling(max_new_tokens=6))
    rows = answers(exported, tmp_path, raw=True)
    assert [row["goal"] for row in rows] == [None] * 3
    assert [row["response"] for row in rows] == [tokenizer.decode(a.tokens, skip_special_tokens=True) for a in expected]
