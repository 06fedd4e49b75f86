"""OpenAI's preference rows: input.messages, preferred_output and non_preferred_output, each a list with one message.

Source: OpenAI, "Direct preference optimization", guide of its fine-tuning interface, 2024.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.pairs import SCORES_KNOB, read_after, resolve_scores, sought, wants_single
from rapo_jax.data.schemas.responses import mapping
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema, lacking
from rapo_jax.data.values import BadRow, list_of, present, tools_of

NEEDED = ("input", "preferred_output", "non_preferred_output")


def read_openai(values: Mapping[str, Any], columns: Columns, options: ReadOptions) -> Parsed:
    """The messages of the input, followed by either output."""
    given = mapping(present(values, columns.prompt), columns.prompt)
    answers = {name: list_of(values, name) for name in (columns.chosen, columns.rejected) if name}
    record, notes = read_after(list_of(given, "messages"), answers, values, columns, options)
    tools = tools_of(given)
    if tools is None:
        raise BadRow("tools", f"{columns.prompt}.tools is {given['tools']!r:.40}, not a list of tools")
    return Parsed(replace(record, tools=tools), notes)


def has_outputs(first: FirstRow) -> bool:
    return first.has(*NEEDED) and isinstance(first.values["input"], Mapping)


def resolve_openai(schema: Schema, first: FirstRow) -> Columns:
    if not first.has(*NEEDED):
        raise lacking(schema, first, ", ".join(NEEDED))
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
