"""The batch plan: which groups meet in which optimizer step, and how they share rows.

A plan follows from token lengths and the seed alone. Every host derives the same plan, the position in the data is one
integer (the step), and all steps have one shape, so that nothing recompiles.

    step 0 takes groups 5 0 3 2 of the shuffled stream; with rows of 10 tokens and sizes 6 3 4 5 they share two rows:

        row 0   [5 5 5 5 5 5 3 3 3 3]
        row 1   [2 2 2 2 2 0 0 0 . .]
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapo_jax.batch import Batch, Shape
from rapo_jax.errors import UserError

Rows = list[list[int]]  # of one step: group indices, row by row

ROW_MULTIPLE = 128  # row lengths are multiples of the tile width of accelerators
ROOMY_ROW = 2048  # automatic rows hold about four average groups, but grow past this only for a longer group
MICROBATCH_TOKENS = 4096  # an automatic microbatch has about this many tokens on each row shard


@dataclass(frozen=True)
class Group:
    """A tokenized prompt with its responses, the preferred one first.

    `side` is one of the constants of rapo_jax/batch.py; `goal` and `rewards` are NaN where there are none. `row` is the
    source's row, for messages.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    rewards: tuple[float, ...]
    goal: float
    side: int
    row: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def num_scored(self) -> int:
        return sum(map(len, self.responses))


@dataclass(frozen=True)
class Plan:
    """`steps[s]` are the rows of optimizer step s; `shape` fits them all."""

    steps: list[Rows]
    shape: Shape
    real_tokens: int

    @property
    def real_token_fraction(self) -> float:
        """Share of the computed row positions that hold a token."""
        B, T = self.shape.B, self.shape.T
        return self.real_tokens / sum(-(-len(rows) // B) * B * T for rows in self.steps)


def shuffled_steps(num_groups: int, *, batch_size: int, num_steps: int, seed: int) -> list[np.ndarray]:
    """The groups of each step: consecutive cuts of `batch_size` from one stream of epochs, each freshly shuffled.

    A step may span two epochs, so that every step has exactly `batch_size` groups and no group is skipped within a run.
    """
    num_epochs = -(-num_steps * batch_size // num_groups)
    orders = [np.random.default_rng([seed, epoch]).permutation(num_groups) for epoch in range(num_epochs)]
    stream = np.concatenate(orders)[: num_steps * batch_size]
    return list(stream.reshape(num_steps, batch_size))


def sequential_steps(num_groups: int, *, batch_size: int) -> list[np.ndarray]:
    """Every group once, in order; the last step may be short. For evaluation."""
    return [np.arange(start, min(start + batch_size, num_groups)) for start in range(0, num_groups, batch_size)]


def pack(sizes: Sequence[int], *, capacity: int) -> Rows:
    """Best-fit decreasing: the largest item first, each into the fullest row that still has room for it.

    >>> pack([6, 3, 4, 5], capacity=10)
    [[0, 2], [3, 1]]
    """
    rows: Rows = []
    free: list[tuple[int, int]] = []  # (space, row), sorted
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(free, (sizes[item], -1))
        space, row = free.pop(at) if at < len(free) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        insort(free, (space - sizes[item], row))
    return rows


def make_plan(
    groups: Sequence[Group],
    steps: list[np.ndarray],
    *,
    row_length: int | None,
    rows_per_shard: int | None,
    num_row_shards: int,
) -> Plan:
    """Packs every step. Raises UserError when a group does not fit a row."""
    sizes = np.array([group.num_tokens for group in groups])
    T = row_length or automatic_row_length(sizes)
    refuse_oversized(groups, sizes, T)
    packed = []
    for members in steps:
        rows = pack(sizes[members].tolist(), capacity=T)
        packed.append([[int(members[item]) for item in row] for row in rows])
    most_rows = max(map(len, packed))
    if rows_per_shard is None:
        rows_per_shard = automatic_rows_per_shard(-(-most_rows // num_row_shards), T)
    B = rows_per_shard * num_row_shards
    scored = np.array([group.num_scored for group in groups])
    shape = Shape(
        M=-(-most_rows // B),
        B=B,
        T=T,
        S=round_up(max(int(scored[row].sum()) for rows in packed for row in rows), 8),
        P=max(len(row) for rows in packed for row in rows),
        C=len(groups[0].responses),
    )
    return Plan(packed, shape, real_tokens=int(sum(sizes[members].sum() for members in steps)))


def automatic_row_length(sizes: np.ndarray) -> int:
    roomy = min(4 * int(sizes.mean()), ROOMY_ROW)
    return round_up(max(int(sizes.max()), roomy), ROW_MULTIPLE)


def automatic_rows_per_shard(most_rows: int, T: int) -> int:
    """Of the fewest microbatches of about MICROBATCH_TOKENS that hold a step's rows, the smallest size: 18 rows of 256
    take two microbatches, so 9 each and not 16."""
    num_microbatches = -(-most_rows // max(1, MICROBATCH_TOKENS // T))
    return -(-most_rows // num_microbatches)


def refuse_oversized(groups: Sequence[Group], sizes: np.ndarray, T: int) -> None:
    oversized = np.flatnonzero(sizes > T)
    if len(oversized):
        worst = oversized[np.argmax(sizes[oversized])]
        raise UserError(
            f"{len(oversized)} group(s) of a prompt and its responses do not fit rows of {T} tokens; the longest, from "
            f"row {groups[worst].row}, has {sizes[worst]}. Raise rows.length to {round_up(int(sizes[worst]), 8)}, "
            f"or lower data.max_length."
        )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def materialise(groups: Sequence[Group], rows: Rows, shape: Shape, *, mine: Sequence[int]) -> Batch:
    """The arrays of one step, only for the rows `mine` (of B) of each microbatch; see rapo_jax/batch.py.

    Row r of the step is row r % B of microbatch r // B.
    """
    batch = blank(shape, len(mine), num_microbatches=-(-len(rows) // shape.B))
    place = {b: i for i, b in enumerate(mine)}
    for r, members in enumerate(rows):
        m, b = divmod(r, shape.B)
        if b in place:
            fill_row(batch, (m, place[b]), [groups[member] for member in members])
    return batch


def blank(shape: Shape, num_rows: int, *, num_microbatches: int) -> Batch:
    lead = (shape.M, num_rows)
    tokens = [np.zeros((*lead, shape.T), np.int32) for _ in range(4)]
    nothing = shape.P * (shape.C + 1)
    return Batch(
        *tokens,
        source=np.zeros((*lead, shape.S), np.int32),
        target=np.zeros((*lead, shape.S), np.int32),
        slot=np.full((*lead, shape.S), nothing, np.int32),
        side=np.full((*lead, shape.P), -1, np.int32),
        goal=np.full((*lead, shape.P), np.nan, np.float32),
        reward=np.full((*lead, shape.P, shape.C), np.nan, np.float32),
        num_microbatches=np.int32(num_microbatches),
    )


def fill_row(batch: Batch, at: tuple[int, int], groups: Sequence[Group]) -> None:
    """Lays the groups out one after another in row `at` of the arrays, in place."""
    t = s = 0
    for p, group in enumerate(groups):
        start, length = t, len(group.prompt)
        branches = [(0, group.prompt, 0), *((c + 1, y, length) for c, y in enumerate(group.responses))]
        for branch, tokens, position in branches:
            end = t + len(tokens)
            batch.tokens[at][t:end] = tokens
            batch.position[at][t:end] = np.arange(position, position + len(tokens))
            batch.group[at][t:end] = p + 1
            batch.branch[at][t:end] = branch
            if branch:
                scored = slice(s, s + len(tokens))
                batch.source[at][scored] = [start + length - 1, *range(t, end - 1)]
                batch.target[at][scored] = tokens
                batch.slot[at][scored] = p * (batch.num_responses + 1) + branch
                s += len(tokens)
            t = end
        batch.side[at][p] = group.side
        batch.goal[at][p] = group.goal
        batch.reward[at][p] = group.rewards
