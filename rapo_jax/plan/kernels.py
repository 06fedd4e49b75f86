"""Attention in the compiled program: which (query, key) pairs it computes, and the FLOPs of its kernels.

A program without kernels computes every pair of a row. Kernels, and the loops that replace them on a CPU, skip tiles in
which nothing is visible; the visible ones are counted on rows of the batch plan. What a kernel computes per tile is
part of its entry (rapo_jax/models/attention/kernel.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from rapo_jax.batching.batch_plan import BatchPlan, Group, materialise
from rapo_jax.batching.visibility import visible_tiles_of_row
from rapo_jax.models.attention.dispatch import KERNELS, computed_length, takes
from rapo_jax.models.spec import Spec
from rapo_jax.plan.program import Program

NUM_SAMPLED_ROWS = 16


@dataclass(frozen=True)
class Attention:
    """How a program attends.

    pairs_per_row: computed pairs per row and layer, on average.
    tiles_per_query_tile: visible key tiles of a query tile, on average: the trip count of loops in place of a kernel.
    scores_again: products of the scores' size that the backward pass recomputes (rapo_jax/accounting.py).
    products: matrix products per visible tile, by a substring of the compiled kernel's name.
    queries: of a row, that a call of the kernel computes: all, with what it was padded by, or those of one of `shards` devices.
    """

    name: str
    pairs_per_row: float
    tiles_per_query_tile: float = 1.0
    scores_again: int = 0
    products: Mapping[str, int] = field(default_factory=dict)
    queries: int = 0
    shards: int = 1

    def kernel_flops(self, program: Program) -> float:
        """FLOPs of all attention kernels of a step on one device. Number and width of the heads are taken from a call's
        operands, because a kernel may have padded them."""
        total = 0.0
        for call in program.kernel_calls:
            products = next((number for name, number in self.products.items() if name in call.name), 0)
            width = max((prod(shape) // self.queries for shape in call.shapes if self.queries in shape[:-1]), default=0)
            total += call.number * width * self.pairs_per_row / self.shards * 2 * products
        return total


def attention_of(name: str, spec: Spec, *, groups: Sequence[Group], plan: BatchPlan, remat: str) -> Attention:
    """What the kernel `name` computes on the rows of a batch plan."""
    T, shards = plan.shape.T, plan.shape.context
    if shards == 1:
        length = queries = computed_length(name, T=T, U=T, H=spec.H)
    else:  # each device computes its own queries
        length, queries = T, T // shards if takes(name, T=T // shards, U=T, H=spec.H) else None
    if length is None or queries is None:
        name, length, queries = "einsum", T, T // shards
    kernel = KERNELS[name]
    again = scores_again(name, remat)
    if kernel.tile is None:
        return Attention(name, float(length**2), scores_again=again, products=kernel.products, queries=queries)
    height, width = kernel.tile(queries)[0], kernel.tile(length)[1]
    tiles = mean_visible_tiles(spec, groups, plan=plan, tile=(height, width), length=length)
    pairs, per_query_tile = tiles * height * width, tiles / (length // height)
    return Attention(name, pairs, per_query_tile, again, kernel.products, queries=queries, shards=shards)


def scores_again(name: str, remat: str) -> int:
    """Products of the scores' size that the kernel's backward pass recomputes, beyond those that recomputed_flops counts:
    remat "mlp" and "full" recompute all of attention where no kernel skips tiles."""
    kernel = KERNELS[name]
    return kernel.recomputed_scores if kernel.tile is not None or remat in ("none", "attention") else 0


def mean_visible_tiles(
    spec: Spec, groups: Sequence[Group], *, plan: BatchPlan, tile: tuple[int, int], length: int
) -> float:
    """Visible tiles of this height and width in a row padded to `length`, averaged over layers and the first rows of the batch
    plan."""
    rows = plan.steps[0][: plan.shape.B]  # a whole microbatch: groups are split within one
    shape = replace(plan.shape, M=1, B=len(rows))
    moved = [part for part in plan.moved.get(0, ()) if part.row < len(rows)]
    batch = materialise(groups, rows, shape, mine=range(len(rows)), moved=moved)
    num_sampled, total = min(len(rows), NUM_SAMPLED_ROWS), 0.0
    for b in range(num_sampled):
        row = [np.pad(x[0, b], (0, length - shape.T)) for x in (batch.position, batch.group, batch.branch)]
        for window in set(spec.windows):
            visible = visible_tiles_of_row(*row, window=window, tile=tile).sum()
            total += visible * spec.windows.count(window) / spec.L
    return total / num_sampled
