"""From sources to groups of tokens: what is trained on and what is held out, with goals and without."""

import json

import numpy as np
import pytest

from rapo_jax.batch import CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE
from rapo_jax.batching.batch_plan import Group, num_branches
from rapo_jax.batching.groups import fingerprint_of_groups
from rapo_jax.batching.pipeline import load_held_out, load_training
from rapo_jax.chat.goal_prompt import configured_goal_prompt
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from tests.tiny import build_tokenizer

ROWS = [
    {"prompt": f"Q{n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}.", "score_chosen": 0.5 + n % 7, "score_rejected": n % 3}
    for n in range(60)
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def config(tmp_path):
    def config(data=None, **tree):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        lengths = {"max_length": 256, "max_prompt_length": 192}
        return from_dict(tree | {"data": {"path": str(tmp_path / "rows.jsonl"), **lengths, **(data or {})}})

    return config


def asked_for(config):
    """The goal prompt of a configuration whose goals are in the system turn."""
    return configured_goal_prompt(config.relabel, placement="system", chat_template="")


def train_on(config, tokenizer):
    return load_training(config, tokenizer, goal_prompt=asked_for(config))


def load(config, tokenizer, **options):
    train = train_on(config, tokenizer)
    options |= {"scales": train.scales, "goal_prompt": asked_for(config)}
    return train, load_held_out(config, tokenizer, **options)


def test_without_an_evaluation_nothing_is_held_out(config, tokenizer):
    train, held = load(config(), tokenizer)
    assert held is None
    assert train.report["records"] == 60 and train.report["preferences"]["chosen"] == len(train.groups) / 2


def test_held_out_prompts_are_relabelled_like_the_others_or_left_plain(config, tokenizer):
    made = config({"eval_fraction": 0.3})
    train, held = load(made, tokenizer)
    _, plain = load(made, tokenizer, plain=True)
    assert train.report["records"] + held.report["records"] == 60
    assert {group.side for group in held.groups} == {CHOSEN_SIDE, REJECTED_SIDE}
    assert {group.side for group in plain.groups} == {NO_SIDE}
    assert len(held.groups) == 2 * len(plain.groups)
    assert {group.row for group in held.groups} == {group.row for group in plain.groups}
    assert not {group.row for group in held.groups} & {group.row for group in train.groups}


def test_an_evaluation_set_that_is_nowhere_is_refused_with_the_way_to_do_without(config, tokenizer):
    """When this fails, someone with data of their own reads that a data set of the hub cannot be loaded, which the file that
    they started from names."""
    with pytest.raises(
        UserError, match=r"^data.eval_path=some/set: .* To evaluate nothing, set data.eval_path= \(empty\); with"
    ):
        load(config({"eval_path": "some/set"}), tokenizer)


def test_goals_finer_than_two_decimals_are_counted(config, tokenizer):
    """When this fails, nobody is told that "10" is not among the goals of continuous scores."""
    assert train_on(config(), tokenizer).report["goals"]["finer_than_two_decimals"] == 0
    made = config(relabel={"scale": {"fit": "minmax"}, "decimals": 4})
    train = train_on(made, tokenizer)
    assert train.report["goals"]["finer_than_two_decimals"] > len(train.groups) / 2


def test_evaluation_uses_the_reward_scale_of_training(config, tokenizer, tmp_path):
    """When this fails, the same score means one goal in training and another in evaluation."""
    (tmp_path / "eval.jsonl").write_text(json.dumps(ROWS[0] | {"score_chosen": 3.25, "score_rejected": 0}) + "\n")
    made = config({"eval_path": str(tmp_path / "eval.jsonl")}, relabel={"scale": {"fit": "minmax"}})
    train, held = load(made, tokenizer)
    assert train.report["scale"]["reward"]["high"] == 6.5
    assert held.scales == train.scales
    assert held.report["scores"] == {"chosen": {"6": 1}, "rejected": {"1": 1}}


def test_another_scale_changes_the_fingerprint_of_the_groups_but_not_of_their_source(config, tokenizer):
    """When this fails, resuming a run with another scale reports that its data changed."""
    first, second = (train_on(config(relabel={"goal_max": m, "scale": {"fit": "minmax"}}), tokenizer)
                     for m in (10, 100))  # fmt: skip
    assert first.source_fingerprint == second.source_fingerprint
    assert first.fingerprint != second.fingerprint


def unrelated_of(rows_of_sources, tokenizer, tmp_path):
    """The unrelated response of every group of KTO, as text."""
    sources = []
    for n, rows in enumerate(rows_of_sources):
        path = tmp_path / f"source{n}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"path": str(path)})
    data = {"sources": sources, "max_length": 256, "max_prompt_length": 192}
    made = from_dict({"objective": {"name": "kto"}, "relabel": {"goals": []}, "data": data})
    groups = train_on(made, tokenizer).groups
    return [tokenizer.decode(group.unrelated, skip_special_tokens=True) for group in groups]


def test_rows_of_different_sources_are_different_prompts_even_with_the_same_number(tokenizer, tmp_path):
    """When this fails, a mixture is refused as one row, or KTO takes no unrelated responses from other sources."""
    sources = [[{"prompt": f"Q{n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."}] for n in (1, 2, 3)]
    assert unrelated_of(sources, tokenizer, tmp_path) == ["Yes 3.", "Yes 1.", "Yes 2."]


def test_an_unrelated_response_never_answers_the_same_prompt(tokenizer, tmp_path):
    """When this fails, KTO estimates its divergence on answers to the prompt itself and mistakes learning for drift."""
    prompts = ["Q1?", "Q1?", "Q2?", "Q1?"]
    rows = [{"prompt": p, "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n, p in enumerate(prompts, 1)]
    assert unrelated_of([rows], tokenizer, tmp_path) == ["Yes 3.", "Yes 3.", "Yes 2.", "Yes 3."]
    with pytest.raises(
        UserError, match="compares with answers to other prompts, and the data has a single prompt; add"
    ):
        unrelated_of([[rows[0]], [rows[1]]], tokenizer, tmp_path)


def test_an_unrelated_response_is_hashed_as_the_third_response_of_earlier_versions():
    """When this fails, a KTO run that an earlier version began is told that its tokens changed, and cannot resume."""
    tokens = [np.arange(n, dtype=np.int32) for n in (3, 2, 4, 5)]
    nan = float("nan")
    group = Group(tokens[0], (tokens[1], tokens[2]), (8.0, nan), NO_SIDE, 0, unrelated=tokens[3])
    before = Group(tokens[0], (tokens[1], tokens[2], tokens[3]), (8.0, nan, nan), NO_SIDE, 0)
    assert fingerprint_of_groups([group]) == fingerprint_of_groups([before])
    assert (group.num_tokens, num_branches([group])) == (before.num_tokens, num_branches([before])) == (14, 4)
