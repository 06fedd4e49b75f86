"""The tiles that are counted to deal tokens to devices, and FLOPs to kernels, are those of the mask of attention."""

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.batching.batch_plan import make_plan, materialise
from rapo_jax.batching.visibility import visible_tiles_of_row
from rapo_jax.models.attention.layout import Layout, in_window, sees
from tests import tiny

GROUPS = tiny.random_groups(24, prompt=(9, 90), response=(1, 60))


@pytest.mark.parametrize("tile", [(64, 64), (64, 32), (32, 64)])
@pytest.mark.parametrize("window", [2**30, 40])
@pytest.mark.parametrize("context", [1, 2])
def test_tiles_counted_from_runs_are_those_of_the_mask(tile, window, context):
    """When this fails, `rapo plan` counts FLOPs that no kernel computes, or one chip gets more of them than others."""
    limits = {"row_length": 512, "rows_per_shard": 8, "num_row_shards": 1, "context": context}
    plan = make_plan(GROUPS, [np.arange(24)], **limits)
    batch = materialise(GROUPS, plan.steps[0], plan.shape, mine=range(8))
    assert (batch.group == 0).any()
    for b in range(8):
        row = [x[0, b] for x in (batch.position, batch.group, batch.branch)]
        index = np.where(row[1] > 0, row[0], 512 + np.arange(512))
        layout = Layout(*(jnp.asarray(x[None]) for x in (index, *row)))
        mask = np.asarray(sees(layout, layout) & in_window(layout, layout, window))[0]
        expected = mask.reshape(512 // tile[0], tile[0], 512 // tile[1], tile[1]).any((1, 3))
        assert (visible_tiles_of_row(*row, window=window, tile=tile) == expected).all()
