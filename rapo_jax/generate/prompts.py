"""From a file of prompts to token ids: through the chat template, or raw. Training encodes its prompts the same way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from rapo_jax.borders import is_unicode
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.data.files import FileRow, read_rows
from rapo_jax.errors import UserError
from rapo_jax.generate.columns import as_json
from rapo_jax.messages import Message
from rapo_jax.opened import OpenedTokenizer
from rapo_jax.relabel import Goal

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question")


@dataclass(frozen=True)
class Prompt:
    """A row of the file, its columns as JSON, and the conversation it asks to continue."""

    row: FileRow
    columns: dict[str, Any]
    messages: tuple[Message, ...]


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file: each a text, or a list of messages that ends with a user turn."""
    prompts = []
    for row in read_rows(path, split="train", option="--prompts"):
        column = next((name for name in PROMPT_COLUMNS if name in row.values), None)
        if column is None:
            raise UserError(
                f"{row.place} has no prompt; its columns are {', '.join(row.values)}, and a prompt must be in one of "
                f"{', '.join(PROMPT_COLUMNS)}."
            )
        prompts.append(Prompt(row, as_json(row), as_messages(row.values[column], row.place)))
    if not prompts:
        raise UserError(f"{path} holds no prompts.")
    return prompts


def as_messages(prompt: Any, place: str) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in prompt
    ):
        raise UserError(
            f"{place}: a prompt must be a text or a list of messages, each with the texts role and content."
        )
    messages = tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    if not all(is_unicode(message.content) for message in messages):
        raise UserError(f"{place}: the prompt holds half of a surrogate pair, which is not Unicode; correct it.")
    if not messages or messages[-1].role != "user":
        raise UserError(f"{place}: a prompt must end with a user turn.")
    return messages


def chat_tokens(
    opened: OpenedTokenizer, prompts: Sequence[Prompt], *, goals: Sequence[Goal | None], max_length: int
) -> list[Int32[np.ndarray, " _"]]:
    """Token ids of each prompt through the chat template, asking for its goal.

    A prompt longer than `max_length` tokens loses its middle. Raises UserError for one that does not fit even so.
    """
    items = [
        Item(prompt.row.number, prompt.messages, opened.goal_prompt.sentence(goal), ())
        for prompt, goal in zip(prompts, goals, strict=True)
    ]
    encoded, _ = encode_all(
        opened.tokenizer,
        items,
        placement=opened.goal_prompt.placement,
        max_length=max_length,
        max_prompt_length=max_length - 1,
    )
    unfit = [prompt.row.place for prompt, each in zip(prompts, encoded, strict=True) if each is None]
    if unfit:
        raise UserError(
            f"{len(unfit)} prompt(s) do not fit {max_length} tokens: {', '.join(unfit[:5])}; raise --max-prompt-length."
        )
    return [each.prompt for each in encoded if each is not None]


def raw_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[Int32[np.ndarray, " _"]]:
    """Token ids of each text as it is: no chat template, no goal, only the special tokens that the tokenizer adds."""
    ids = [tokenizer(prompt.messages[-1].content).input_ids for prompt in prompts]
    empty = [prompt.row.place for prompt, tokens in zip(prompts, ids, strict=True) if not tokens]
    if empty:
        raise UserError(f"{empty[0]}: the prompt is empty, and this tokenizer adds no special token; write a text.")
    return [np.asarray(tokens, np.int32) for tokens in ids]
