"""Sentences about the data that deserve a look, from their report: for every verb that reads rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from rapo_jax.config.tree import Relabel
from rapo_jax.data.sources import CONTEXT, UNREAD, UNREAD_KEY
from rapo_jax.errors import counted


def notes_on_rows(report: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about columns that usually belong to a prompt, and about keys of messages, that are not read."""
    for note, number in report.get("notes", {}).items():
        if note.startswith(UNREAD):
            column = note.removeprefix(UNREAD)
            knob = f"; {key}={column} reads it" if (key := CONTEXT[column]) else ""
            yield f"{counted(number, 'row holds', 'rows hold')} {column!r}, which is not read{knob}"
        if note.startswith(UNREAD_KEY):
            yield f"{counted(number, 'row holds', 'rows hold')} messages with {note.removeprefix(UNREAD_KEY)!r}, which is not read"


def notes_on_goals(goals: Mapping[str, Any], relabel: Relabel) -> Iterator[str]:
    """Sentences about goals off the scale, and about goals that nobody will ask for: 10 is another text than 9.9987."""
    outside, finer = goals["outside_scale"], goals["finer_than_two_decimals"]
    if outside:
        yield f"{counted(outside, 'goal is', 'goals are')} not from {relabel.goal_min:g} to {relabel.goal_max:g}; relabel.scale.fit maps scores"
    if finer and relabel.decimals is None and not relabel.attributes:
        yield (
            f"{counted(finer, 'goal has', 'goals have')} more than two decimals, so {relabel.goal_max:g} is hardly ever asked for as it will be later; "
            "relabel.decimals=1 rounds them"
        )
