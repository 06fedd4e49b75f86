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
from rapo_jax.parallel import CONTEXT, ROW_AXES, num_context_shards

KERNELS: dict[str, Kernel] = {"einsum": EINSUM, "tiles": TILES, "splash": SPLASH, "triton": TRITON}
BY_QUERY = PartitionSpec(ROW_AXES, CONTEXT)  # of masks [B, T, U] whose rows' queries are on several devices
BY_SHARD = PartitionSpec((*ROW_AXES, CONTEXT))  # of arrays of which each device has made its own part
FEWEST_MULTIPLES = 4  # of a kernel's, in rows that are worth padding: this adds less than a fourth


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visible:
    """The keys that queries see: a mask, bool [B, T, U], and the schedule that `kernel`, a name in KERNELS, made of it; one for
    each of the `shards` of a row's queries."""

    mask_BTU: Array
    schedule: tuple[Array, ...]
    kernel: str = field(metadata={"static": True})
    shards: int = field(default=1, metadata={"static": True})


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
    if T == U and (shards := num_context_shards(T)) > 1:
        return visible_to_shards(mask_BTU, kernel=kernel if takes(kernel, T=T // shards, U=U, H=H) else "einsum")
    length = computed_length(kernel, T=T, U=U, H=H)
    kernel = kernel if length else "einsum"
    schedule = KERNELS[kernel].schedule
    if schedule is None or length is None:
        return Visible(mask_BTU, (), kernel)
    return Visible(mask_BTU, schedule(mask_BTU if length == T else with_padding(mask_BTU, length)), kernel)


def visible_to_shards(mask_BTU: Bool[Array, "B T U"], *, kernel: str) -> Visible:
    """`visible` where several devices share a row: each has its own queries, all keys, and a schedule of its own."""
    shards, schedule = num_context_shards(mask_BTU.shape[1]), KERNELS[kernel].schedule
    mask_BTU = jax.lax.with_sharding_constraint(mask_BTU, BY_QUERY)
    if schedule is None:
        return Visible(mask_BTU, (), kernel, shards)
    made = jax.shard_map(schedule, in_specs=BY_QUERY, out_specs=BY_SHARD, check_vma=False)
    return Visible(mask_BTU, made(mask_BTU), kernel, shards)


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

    Every device computes the attention of its own rows and heads, without communication; where several share a row, each
    gathers the keys and values of all and computes the attention of its own queries.
    """
    (T, N, H), (U, K) = q_BTNH.shape[1:], k_BUKH.shape[1:3]
    added = (computed_length(visible.kernel, T=T, U=U, H=H) or T) - T if visible.shards == 1 else 0

    def function(q: Array, k: Array, v: Array, mask_BTU: Array, schedule: tuple[Array, ...]) -> Array:
        options = {"scale": scale, "softcap": softcap} | ({"schedule": schedule} if schedule else {})
        kernel = KERNELS[visible.kernel]
        if visible.shards > 1:
            k, v = (jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True) for x in (k, v))
        if not added:
            return kernel.attend(q, k, v, mask_BTU=mask_BTU, **options)
        q, k, v = (jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0))) for x in (q, k, v))
        return kernel.attend(q, k, v, mask_BTU=with_padding(mask_BTU, T + added), **options)[:, :T]

    arguments = q_BTNH, k_BUKH, v_BUKH, visible.mask_BTU, visible.schedule
    mesh = jax.sharding.get_abstract_mesh()
    if (visible.kernel == "einsum" and visible.shards == 1) or mesh.empty or mesh.size == 1:
        return function(*arguments)
    heads = "tensor" if N % mesh.shape["tensor"] == 0 and K % mesh.shape["tensor"] == 0 else None
    # Named wherever it can be, also with one device: gradients are summed over axes that are not named.
    tokens = (CONTEXT,) if visible.shards == mesh.shape[CONTEXT] else ()
    by_head = PartitionSpec(ROW_AXES, tokens, heads)
    specs = by_head, by_head, by_head, PartitionSpec(ROW_AXES, tokens), PartitionSpec((*ROW_AXES, *tokens))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=by_head, check_vma=False)(*arguments)
