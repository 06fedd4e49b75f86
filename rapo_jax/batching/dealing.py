"""Things of different weights dealt into hands of one number and nearly one weight: groups to steps, tokens to devices.

Where the tokens of a row are split over devices (mesh.context), a device that held its last tokens would do most of the
attention: a token sees all that stands before it. So every device gets blocks from all over the row. Masks, rotary
embeddings and scored positions are data and move with the tokens; nothing else asks where in its row a token stands.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Int

from rapo_jax.batch import Batch
from rapo_jax.batching.visibility import visible_tiles_of_row
from rapo_jax.errors import UserError

ROW_MULTIPLE = 128  # row lengths are multiples of the tile width of accelerators
SMALL_TILE = 128  # tokens, in whose tiles the work of attention is counted
LARGEST_BLOCK = 512  # tokens; as large as the largest tile of a kernel, so that tiles hold neighbours


def deal(
    steps: Int[np.ndarray, "n batch"], sizes: Int[np.ndarray, "G"], *, at_once: int = 1
) -> Int[np.ndarray, "n batch"]:
    """The groups of `steps` reassigned to steps whose total sizes are nearly equal; `at_once` neighbours stay together.

    Each round deals the next largest groups, one to each step, the largest of them to the step with the least so far.
    """
    hands, num_steps = steps.reshape(-1, at_once), len(steps)
    weights = sizes[hands].sum(1)
    rounds = np.argsort(-weights, kind="stable").reshape(-1, num_steps)
    dealt, totals = np.empty_like(rounds), np.zeros(num_steps, np.int64)
    for n, largest_first in enumerate(rounds):
        poorest_first = np.argsort(totals, kind="stable")
        dealt[n, poorest_first] = largest_first
        totals[poorest_first] += weights[largest_first]
    return hands[dealt.T].reshape(steps.shape)


def refuse_indivisible(row_length: int | None, context: int) -> None:
    """Raises UserError for rows whose tokens cannot be split into tiles of accelerators over `context` shards."""
    multiple = ROW_MULTIPLE * context
    if row_length and context > 1 and row_length % multiple:
        raise UserError(
            f"rows.length={row_length} cannot be split over mesh.context={context} devices, each of which takes a multiple of "
            f"{ROW_MULTIPLE} tokens; set rows.length={-(-row_length // multiple) * multiple}, or leave it out."
        )


def block_of(T: int, num_shards: int) -> int:
    """Tokens that stay together: the largest power of two up to LARGEST_BLOCK of which a shard holds four or more whole ones.

    Where a shard is whole tiles, so is a block: a tile of pieces from all over the row would see almost everything.

    >>> [block_of(T, 4) for T in (2048, 30208, 32768)]
    [128, 128, 512]
    """
    each = T // num_shards
    least = SMALL_TILE if each % SMALL_TILE == 0 else 1
    powers = [1 << n for n in range(LARGEST_BLOCK.bit_length())]
    return max(size for size in powers if each % size == 0 and (each >= 4 * size or size == least))


def dealt_order(
    position_T: Int[np.ndarray, "T"],
    group_T: Int[np.ndarray, "T"],
    branch_T: Int[np.ndarray, "T"],
    *,
    num_shards: int,
) -> Int[np.ndarray, "T"]:
    """The order in which a row's tokens are stored, shard after shard, so that the visible tiles of each are about as many.

    >>> dealt_order(np.arange(16), np.full(16, 1), np.full(16, 0), num_shards=2)
    array([ 0,  1,  6,  7,  8,  9, 14, 15,  2,  3,  4,  5, 10, 11, 12, 13])
    """
    block = block_of(len(position_T), num_shards)
    tile = min(block, SMALL_TILE)
    seen = (
        visible_tiles_of_row(position_T, group_T, branch_T, tile=(tile, tile)).sum(1).reshape(-1, block // tile).sum(1)
    )
    blocks = np.sort(deal(np.arange(len(seen)).reshape(num_shards, -1), seen), axis=1)
    return (blocks.reshape(-1, 1) * block + np.arange(block)).reshape(-1)


def dealt_to_shards(batch: Batch[np.ndarray], num_shards: int) -> Batch[np.ndarray]:
    """The batch with the tokens of every row in dealt order; the hidden states that are read move along."""
    arrays = {name: np.empty_like(getattr(batch, name)) for name in ("tokens", "position", "group", "branch", "source")}
    for at in np.ndindex(batch.tokens.shape[:2]):
        order = dealt_order(batch.position[at], batch.group[at], batch.branch[at], num_shards=num_shards)
        for name in ("tokens", "position", "group", "branch"):
            arrays[name][at] = getattr(batch, name)[at][order]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        arrays["source"][at] = place[batch.source[at]]
    return replace(batch, **arrays)
