"""Files -> records: whatever the source calls its columns, one row becomes a prompt, its responses and their rewards.

Everything after this module forgets the source's column names. It neither writes goals nor knows tokens. A row that
cannot be used is never lost silently: all of them are one error, or, on request, counted by reason.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Literal

from rapo_jax.data.files import Row, read_rows
from rapo_jax.errors import UserError, nearest

# What published data sets call the scores of (chosen, rejected), in the order in which they are tried.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("overall_score_chosen", "overall_score_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_reward", "reject_reward"),
)
# Where a single response is looked for.
RESPONSE_COLUMNS = ("chosen", "messages", "response", "completion")
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # hh-rlhf's strings
SHOWN = 5


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One usable row.

    `row` counts lines or rows of the source from 1. `prompt` may start with a system turn and ends with a user turn.
    `responses` are (chosen, rejected), or (response,) for SFT; `rewards` follow their order, None without scores.
    """

    row: int
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    rewards: tuple[float, ...] | None


@dataclass(frozen=True)
class Columns:
    """Which column holds what; "" means: detect. Resolved for SFT, `chosen` names the response or conversation."""

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    score_chosen: str = ""
    score_rejected: str = ""


DETECT = Columns()


@dataclass(frozen=True)
class Source:
    """What was read. len(records) + sum(dropped.values()) == num_rows; `columns` are the resolved ones."""

    records: list[Record]
    num_rows: int
    dropped: dict[str, int]
    columns: Columns
    reward_source: str


class _BadRow(Exception):
    """A row that cannot be used: a short reason to count it by, and the fact."""

    def __init__(self, reason: str, fact: str):
        super().__init__(fact)
        self.reason = reason


def read_records(
    path: str,
    *,
    split: str = "train",
    columns: Columns = DETECT,
    scores_required: bool,
    num_responses: int = 2,
    bad_rows: Literal["error", "drop"] = "error",
    option: str = "data.path",
) -> Source:
    """Reads preference pairs (`num_responses=2`) or single responses (`num_responses=1`, SFT) from a path or hub id.

    `path` is a .jsonl, .json or .parquet file, a directory of them, a directory written by `save_to_disk`, or, if no
    such file exists, a hub data set. `columns` overrides the detection, which looks at the first row. A pair with two
    equal responses says nothing: it is dropped and counted. `option` is what the user calls `path`. Raises UserError, for
    bad rows once for all of them.
    """
    rows = read_rows(path, split=split, option=option)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{option}={path} has no rows; at least one is needed.")
    resolved = _resolve(
        f"{option}={path}", columns, first.values, num_responses=num_responses, scores_required=scores_required
    )
    records, dropped, facts, num_rows = [], Counter(), [], 0
    for row in chain([first], rows):
        num_rows += 1
        try:
            record = _record(row, resolved)
        except _BadRow as bad:
            dropped[bad.reason] += 1
            facts.append(f"{row.place}: {bad}")
            continue
        if len(set(record.responses)) < len(record.responses):
            dropped["identical_responses"] += 1
        else:
            records.append(record)
    if facts and bad_rows == "error":
        raise UserError(_bad_rows_message(facts, num_rows))
    if not records:
        raise UserError(f"{option}={path}: none of {num_rows} rows can be used; dropped: {counts(dropped)}.")
    scores = [name for name in (resolved.score_chosen, resolved.score_rejected) if name]
    reward_source = f"column{'s' * (len(scores) > 1)} {', '.join(scores)}" if scores else "none"
    return Source(records, num_rows, dict(dropped), resolved, reward_source)


def counts(dropped: Mapping[str, int]) -> str:
    """12 empty_response, 3 identical_responses; for messages."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "none"


def _bad_rows_message(facts: list[str], num_rows: int) -> str:
    more = [f"... and {len(facts) - SHOWN} more"] if len(facts) > SHOWN else []
    return "\n  ".join(
        [
            f"{len(facts)} of {num_rows} rows cannot be used. A row needs turns that alternate and end with a user's, "
            "responses that are not empty and scores that are finite numbers; fix the rows or set data.bad_rows=drop.",
            *facts[:SHOWN],
            *more,
        ]
    )


# Columns: decided on the first row.


def _resolve(
    said: str, columns: Columns, values: dict[str, Any], *, num_responses: int, scores_required: bool
) -> Columns:
    present = f"{said} has the columns {', '.join(map(repr, values))}"
    for field in fields(columns):
        name = getattr(columns, field.name)
        if name and name not in values:
            raise UserError(f"{present}, not data.columns.{field.name}={name!r}; {nearest(name, list(values))}")
    text = _resolve_text(columns, values, present, num_responses)
    scores = _resolve_scores(columns, values, present, num_responses)
    if scores_required and not scores:
        tried = ", ".join(" + ".join(pair[:num_responses]) for pair in SCORE_COLUMNS)
        raise UserError(
            f"{present}, none of which is known as a score (tried {tried}); goals come from scores: name their columns "
            "with data.columns.score_chosen=... and data.columns.score_rejected=..., or train without goals by "
            "relabel.goals=[]."
        )
    score_chosen, score_rejected = (*scores, "", "")[:2]
    return replace(text, score_chosen=score_chosen, score_rejected=score_rejected)


def _resolve_text(columns: Columns, values: dict[str, Any], present: str, num_responses: int) -> Columns:
    prompt = columns.prompt or ("prompt" if "prompt" in values else "")
    known = RESPONSE_COLUMNS if num_responses == 1 else ("chosen",)
    chosen = columns.chosen or next((name for name in known if name in values), "")
    rejected = (columns.rejected or ("rejected" if "rejected" in values else "")) if num_responses == 2 else ""
    if not chosen or (num_responses == 2 and not rejected):
        needed = f"one of {', '.join(known)}" if num_responses == 1 else "chosen and rejected"
        knobs = "data.columns.chosen=..." + " and data.columns.rejected=..." * (num_responses == 2)
        raise UserError(f"{present}; needed: {needed}. Name them with {knobs}.")
    value = values[chosen]
    if not prompt and isinstance(value, str) and not _is_transcript(value):
        raise UserError(
            f"{present}; {chosen!r} is a plain string, so the instruction must be in a column of its own. Name it with "
            "data.columns.prompt=..."
        )
    return Columns(prompt=prompt, chosen=chosen, rejected=rejected)


def _resolve_scores(columns: Columns, values: dict[str, Any], present: str, num_responses: int) -> Sequence[str]:
    named = (columns.score_chosen, columns.score_rejected)[:num_responses]
    if all(named):
        return named
    if any(named):
        raise UserError(
            f"{present}; data.columns.score_chosen={named[0]!r} and data.columns.score_rejected={named[1]!r} must be "
            "given together, or neither."
        )
    pairs = (pair[:num_responses] for pair in SCORE_COLUMNS)
    return next((pair for pair in pairs if all(name in values for name in pair)), ())


# Rows: one dict becomes one record, or a _BadRow that says why not.


def _record(row: Row, columns: Columns) -> Record:
    given = _messages(row.values, columns.prompt) if columns.prompt else None
    names = [name for name in (columns.chosen, columns.rejected) if name]
    prompts, responses = zip(*(_split(row.values, name, given) for name in names), strict=True)
    if len(set(prompts)) > 1:
        raise _BadRow("prompt_mismatch", f"the turns before the last one differ between {' and '.join(names)}")
    _check_turns(prompts[0])
    scores = [name for name in (columns.score_chosen, columns.score_rejected) if name]
    rewards = tuple(_score(row.values, name) for name in scores) or None
    return Record(row=row.number, prompt=prompts[0], responses=responses, rewards=rewards)


def _split(values: dict[str, Any], name: str, given: tuple[Message, ...] | None) -> tuple[tuple[Message, ...], str]:
    """The prompt and the response of a column, which holds a response, [response] or a whole conversation.

    `given` is the row's prompt column, None without one. Before a whole conversation it must be the conversation's own
    prompt or one of its user turns, as in ultrafeedback_binarized.
    """
    value = _value(values, name)
    if isinstance(value, str) and given is not None:
        turns = (Message("assistant", _text(value, name)),)
    else:
        turns = _messages(values, name)
    if not turns or turns[-1].role != "assistant":
        raise _BadRow("roles", f"{name} must end with an assistant turn")
    prompt, response = turns[:-1] or given, turns[-1].content
    if not prompt:
        raise _BadRow("empty_prompt", f"there is no prompt before the response in {name}")
    if given is not None and given != prompt and not _is_user_turn_of(given, prompt):
        raise _BadRow("prompt_mismatch", f"the prompt is not the one of the conversation in {name}")
    if not response.strip():
        raise _BadRow("empty_response", f"the response in {name} is empty")
    return prompt, response


def _is_user_turn_of(given: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    turns = {turn.content.strip() for turn in prompt if turn.role == "user"}
    return len(given) == 1 and given[0].content.strip() in turns


def _value(values: dict[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise _BadRow("missing_column", f"{name} is missing")
    return values[name]


def _messages(values: dict[str, Any], name: str) -> tuple[Message, ...]:
    """The turns of a column: a list of {role, content}, an hh-rlhf transcript, or a string, which is one user turn."""
    value = _value(values, name)
    if isinstance(value, str):
        return _transcript(_text(value, name)) if _is_transcript(value) else (Message("user", _text(value, name)),)
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        raise _BadRow("not_messages", f"{name} is neither a string nor a list of {{role, content}}")
    for turn in value:
        if turn["role"] not in ("system", "user", "assistant"):
            raise _BadRow("roles", f"{name} has the role {turn['role']!r}; known: system, user, assistant")
    return tuple(Message(turn["role"], _text(turn.get("content"), f"a content in {name}")) for turn in value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _BadRow("content_not_text", f"{what} is {value!r:.40}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow("content_not_text", f"{what} holds half of a surrogate pair, which is not Unicode") from None
    return value


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def _transcript(text: str) -> tuple[Message, ...]:
    r"""Splits hh-rlhf's notation; an open "Assistant:" at the end of a prompt column's string is not a turn.

    "\n\nHuman: Hi\n\nAssistant: Hello" -> user "Hi", assistant "Hello"
    """
    _, *parts = TRANSCRIPT.split(text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    turns = tuple(Message(roles[speaker], content.strip()) for speaker, content in pairs)
    return turns[:-1] if text.rstrip().endswith("\n\nAssistant:") else turns


def _check_turns(prompt: tuple[Message, ...]) -> None:
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise _BadRow("roles", f"turn {index + 1} of the prompt is of role {turn.role}, must be of role {expected}")
    if len(turns) % 2 == 0:
        raise _BadRow("roles", "the prompt does not end with a user turn")
    if not turns[-1].content.strip():
        raise _BadRow("empty_prompt", "the last user turn of the prompt is empty")


def _score(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return value
    except OverflowError:  # an integer too large for a float
        pass
    shown = "missing" if value is None else f"{value!r:.40}"
    raise _BadRow("score_not_a_number", f"{name} is {shown}, not a finite number")
