"""Packing with split groups: rows that are shorter than a group, because each holds only some of its responses.

A group that fits no row whole is split between its responses. Some stay at its home, the row where its loss is computed;
the others move to further rows, each time after a copy of the prompt, which costs tokens. A row therefore only has to hold
a prompt and one response. The parts of a group stay within one microbatch, because a loss compares all responses.

    two groups, of a prompt of 3 with responses of 6 and 4, and of a prompt of 2 with responses of 2 and 1, in rows of 12:

        row 0   [p p p a a a a a a . . .]    the home of the first group, with its larger response
        row 1   [q q c c d p p p b b b b]    the second group, and the other response of the first

Lengths alone count here; arrays are made in batch_plan.py.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rapo_jax.batching.dealing import ROW_MULTIPLE
from rapo_jax.errors import UserError, counted

SPLIT_MULTIPLE = 16  # of row lengths where devices share none; multiples of 128 would waste up to 8 % of rows of 1,600
MICROBATCH_TOKENS = (
    4096  # most tokens of an automatic microbatch on each shard of rows and tokens, unless a row must be longer
)
NUM_SAMPLED_STEPS = 16  # steps on which row lengths are compared
MOST_SAMPLED = 4096  # groups of a sampled step, at most
MOST_BLOCKS = 4  # microbatches a step up to which the row length is fitted to their number
WORTH = 0.01  # additional padding, as a share, that a larger microbatch may cost


@dataclass(frozen=True)
class Moved:
    """Branches of a group that stand in row `to`, after a copy of its prompt. The group is the one at `place` of `row`."""

    row: int
    place: int
    branches: tuple[int, ...]
    to: int


@dataclass(frozen=True)
class Packed:
    """One step: the groups at home in each row, and what is moved to another row. A row may hold moved branches alone."""

    rows: list[list[int]]
    moved: tuple[Moved, ...] = ()


@dataclass(frozen=True)
class GroupLengths:
    """Lengths in tokens of the prompts of some groups, and of the A - 1 branches that follow each; 0 if one is missing."""

    prompts: Int[np.ndarray, "G"]
    branches: Int[np.ndarray, "G _"]

    @property
    def groups(self) -> Int[np.ndarray, "G"]:
        return self.prompts + self.branches.sum(1)

    @property
    def parts(self) -> Int[np.ndarray, "G"]:
        """The least that a row must hold of each group: its prompt and its longest response."""
        return self.prompts + self.branches.max(1)

    def of(self, members: Int[np.ndarray, "_"]) -> "GroupLengths":
        return GroupLengths(self.prompts[members], self.branches[members])


class Room:
    """The free space of a step's rows, in blocks of one microbatch each."""

    def __init__(self, capacity: int, *, rows_per_block: int, num_blocks: int):
        self.spaces = [capacity] * (rows_per_block * num_blocks)
        self.ordered = [(capacity, row) for row in range(len(self.spaces))]  # ascending
        self.blocks = [range(start, start + rows_per_block) for start in range(0, len(self.spaces), rows_per_block)]
        self.totals = [capacity * rows_per_block] * num_blocks

    def fullest(self, size: int) -> int | None:
        """The row with the least space that is enough."""
        at = bisect_left(self.ordered, (size, -1))
        return self.ordered[at][1] if at < len(self.ordered) else None

    def take(self, row: int, size: int) -> None:
        del self.ordered[bisect_left(self.ordered, (self.spaces[row], row))]
        self.spaces[row] -= size
        self.totals[row // len(self.blocks[0])] -= size
        insort(self.ordered, (self.spaces[row], row))

    def spread(self, prompt: int, branches: Sequence[int]) -> list[tuple[int, list[int]]] | None:
        """(row, branches that it takes) for a group that fits no row whole, in the first block with room for all of it."""
        size = prompt + sum(branches)
        for block, total in zip(self.blocks, self.totals, strict=True):
            if total >= size:
                parts = spread([(self.spaces[row], row) for row in block], prompt, branches)
                if parts is not None:
                    return parts
        return None


def spread(rows: list[tuple[int, int]], prompt: int, branches: Sequence[int]) -> list[tuple[int, list[int]]] | None:
    """(row, branches that it takes): the longest remaining branch goes to the fullest of the `rows`, (space, row) each,
    that has room for it and the prompt, with all others that still fit. None if one has no room. Branches count from 1.

    >>> spread([(9, 0), (12, 1)], 3, [4, 6, 0, 1])
    [(0, [2]), (1, [1, 4])]
    """
    free = sorted(rows)
    left = sorted((branch for branch, length in enumerate(branches, start=1) if length), key=lambda b: -branches[b - 1])
    parts = []
    while left:
        at = bisect_left(free, (prompt + branches[left[0] - 1], -1))
        if at == len(free):
            return None
        space, row = free.pop(at)
        space, taken = space - prompt, []
        for branch in list(left):
            if branches[branch - 1] <= space:
                space -= branches[branch - 1]
                taken.append(branch)
                left.remove(branch)
        parts.append((row, taken))
    return parts


def pack_split(lengths: GroupLengths, *, capacity: int, rows_per_block: int) -> Packed:
    """Packs groups into as few microbatches of `rows_per_block` rows as it can. A microbatch must hold the parts of any group; see `num_parts`."""
    fewest = -(-int(lengths.groups.sum()) // (capacity * rows_per_block))
    for num_blocks in range(max(1, fewest), fewest + len(lengths.groups) + 1):
        packed = pack_into(lengths, capacity=capacity, rows_per_block=rows_per_block, num_blocks=num_blocks)
        if packed is not None:
            return packed
    raise UserError(
        f"a group cannot be split over the {counted(rows_per_block, 'row')} of {capacity} tokens of one microbatch; set "
        "rows.split=never, or raise rows.per_shard."
    )


def pack_into(lengths: GroupLengths, *, capacity: int, rows_per_block: int, num_blocks: int) -> Packed | None:
    """Best-fit decreasing into a given number of rows: a group is split where no row has room for all of it. None if one
    fits nowhere."""
    sizes, prompts, branches = lengths.groups.tolist(), lengths.prompts.tolist(), lengths.branches.tolist()
    room = Room(capacity, rows_per_block=rows_per_block, num_blocks=num_blocks)
    rows: list[list[int]] = [[] for _ in room.spaces]
    moved = []
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        home = room.fullest(sizes[item])
        if home is not None:
            room.take(home, sizes[item])
        else:
            parts = room.spread(prompts[item], branches[item])
            if parts is None:
                return None
            for row, taken in parts:
                room.take(row, prompts[item] + sum(branches[item][branch - 1] for branch in taken))
            (home, _), *others = parts
            moved += [Moved(home, len(rows[home]), tuple(sorted(taken)), row) for row, taken in others]
        rows[home].append(item)
    num_rows = 1 + max((row for row, space in enumerate(room.spaces) if space < capacity), default=-1)
    return Packed(rows[:num_rows], tuple(moved))


def num_parts(lengths: GroupLengths, capacity: int) -> int:
    """Most rows of this capacity that a group needs. No row may be shorter than `lengths.parts`."""
    longer = np.flatnonzero(lengths.groups > capacity)
    most = 1
    for prompt, branches in zip(lengths.prompts[longer].tolist(), lengths.branches[longer].tolist(), strict=True):
        parts = spread([(capacity, row) for row in range(len(branches))], prompt, branches)
        assert parts is not None, "each row holds a prompt and one response"
        most = max(most, len(parts))
    return most


def choose_split_rows(
    lengths: GroupLengths,
    steps: Sequence[Int[np.ndarray, "_"]],
    row_length: int | None,
    rows_per_shard: int | None,
    *,
    num_row_shards: int,
    context: int = 1,
) -> tuple[int, int]:
    """The row length T and the number of rows per microbatch and shard with the least padding where groups may be split.

    A value that is given is kept. Rows are made as short as the steps with the most tokens allow, in microbatches of at
    most MICROBATCH_TOKENS on each device that shares rows, unless one must be larger. Among choices within WORTH of the best, the largest
    microbatch wins, then the shortest row. Raises UserError where a microbatch of a given size cannot hold a group.
    """
    multiple, budget = SPLIT_MULTIPLE if context == 1 else ROW_MULTIPLE * context, MICROBATCH_TOKENS * context
    shortest = row_length or round_up(int(lengths.parts.max()), multiple)
    longest = row_length or round_up(int(lengths.groups.max()), multiple)
    needed = num_parts(lengths, shortest)  # rows of a microbatch
    sample, computed = largest_steps(lengths, steps), {}
    most = max(budget // shortest, -(-needed // num_row_shards))
    for per_shard in [rows_per_shard] if rows_per_shard else range(1, most + 1):
        B = per_shard * num_row_shards
        low = shortest if needed <= B else longest
        high = max(low, budget // per_shard // multiple * multiple)
        for T in [row_length] if row_length else fitted(sample, low, high, rows_per_block=B, multiple=multiple):
            if needed <= B or T >= longest > shortest:
                blocks = [-(-len(pack_split(step, capacity=T, rows_per_block=B).rows) // B) for step in sample]
                computed[T, per_shard] = sum(blocks) * B * T
    if not computed:
        raise UserError(
            f"with rows.length={row_length} the parts of a group need {counted(needed, 'row')} of one microbatch, which has "
            f"{counted((rows_per_shard or 0) * num_row_shards, 'row')}; raise rows.length or rows.per_shard={rows_per_shard}."
        )
    good = [choice for choice, positions in computed.items() if positions <= (1 + WORTH) * min(computed.values())]
    return max(good, key=lambda choice: (choice[0] * choice[1], -choice[0]))


def fitted(sample: Sequence[GroupLengths], low: int, high: int, *, rows_per_block: int, multiple: int) -> list[int]:
    """Row lengths from `low` to `high` to compare, multiples of a number: for the smallest numbers of microbatches, the
    shortest that all steps fit; only the longest where these numbers are large, because little padding is left then."""
    total = max(int(step.groups.sum()) for step in sample)
    fewest = -(-total // (high * rows_per_block))
    if fewest > MOST_BLOCKS:
        return [high]
    found = []
    for num_blocks in range(fewest, fewest + MOST_BLOCKS):

        def all_fit(T: int, num_blocks: int = num_blocks) -> bool:
            shape = {"capacity": T, "rows_per_block": rows_per_block, "num_blocks": num_blocks}
            return all(pack_into(step, **shape) is not None for step in sample)

        least = round_up(-(-total // (num_blocks * rows_per_block)), multiple)
        lengths = range(max(low, least), high + 1, multiple)
        at = bisect_left(lengths, True, key=all_fit)
        found += lengths[at : at + 1]
        if least <= low:
            break
    return found or [high]


def largest_steps(lengths: GroupLengths, steps: Sequence[Int[np.ndarray, "_"]]) -> list[GroupLengths]:
    """The steps with the most tokens; of a step that is a whole data set, every few groups."""
    sizes = lengths.groups
    largest = sorted(steps, key=lambda members: -int(sizes[members].sum()))[:NUM_SAMPLED_STEPS]
    return [lengths.of(members[:: -(-len(members) // MOST_SAMPLED)]) for members in largest]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
