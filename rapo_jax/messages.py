"""The types shared by everything between a file and a batch: a turn of a conversation, and a usable row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One usable row, independent of its source's column names.

    `row` counts the rows of the source from 1. `prompt` may start with a system turn and ends with a user turn. `rewards`,
    `attributes` (named scores) and `labels` (desirable or not) follow the order of `responses`, and are None where the
    source has none. `ranked` is True where the source's order is a preference, as in (chosen, rejected). `source` is the
    row's origin; `weight` multiplies its loss.
    """

    row: int
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    rewards: tuple[float, ...] | None
    attributes: tuple[dict[str, float], ...] | None = None
    labels: tuple[bool, ...] | None = None
    source: str = ""
    weight: float = 1.0
    ranked: bool = True
