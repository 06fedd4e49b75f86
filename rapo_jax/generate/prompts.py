"""From a file of prompts to token ids: through the chat template, or raw. Training encodes its prompts the same way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from rapo_jax.chat.encoding import Item, encode_all, notes_on_unwritten
from rapo_jax.config.tree import Columns
from rapo_jax.data.files import FileRow, read_rows
from rapo_jax.data.sources import unread
from rapo_jax.data.values import BadRow, messages, text, tools_of
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.columns import as_json
from rapo_jax.messages import Message
from rapo_jax.opened import OpenedTokenizer
from rapo_jax.relabel import Goal

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question")


@dataclass(frozen=True)
class Prompt:
    """A row of the file, its columns as JSON, the conversation it asks to continue, and its tools as a Record has them."""

    row: FileRow
    columns: dict[str, Any]
    messages: tuple[Message, ...]
    tools: str = ""


def read_prompts(path: str, *, raw: bool = False) -> list[Prompt]:
    """The prompts of a file: each a text, or a list of messages as in training data, which ends with a user or tool turn.

    With `raw`, a text is one turn whatever it looks like.
    """
    prompts, not_read = [], Counter()
    for row in read_rows(path, split="train", option="--prompts"):
        column = next((name for name in PROMPT_COLUMNS if name in row.values), None)
        if column is None:
            raise UserError(
                f"{row.place} has no prompt; its columns are {', '.join(row.values)}, and a prompt must be in one of "
                f"{', '.join(PROMPT_COLUMNS)}."
            )
        try:
            turns, tools = as_messages(row.values[column], column, raw=raw), tools_of(row.values) or ""
        except BadRow as bad:
            raise UserError(f"{row.place}: {bad}.") from bad
        if not turns or turns[-1].role not in ("user", "tool"):
            raise UserError(f"{row.place}: a prompt must end with a user turn.")
        prompts.append(Prompt(row, as_json(row), turns, tools))
        not_read.update((name, column) for name in unread(row.values, Columns(prompt=column), tools=tools))
    if not prompts:
        raise UserError(f"{path} holds no prompts.")
    for (name, column), number in not_read.items():
        say(
            f"note: {counted(number, 'prompt holds', 'prompts hold')} {name!r}, which is not read; write it into {column}"
        )
    return prompts


def as_messages(prompt: Any, column: str, *, raw: bool) -> tuple[Message, ...]:
    if not isinstance(prompt, (str, list)):
        raise BadRow(
            "not_messages", "a prompt must be a text or a list of messages, each with the texts role and content"
        )
    return (Message("user", text(prompt, column)),) if raw and isinstance(prompt, str) else messages(prompt, column)


def chat_tokens(
    opened: OpenedTokenizer, prompts: Sequence[Prompt], *, goals: Sequence[Goal | None], max_length: int
) -> list[Int32[np.ndarray, " _"]]:
    """Token ids of each prompt through the chat template, asking for its goal.

    A prompt longer than `max_length` tokens loses its middle. Raises UserError for one that does not fit even so.
    """
    items = [
        Item(prompt.row.number, prompt.messages, opened.goal_prompt.sentence(goal), (), tools=prompt.tools)
        for prompt, goal in zip(prompts, goals, strict=True)
    ]
    encoded, report = encode_all(
        opened.tokenizer,
        items,
        placement=opened.goal_prompt.placement,
        max_length=max_length,
        max_prompt_length=max_length - 1,
    )
    for note in notes_on_unwritten(report.not_written, "prompt"):
        say(f"note: {note}")
    unfit = [prompt.row.place for prompt, each in zip(prompts, encoded, strict=True) if each is None]
    if unfit:
        raise UserError(
            f"{counted(len(unfit), 'prompt does', 'prompts do')} not fit {counted(max_length, 'token')}: {', '.join(unfit[:5])}; raise --max-prompt-length."
        )
    return [each.prompt for each in encoded if each is not None]


def raw_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[Int32[np.ndarray, " _"]]:
    """Token ids of each text as it is: no chat template, no goal, only the special tokens that the tokenizer adds."""
    ids = [tokenizer(prompt.messages[-1].content).input_ids for prompt in prompts]
    empty = [prompt.row.place for prompt, tokens in zip(prompts, ids, strict=True) if not tokens]
    if empty:
        raise UserError(f"{empty[0]}: the prompt is empty, and this tokenizer adds no special token; write a text.")
    return [np.asarray(tokens, np.int32) for tokens in ids]
