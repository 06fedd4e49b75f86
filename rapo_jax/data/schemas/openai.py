"""OpenAI's preference rows: input.messages, preferred_output and non_preferred_output, each a list with one message.

Source: OpenAI, "Direct preference optimization", guide of its fine-tuning interface, 2024.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.pairs import SCORES_KNOB, read_pair, resolve_scores, sought, wants_single
from rapo_jax.data.schemas.responses import mapping
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import BadRow, list_of, present
from rapo_jax.errors import UserError

NEEDED = ("input", "preferred_output", "non_preferred_output")


def read_openai(values: Mapping[str, Any], columns: Columns, options: ReadOptions) -> Parsed:
    """The messages of the input, followed by either output."""
    given = mapping(present(values, columns.prompt), columns.prompt)
    if given.get("tools"):
        raise BadRow("tools", f"{columns.prompt}.tools holds tools; they are read from a column called tools")
    turns = list_of(given, "messages")
    names = [name for name in (columns.chosen, columns.rejected) if name]
    whole = {name: [*turns, *list_of(values, name)] for name in names}
    return read_pair({**values, **whole}, replace(columns, prompt=""), options)


def has_outputs(first: FirstRow) -> bool:
    return first.has(*NEEDED) and isinstance(first.values["input"], Mapping)


def resolve_openai(schema: Schema, first: FirstRow) -> Columns:
    if not first.has(*NEEDED):
        needed = ", ".join(NEEDED)
        raise UserError(f"{first.present}; data.schema={schema.name} needs {needed}. Its rows have {schema.meaning}.")
    single = wants_single(replace(first, columns=replace(first.columns, rejected=NEEDED[2])))
    scores = resolve_scores(first, 1 if single else 2) or ("", "")
    if single:
        return Columns(prompt=NEEDED[0], chosen=NEEDED[1], score_chosen=scores[0])
    return Columns(*NEEDED, scores[0], scores[1])


OPENAI = Schema(
    name="openai",
    meaning="input.messages, preferred_output and non_preferred_output, perhaps with a score of each (OpenAI's preferences)",
    read=read_openai,
    detects=has_outputs,
    resolve=resolve_openai,
    scores_sought=sought(2),
    scores_knob=SCORES_KNOB,
)
