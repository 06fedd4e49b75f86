"""Shared by the readers of several schemas: a prompt column, a response, named scores, and a record of several candidates."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rapo_jax.data.schemas.schema import Parsed
from rapo_jax.data.values import BadRow, check_turns, finite_score, messages, present, split
from rapo_jax.messages import Message, Record, more_of

Turns = tuple[Message, ...]


class Candidate(NamedTuple):
    """One of several responses: `name` is for error messages, `value` a text, [message] or a conversation."""

    name: str
    value: Any
    reward: float | None
    attributes: dict[str, float] | None


def prompt_column(values: Mapping[str, Any], name: str) -> Turns | None:
    """The turns in the prompt column; None where the source has no such column."""
    return messages(present(values, name), name) if name else None


def prompt_and_response(value: Any, name: str, given: Turns | None) -> tuple[Turns, Message]:
    """The prompt and the response of a value; see `split`. An empty response is refused."""
    prompt, response = split(value, name, given)
    if not response.content.strip() and "tool_calls" in response.others():
        raise BadRow(
            "response_is_a_tool_call", f"the response in {name} is a tool call without a text, which is not trained"
        )
    if not response.content.strip():
        raise BadRow("empty_response", f"the response in {name} is empty")
    return prompt, response


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRow("not_a_mapping", f"{name} is {value!r:.40}, not a set of named values")
    return value


def attributes_column(values: Mapping[str, Any], name: str, num_responses: int) -> tuple[dict[str, float], ...] | None:
    """Named scores of every response: a list of {name: number}; for a single response also without the list."""
    if not name or values.get(name) is None:
        return None
    entries = values[name]
    if num_responses == 1 and isinstance(entries, Mapping):
        entries = [entries]
    if not isinstance(entries, list) or len(entries) != num_responses:
        raise BadRow(
            "attributes", f"{name} is {entries!r:.40}, not a list with named scores for {num_responses} responses"
        )
    places = [f"{name}[{index}]" for index in range(num_responses)]
    return tuple(
        {key: finite_score(value, f"{place}.{key}") for key, value in mapping(entry, place).items()}
        for entry, place in zip(entries, places, strict=True)
    )


def several(given: Turns | None, candidates: Iterable[Candidate]) -> Parsed:
    """A record of the usable candidates; empty and repeated ones are left out and noted."""
    kept, notes, prompts = {}, [], set()
    for candidate in candidates:
        if not _last_text(candidate.value).strip():
            notes.append("empty_response_left_out")
            continue
        prompt, response = split(candidate.value, candidate.name, given)
        prompts.add(prompt)
        if response in kept:
            notes.append("repeated_response_left_out")
        kept.setdefault(response, candidate)  # two that differ in their reasoning alone are two responses
    if len(prompts) > 1:
        raise BadRow("prompt_mismatch", "the turns before the last one differ between its responses")
    if not kept:
        raise BadRow("empty_response", "it has no response that is not empty")
    (prompt,) = prompts
    check_turns(prompt)
    rewards = tuple(candidate.reward for candidate in kept.values())
    attributes = tuple(candidate.attributes for candidate in kept.values())
    record = Record(
        row=0,
        prompt=prompt,
        responses=tuple(response.content for response in kept),
        more=more_of(kept),
        rewards=None if None in rewards else rewards,
        attributes=None if None in attributes else attributes,
        ranked=False,
    )
    return Parsed(record, tuple(notes))


def _last_text(value: Any) -> str:
    """The text of a response or of a conversation's last turn; "" for None, "?" for what `split` will refuse."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    return value if isinstance(value, str) else "" if value is None else "?"
