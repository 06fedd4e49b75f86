"""The batch plan follows from token lengths and the seed alone, and every host reads its own part of it."""

import itertools

import jax
import numpy as np

from rapo_jax.data import pipeline
from rapo_jax.data.packing import materialise
from tests.invariants import tiny

GROUPS = tiny.random_groups(60)


def plan(*, num_row_shards=1, groups=GROUPS, seed=0, batch_size=12, num_epochs=1.0):
    config = tiny.tiny_config(
        seed=seed, train={"batch_size": batch_size, "num_epochs": num_epochs}, rows={"length": 128, "per_shard": 2}
    )
    return pipeline.plan_training(groups, config, num_row_shards=num_row_shards)


def members(plan):
    return [sorted(member for row in rows for member in row) for rows in plan.steps]


def test_an_epoch_holds_every_group_once_and_every_step_exactly_batch_size():
    """When this fails, a learning rate tuned at 128 pairs a step is applied to about 128, or data is lost unseen."""
    steps = members(plan())
    assert [len(step) for step in steps] == [12] * 5
    assert sorted(itertools.chain(*steps)) == list(range(60))


def test_steps_across_epochs_lose_nothing_and_epochs_differ():
    """When this fails, the groups that do not fill the last batch of an epoch are never trained on."""
    steps = members(plan(batch_size=25, num_epochs=2.5))
    assert [len(step) for step in steps] == [25] * 6
    counts = np.bincount(list(itertools.chain(*steps)), minlength=60)
    assert counts.sum() == 150 and set(counts) == {2, 3}


def test_the_plan_depends_on_the_seed_and_on_no_number_of_hosts():
    """When this fails, a run resumed on another slice sees other batches, or two hosts train on different ones."""
    assert plan().steps == plan().steps
    assert members(plan(seed=1)) != members(plan())
    for num_row_shards in (2, 8):
        assert members(plan(num_row_shards=num_row_shards)) == members(plan())


def test_a_host_materialises_the_very_rows_that_the_whole_has_there():
    """When this fails, hosts disagree about which tokens stand in which row, and the loss is a mixture."""
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
