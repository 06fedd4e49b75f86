"""One reader for each shape that rows of published preference data have: a row's values -> a record, or why not.

A row of several responses loses those that cannot be used (and notes why); a row of one or two is refused whole.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rapo_jax.config.tree import Columns
from rapo_jax.data.values import BadRow, check_turns, list_of, messages, present, score, split
from rapo_jax.messages import Message, Record

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")  # UltraFeedback's, rated 1 to 5
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # 0 to 4
TURN_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # between the turns of HelpSteer's prompts
Defect = Literal["repair", "drop", "keep"]


class Parsed(NamedTuple):
    """A record, and a word for everything that was left out of it or changed in it."""

    record: Record
    notes: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """One of several responses: `name` for messages, `value` a text, [message] or a conversation."""

    name: str
    value: Any
    reward: float | None
    attributes: dict[str, float] | None


def pair(values: dict[str, Any], columns: Columns) -> Parsed:
    """chosen and rejected, or a single response, in columns of their own."""
    given = _given(values, columns.prompt)
    names = [name for name in (columns.chosen, columns.rejected) if name]
    prompts, responses = zip(*(_response(present(values, name), name, given) for name in names), strict=True)
    if len(set(prompts)) > 1:
        raise BadRow("prompt_mismatch", f"the turns before the last one differ between {' and '.join(names)}")
    check_turns(prompts[0])
    scores = [name for name in (columns.score_chosen, columns.score_rejected) if name]
    rewards = tuple(score(values.get(name), name) for name in scores) or None
    attributes = _attributes(values, columns.attributes, len(responses))
    return Parsed(Record(row=0, prompt=prompts[0], responses=responses, rewards=rewards, attributes=attributes))


def labelled(values: dict[str, Any], columns: Columns) -> Parsed:
    """One response, and whether it is desirable."""
    given = _given(values, columns.prompt)
    prompt, response = _response(present(values, columns.response), columns.response, given)
    check_turns(prompt)
    label = present(values, columns.label)
    if label not in (0, 1):
        raise BadRow("label", f"{columns.label} is {label!r:.40}, neither true nor false")
    rewards = (score(values.get(columns.rewards), columns.rewards),) if columns.rewards else None
    attributes = _attributes(values, columns.attributes, 1)
    return Parsed(Record(0, prompt, (response,), rewards, attributes, labels=(bool(label),)))


def lists(values: dict[str, Any], columns: Columns) -> Parsed:
    """A list of responses, and a list of their scores or none. Also what sampling from a model gives."""
    texts = list_of(values, columns.responses)
    rewards = list_of(values, columns.rewards) if columns.rewards else [None] * len(texts)
    if len(rewards) != len(texts):
        raise BadRow("lengths", f"{columns.responses} has {len(texts)} entries, {columns.rewards} has {len(rewards)}")
    if columns.rewards:
        rewards = [score(value, f"{columns.rewards}[{index}]") for index, value in enumerate(rewards)]
    attributes = _attributes(values, columns.attributes, len(texts)) or [None] * len(texts)
    names = [f"{columns.responses}[{index}]" for index in range(len(texts))]
    return several(_given(values, columns.prompt), map(Candidate, names, texts, rewards, attributes))


def numbered(values: dict[str, Any], columns: Columns) -> Parsed:
    """response_0, response_1, ... and response_0_reward, ... (REBEL)."""
    names = [name for index in range(len(values)) if (name := f"response_{index}") in values]
    rewards = [score(values.get(f"{name}_reward"), f"{name}_reward") for name in names]
    candidates = [Candidate(n, present(values, n), r, None) for n, r in zip(names, rewards, strict=True)]
    return several(_given(values, columns.prompt), candidates)


def nectar(values: dict[str, Any], columns: Columns) -> Parsed:
    """Ranked answers: rank 1 has reward 10, rank 7 has reward 1."""
    candidates = []
    for index, answer in enumerate(list_of(values, columns.responses)):
        name = f"{columns.responses}[{index}]"
        entry = _mapping(answer, name)
        rank = score(entry.get(columns.rewards), f"{name}.{columns.rewards}")
        candidates.append(Candidate(f"{name}.answer", entry.get("answer"), 10 - 9 * (rank - 1) / 6, None))
    return several(_given(values, columns.prompt), candidates)


def helpsteer(values: dict[str, Any], columns: Columns) -> Parsed:
    """One response and its five attributes, 0 to 4; the reward is helpfulness on 1 to 10. Rows of a prompt belong together."""
    text = present(values, columns.prompt)
    prompt = _marked_turns(text) if isinstance(text, str) else messages(text, columns.prompt)
    found = {name: score(values.get(name), name) for name in HELPSTEER if name in values}
    reward = 1 + 9 * score(values.get(columns.rewards), columns.rewards) / 4
    response = present(values, columns.response)
    return several(prompt, [Candidate(columns.response, response, reward, found)])


def _marked_turns(text: str) -> tuple[Message, ...]:
    """The first turn is the user's and bears no mark."""
    first, *rest = TURN_MARK.split(text)
    turns = zip(rest[::2], rest[1::2], strict=True)
    return (Message("user", first), *(Message(speaker.lower(), content) for speaker, content in turns))


def ultrafeedback(values: dict[str, Any], columns: Columns, *, defect: Defect = "repair") -> Parsed:
    """The raw set: up to four completions with an overall score (1-10) and four ratings (1-5).

    A completion with a rating that is no number is left out, as the paper's code does. The annotators' program wrote 10
    for 1: an overall score of 10 beside fine-grained scores of at most 2 is set to 1, as the published correction does,
    left out, or kept.
    """
    candidates, notes = [], []
    for index, completion in enumerate(list_of(values, columns.responses)):
        name = f"{columns.responses}[{index}]"
        entry = _mapping(completion, name)
        ratings = _ratings(entry.get("annotations"))
        if ratings is not None and any(math.isnan(rating) for rating in ratings.values()):
            notes.append("rating_not_available")
            continue
        reward = score(entry.get(columns.rewards), f"{name}.{columns.rewards}")
        fine = entry.get("fine-grained_score")
        if fine is not None:
            fine = score(fine, f"{name}.fine-grained_score")
        elif ratings:
            fine = statistics.fmean(ratings.values())
        if reward == 10 and fine is not None and fine <= 2:
            notes.append(f"score_10_for_1_{DEFECT_NOTES[defect]}")
            reward = 1.0 if defect == "repair" else reward
            if defect == "drop":
                continue
        if entry.get("custom_system_prompt"):
            notes.append("written_under_a_hidden_instruction")
        candidates.append(Candidate(f"{name}.response", entry.get("response"), reward, ratings))
    parsed = several(_given(values, columns.prompt), candidates)
    return parsed._replace(notes=(*notes, *parsed.notes))


DEFECT_NOTES = {"repair": "repaired", "drop": "left_out", "keep": "kept"}


def _ratings(annotations: Any) -> dict[str, float] | None:
    """The four ratings, NaN for one that is no number; None where there are no annotations."""
    if not isinstance(annotations, Mapping):
        return None
    return {aspect: _rating(annotations.get(aspect)) for aspect in ASPECTS}


def _rating(annotation: Any) -> float:
    try:
        rating = float(annotation["Rating"])
    except (KeyError, TypeError, ValueError, OverflowError):  # "N/A", or no annotation at all
        return math.nan
    return rating if math.isfinite(rating) else math.nan


def several(given: tuple[Message, ...] | None, candidates: Sequence[Candidate]) -> Parsed:
    """A record of the candidates that say something: empty ones and repetitions are left out and noted."""
    kept, notes, prompts = {}, [], set()
    for candidate in candidates:
        if not _text_of(candidate.value).strip():
            notes.append("empty_response_left_out")
            continue
        prompt, response = split(candidate.value, candidate.name, given)
        prompts.add(prompt)
        if response in kept:
            notes.append("repeated_response_left_out")
        kept.setdefault(response, candidate)
    if len(prompts) > 1:
        raise BadRow("prompt_mismatch", "the turns before the last one differ between its responses")
    if not kept:
        raise BadRow("empty_response", "it has no response that is not empty")
    (prompt,) = prompts
    check_turns(prompt)
    rewards, attributes = (tuple(getattr(c, name) for c in kept.values()) for name in ("reward", "attributes"))
    record = Record(
        row=0,
        prompt=prompt,
        responses=tuple(kept),
        rewards=None if None in rewards else rewards,
        attributes=None if None in attributes else attributes,
        ranked=False,
    )
    return Parsed(record, tuple(notes))


def _text_of(value: Any) -> str:
    """What a response's value says last, as far as it can be told; what is no text says something, to be refused later."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    return value if isinstance(value, str) else "" if value is None else "?"


def _given(values: dict[str, Any], name: str) -> tuple[Message, ...] | None:
    return messages(present(values, name), name) if name else None


def _response(value: Any, name: str, given: tuple[Message, ...] | None) -> tuple[tuple[Message, ...], str]:
    prompt, response = split(value, name, given)
    if not response.strip():
        raise BadRow("empty_response", f"the response in {name} is empty")
    return prompt, response


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRow("not_a_mapping", f"{name} is {value!r:.40}, not a set of named values")
    return value


def _attributes(values: dict[str, Any], name: str, num_responses: int) -> tuple[dict[str, float], ...] | None:
    """Named scores of every response: a list of {name: number}; of a single response also without the list."""
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
        {key: score(value, f"{place}.{key}") for key, value in _mapping(entry, place).items()}
        for entry, place in zip(entries, places, strict=True)
    )


def reader(schema: str, columns: Columns, *, defect: Defect = "repair") -> Callable[[dict[str, Any]], Parsed]:
    """The function that reads a row of this schema, with its source and its weight."""
    read = READERS[schema]
    options = {"defect": defect} if schema == "ultrafeedback" else {}

    def parse(values: dict[str, Any]) -> Parsed:
        record, notes = read(values, columns, **options)
        source = values.get(columns.source) if columns.source else ""
        source = ", ".join(map(str, source)) if isinstance(source, list) else str("" if source is None else source)
        weight = score(values.get(columns.weight), columns.weight) if columns.weight else 1.0
        if weight < 0:
            raise BadRow("weight", f"{columns.weight} is {weight}, less than 0")
        return Parsed(Record(**vars(record) | {"source": source, "weight": weight}), notes)

    return parse


READERS: dict[str, Callable[..., Parsed]] = {
    "pairs": pair,
    "single": pair,
    "labels": labelled,
    "lists": lists,
    "sampled": lists,
    "numbered": numbered,
    "nectar": nectar,
    "helpsteer": helpsteer,
    "ultrafeedback": ultrafeedback,
}
