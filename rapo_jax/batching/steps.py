"""Which groups make up which optimizer step: a function of the data, the seed and token lengths, the same on every host."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rapo_jax.batch import CHOSEN_SIDE, REJECTED_SIDE
from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.dealing import deal

BALANCED_STEPS = 16  # consecutive steps among which long and short groups are spread evenly
NO_TWIN = -1


def shuffled_steps(
    sizes: Int[np.ndarray, "G"],
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
    twins: Int[np.ndarray, "G"] | None = None,
) -> list[Int[np.ndarray, "batch"]]:
    """The groups of each step: consecutive slices of `batch_size` from a stream of epochs, each freshly shuffled.

    A step may span two epochs, so that every step has exactly `batch_size` groups and no group is skipped within a run.
    Up to BALANCED_STEPS consecutive steps within an epoch then exchange groups until all have about the same number of
    tokens, so that they need about the same number of microbatches and little padding.

    `sizes` are the groups' numbers of tokens. With `twins` (see `find_twins`) two twins share a step; `batch_size` is then
    even. A longer run begins with the steps of a shorter one.
    """
    num_groups = len(sizes)
    num_epochs = -(-num_steps * batch_size // num_groups)
    orders = [np.random.default_rng([seed, epoch]).permutation(num_groups) for epoch in range(num_epochs + 1)]
    if twins is not None:
        assert batch_size % 2 == 0, "twins fill a step two by two"
        orders = [
            side_by_side(order, twins, starts_odd=epoch * num_groups % 2 == 1) for epoch, order in enumerate(orders)
        ]
    stream = np.concatenate(orders)
    steps = stream[: len(stream) // batch_size * batch_size].reshape(-1, batch_size)
    for epoch in range(num_epochs):
        first, end = -(-epoch * num_groups // batch_size), (epoch + 1) * num_groups // batch_size  # wholly within it
        for start in range(first, end, BALANCED_STEPS):
            window = slice(start, min(start + BALANCED_STEPS, end))
            steps[window] = deal(steps[window], sizes, at_once=1 if twins is None else 2)
    return list(steps[:num_steps])


def sequential_steps(num_groups: int, *, batch_size: int) -> list[Int[np.ndarray, "_"]]:
    """Every group once, in order; the last step may be short. For evaluation."""
    return [np.arange(start, min(start + batch_size, num_groups)) for start in range(0, num_groups, batch_size)]


def find_twins(groups: Sequence[Group]) -> Int[np.ndarray, "G"]:
    """The index of each group's twin: the same pair under its other goal; or NO_TWIN."""
    twins = np.full(len(groups), NO_TWIN)
    waiting: dict[tuple[int | None, int], int] = {}  # by pair and side
    other_side = {CHOSEN_SIDE: REJECTED_SIDE, REJECTED_SIDE: CHOSEN_SIDE}
    for n, group in enumerate(groups):
        if group.pair is None or group.side not in other_side:
            continue
        twin = waiting.pop((group.pair, other_side[group.side]), None)
        if twin is None:
            waiting[group.pair, group.side] = n
        else:
            twins[n], twins[twin] = twin, n
    return twins


def side_by_side(order: Int[np.ndarray, "G"], twins: Int[np.ndarray, "G"], *, starts_odd: bool) -> Int[np.ndarray, "G"]:
    """The groups in this order, each followed by its twin; those without one are paired with each other.

    An epoch that starts at an odd place of the stream begins with a group without a twin (it has one: its number of groups
    is odd), so that all pairs start at even places and no step of an even size separates one.

    >>> side_by_side(np.array([3, 0, 4, 2, 1]), np.array([1, 0, NO_TWIN, NO_TWIN, NO_TWIN]), starts_odd=True).tolist()
    [3, 0, 1, 4, 2]
    """
    alone = [group for group in order.tolist() if twins[group] == NO_TWIN]
    first, paired = (alone[:1], alone[1:]) if starts_odd else ([], alone)
    last = paired[-1:] if len(paired) % 2 else []
    neighbour = dict(zip(paired[::2], paired[1::2], strict=False))
    placed, seen = list(first), {*first, *last}
    for group in order.tolist():
        if group not in seen:
            two = (group, neighbour.get(group, int(twins[group])))
            placed += two
            seen |= {*two}
    return np.array([*placed, *last])
