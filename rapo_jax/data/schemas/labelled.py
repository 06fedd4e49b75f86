"""Rows of one response and whether it is desirable."""

from collections.abc import Mapping
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.pairs import SINGLE_SCORES
from rapo_jax.data.schemas.responses import attributes_column, prompt_and_response, prompt_column
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import BadRow, check_turns, finite_score, present
from rapo_jax.errors import UserError
from rapo_jax.messages import Record, more_of

RESPONSES = ("completion", "response")  # where the response is looked for


def read_labelled(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    given = prompt_column(values, columns.prompt)
    prompt, response = prompt_and_response(present(values, columns.response), columns.response, given)
    check_turns(prompt)
    label = as_label(present(values, columns.label))
    if label is None:
        raise BadRow("label", f"{columns.label} is {values[columns.label]!r:.40}, neither true nor false")
    rewards = (finite_score(values.get(columns.rewards), columns.rewards),) if columns.rewards else None
    attributes = attributes_column(values, columns.attributes, 1)
    return Parsed(
        Record(0, prompt, (response.content,), rewards, attributes, labels=(label,), more=more_of([response]))
    )


def as_label(value: Any) -> bool | None:
    """True, 1, 1.0 and "true" are desirable; False, 0, 0.0 and "false" are not; anything else is no label."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def names_the_label(first: FirstRow) -> bool:
    return bool(first.columns.label) and not (first.columns.chosen or first.columns.rejected)


def has_a_label(first: FirstRow) -> bool:
    label = first.values.get("label")  # elsewhere a number called label may be a class
    labelled = isinstance(label, bool) or (first.want == "labelled" and as_label(label) is not None)
    labelled = labelled and not first.has("chosen")
    return labelled and bool(first.first_of(RESPONSES))


def resolve_labelled(schema: Schema, first: FirstRow) -> Columns:
    response = first.columns.response or first.first_of(RESPONSES)
    label = first.columns.label or first.first_of(["label"])
    if not response or not label:
        raise UserError(
            f"{first.present}; needed: one of {', '.join(RESPONSES)}, and label. Name them with "
            "data.columns.response=... and data.columns.label=..."
        )
    return Columns(
        prompt=first.columns.prompt or first.first_of(["prompt"]),
        response=response,
        label=label,
        rewards=first.columns.rewards or first.first_of(SINGLE_SCORES),
    )


LABELS = Schema(
    name="labels",
    meaning="one response and label: whether it is desirable",
    read=read_labelled,
    named=names_the_label,
    detects=has_a_label,
    resolve=resolve_labelled,
)
