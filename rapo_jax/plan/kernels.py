"""Attention as the compiled program does it: which (query, key) pairs it computes, and what its kernels cost by hand.

A program without kernels computes every pair of a row. Kernels, and the loops that replace them on a CPU, skip tiles in
which nothing is visible; how many remain is counted on rows of the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import jax.numpy as jnp
import numpy as np

from rapo_jax.data.packing import Group, Plan, materialise
from rapo_jax.models.accelerator_attention import block_size
from rapo_jax.models.attention import Layout, in_window, sees, takes
from rapo_jax.models.block_attention import TILE
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


def products_of(kernel: Kernel) -> int:
    """How many products of queries, keys, values and their gradients a kernel makes of a pair.

    Forward q k and p v. Kernels keep no scores and have two backward passes: q k, do v, ds k for the queries' gradient, and
    q k, do v, p do, ds q for those of keys and values. Splash's are told by name; those of GPUs have no names, but a
    backward pass also takes output, gradient and normalizers, and the one of keys and values returns two arrays.
    """
    for word, products in {"splash_mqa_fwd": 2, "splash_mqa_dq": 3, "splash_mqa_dkv": 4}.items():
        if word in kernel.name:
            return products
    if len(kernel.shapes) < 6:
        return 2
    return 4 if kernel.num_results == 2 else 3


def attention_of(kernel: str, spec: Spec, groups: Sequence[Group], plan: Plan) -> Attention:
    """What `kernel`, a name of rapo_jax/models/attention.py, computes on the rows of a plan."""
    T = plan.shape.T
    if not takes(kernel, T=T, S=T):
        kernel = "einsum"
    if kernel in ("tiles", "splash"):
        width = TILE if kernel == "tiles" else block_size(T)
        tiles = visible_tiles(spec, groups, plan, width=width)
        again = {"tiles": 1, "splash": 3}[kernel]
        return Attention(kernel, tiles * width**2, tiles / (T // width), again)
    return Attention(kernel, float(T**2), scores_again=0 if kernel == "einsum" else 3)


def visible_tiles(spec: Spec, groups: Sequence[Group], plan: Plan, *, width: int) -> float:
    """Tiles of `width` x `width` pairs with a visible one, on average over layers and the first rows of the plan."""
    rows = plan.steps[0][:NUM_SAMPLED_ROWS]
    shape = replace(plan.shape, M=1, B=len(rows))
    batch = materialise(groups, rows, shape, mine=range(len(rows)))
    index, tiles, total = jnp.arange(shape.T)[None], shape.T // width, 0.0
    for b in range(len(rows)):
        arrays = (jnp.asarray(x[0, b : b + 1]) for x in (batch.position, batch.group, batch.branch))
        layout = Layout(index, *arrays)
        for window in set(spec.windows):
            mask = sees(layout, layout) & in_window(layout, layout, window)
            visible = np.asarray(mask).reshape(tiles, width, tiles, width).any((1, 3)).sum()
            total += visible * spec.windows.count(window) / spec.L
    return total / len(rows)
