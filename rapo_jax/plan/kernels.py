"""Attention in the compiled program: which (query, key) pairs it computes, and the FLOPs of its kernels.

A program without kernels computes every pair of a row. Kernels, and the loops that replace them on a CPU, skip tiles in
which nothing is visible; the visible ones are counted on rows of the batch plan. What a kernel computes per tile is
part of its entry (rapo_jax/models/attention/kernel.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import jax.numpy as jnp
import numpy as np

from rapo_jax.batching.batch_plan import BatchPlan, Group, materialise
from rapo_jax.models.attention.dispatch import KERNELS, computed_length, with_padding
from rapo_jax.models.attention.layout import Layout, in_window, sees
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
    length: of the rows that a kernel computes, which it may have padded.
    """

    name: str
    pairs_per_row: float
    tiles_per_query_tile: float = 1.0
    scores_again: int = 0
    products: Mapping[str, int] = field(default_factory=dict)
    length: int = 0

    def kernel_flops(self, program: Program) -> float:
        """FLOPs of all attention kernels of a step on one device. Number and width of the heads are taken from a call's
        operands, because a kernel may have padded them."""
        total = 0.0
        for call in program.kernel_calls:
            products = next((number for name, number in self.products.items() if name in call.name), 0)
            width = max((prod(shape) // self.length for shape in call.shapes if self.length in shape[:-1]), default=0)
            total += call.number * width * self.pairs_per_row * 2 * products
        return total


def attention_of(name: str, spec: Spec, *, groups: Sequence[Group], plan: BatchPlan, remat: str) -> Attention:
    """What the kernel `name` computes on the rows of a batch plan."""
    T = plan.shape.T
    length = computed_length(name, T=T, U=T, H=spec.H)
    if length is None:
        name, length = "einsum", T
    kernel = KERNELS[name]
    if kernel.tile is None:  # remat "mlp" and "full" recompute all of attention, which recomputed_flops counts already
        again = kernel.recomputed_scores if remat in ("none", "attention") else 0
        return Attention(name, float(length**2), scores_again=again, products=kernel.products, length=length)
    height, width = kernel.tile(length)
    tiles = mean_visible_tiles(spec, groups, plan=plan, tile=(height, width), length=length)
    pairs, per_query_tile = tiles * height * width, tiles / (length // height)
    return Attention(name, pairs, per_query_tile, kernel.recomputed_scores, kernel.products, length)


def mean_visible_tiles(
    spec: Spec, groups: Sequence[Group], *, plan: BatchPlan, tile: tuple[int, int], length: int
) -> float:
    """Visible tiles of this height and width in a row padded to `length`, averaged over layers and the first rows of the batch
    plan."""
    height, width = tile
    rows = plan.steps[0][: plan.shape.B]  # a whole microbatch: groups are split within one
    shape = replace(plan.shape, M=1, B=len(rows))
    moved = [part for part in plan.moved.get(0, ()) if part.row < len(rows)]
    batch = materialise(groups, rows, shape, mine=range(len(rows)), moved=moved)
    index, total = jnp.arange(shape.T)[None], 0.0
    num_sampled = min(len(rows), NUM_SAMPLED_ROWS)
    for b in range(num_sampled):
        arrays = (jnp.asarray(x[0, b : b + 1]) for x in (batch.position, batch.group, batch.branch))
        layout = Layout(index, *arrays)
        for window in set(spec.windows):
            mask = with_padding(sees(layout, layout) & in_window(layout, layout, window), length)
            visible = np.asarray(mask).reshape(length // height, height, length // width, width).any((1, 3)).sum()
            total += visible * spec.windows.count(window) / spec.L
    return total / num_sampled
