"""The batch plan: how the groups of every optimizer step are packed into rows. steps.py says which groups those are.

It is a function of the steps and of token lengths alone. Every host derives the same plan, the position in the data is one
integer (the step), and all steps have one shape, so that nothing recompiles. Where rows that hold whole groups would be
mostly padding, groups are split between their responses: splitting.py.

    step 0 takes groups 5 0 3 2 of the shuffled groups; with rows of 10 tokens and sizes 6 3 4 5 they fit two rows:

        row 0   [5 5 5 5 5 5 3 3 3 3]
        row 1   [2 2 2 2 2 0 0 0 . .]
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.batch import Batch, Scored, Shape
from rapo_jax.batching.dealing import ROW_MULTIPLE, dealt_to_shards, refuse_indivisible
from rapo_jax.batching.splitting import (
    MICROBATCH_TOKENS,
    NUM_SAMPLED_STEPS,
    WORTH,
    GroupLengths,
    Moved,
    Packed,
    choose_split_rows,
    pack_split,
    round_up,
)
from rapo_jax.config.tree import Split
from rapo_jax.errors import UserError, counted

StepRows = list[list[int]]  # group indices of one step, row by row

ENOUGH = 0.9  # share of real tokens above which no group is split of itself
MOST_TO_SPLIT = 2000  # groups of a step; packing parts takes the square of their number, 6 s for these
CLEARLY = 0.05  # share of the positions that splitting groups must save to be chosen


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

    def num_scored_of(self, branches: Sequence[int], scored: Scored) -> int:
        """Of some branches, the prompt not among them."""
        lengths = [len(self.continuations[branch - 1]) for branch in branches]
        return sum(length > 0 for length in lengths) if scored == "last" else sum(lengths)


def group_lengths(groups: Sequence[Group]) -> tuple[Int[np.ndarray, "G"], Int[np.ndarray, "G _"]]:
    """Lengths in tokens of the prompts, and of the A - 1 branches that follow each."""
    prompts = np.array([len(group.prompt) for group in groups])
    return prompts, np.array([[len(tokens) for tokens in group.continuations] for group in groups])


def num_branches(groups: Sequence[Group]) -> int:
    """A, the number of branches of a group (its prompt included): the same for all groups of a data set."""
    return 1 + len(groups[0].continuations)


@dataclass(frozen=True)
class BatchPlan:
    """`steps[s]` are the rows of optimizer step s, each group in one of them; `shape` fits them all. `moved[s]`, where a group
    of step s is split, says which of its branches stand in other rows."""

    steps: list[StepRows]
    shape: Shape
    real_tokens: int
    moved: Mapping[int, Sequence[Moved]] = field(default_factory=dict)

    @property
    def num_positions(self) -> int:
        """Positions of the computed rows, over all steps."""
        B, T = self.shape.B, self.shape.T
        return sum(-(-len(rows) // B) * B * T for rows in self.steps)

    @property
    def real_token_fraction(self) -> float:
        """Share of the computed row positions that hold a token; of a split group's prompt only one copy counts."""
        return self.real_tokens / self.num_positions


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
    context: int = 1,
    scored: Scored = "responses",
    split: Split = "never",
) -> BatchPlan:
    """Packs every step into rows of one shape. Raises UserError when a group does not fit a row or, split, a response with its
    prompt, and for rows whose tokens cannot be split over `context` shards.

    split="auto" splits groups where at most ENOUGH of the positions would be real and splitting saves CLEARLY of them, in steps of at
    most MOST_TO_SPLIT groups: planning more takes longer than it is worth.
    """
    lengths, limits = GroupLengths(*group_lengths(groups)), (row_length, rows_per_shard)
    sizes, whole = lengths.groups, None
    shards = {"num_row_shards": num_row_shards, "context": context}
    refuse_indivisible(row_length, context)
    if split != "always":
        refuse_oversized(groups, sizes, row_length, parts=lengths.parts, context=context)
        T, per_shard = choose_rows(sizes, steps, *limits, **shards)
        packed = [Packed(pack(sizes[members].tolist(), capacity=T)) for members in steps]
        shape = {"T": T, "B": per_shard * num_row_shards, "context": context}
        whole = as_plan(groups, steps, packed, shape=shape, scored=scored)
        most = max(map(len, steps))
        if split == "never" or whole.real_token_fraction > ENOUGH or most > MOST_TO_SPLIT:
            return whole
    refuse_oversized(groups, lengths.parts, row_length, context=context)
    T, per_shard = choose_split_rows(lengths, steps, *limits, **shards)
    B = per_shard * num_row_shards
    packed = [pack_split(lengths.of(members), capacity=T, rows_per_block=B) for members in steps]
    parts = as_plan(groups, steps, packed, shape={"T": T, "B": B, "context": context}, scored=scored)
    saves = bool(parts.moved) and whole and parts.num_positions <= (1 - CLEARLY) * whole.num_positions
    return whole if whole and not saves else parts


def as_plan(
    groups: Sequence[Group],
    steps: Sequence[Int[np.ndarray, "_"]],
    packed: Sequence[Packed],
    *,
    shape: Mapping[str, int],
    scored: Scored,
) -> BatchPlan:
    """The plan of packed steps, whose rows hold indices into `members` of the step instead of groups. `shape` has T, B and the
    shards of a row's tokens, by which T is divisible and S is made so."""
    rows = [
        [[int(members[item]) for item in row] for row in each.rows] for members, each in zip(steps, packed, strict=True)
    ]
    num_scored = [group.num_scored(scored) for group in groups]
    most_scored = most_groups = 0
    for step, each in zip(rows, packed, strict=True):
        scored_by_row = [sum(num_scored[member] for member in row) for row in step]
        groups_by_row = [len(row) for row in step]
        for part in each.moved:
            number = groups[step[part.row][part.place]].num_scored_of(part.branches, scored)
            scored_by_row[part.row] -= number
            scored_by_row[part.to] += number
            groups_by_row[part.to] += 1
        most_scored, most_groups = max(most_scored, *scored_by_row), max(most_groups, *groups_by_row)
    moved = {number: each.moved for number, each in enumerate(packed) if each.moved}
    plan = Shape(
        **shape,
        M=-(-max(map(len, rows)) // shape["B"]),
        S=round_up(most_scored, 8 * shape["context"]),
        P=most_groups,
        C=len(groups[0].responses),
        scored=scored,
        unrelated=groups[0].unrelated is not None,
        split=bool(moved),
    )
    sizes = np.array([group.num_tokens for group in groups])
    return BatchPlan(rows, plan, real_tokens=int(sum(sizes[members].sum() for members in steps)), moved=moved)


def choose_rows(
    sizes: Int[np.ndarray, "G"],
    steps: Sequence[Int[np.ndarray, "_"]],
    row_length: int | None,
    rows_per_shard: int | None,
    *,
    num_row_shards: int,
    context: int = 1,
) -> tuple[int, int]:
    """The row length T and the number of rows per microbatch and shard with the least padding for these lengths.

    A value that is given is kept. Multiples of ROW_MULTIPLE and microbatches of at most MICROBATCH_TOKENS, both times the shards
    of a row's tokens, are tried on a sample of the steps; among choices within WORTH of the best, the largest microbatch
    wins, then the shortest row.
    """
    multiple, most = ROW_MULTIPLE * context, MICROBATCH_TOKENS * context
    longest = round_up(int(sizes.max()), multiple)
    lengths = [row_length] if row_length else range(longest, max(longest, most) + 1, multiple)
    sample = steps[:: -(-len(steps) // NUM_SAMPLED_STEPS)]
    computed = {}
    for T in lengths:
        num_rows = np.array([len(pack(sizes[members].tolist(), capacity=T)) for members in sample])
        for per_shard in [rows_per_shard] if rows_per_shard else range(1, max(1, most // T) + 1):
            B = per_shard * num_row_shards
            computed[T, per_shard] = int((-(-num_rows // B) * B * T).sum())
    fewest = min(computed.values())
    good = [choice for choice, positions in computed.items() if positions <= (1 + WORTH) * fewest]
    return max(good, key=lambda choice: (choice[0] * choice[1], -choice[0]))


GROUP = ("group of a prompt and its responses does", "groups of a prompt and its responses do")
PART = ("prompt with one response does", "prompts with one response do")


def refuse_oversized(
    groups: Sequence[Group],
    sizes: Int[np.ndarray, "G"],
    T: int | None,
    *,
    parts: Int[np.ndarray, "G"] | None = None,
    context: int = 1,
) -> None:
    """Raises UserError where a group is longer than a row of T tokens. `sizes` are those of whole groups, whose `parts` may fit,
    or without `parts` those of a prompt and its longest response."""
    oversized = np.flatnonzero(sizes > T) if T else ()
    if T and len(oversized):
        worst = oversized[np.argmax(sizes[oversized])]
        enough = round_up(int(sizes[worst]), ROW_MULTIPLE * context if context > 1 else 8)
        lower = "or lower data.max_length"
        if parts is not None and parts.max() <= T:
            lower = "lower data.max_length, or set rows.split=always: each prompt fits with one response"
        raise UserError(
            f"{counted(len(oversized), *(PART if parts is None else GROUP))} not fit rows of {T} tokens; the longest, from "
            f"row {groups[worst].row}, has {sizes[worst]}. Raise rows.length to {enough}, {lower}."
        )


def materialise(
    groups: Sequence[Group],
    rows: StepRows,
    shape: Shape,
    *,
    mine: Sequence[int],
    reference: Float[np.ndarray, "G A"] | None = None,
    moved: Sequence[Moved] = (),
) -> Batch[np.ndarray]:
    """The arrays of one step, only for the rows `mine` (of B) of each microbatch; see rapo_jax/batch.py. Where several devices
    share a row, its tokens are dealt to them.

    `reference` are cached log-probabilities of all groups; `moved` are the branches that stand in other rows than their
    groups.
    """
    batch = blank(shape, len(mine), num_microbatches=-(-len(rows) // shape.B))
    place = {b: i for i, b in enumerate(mine)}
    contents = parts_of_rows(groups, rows, moved)
    for r, members in enumerate(rows):
        m, b = divmod(r, shape.B)
        if b in place:
            fill_row(batch, (m, place[b]), contents[r], shape.scored)
            if reference is not None:
                batch.reference[m, place[b], : len(members)] = reference[members]
    if shape.split:
        tell_places(batch.summed_at, rows, moved, shape=shape, place=place)
    return batch if shape.context == 1 else dealt_to_shards(batch, shape.context)


@dataclass(frozen=True)
class PartOfGroup:
    """What a row holds of a group: its prompt and these branches. `at_home`: the prompt is scored here, and the loss is
    computed."""

    group: Group
    branches: Sequence[int]
    at_home: bool = True


def parts_of_rows(groups: Sequence[Group], rows: StepRows, moved: Sequence[Moved]) -> list[list[PartOfGroup]]:
    """The contents of every row: the groups at home there, then what was moved to it, in the order of `moved`."""
    away: dict[tuple[int, int], set[int]] = {}
    for part in moved:
        away.setdefault((part.row, part.place), set()).update(part.branches)
    every = range(1, num_branches(groups))
    contents = [
        [
            PartOfGroup(groups[member], [branch for branch in every if branch not in away.get((r, p), ())])
            for p, member in enumerate(members)
        ]
        for r, members in enumerate(rows)
    ]
    for part in moved:
        group = groups[rows[part.row][part.place]]
        contents[part.to].append(PartOfGroup(group, part.branches, at_home=False))
    return contents


def tell_places(
    summed_at: Int[np.ndarray, "M rows P E"],
    rows: StepRows,
    moved: Sequence[Moved],
    *,
    shape: Shape,
    place: Mapping[int, int],
) -> None:
    """Writes where in its microbatch each branch of a group at home in one of the rows `place` is summed, in place."""
    for r, members in enumerate(rows):
        m, b = divmod(r, shape.B)
        if b in place:
            here = b * shape.P + np.arange(len(members))
            summed_at[m, place[b], : len(members)] = here[:, None]
    next_place = [len(members) for members in rows]
    for part in moved:
        m, b = divmod(part.row, shape.B)
        if b in place:
            there = part.to % shape.B * shape.P + next_place[part.to]
            summed_at[m, place[b], part.place, list(part.branches)] = there
        next_place[part.to] += 1


def blank(shape: Shape, num_rows: int, *, num_microbatches: int) -> Batch[np.ndarray]:
    lead = (shape.M, num_rows)
    tokens = [np.zeros((*lead, shape.T), np.int32) for _ in range(4)]
    nothing, nowhere = shape.P * shape.A, shape.B * shape.P
    return Batch(
        *tokens,
        source=np.zeros((*lead, shape.S), np.int32),
        target=np.zeros((*lead, shape.S), np.int32),
        slot=np.full((*lead, shape.S), nothing, np.int32),
        side=np.full((*lead, shape.P), -1, np.int32),
        weight=np.zeros((*lead, shape.P), np.float32),
        reward=np.full((*lead, shape.P, shape.C), np.nan, np.float32),
        reference=np.full((*lead, shape.P, shape.A), np.nan, np.float32),
        summed_at=np.full((*lead, shape.P, shape.E), nowhere, np.int32),
        num_microbatches=np.asarray(num_microbatches, np.int32),
    )


def fill_row(batch: Batch[np.ndarray], at: tuple[int, int], parts: Sequence[PartOfGroup], scored: Scored) -> None:
    """Lays the parts out one after another in row `at` of the arrays, in place."""
    t = s = 0
    for p, part in enumerate(parts):
        group, start, length = part.group, t, len(part.group.prompt)
        branches = [(0, group.prompt, 0), *((c, group.continuations[c - 1], length) for c in part.branches)]
        for branch, tokens, position in branches:
            end = t + len(tokens)
            batch.tokens[at][t:end] = tokens
            batch.position[at][t:end] = np.arange(position, position + len(tokens))
            batch.group[at][t:end] = p + 1
            batch.branch[at][t:end] = branch
            if branch or part.at_home:
                sources, targets = scored_positions(tokens, t, branch=branch, before=start + length - 1, scored=scored)
                places = slice(s, s + len(targets))
                batch.source[at][places], batch.target[at][places] = sources, targets
                batch.slot[at][places] = p * batch.num_branches + branch
                s = places.stop
            t = end
        if part.at_home:
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
