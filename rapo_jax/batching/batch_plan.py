"""The batch plan: how the groups of every optimizer step are packed into rows. steps.py says which groups those are.

It is a function of the steps and of token lengths alone. Every host derives the same plan, the position in the data is one
integer (the step), and all steps have one shape, so that nothing recompiles.

    step 0 takes groups 5 0 3 2 of the shuffled groups; with rows of 10 tokens and sizes 6 3 4 5 they fit two rows:

        row 0   [5 5 5 5 5 5 3 3 3 3]
        row 1   [2 2 2 2 2 0 0 0 . .]
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.batch import Batch, Scored, Shape
from rapo_jax.errors import UserError, counted

StepRows = list[list[int]]  # group indices of one step, row by row

ROW_MULTIPLE = 128  # row lengths are multiples of the tile width of accelerators
MICROBATCH_TOKENS = 4096  # most tokens of an automatic microbatch on each row shard, unless a group is longer
NUM_SAMPLED_STEPS = 16  # steps on which row lengths are compared
WORTH = 0.01  # additional padding, as a share, that a larger microbatch may cost


@dataclass(frozen=True)
class Group:
    """A tokenized prompt with its responses, the preferred one first; a missing response is empty.

    `side` is one of the constants of rapo_jax/batch.py; `rewards` are those under the group's goal, NaN where unknown.
    `row` is the source's row, for error messages; groups of the same responses under other goals share a `pair`. `unrelated` is a response to another prompt, for objectives that
    estimate a divergence; either all groups of a data set have one or none.
    """

    prompt: Int[np.ndarray, "_"]
    responses: tuple[Int[np.ndarray, "_"], ...]
    rewards: tuple[float, ...]
    side: int
    row: int
    weight: float = 1.0
    unrelated: Int[np.ndarray, "_"] | None = None
    pair: int | None = None

    @property
    def continuations(self) -> tuple[Int[np.ndarray, "_"], ...]:
        """What follows the prompt, in branches 1, 2, ...: the responses, and the unrelated one if there is any."""
        return self.responses if self.unrelated is None else (*self.responses, self.unrelated)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.continuations))

    def num_scored(self, scored: Scored) -> int:
        if scored == "last":
            return sum(len(response) > 0 for response in self.responses)
        return sum(map(len, self.continuations)) + (len(self.prompt) - 1) * (scored == "prompt_too")


def group_lengths(groups: Sequence[Group]) -> tuple[Int[np.ndarray, "G"], Int[np.ndarray, "G _"]]:
    """Lengths in tokens of the prompts, and of the A - 1 branches that follow each."""
    prompts = np.array([len(group.prompt) for group in groups])
    return prompts, np.array([[len(tokens) for tokens in group.continuations] for group in groups])


def num_branches(groups: Sequence[Group]) -> int:
    """A, the number of branches of a group (its prompt included): the same for all groups of a data set."""
    return 1 + len(groups[0].continuations)


@dataclass(frozen=True)
class BatchPlan:
    """`steps[s]` are the rows of optimizer step s; `shape` fits them all."""

    steps: list[StepRows]
    shape: Shape
    real_tokens: int

    @property
    def real_token_fraction(self) -> float:
        """Share of the computed row positions that hold a token."""
        B, T = self.shape.B, self.shape.T
        return self.real_tokens / sum(-(-len(rows) // B) * B * T for rows in self.steps)


def pack(sizes: Sequence[int], *, capacity: int) -> StepRows:
    """Best-fit decreasing: the largest item first, each into the fullest row that still has room for it.

    >>> pack([6, 3, 4, 5], capacity=10)
    [[0, 2], [3, 1]]
    """
    rows: StepRows = []
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
    steps: Sequence[Int[np.ndarray, "_"]],
    *,
    row_length: int | None,
    rows_per_shard: int | None,
    num_row_shards: int,
    scored: Scored = "responses",
) -> BatchPlan:
    """Packs every step into rows of one shape. Raises UserError when a group does not fit a row."""
    sizes = np.array([group.num_tokens for group in groups])
    T, rows_per_shard = choose_rows(sizes, steps, row_length, rows_per_shard, num_row_shards=num_row_shards)
    refuse_oversized(groups, sizes, T)
    packed = []
    for members in steps:
        rows = pack(sizes[members].tolist(), capacity=T)
        packed.append([[int(members[item]) for item in row] for row in rows])
    most_rows, B = max(map(len, packed)), rows_per_shard * num_row_shards
    num_scored = np.array([group.num_scored(scored) for group in groups])
    shape = Shape(
        M=-(-most_rows // B),
        B=B,
        T=T,
        S=round_up(max(int(num_scored[row].sum()) for rows in packed for row in rows), 8),
        P=max(len(row) for rows in packed for row in rows),
        C=len(groups[0].responses),
        scored=scored,
        unrelated=groups[0].unrelated is not None,
    )
    return BatchPlan(packed, shape, real_tokens=int(sum(sizes[members].sum() for members in steps)))


def choose_rows(
    sizes: Int[np.ndarray, "G"],
    steps: Sequence[Int[np.ndarray, "_"]],
    row_length: int | None,
    rows_per_shard: int | None,
    *,
    num_row_shards: int,
) -> tuple[int, int]:
    """The row length T and the number of rows per microbatch and shard with the least padding for these lengths.

    A value that is given is kept. Multiples of ROW_MULTIPLE and microbatches of at most MICROBATCH_TOKENS are tried on
    a sample of the steps; among choices within WORTH of the best, the largest microbatch wins, then the shortest row.
    """
    longest = round_up(int(sizes.max()), ROW_MULTIPLE)
    lengths = [row_length] if row_length else range(longest, max(longest, MICROBATCH_TOKENS) + 1, ROW_MULTIPLE)
    sample = steps[:: -(-len(steps) // NUM_SAMPLED_STEPS)]
    computed = {}
    for T in lengths:
        num_rows = np.array([len(pack(sizes[members].tolist(), capacity=T)) for members in sample])
        for per_shard in [rows_per_shard] if rows_per_shard else range(1, max(1, MICROBATCH_TOKENS // T) + 1):
            B = per_shard * num_row_shards
            computed[T, per_shard] = int((-(-num_rows // B) * B * T).sum())
    fewest = min(computed.values())
    good = [choice for choice, positions in computed.items() if positions <= (1 + WORTH) * fewest]
    return max(good, key=lambda choice: (choice[0] * choice[1], -choice[0]))


def refuse_oversized(groups: Sequence[Group], sizes: Int[np.ndarray, "G"], T: int) -> None:
    oversized = np.flatnonzero(sizes > T)
    if len(oversized):
        worst = oversized[np.argmax(sizes[oversized])]
        raise UserError(
            f"{counted(len(oversized), 'group of a prompt and its responses does', 'groups of a prompt and its responses do')} not fit rows of {T} tokens; the longest, from "
            f"row {groups[worst].row}, has {sizes[worst]}. Raise rows.length to {round_up(int(sizes[worst]), 8)}, "
            f"or lower data.max_length."
        )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def materialise(
    groups: Sequence[Group],
    rows: StepRows,
    shape: Shape,
    *,
    mine: Sequence[int],
    reference: Float[np.ndarray, "G A"] | None = None,
) -> Batch[np.ndarray]:
    """The arrays of one step, only for the rows `mine` (of B) of each microbatch; see rapo_jax/batch.py.

    Row r of the step is row r % B of microbatch r // B. `reference` are cached log-probabilities of all groups.
    """
    batch = blank(shape, len(mine), num_microbatches=-(-len(rows) // shape.B))
    place = {b: i for i, b in enumerate(mine)}
    for r, members in enumerate(rows):
        m, b = divmod(r, shape.B)
        if b in place:
            fill_row(batch, (m, place[b]), [groups[member] for member in members], shape.scored)
            if reference is not None:
                batch.reference[m, place[b], : len(members)] = reference[members]
    return batch


def blank(shape: Shape, num_rows: int, *, num_microbatches: int) -> Batch[np.ndarray]:
    lead = (shape.M, num_rows)
    tokens = [np.zeros((*lead, shape.T), np.int32) for _ in range(4)]
    nothing = shape.P * shape.A
    return Batch(
        *tokens,
        source=np.zeros((*lead, shape.S), np.int32),
        target=np.zeros((*lead, shape.S), np.int32),
        slot=np.full((*lead, shape.S), nothing, np.int32),
        side=np.full((*lead, shape.P), -1, np.int32),
        weight=np.zeros((*lead, shape.P), np.float32),
        reward=np.full((*lead, shape.P, shape.C), np.nan, np.float32),
        reference=np.full((*lead, shape.P, shape.A), np.nan, np.float32),
        num_microbatches=np.asarray(num_microbatches, np.int32),
    )


def fill_row(batch: Batch[np.ndarray], at: tuple[int, int], groups: Sequence[Group], scored: Scored) -> None:
    """Lays the groups out one after another in row `at` of the arrays, in place."""
    t = s = 0
    for p, group in enumerate(groups):
        start, length = t, len(group.prompt)
        branches = [(0, group.prompt, 0), *((c + 1, y, length) for c, y in enumerate(group.continuations))]
        for branch, tokens, position in branches:
            end = t + len(tokens)
            batch.tokens[at][t:end] = tokens
            batch.position[at][t:end] = np.arange(position, position + len(tokens))
            batch.group[at][t:end] = p + 1
            batch.branch[at][t:end] = branch
            sources, targets = scored_positions(tokens, t, branch=branch, before=start + length - 1, scored=scored)
            places = slice(s, s + len(targets))
            batch.source[at][places], batch.target[at][places] = sources, targets
            batch.slot[at][places] = p * batch.num_branches + branch
            t, s = end, places.stop
        batch.side[at][p] = group.side
        batch.weight[at][p] = group.weight
        batch.reward[at][p] = group.rewards


def scored_positions(
    tokens: Int[np.ndarray, "_"], start: int, *, branch: int, before: int, scored: Scored
) -> tuple[Sequence[int], Sequence[int] | Int[np.ndarray, "_"]]:
    """(positions of hidden states, tokens they predict) of a branch at `start`; `before` is the position of the prompt's last token."""
    end = start + len(tokens)
    if scored == "last":  # the state at the last token is what a reward model reads; it predicts nothing
        return ([end - 1], [0]) if branch and len(tokens) else ([], [])
    if branch == 0:
        return (range(start, end - 1), tokens[1:]) if scored == "prompt_too" else ([], [])
    return ([before, *range(start, end - 1)], tokens) if len(tokens) else ([], [])
