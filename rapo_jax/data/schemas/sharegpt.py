"""ShareGPT's conversations, turns of `from` and `value`: alone, or followed by `chosen` and `rejected` as such turns.

Sources: the layout of ShareGPT's exports, and LLaMA-Factory's of preferences over them (its documentation of data, 2024).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.pairs import SCORES_KNOB, read_after, read_pair, resolve_scores, sought, wants_single
from rapo_jax.data.schemas.responses import mapping
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema, lacking
from rapo_jax.data.values import BadRow, list_of, present

TURNS = "conversations"
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


def read_sharegpt(values: Mapping[str, Any], columns: Columns, options: ReadOptions) -> Parsed:
    """The last turn is the response or, where chosen or rejected are read, they follow all turns."""
    turns = [as_turn(turn, f"{columns.prompt}[{index}]") for index, turn in enumerate(list_of(values, columns.prompt))]
    names = [name for name in (columns.chosen, columns.rejected) if name]
    if not names:
        return read_pair({**values, columns.prompt: turns}, replace(columns, prompt="", chosen=columns.prompt), options)
    answers = {name: [as_turn(present(values, name), name)] for name in names}
    return read_after(turns, answers, values, columns, options)


def as_turn(turn: Any, name: str) -> dict[str, Any]:
    """A turn of `from` and `value`, or the text of an answer, as one of role and content."""
    if isinstance(turn, str):
        return {"role": "assistant", "content": turn}
    speaker = mapping(turn, name).get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadRow("roles", f"{name} is from {speaker!r:.40}; known: {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[speaker], "content": turn.get("value")}


def has_conversations(first: FirstRow) -> bool:
    turns = first.values.get(TURNS)
    return isinstance(turns, list) and turns != [] and isinstance(turns[0], dict) and "from" in turns[0]


def resolve_sharegpt(schema: Schema, first: FirstRow) -> Columns:
    single = wants_single(first)
    if not first.has(TURNS) or not (single or first.has("chosen", "rejected")):
        raise lacking(schema, first, TURNS if single else f"{TURNS}, chosen and rejected")
    scores = resolve_scores(first, 1 if single else 2) or ("", "")
    if single:
        return Columns(prompt=TURNS, chosen=first.first_of(["chosen"]), score_chosen=scores[0])
    return Columns(prompt=TURNS, chosen="chosen", rejected="rejected", score_chosen=scores[0], score_rejected=scores[1])


SHAREGPT = Schema(
    name="sharegpt",
    meaning="conversations of {from, value}, perhaps with chosen and rejected to follow them, and a score of each",
    read=read_sharegpt,
    detects=has_conversations,
    resolve=resolve_sharegpt,
    scores_sought=sought(2),
    scores_knob=SCORES_KNOB,
)
