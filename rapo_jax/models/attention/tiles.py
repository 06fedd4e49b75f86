"""Which tiles of a mask have anything in them: what kernels that skip the others walk."""

import jax.numpy as jnp
from jax import Array


def visible_tiles(mask_BTS: Array, *, height: int, width: int) -> tuple[Array, Array]:
    """Of tiles [height, width] of a mask: for each row of tiles the numbers of those with anything visible, in order, then
    the others [B, T / height, S / width]; and how many are visible [B, T / height]. int32."""
    B, T, S = mask_BTS.shape
    full = mask_BTS.reshape(B, T // height, height, S // width, width).any((2, 4))
    return jnp.argsort(~full, axis=-1, stable=True).astype(jnp.int32), full.sum(-1, dtype=jnp.int32)
