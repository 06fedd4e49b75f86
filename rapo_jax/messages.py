"""The two types that everything between a file and a batch speaks in: a turn of a conversation, and a usable row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One usable row, whatever its source called its columns.

    `row` counts the lines or rows of the source from 1. `prompt` may start with a system turn and ends with a user turn.
    The per-response fields (`rewards`, `attributes`: named scores, `labels`: desirable or not) follow the order of
    `responses` and are None where the source has none. `ranked` says that this order is the source's own preference, as
    (chosen, rejected) is. `source` names where the row came from; `weight` multiplies its loss.
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
