"""The microbatches of an optimizer batch: one at a time, in a loop that is compiled once."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rapo_jax.batch import Batch, Shape

Total = TypeVar("Total")
ROW_ARRAYS = [field.name for field in fields(Batch) if field.name != "num_microbatches"]


def over_microbatches(
    add: Callable[[Total, Batch[Array]], Total], total: Total, batch: Batch[Array], shape: Shape
) -> Total:
    """add(... add(add(total, microbatch 0), microbatch 1) ...), over the microbatches in use."""
    if shape.M == 1:
        return add(total, microbatch(batch, 0))
    return jax.lax.fori_loop(0, batch.num_microbatches, lambda m, total: add(total, microbatch(batch, m)), total)


def sum_over_microbatches(
    function: Callable[[Batch[Array]], Total], zero: Total, batch: Batch[Array], shape: Shape
) -> Total:
    """`zero` plus what a function returns for each microbatch in use."""

    def add(total: Total, rows: Batch[Array]) -> Total:
        return jax.tree.map(jnp.add, total, function(rows))

    return over_microbatches(add, zero, batch, shape)


def microbatch(batch: Batch[Array], m: Int[Array, ""] | int) -> Batch[Array]:
    """The arrays of microbatch m, [B, ...]."""
    arrays: dict[str, Any] = {name: getattr(batch, name)[m] for name in ROW_ARRAYS}
    return replace(batch, **arrays)
