"""The batch plan is a function of token lengths and the seed alone, and every host reads its own part of it."""

import itertools

import jax
import numpy as np
import pytest

from rapo_jax.batch import CHOSEN_SIDE, REJECTED_SIDE
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group, make_plan, materialise
from rapo_jax.batching.steps import NO_TWIN, find_twins, shuffled_steps
from tests import tiny

GROUPS = tiny.random_groups(60)


def plan(*, num_row_shards=1, groups=GROUPS, seed=0, batch_size=12, num_epochs=1.0):
    config = tiny.tiny_config(
        seed=seed, train={"batch_size": batch_size, "num_epochs": num_epochs}, rows={"length": 128, "per_shard": 2}
    )
    return pipeline.plan_training(groups, config, num_row_shards=num_row_shards)


def members(plan):
    return [sorted(member for row in rows for member in row) for rows in plan.steps]


def test_an_epoch_holds_every_group_once_and_every_step_exactly_batch_size():
    """When this fails, a learning rate tuned at 128 pairs a step is applied to about 128, or data is silently lost."""
    steps = members(plan())
    assert [len(step) for step in steps] == [12] * 5
    assert sorted(itertools.chain(*steps)) == list(range(60))


def test_steps_across_epochs_lose_nothing_and_epochs_differ():
    """When this fails, the groups that do not fill the last batch of an epoch are never trained on."""
    steps = members(plan(batch_size=25, num_epochs=2.5))
    assert [len(step) for step in steps] == [25] * 6
    counts = np.bincount(list(itertools.chain(*steps)), minlength=60)
    assert counts.sum() == 150 and set(counts) == {2, 3}


def test_the_plan_depends_on_the_seed_but_not_on_the_number_of_hosts():
    """When this fails, a run resumed on another slice sees other batches, or two hosts train on different ones."""
    assert plan().steps == plan().steps
    assert members(plan(seed=1)) != members(plan())
    for num_row_shards in (2, 8):
        assert members(plan(num_row_shards=num_row_shards)) == members(plan())


def test_a_host_materialises_its_rows_of_the_global_batch():
    """When this fails, hosts disagree about the tokens of a row, and the loss mixes groups."""
    whole_plan = plan(num_row_shards=2)
    shape = whole_plan.shape
    assert shape.M > 1 and shape.B == 4
    for rows in whole_plan.steps:
        whole = materialise(GROUPS, rows, shape, mine=range(4))
        for mine in ([0], [1, 3], [2, 3]):
            part = materialise(GROUPS, rows, shape, mine=mine)
            jax.tree.map(
                lambda p, w, m=mine: np.testing.assert_array_equal(p, w[:, m] if np.ndim(w) else w), part, whole
            )


def test_batches_resume_at_any_step():
    """When this fails, a resumed run repeats or skips data."""
    whole_plan = plan()
    start = pipeline.batches(GROUPS, whole_plan, range(whole_plan.shape.B))
    every = list(start(0))
    assert len(every) == 5
    for first in (1, 4):
        for resumed, once in zip(start(first), every[first:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, resumed, once)


LENGTHS = np.random.default_rng(0).lognormal(6.5, 0.5, size=4000).astype(int).clip(60, 2000)


def planned(sizes, *, num_row_shards, batch_size=128, rows_per_shard=None, row_length=None):
    groups = [
        Group(np.zeros(40, np.int32), (np.zeros(size - 40, np.int32),), (5.0,), 1, i) for i, size in enumerate(sizes)
    ]
    steps = shuffled_steps(sizes, batch_size=batch_size, num_steps=len(sizes) // batch_size, seed=0)
    return make_plan(groups, steps, row_length=row_length, rows_per_shard=rows_per_shard, num_row_shards=num_row_shards)


@pytest.mark.parametrize("num_row_shards", [1, 4, 8, 16])
def test_automatic_rows_have_at_most_5_percent_padding(num_row_shards):
    """When this fails, users pay for padding."""
    chosen = planned(LENGTHS, num_row_shards=num_row_shards)
    assert chosen.real_token_fraction >= 0.95
    positions = chosen.shape.B // num_row_shards * chosen.shape.T
    assert positions <= max(4096, LENGTHS.max() + 128)


def test_rows_length_and_rows_per_shard_are_obeyed():
    """When this fails, rows.length and rows.per_shard are options that nothing reads."""
    asked = planned(LENGTHS, num_row_shards=2, row_length=2304, rows_per_shard=3)
    assert (asked.shape.T, asked.shape.B) == (2304, 6)


def test_neighbouring_steps_have_nearly_equal_numbers_of_tokens():
    """When this fails, a step that happens to draw the longest groups needs one more microbatch, mostly empty."""
    steps = shuffled_steps(LENGTHS, batch_size=128, num_steps=31, seed=0)
    totals = np.array([LENGTHS[step].sum() for step in steps])
    drawn = LENGTHS[np.random.default_rng([0, 0]).permutation(4000)[: 31 * 128]].reshape(31, 128).sum(1)
    assert np.ptp(totals[:16]) < 0.02 * totals.mean() < np.ptp(drawn)


def test_a_longer_run_begins_with_the_steps_of_a_shorter_one():
    """When this fails, a run with more epochs cannot be compared with one of fewer."""
    short, long = (shuffled_steps(LENGTHS, batch_size=64, num_steps=n, seed=3) for n in (40, 150))
    np.testing.assert_array_equal(short, long[:40])


def pairs_under_two_goals(num_pairs, *, alone):
    """Groups of `num_pairs` pairs under both goals each, and of `alone` more pairs whose other goal was dropped."""
    rng = np.random.default_rng(1)
    sides = [(row, side) for row in range(num_pairs) for side in (CHOSEN_SIDE, REJECTED_SIDE)]
    sides += [(num_pairs + n, CHOSEN_SIDE) for n in range(alone)]
    responses = [np.zeros(size, np.int32) for size in rng.integers(5, 200, len(sides))]
    return [
        Group(np.zeros(9, np.int32), (response, response), (5.0, 1.0), side, row, pair=row)
        for (row, side), response in zip(sides, responses, strict=True)
    ]


@pytest.mark.parametrize("alone", [0, 1, 2, 5])
def test_twins_share_a_step_and_every_epoch_has_every_group_once(alone):
    """When this fails, rows.twins=together separates the goals of a pair, or trains on some groups twice."""
    groups = pairs_under_two_goals(150, alone=alone)
    sizes, twins = np.array([group.num_tokens for group in groups]), find_twins(groups)
    assert (twins == NO_TWIN).sum() == alone
    num_steps = 3 * len(groups) // 8
    steps = shuffled_steps(sizes, batch_size=8, num_steps=num_steps, seed=5, twins=twins)
    for step in steps:
        members = step.tolist()
        assert all(members.count(twins[member]) == members.count(member) for member in members if twins[member] >= 0)
    assert set(np.bincount(np.concatenate(steps), minlength=len(groups))) <= {2, 3}, (
        "three epochs, less an incomplete step"
    )


def test_only_the_two_goals_of_the_same_responses_are_twins():
    """When this fails, goals of different pairs of one row are brought together, and those of one pair are not: three pairs of
    row 7, whose first lost its goal of the chosen response to truncation."""
    found = [
        (0, REJECTED_SIDE),
        (1, CHOSEN_SIDE),
        (1, REJECTED_SIDE),
        (2, REJECTED_SIDE),
        (None, CHOSEN_SIDE),
        (2, CHOSEN_SIDE),
    ]
    groups = [Group(np.zeros(9, np.int32), (), (), side, 7, pair=pair) for pair, side in found]
    assert find_twins(groups).tolist() == [NO_TWIN, 2, 1, 5, NO_TWIN, 3]


def test_twins_together_keep_neighbouring_steps_of_equal_size():
    """When this fails, putting twins together costs padding."""
    groups = pairs_under_two_goals(2000, alone=0)
    sizes, twins = np.array([group.num_tokens for group in groups]), find_twins(groups)
    together = shuffled_steps(sizes, batch_size=128, num_steps=31, seed=0, twins=twins)
    totals = np.array([sizes[step].sum() for step in together])
    assert np.ptp(totals[:16]) < 0.02 * totals.mean()
