"""The types shared by everything between a file and a batch: a turn of a conversation, and a usable row."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    `more` is a JSON object of what else chat templates may write of it, such as tool_calls or reasoning_content; "" for
    nothing. (A text, because messages are compared and hashed.)
    """

    role: str
    content: str
    more: str = ""

    def others(self) -> dict[str, Any]:
        """`more` as a dictionary."""
        return json.loads(self.more) if self.more else {}

    def as_dict(self) -> dict[str, Any]:
        """The turn as data files and chat templates have it."""
        return {"role": self.role, "content": self.content, **self.others()}


def as_answers(responses: tuple[str, ...], more: tuple[str, ...] | None) -> tuple[Message, ...]:
    """Responses as turns of the assistant, with what each holds `more` than its text, if any does."""
    more = more or ("",) * len(responses)
    return tuple(Message("assistant", *each) for each in zip(responses, more, strict=True))


def more_of(answers: Iterable[Message]) -> tuple[str, ...] | None:
    """What answers hold besides their texts; None where none holds anything."""
    more = tuple(answer.more for answer in answers)
    return more if any(more) else None


@dataclass(frozen=True)
class Record:
    """One usable row, independent of its source's column names.

    `row` counts the rows of the source from 1. `prompt` may start with a system turn and ends with a user or tool turn.
    `more` is of each response, as a message has it; None where no response has any. `tools` is a JSON list of the tools that
    the assistant may call, or "". `rewards`, `attributes` (named scores) and `labels` (desirable or not) follow the order of
    `responses`, and are None where the source has none. `ranked` is True where the source's order is a preference, as in
    (chosen, rejected). `source` is the row's origin; `weight` multiplies its loss.
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
    more: tuple[str, ...] | None = None
    tools: str = ""

    @property
    def answers(self) -> tuple[Message, ...]:
        """The responses as turns."""
        return as_answers(self.responses, self.more)
