"""Attention by the kernel that fits the platform and the shape: a registry of kernels, and the function that calls one.

`kernel_for` picks a kernel, `visible` prepares a mask for it once, `attend` calls it in every layer.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from rapo_jax.errors import UserError, nearest
from rapo_jax.models.attention.cpu import TILES
from rapo_jax.models.attention.einsum import EINSUM
from rapo_jax.models.attention.gpu import TRITON
from rapo_jax.models.attention.kernel import Kernel
from rapo_jax.models.attention.layout import Layout, in_window
from rapo_jax.models.attention.tpu import SPLASH
from rapo_jax.models.spec import FULL_ATTENTION
from rapo_jax.parallel import ROW_AXES

KERNELS: dict[str, Kernel] = {"einsum": EINSUM, "tiles": TILES, "splash": SPLASH, "triton": TRITON}
FEWEST_MULTIPLES = 4  # of a kernel's, in rows that are worth padding: this adds less than a fourth


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visible:
    """The keys that queries see: a mask, bool [B, T, U], and the schedule that `kernel`, a name in KERNELS, made of it."""

    mask_BTU: Array
    schedule: tuple[Array, ...]
    kernel: str = field(metadata={"static": True})


def kernel_for(platform: str, *, asked: str = "auto") -> str:
    """The name in KERNELS of the kernel to use on a platform ("cpu", "tpu", "gpu" or "cuda").

    Raises UserError if `asked` names no kernel, or one that does not run on the platform.
    """
    if asked == "auto":
        return next((name for name, kernel in KERNELS.items() if platform in kernel.platforms), "einsum")
    if asked not in KERNELS:
        raise UserError(f"model.attention={asked!r} is not a kernel; {nearest(asked, ['auto', *KERNELS])}")
    kernel = KERNELS[asked]
    if not kernel.portable and platform not in kernel.platforms:
        raise UserError(
            f"model.attention={asked} runs on {kernel.platforms[0]} devices only, and this is a {platform}; "
            "leave model.attention at auto, or use einsum, which runs everywhere."
        )
    return asked


def takes(kernel: str, *, T: int, U: int, H: int) -> bool:
    """Whether a kernel accepts T queries and U keys per row, in heads of width H."""
    return KERNELS[kernel].takes(T, U, H)


def computed_length(kernel: str, *, T: int, U: int, H: int) -> int | None:
    """The row length at which a kernel computes rows of T queries and U keys: T, or for self-attention the next length that it
    takes, if that adds little. None if einsum computes them."""
    if takes(kernel, T=T, U=U, H=H):
        return T
    multiple = KERNELS[kernel].multiple
    if multiple is None or T != U or FEWEST_MULTIPLES * multiple > T:
        return None
    longer = -(-T // multiple) * multiple
    return longer if takes(kernel, T=longer, U=longer, H=H) else None


def with_padding(mask_BTU: Bool[Array, "B T U"], length: int) -> Bool[Array, "B X X"]:
    """The mask of self-attention over rows padded to `length`; padding sees itself alone, so that its softmax stays finite."""
    added = length - mask_BTU.shape[-1]
    if not added:
        return mask_BTU
    is_added = jnp.arange(length) >= length - added
    return jnp.pad(mask_BTU, ((0, 0), (0, added), (0, added))) | (jnp.eye(length, dtype=bool) & is_added)


def visible(mask_BTU: Bool[Array, "B T U"], *, kernel: str, H: int) -> Visible:
    """A mask prepared for a kernel, or for einsum where the kernel does not accept the shape."""
    T, U = mask_BTU.shape[1:]
    length = computed_length(kernel, T=T, U=U, H=H)
    kernel = kernel if length else "einsum"
    schedule = KERNELS[kernel].schedule
    if schedule is None or length is None:
        return Visible(mask_BTU, (), kernel)
    return Visible(mask_BTU, schedule(mask_BTU if length == T else with_padding(mask_BTU, length)), kernel)


def visible_in_layer(
    everywhere: Visible,
    queries: Layout,
    keys: Layout,
    *,
    window: Int[Array, ""] | int,
    windows: tuple[int, ...],
    H: int,
) -> Visible:
    """The keys that queries see in one scanned layer: `window` is this layer's, `windows` (static) those of all layers."""
    if all(width == FULL_ATTENTION for width in windows):
        return everywhere
    return visible(everywhere.mask_BTU & in_window(queries, keys, window), kernel=everywhere.kernel, H=H)


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BUKH: Float[Array, "B U K H"],
    v_BUKH: Float[Array, "B U K H"],
    *,
    visible: Visible,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention by the kernel that `visible` is prepared for.

    Every device computes the attention of its own rows and heads, without communication.
    """
    (T, N, H), (U, K) = q_BTNH.shape[1:], k_BUKH.shape[1:3]
    added = (computed_length(visible.kernel, T=T, U=U, H=H) or T) - T

    def function(q: Array, k: Array, v: Array, seen: Visible) -> Array:
        options = {"scale": scale, "softcap": softcap} | ({"schedule": seen.schedule} if seen.schedule else {})
        kernel, mask_BTU = KERNELS[seen.kernel], seen.mask_BTU
        if not added:
            return kernel.attend(q, k, v, mask_BTU=mask_BTU, **options)
        q, k, v = (jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0))) for x in (q, k, v))
        return kernel.attend(q, k, v, mask_BTU=with_padding(mask_BTU, T + added), **options)[:, :T]

    mesh = jax.sharding.get_abstract_mesh()
    if visible.kernel == "einsum" or mesh.empty or mesh.size == 1:
        return function(q_BTNH, k_BUKH, v_BUKH, visible)
    heads = "tensor" if N % mesh.shape["tensor"] == 0 and K % mesh.shape["tensor"] == 0 else None
    by_head, by_row = PartitionSpec(ROW_AXES, None, heads), PartitionSpec(ROW_AXES)
    return jax.shard_map(
        function, mesh=mesh, in_specs=(by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False
    )(q_BTNH, k_BUKH, v_BUKH, visible)
