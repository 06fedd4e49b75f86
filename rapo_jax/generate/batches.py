"""Which prompts are decoded together: prompts of like length, as many as a budget of tokens allows.

The plan follows from the lengths and the options alone, so that a repeated command computes the same batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled
PREFILL_CHUNK = 256  # prompt tokens that are computed at once; longer prompts are padded to a multiple of it


@dataclass(frozen=True)
class BatchLimits:
    """The most prompts of a batch, and the most tokens: of its rows' prompts and of the answers that they leave room for."""

    num_prompts: int = 16
    num_tokens: int = 16384


@dataclass(frozen=True)
class DecodeBatch:
    """Indices of prompts that share a batch of `num_rows` rows with prompts of up to `prompt_length` tokens."""

    members: tuple[int, ...]
    num_rows: int
    prompt_length: int


def padded_length(length: int) -> int:
    """The length that a prompt is padded to.

    >>> padded_length(3), padded_length(65), padded_length(257)
    (64, 128, 512)
    """
    multiple = PROMPT_MULTIPLE if length <= PREFILL_CHUNK else PREFILL_CHUNK
    return -(-length // multiple) * multiple


def plan_batches(
    lengths: Sequence[int], *, max_new_tokens: int, limits: BatchLimits, row_shards: int
) -> Iterator[DecodeBatch]:
    """Batches of all prompts, longest first; their rows are a multiple of `row_shards`, at least one per shard.

    Where prompts are long, none is padded to more than twice its own padded length.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    whole = -(-min(limits.num_prompts, len(lengths)) // row_shards) * row_shards
    start = 0
    while start < len(order):
        longest = padded_length(lengths[order[start]])
        affordable = limits.num_tokens // (longest + max_new_tokens) // row_shards * row_shards
        num_rows = max(row_shards, min(whole, affordable))
        members = order[start : start + num_rows]
        if longest > 2 * PREFILL_CHUNK:
            members = members[: sum(2 * padded_length(lengths[index]) >= longest for index in members)]
            num_rows = -(-len(members) // row_shards) * row_shards
        yield DecodeBatch(tuple(members), num_rows, longest)
        start += len(members)


def padded(
    prompts: Sequence[Int[np.ndarray, " _"]], batch: DecodeBatch
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"], list[int]]:
    """Tokens, lengths and prompt indices of a batch's rows; a short batch is filled up by repeating its last prompt."""
    filled = [*batch.members, *[batch.members[-1]] * (batch.num_rows - len(batch.members))]
    tokens_BT = np.zeros((batch.num_rows, batch.prompt_length), np.int32)
    for row, index in enumerate(filled):
        tokens_BT[row, : len(prompts[index])] = prompts[index]
    return tokens_BT, np.array([len(prompts[index]) for index in filled], np.int32), filled
