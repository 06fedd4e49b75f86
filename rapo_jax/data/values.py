"""Readers of a row's values: messages, texts and finite scores, or BadRow with the reason. Independent of schemas."""

import json
import math
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from rapo_jax.messages import Message

ROLES = ("system", "user", "assistant", "tool")
# Keys of a message that chat templates may write, besides role and content.
MORE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")
EMPTY = (None, "", [], {})
MOST_EXACT = 2**53  # every integer up to it is a float64
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
    """A number as it is; an integer that float64 does not hold exactly as the nearest float, as it is computed with."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return value if abs(value) <= MOST_EXACT else float(value)
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
        if turn["role"] not in ROLES:
            raise BadRow("roles", f"{name} has the role {turn['role']!r}; known: {', '.join(ROLES)}")
    return tuple(_turn(turn, name) for turn in value)


def _turn(turn: Mapping[str, Any], name: str) -> Message:
    """A message with the other keys that it holds; parts of text are joined, and a tool call needs no content."""
    more = {key: value for key in MORE if (value := _without_nulls(turn.get(key))) not in EMPTY}
    if turn.get("function_call"):
        raise BadRow(
            "function_call", f"a turn in {name} has a function_call, which is not read; write it as tool_calls"
        )
    content = turn.get("content")
    if content is None and "tool_calls" in more:
        content = ""
    if isinstance(content, list):
        content = _joined_parts(content, name)
    return Message(turn["role"], text(content, f"a content in {name}"), _as_json(more) if more else "")


def _joined_parts(parts: list[Any], name: str) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise BadRow("content_not_text", f"a content in {name} has a part of type {kind!r:.40}; only text is read")
    return "\n".join(text(part.get("text"), f"a part of a content in {name}") for part in parts)


def _without_nulls(value: Any) -> Any:
    """A nested value without the keys that are null, which columnar files add where other rows have them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def tools_of(values: Mapping[str, Any]) -> str | None:
    """The row's `tools`, a list of objects or its JSON text, as JSON: "" where it has none, None where the column is a text
    of something else."""
    tools = values.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return None
        if not isinstance(tools, (list, dict, NoneType)):
            return None
    if tools in EMPTY or isinstance(tools, str):
        return ""
    try:
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    except (TypeError, ValueError, RecursionError):
        raise BadRow("tools", f"tools is {tools!r:.40}, not a list of tools") from None
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("tools", f"tools is {tools!r:.40}, not a list of tools")
    return _as_json(_without_nulls(tools))


def split(value: Any, name: str, given: tuple[Message, ...] | None) -> tuple[tuple[Message, ...], Message]:
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
    prompt, response = turns[:-1] or given, turns[-1]
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
    """Raises BadRow unless user and assistant alternate after an optional system turn, and a user turn with text is last.

    Between an assistant turn and the next user turn there may be tool turns, each answered by the assistant; the prompt may
    end with one.
    """
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    expected = "user"
    for index, turn in enumerate(turns):
        of_a_tool = turn.role == "tool" and index > 0 and turns[index - 1].role in ("assistant", "tool")
        if turn.role != expected and not of_a_tool:
            raise BadRow("roles", f"turn {index + 1} of the prompt is of role {turn.role}, must be of role {expected}")
        expected = "user" if turn.role == "assistant" else "assistant"
    if expected == "user":
        raise BadRow("roles", "the prompt does not end with a user turn")
    if not turns[-1].content.strip():
        raise BadRow("empty_prompt", f"the last {turns[-1].role} turn of the prompt is empty")
