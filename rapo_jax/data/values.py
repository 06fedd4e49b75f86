"""Readers of a row's values: messages, texts and finite scores, or BadRow with the reason. Independent of schemas."""

import math
import re
from collections.abc import Mapping
from typing import Any

from rapo_jax.messages import Message

TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # hh-rlhf's strings


class BadRow(Exception):
    """A row that cannot be used: `reason` is what it is counted under, the message says what is wrong."""

    def __init__(self, reason: str, fact: str):
        super().__init__(fact)
        self.reason = reason


def present(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column that must not be absent or null."""
    if values.get(name) is None:
        raise BadRow("missing_column", f"{name} is missing")
    return values[name]


def text(value: Any, what: str) -> str:
    """A string that UTF-8 can encode."""
    if not isinstance(value, str):
        raise BadRow("content_not_text", f"{what} is {value!r:.40}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("content_not_text", f"{what} holds half of a surrogate pair, which is not Unicode") from None
    return value


def finite_score(value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return value
    except OverflowError:  # an integer too large for a float
        pass
    shown = "missing" if value is None else f"{value!r:.40}"
    raise BadRow("score_not_a_number", f"{name} is {shown}, not a finite number")


def list_of(values: Mapping[str, Any], name: str) -> list[Any]:
    value = present(values, name)
    if not isinstance(value, list):
        raise BadRow("not_a_list", f"{name} is {value!r:.40}, not a list")
    return value


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """The turns of a value: a list of {role, content}, an hh-rlhf transcript, or a string, which is one user turn."""
    if isinstance(value, str):
        return transcript(text(value, name)) if is_transcript(value) else (Message("user", text(value, name)),)
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        raise BadRow("not_messages", f"{name} is neither a string nor a list of {{role, content}}")
    for turn in value:
        if turn["role"] not in ("system", "user", "assistant"):
            raise BadRow("roles", f"{name} has the role {turn['role']!r}; known: system, user, assistant")
    return tuple(Message(turn["role"], text(turn.get("content"), f"a content in {name}")) for turn in value)


def split(value: Any, name: str, given: tuple[Message, ...] | None) -> tuple[tuple[Message, ...], str]:
    """Splits a value into prompt and response; it is a response, [response] or a conversation that ends with one.

    `given` is the row's prompt column, None without one. For a conversation it must be the conversation's own prompt or one
    of its user turns, as in ultrafeedback_binarized.
    """
    if isinstance(value, str) and given is not None:
        turns = (Message("assistant", text(value, name)),)
    else:
        turns = messages(value, name)
    if not turns or turns[-1].role != "assistant":
        raise BadRow("roles", f"{name} must end with an assistant turn")
    prompt, response = turns[:-1] or given, turns[-1].content
    if not prompt:
        raise BadRow("empty_prompt", f"there is no prompt before the response in {name}")
    if given is not None and given != prompt and not _is_user_turn_of(given, prompt):
        raise BadRow("prompt_mismatch", f"the prompt is not the one of the conversation in {name}")
    return prompt, response


def _is_user_turn_of(given: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    turns = {turn.content.strip() for turn in prompt if turn.role == "user"}
    return len(given) == 1 and given[0].content.strip() in turns


def is_transcript(value: str) -> bool:
    return value.lstrip().startswith("Human:")


def transcript(value: str) -> tuple[Message, ...]:
    r"""The turns of a transcript in hh-rlhf's notation; an open "Assistant:" at the end is not a turn.

    "\n\nHuman: Hi\n\nAssistant: Hello" -> user "Hi", assistant "Hello"
    """
    _, *parts = TRANSCRIPT.split(value.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    turns = tuple(Message(roles[speaker], content.strip()) for speaker, content in pairs)
    return turns[:-1] if value.rstrip().endswith("\n\nAssistant:") else turns


def check_turns(prompt: tuple[Message, ...]) -> None:
    """Raises BadRow unless user and assistant alternate after an optional system turn, and a user turn with text is last."""
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise BadRow("roles", f"turn {index + 1} of the prompt is of role {turn.role}, must be of role {expected}")
    if len(turns) % 2 == 0:
        raise BadRow("roles", "the prompt does not end with a user turn")
    if not turns[-1].content.strip():
        raise BadRow("empty_prompt", "the last user turn of the prompt is empty")
