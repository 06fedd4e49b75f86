"""Visible tiles of a mask: the work list of kernels that skip all other tiles."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int


def visible_tiles(
    mask_BTU: Bool[Array, "B T U"], *, height: int, width: int
) -> tuple[Int[Array, "B rows columns"], Int[Array, "B rows"]]:
    """For each row of tiles [height, width]: the indices of its tiles, visible ones first and otherwise in order,
    [B, T / height, U / width]; and how many are visible, [B, T / height]. int32."""
    B, T, U = mask_BTU.shape
    full = mask_BTU.reshape(B, T // height, height, U // width, width).any((2, 4))
    return jnp.argsort(~full, axis=-1, stable=True).astype(jnp.int32), full.sum(-1, dtype=jnp.int32)
