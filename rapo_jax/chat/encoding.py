"""Conversations -> token arrays, in batches, truncated to length.

Truncation keeps the goal, the end of the instruction and the beginning of every response; everything cut is counted. Where a
goal is written and where a response begins is decided in rapo_jax/chat/templates.py.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rapo_jax.chat import templates as chat
from rapo_jax.chat.bounds import bounded
from rapo_jax.chat.fences import Fences, fences_of, tokenize_parts
from rapo_jax.chat.rendering import CannotRender
from rapo_jax.chat.templates import ChatFormat, Placement
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Message, as_answers

TOKENIZED_AT_ONCE = 256  # conversations rendered and tokenized at a time
BATCH_SECONDS = 60.0  # that rendering them may take
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # keys of a turn
EARLIER_THOUGHTS = "thoughts of earlier turns"
MIN_INSTRUCTION_TOKENS = 8  # that a shortened instruction must keep, not counting the assistant's header


class Item(NamedTuple):
    """A conversation to encode. `goal` is the goal sentence, `row` is for error messages; `responses` may be empty.

    `more`, of each response, and `tools` are as a Record has them.
    """

    row: int
    prompt: tuple[Message, ...]
    goal: str | None
    responses: tuple[str, ...]
    more: tuple[str, ...] = ()
    tools: str = ""

    @property
    def answers(self) -> tuple[Message, ...]:
        """The responses as turns."""
        return as_answers(self.responses, self.more)

    def without(self, key: str, *, answers: bool = True) -> "Item":
        """The item without this key of its turns, those of the prompt alone unless `answers`, or without its tools."""
        if key == "tools":
            return self._replace(tools="")
        more = tuple(_without(answer, key).more for answer in self.answers) if self.more and answers else self.more
        return self._replace(prompt=tuple(_without(turn, key) for turn in self.prompt), more=more)


def _without(turn: Message, key: str) -> Message:
    kept = {name: value for name, value in turn.others().items() if name != key}
    return replace(turn, more=json.dumps(kept) if kept else "")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids (int32) of a prompt and its responses, and what truncation removed.

    The prompt ends with the assistant's header; an untruncated response ends with one end-of-turn token.
    `prompt_tokens_cut` includes the tokens of the `turns_cut` (user and assistant turns both count). `not_written` are the
    keys of messages that the template leaves out, and in words what it lacks of the prompt's texts.
    """

    prompt: Int32[np.ndarray, "_"]
    responses: tuple[Int32[np.ndarray, "_"], ...]
    prompt_tokens_cut: int
    turns_cut: int
    response_tokens_cut: tuple[int, ...]
    boundary_retokenized: int
    not_written: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodeReport:
    """Truncation statistics of all items. Tokens and turns are counted over kept items; `dropped` counts items by reason.

    `ends_removed` counts assistant turns that ended with an end-of-turn token of their own, `not_written` the rows that hold
    a key of messages that the template leaves out.
    """

    num_items: int
    num_encoded: int
    prompt_tokens_cut: int
    response_tokens_cut: int
    rows_with_prompt_cut: int
    rows_with_response_cut: int
    turns_cut: int
    boundary_retokenized: int
    dropped: dict[str, int]
    ends_removed: int = 0
    not_written: dict[str, int] = field(default_factory=dict)


class Unfaithful(NamedTuple):
    """A row that the chat template does not reproduce: `reason` is what it is counted under, `fact` says what is lost."""

    row: int
    reason: str
    fact: str


class _Tokens(NamedTuple):
    prompt: list[int]
    responses: list[list[int]]
    retokenized: int


class _Limits(NamedTuple):
    max_length: int
    max_prompt_length: int


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    placement: Placement,
    max_length: int,
    max_prompt_length: int,
    drop_unfaithful: bool = False,
    progress: bool = False,
) -> tuple[list[Encoded | None], EncodeReport]:
    """Encodes every item; None is an item that was dropped. Lengths are in tokens.

    Nothing is cut unless prompt + longest response exceed `max_length`. Then the prompt is cut first, down to the larger of
    `max_prompt_length` and what the longest response leaves, then the ends of the responses. A prompt loses its oldest
    exchanges first (system turn and goal stay), then the middle of its last turn. Without responses a prompt is cut to
    `max_length`. Raises UserError for rows whose rendered text cannot be split into prompt and response and, unless
    `drop_unfaithful`, for rows that the chat template does not reproduce.
    """
    if max_prompt_length >= max_length:
        raise UserError(
            f"data.max_length={max_length} must exceed data.max_prompt_length={max_prompt_length}; raise the first or "
            "lower the second."
        )
    form = chat.chat_format(tokenizer, placement)
    fences = fences_of(tokenizer, chat.probe_text(tokenizer) + form.ending.kept)
    limits = _Limits(max_length, max_prompt_length)
    results: list[Encoded | Unfaithful | str] = []
    ends_removed = 0
    with tqdm(total=len(items), desc="tokenize", disable=None if progress else True) as bar:
        for start in range(0, len(items), TOKENIZED_AT_ONCE):
            batch = [_without_ends(form, item) for item in items[start : start + TOKENIZED_AT_ONCE]]
            ends_removed += sum(removed for _, removed in batch)
            results += _encode_batch(form, fences, [item for item, _ in batch], limits=limits)
            bar.update(len(batch))
    unfaithful = [result for result in results if isinstance(result, Unfaithful)]
    if unfaithful and not drop_unfaithful:
        raise _not_reproduced(unfaithful, len(items))
    encoded = [result if isinstance(result, Encoded) else None for result in results]
    left_out = {(key, item.row) for item, one in zip(items, encoded, strict=True) if one for key in one.not_written}
    return encoded, replace(
        _report(results), ends_removed=ends_removed, not_written=dict(Counter(key for key, _ in sorted(left_out)))
    )


def _without_ends(form: ChatFormat, item: Item) -> tuple[Item, int]:
    """The item without end-of-turn tokens of its own, and how many of its turns had some."""
    turns = tuple(
        replace(turn, content=chat.without_ends(form, turn.content)) if turn.role == "assistant" else turn
        for turn in item.prompt
    )
    responses = tuple(chat.without_ends(form, response) for response in item.responses)
    pairs = [*zip(turns, item.prompt, strict=True), *zip(responses, item.responses, strict=True)]
    return item._replace(prompt=turns, responses=responses), sum(after != before for after, before in pairs)


def _not_reproduced(unfaithful: Sequence[Unfaithful], num_items: int) -> UserError:
    first, num_rows = unfaithful[0], len({one.row for one in unfaithful})
    return UserError(
        f"the chat template changes {len(unfaithful)} of {counted(num_items, 'preference')}, of {counted(num_rows, 'row')} (the first is row "
        f"{first.row}: {first.fact}); supply a template that keeps them with {chat.TEMPLATE_KNOB}, or drop these rows "
        "with data.bad_rows=drop."
    )


def _encode_batch(
    form: ChatFormat, fences: Fences | None, items: Sequence[Item], *, limits: _Limits
) -> list[Encoded | Unfaithful | str]:
    with bounded(BATCH_SECONDS):
        texts = [_texts(form, item, item.prompt) for item in items]
        not_written = [_not_written(form, item, text) for item, text in zip(items, texts, strict=True)]
    ids = iter(tokenize_parts(form.tokenizer, list(chain.from_iterable(texts)), fences))
    results: list[Encoded | Unfaithful | str] = []
    for item, text, keys in zip(items, texts, not_written, strict=True):
        own = [next(ids) for _ in text]
        lost = _lost(item, text, keys)
        result = lost or _truncated(form, item, _split(form, item, text, own), limits)
        results.append(replace(result, not_written=keys) if isinstance(result, Encoded) else result)
    return results


def notes_on_unwritten(not_written: Mapping[str, int], noun: str) -> Iterator[str]:
    """A sentence for each key, or kind of text, that rows hold and the chat template leaves out."""
    for key, number in not_written.items():
        said = key if " " in key else repr(key)
        yield f"{counted(number, f'{noun} holds', f'{noun}s hold')} {said}, which the chat template does not write"


def _not_written(form: ChatFormat, item: Item, texts: list[str]) -> tuple[str, ...]:
    """The keys of the item's turns without which the template writes the same, among them "tools"; and, in words, turns and
    thoughts of its prompt that the template leaves out or changes."""
    held = dict.fromkeys(key for turn in (*item.prompt, *item.answers) for key in turn.others())
    keys = (*held, "tools") if item.tools else tuple(held)
    left_out = tuple(key for key in keys if _texts_or_none(form, item.without(key)) == texts)
    asked = {key for turn in item.prompt for key in turn.others()}
    thought = (key for key in THOUGHTS if key in asked and key not in left_out)
    earlier = [key for key in thought if _texts_or_none(form, item.without(key, answers=False)) == texts]
    changed = dict.fromkeys(said for turn in item.prompt if (said := _changed(turn, texts[0])))
    return (*left_out, *(changed | dict.fromkeys([EARLIER_THOUGHTS] if earlier else [])))


def _changed(turn: Message, prompt: str) -> str:
    """In words, what the text of a prompt lacks of one of its turns; "" where it has all of it."""
    if turn.role == "tool" or chat.shows(prompt, turn.content):
        return ""
    _, thought, answer = turn.content.rpartition("</think>")
    if turn.role == "assistant" and thought and chat.shows(prompt, answer):
        return EARLIER_THOUGHTS
    return f"text of the {turn.role} turn"


def _texts_or_none(form: ChatFormat, item: Item) -> list[str] | None:
    try:
        return _texts(form, item, item.prompt)
    except UserError as error:
        if isinstance(error.__cause__, CannotRender) and error.__cause__.beyond_bounds:
            raise
        return None  # the template asks for what was left out


def _lost(item: Item, texts: list[str], not_written: tuple[str, ...]) -> Unfaithful | None:
    """What the template left out of a response, if anything, or that it leaves out tool calls."""
    if "tool_calls" in not_written:
        return Unfaithful(item.row, "tool_calls_not_written", "it leaves out tool_calls")
    prompt, *wholes = texts
    for whole, response in zip(wholes, item.responses, strict=True):
        written = whole.removeprefix(prompt)
        if not chat.shows(written, response, prompt=prompt):
            return Unfaithful(item.row, "response_rewritten", f"it writes {written!r:.60} for {response!r:.60}")
    return None


def _texts(form: ChatFormat, item: Item, turns: Sequence[Message]) -> list[str]:
    return chat.render_texts(form, turns, goal=item.goal, responses=item.answers, row=item.row, tools=item.tools)


def _split(form: ChatFormat, item: Item, texts: list[str], ids: list[list[int]]) -> _Tokens:
    prompt, *wholes = zip(texts, ids, strict=True)
    parts = [chat.response_ids(form, prompt, whole, row=item.row) for whole in wholes]
    return _Tokens(ids[0], [response for response, _ in parts], sum(apart for _, apart in parts))


def _truncated(form: ChatFormat, item: Item, tokens: _Tokens, limits: _Limits) -> Encoded | str:
    """The item truncated to the limits, or the reason for dropping it."""
    prompt, responses = tokens.prompt, tokens.responses
    turns = item.prompt
    longest = max(map(len, responses), default=0)
    budget = max(limits.max_prompt_length, limits.max_length - longest)
    if len(prompt) > budget:
        turns = _drop_exchanges(form, item, budget)
        with bounded():
            texts = _texts(form, item, turns)
        prompt, responses, _ = _split(form, item, texts, chat.tokenize(form.tokenizer, texts))
    if len(prompt) > budget:
        prompt = _cut_middle(form, item, turns, budget)
    if prompt is None:
        return "prompt_does_not_fit" if item.goal is None else "goal_does_not_fit"
    kept = [response[: limits.max_length - len(prompt)] for response in responses]
    cut = tuple(len(before) - len(after) for before, after in zip(responses, kept, strict=True))
    if len(set(map(tuple, kept))) < len(kept):
        return "identical_after_truncation" if any(cut) else "identical_responses"
    return Encoded(
        prompt=np.array(prompt, np.int32),
        responses=tuple(np.array(response, np.int32) for response in kept),
        prompt_tokens_cut=len(tokens.prompt) - len(prompt),
        turns_cut=len(item.prompt) - len(turns),
        response_tokens_cut=cut,
        boundary_retokenized=tokens.retokenized,
    )


# Truncating a prompt: the goal and the end of the instruction must survive.


def _prompt_text(form: ChatFormat, item: Item, turns: Sequence[Message]) -> str:
    with bounded():  # tokenizers abort under a bound on memory
        (text,) = chat.render_texts(form, turns, goal=item.goal, responses=(), row=item.row, tools=item.tools)
    return text


def _drop_exchanges(form: ChatFormat, item: Item, budget: int) -> tuple[Message, ...]:
    """Drops the oldest exchanges (a user turn and what follows it) until the prompt fits or one is left.

    The system turn stays, and the goal is placed again in what remains.
    """
    turns = item.prompt
    first = 1 if turns[0].role == "system" else 0
    while later := [index for index, turn in enumerate(turns) if turn.role == "user" and index > first]:
        turns = turns[:first] + turns[later[0] :]
        (ids,) = chat.tokenize(form.tokenizer, [_prompt_text(form, item, turns)])
        if len(ids) <= budget:
            break
    return turns


def _cut_middle(form: ChatFormat, item: Item, turns: Sequence[Message], budget: int) -> list[int] | None:
    """The head and the tail of a prompt of one exchange, `budget` tokens in all; None if too short a tail remains.

    The head is everything before the text of the last turn, which is the user's or a tool's. If the row's own system turn makes that too long, the head is
    everything before the system turn's own text, unless the goal comes after it.
    """
    text = _prompt_text(form, item, turns)
    encoding = form.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    head, footer = _around(form, item, turns, len(turns) - 1)
    num_footer = sum(end > len(text) - len(footer) for _, end in encoding.offset_mapping)
    heads = [head]
    if len(turns) == 2 and (item.goal is None or form.placement == "system"):
        heads.append(_around(form, item, turns, 0)[0])
    for head in heads:
        num_head = sum(start < len(head) for start, _ in encoding.offset_mapping)
        if budget - num_head - num_footer >= MIN_INSTRUCTION_TOKENS:
            return encoding.input_ids[:num_head] + encoding.input_ids[num_head - budget :]
    return None


def _around(form: ChatFormat, item: Item, turns: Sequence[Message], index: int) -> tuple[str, str]:
    """The prompt's text before and after one turn's own text, which does not include a goal sentence."""
    probed = (*turns[:index], replace(turns[index], content=chat.PROBE), *turns[index + 1 :])
    before, _, after = _prompt_text(form, item, probed).partition(chat.PROBE)
    return before, after


def _report(results: Sequence[Encoded | Unfaithful | str]) -> EncodeReport:
    encoded = [result for result in results if isinstance(result, Encoded)]
    return EncodeReport(
        num_items=len(results),
        num_encoded=len(encoded),
        prompt_tokens_cut=sum(one.prompt_tokens_cut for one in encoded),
        response_tokens_cut=sum(sum(one.response_tokens_cut) for one in encoded),
        rows_with_prompt_cut=sum(one.prompt_tokens_cut > 0 for one in encoded),
        rows_with_response_cut=sum(any(one.response_tokens_cut) for one in encoded),
        turns_cut=sum(one.turns_cut for one in encoded),
        boundary_retokenized=sum(one.boundary_retokenized for one in encoded),
        dropped=dict(Counter(_reason(result) for result in results if not isinstance(result, Encoded))),
    )


def _reason(dropped: Unfaithful | str) -> str:
    return dropped.reason if isinstance(dropped, Unfaithful) else dropped
