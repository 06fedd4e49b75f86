"""Rows of several responses: in a list beside a list of their scores, or in numbered columns."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.responses import Candidate, attributes_column, prompt_column, several
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema, usual_columns
from rapo_jax.data.values import BadRow, finite_score, list_of, present


def read_lists(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    """A list of responses, and a list of their scores or none."""
    texts = list_of(values, columns.responses)
    rewards = list_of(values, columns.rewards) if columns.rewards else [None] * len(texts)
    if len(rewards) != len(texts):
        raise BadRow("lengths", f"{columns.responses} has {len(texts)} entries, {columns.rewards} has {len(rewards)}")
    if columns.rewards:
        rewards = [finite_score(value, f"{columns.rewards}[{index}]") for index, value in enumerate(rewards)]
    attributes = attributes_column(values, columns.attributes, len(texts)) or [None] * len(texts)
    names = [f"{columns.responses}[{index}]" for index in range(len(texts))]
    return several(prompt_column(values, columns.prompt), map(Candidate, names, texts, rewards, attributes))


def names_the_responses(first: FirstRow) -> bool:
    return bool(first.columns.responses)


def has_a_list_of_responses(first: FirstRow) -> bool:
    return isinstance(first.values.get("responses"), list) and first.has("prompt")


def resolve_lists(schema: Schema, first: FirstRow) -> Columns:
    resolved = usual_columns(schema, first)
    return resolved if resolved.rewards else replace(resolved, rewards=first.first_of(["scores"]))


def has_samples(first: FirstRow) -> bool:
    return first.has("all_generated_responses", "all_rm_scores")


def read_numbered(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    """response_0, response_1, ... and response_0_reward, ..., as REBEL's data have them."""
    names = [name for index in range(len(values)) if (name := f"response_{index}") in values]
    rewards = [finite_score(values.get(f"{name}_reward"), f"{name}_reward") for name in names]
    candidates = [Candidate(n, present(values, n), r, None) for n, r in zip(names, rewards, strict=True)]
    return several(prompt_column(values, columns.prompt), candidates)


def has_numbered_responses(first: FirstRow) -> bool:
    return first.has("response_0", "response_0_reward")


def numbered_columns(_: Columns) -> str:
    return "columns response_0_reward, ..."


LISTS = Schema(
    name="lists",
    meaning="responses: a list of them, perhaps with rewards or scores: a list of their scores",
    read=read_lists,
    named=names_the_responses,
    detects=has_a_list_of_responses,
    usual=Columns(prompt="prompt", responses="responses", rewards="rewards"),
    resolve=resolve_lists,
)
SAMPLED = Schema(
    name="sampled",
    meaning="all_generated_responses and all_rm_scores, as sampling from a model and scoring the samples gives",
    read=read_lists,
    detects=has_samples,
    usual=Columns(prompt="prompt", responses="all_generated_responses", rewards="all_rm_scores"),
)
NUMBERED = Schema(
    name="numbered",
    meaning="response_0, response_1, ... and response_0_reward, ... (REBEL)",
    read=read_numbered,
    detects=has_numbered_responses,
    usual=Columns(prompt="prompt", responses="response_0", rewards="response_0_reward"),
    scores_from=numbered_columns,
)
