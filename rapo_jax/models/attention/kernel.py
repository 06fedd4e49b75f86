"""What an attention kernel is: one frozen entry with everything that the rest of the package asks of it.

Entries are collected in rapo_jax/models/attention/dispatch.py. Adding one to its KERNELS, also from outside the package, is
enough to train with `model.attention=NAME`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jax import Array

Schedule = tuple[Array, ...]


def any_shape(T: int, U: int, H: int) -> bool:
    """For kernels that accept every shape."""
    return True


@dataclass(frozen=True)
class Kernel:
    """An implementation of grouped-query attention, equal to `attend_einsum` for every mask.

    attend: (q_BTNH, k_BUKH, v_BUKH, *, mask_BTU, scale, softcap) -> out_BTNH; with a schedule also `schedule`. It is
        called on each device's own rows and heads; where devices share rows, with each one's own queries and all keys
        (T < U). Arrays that its backward pass needs and that remat may keep carry the
        checkpoint_name "attention_out".
    schedule: mask_BTU -> arrays with a leading dimension B, computed once per mask rather than once per layer.
    takes: (T, U, H) -> whether it accepts T queries and U keys per row, in heads of width H; if not, einsum is used.
    multiple: long rows that it does not take are padded to a multiple of it, for attention alone; None pads nothing.
    platforms: where model.attention=auto picks it.
    portable: whether it also runs on other platforms.

    The rest is what `rapo plan` counts:

    tile: T -> (queries, keys) of a tile, for a kernel that skips tiles in which nothing is visible; None for one that
        computes every pair of a row.
    products: matrix products per visible tile, by a substring of the compiled kernel's name; empty for a kernel that XLA
        compiles to ordinary products.
    recomputed_scores: how many products of the scores' size the backward pass recomputes because no scores are kept.
    """

    attend: Callable[..., Array]
    schedule: Callable[[Array], Schedule] | None = None
    takes: Callable[[int, int, int], bool] = any_shape
    multiple: int | None = None
    platforms: tuple[str, ...] = ()
    portable: bool = True
    tile: Callable[[int], tuple[int, int]] | None = None
    products: Mapping[str, int] = field(default_factory=dict)
    recomputed_scores: int = 0
