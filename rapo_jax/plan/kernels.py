"""Attention as the compiled program does it: which (query, key) pairs it computes, and what its kernels cost by hand.

A program without kernels computes every pair of a row. Kernels, and the loops that replace them on a CPU, skip tiles in
which nothing is visible; how many remain is counted on rows of the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import jax.numpy as jnp
import numpy as np

from rapo_jax.batching.batch_plan import BatchPlan, Group, materialise
from rapo_jax.models.attention.cpu import TILE
from rapo_jax.models.attention.dispatch import Layout, in_window, sees, takes
from rapo_jax.models.attention.gpu import FORWARD
from rapo_jax.models.attention.tpu import block_size
from rapo_jax.models.spec import Spec
from rapo_jax.plan.program import Kernel, Program

NUM_SAMPLED_ROWS = 16


@dataclass(frozen=True)
class Attention:
    """How a program attends. `pairs_per_row` are those computed in a row and layer, on average; `scores_again` as in
    rapo_jax/accounting.py."""

    name: str
    pairs_per_row: float
    tiles_per_query_tile: float = 1.0
    scores_again: int = 0

    def kernel_flops(self, program: Program, *, T: int) -> float:
        """FLOPs of all kernels of a step on one device: by name the products of a pair, by shape the heads of a call
        and their widths, which a kernel may have padded."""
        total = 0.0
        for kernel in program.kernels:
            products = products_of(kernel)
            width = max((prod(shape) // T for shape in kernel.shapes if T in shape[:-1]), default=0)
            total += kernel.calls * width * self.pairs_per_row * 2 * products
        return total


PRODUCTS = {  # of queries, keys, values and their gradients, by what a kernel's name has in it
    "splash_mqa_fwd": 2,  # q k, p v
    "splash_mqa_dq": 3,  # q k, do v, ds k
    "splash_mqa_dkv": 4,  # q k, do v, p do, ds q
    "attention_forward": 2,
    "attention_dq": 3,
    "attention_dkv": 4,
}


def products_of(kernel: Kernel) -> int:
    """How many matrix products a kernel makes of a visible tile; 0 for one that is not attention's."""
    return next((products for word, products in PRODUCTS.items() if word in kernel.name), 0)


def attention_of(kernel: str, spec: Spec, groups: Sequence[Group], plan: BatchPlan, *, remat: str) -> Attention:
    """What `kernel`, a name of rapo_jax/models/attention/dispatch.py, computes on the rows of a plan."""
    T = plan.shape.T
    if kernel == "einsum" or not takes(kernel, T=T, S=T, H=spec.H):  # its scores are not kept, whatever else is
        return Attention("einsum", float(T**2), scores_again=int(remat in ("none", "attention")))
    square = {"tiles": TILE, "splash": block_size(T)}.get(kernel)
    height, width = (square, square) if square else (FORWARD.queries, FORWARD.keys)  # the other kernels' have this area
    tiles = visible_tiles(spec, groups, plan, height=height, width=width)
    again = 1 if kernel == "tiles" else 3  # the others have two backward passes, which share nothing
    return Attention(kernel, tiles * height * width, tiles / (T // height), again)


def visible_tiles(spec: Spec, groups: Sequence[Group], plan: BatchPlan, *, height: int, width: int) -> float:
    """Tiles of `height` x `width` pairs with a visible one, on average over layers and the first rows of the plan."""
    rows = plan.steps[0][:NUM_SAMPLED_ROWS]
    shape = replace(plan.shape, M=1, B=len(rows))
    batch = materialise(groups, rows, shape, mine=range(len(rows)))
    index, total = jnp.arange(shape.T)[None], 0.0
    for b in range(len(rows)):
        arrays = (jnp.asarray(x[0, b : b + 1]) for x in (batch.position, batch.group, batch.branch))
        layout = Layout(index, *arrays)
        for window in set(spec.windows):
            mask = sees(layout, layout) & in_window(layout, layout, window)
            visible = np.asarray(mask).reshape(shape.T // height, height, shape.T // width, width).any((1, 3)).sum()
            total += visible * spec.windows.count(window) / spec.L
    return total / len(rows)
