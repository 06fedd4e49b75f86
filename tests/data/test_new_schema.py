"""A schema that the package does not know is one entry in the registry: detected, chosen by name, read and trained on."""

import json

import pytest

from rapo_jax.batching.pipeline import read_part
from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.registry import SCHEMAS
from rapo_jax.data.schemas.responses import Candidate, several
from rapo_jax.data.schemas.schema import Schema
from rapo_jax.data.values import BadRow, finite_score, messages, present
from rapo_jax.errors import UserError
from tests import tiny
from tests.data.reading import read_file


def read_votes(values, columns, _):
    """answers: {text: votes}"""
    answers = present(values, columns.responses)
    if not isinstance(answers, dict):
        raise BadRow("votes", f"{columns.responses} is {answers!r:.40}, not votes by answer")
    candidates = [Candidate(text, text, float(finite_score(votes, text)), None) for text, votes in answers.items()]
    return several(messages(present(values, columns.prompt), columns.prompt), candidates)


def has_votes(first):
    return isinstance(first.values.get("answers"), dict)


def votes(_):
    return "votes of readers"


VOTES = Schema(
    name="votes",
    meaning="question and answers: the votes for each text",
    read=read_votes,
    detects=has_votes,
    usual=Columns(prompt="question", responses="answers"),
    inside=frozenset({"rewards"}),
    scores_from=votes,
)
ROWS = [{"question": f"{n} + 1?", "answers": {f"It is {n + 1}.": 7 + n % 3, "No idea": 2, "": 1}} for n in range(8)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEMAS, "votes", VOTES)
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "votes.jsonl")


@pytest.mark.parametrize("schema", ["auto", "votes"])
def test_a_registered_schema_is_detected_or_chosen_and_read(path, schema):
    found = read_file(path, scores=True, schema=schema)
    assert (found.schema, found.reward_source) == ("votes", "votes of readers")
    assert found.notes == {"empty_response_left_out": 8}
    assert found.records[1].responses == ("It is 2.", "No idea")
    assert found.records[1].rewards == (8.0, 2.0)


def test_a_registered_schema_refuses_bad_rows_like_any_other(path, tmp_path):
    (tmp_path / "odd.jsonl").write_text(json.dumps({"question": "Q", "answers": "A"}) + "\n")
    with pytest.raises(UserError, match="line 1: answers is 'A', not votes by answer"):
        read_file(str(tmp_path / "odd.jsonl"), schema="votes")
    with pytest.raises(UserError, match=r"data.schema=votes needs answers. Name them with data.columns"):
        (tmp_path / "odd.jsonl").write_text(json.dumps({"question": "Q"}) + "\n")
        read_file(str(tmp_path / "odd.jsonl"), schema="votes")


def test_a_misspelt_schema_is_answered_with_the_nearest_one(path):
    with pytest.raises(UserError, match=r"data.schema='vote' is unknown; did you mean 'votes'\?"):
        read_file(path, schema="vote")
    with pytest.raises(UserError, match=r"data.schema='ultrafedback' is unknown; did you mean 'ultrafeedback'"):
        read_file(path, schema="ultrafedback")


def test_a_misspelt_schema_of_one_source_is_named_by_its_key(path):
    data = {"sources": [{"path": str(path)}, {"path": str(path), "schema": "vote"}]}
    config = tiny.tiny_config(data=data)
    with pytest.raises(UserError, match=r"data\.sources\[1\]\.schema='vote' is unknown"):
        read_part(config, "train")


@pytest.mark.slow
def test_a_registered_schema_is_trained_on(path, tmp_path):
    tiny.write_model(tmp_path / "model")
    (tmp_path / "run.yaml").write_text(tiny.RUN)
    files = [f"model.path={tmp_path / 'model'}", f"data.path={path}", f"run_dir={tmp_path / 'run'}"]
    assert tiny.rapo("train", tmp_path / "run.yaml", *files) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())["train"]
    assert report["scores_from"] == "votes of readers"
    assert report["preferences"] == {"chosen": 8, "rejected": 8}
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
