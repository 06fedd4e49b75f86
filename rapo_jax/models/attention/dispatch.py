"""Attention over shared-prompt rows and over a key/value cache: one rule for who sees whom, one function that attends.

`attend_einsum` is the truth that every faster kernel is compared with; `kernel_for` picks one, `visible` makes a mask
ready for it, `attend` calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rapo_jax.errors import UserError, nearest
from rapo_jax.models.attention.cpu import TILE, attend_tiles, tile_schedule
from rapo_jax.models.attention.gpu import GPU_MULTIPLE, attend_triton, triton_schedule
from rapo_jax.models.attention.tpu import SPLASH_MULTIPLE, attend_splash
from rapo_jax.models.spec import FULL_ATTENTION, Rope
from rapo_jax.parallel import ROW_AXES


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """Where the tokens of a row stand. All arrays are int32 [B, T].

    `index` is the order of storage, which causality follows. `position` is the rotary position: responses of one group
    all continue from their prompt's end, so siblings share positions. `group` tells prompts apart (0 is padding),
    `branch` a group's prompt (0) from its responses (1..C).
    """

    index: Array
    position: Array
    group: Array
    branch: Array


def sees(queries: Layout, keys: Layout) -> Array:
    """bool [B, Tq, Tk]: a token sees its own prompt and its own branch so far, never a sibling, never another group.

    >>> # one group: prompt p0 p1, responses a0 a1 and b0
    >>> #      p0 p1 a0 a1 b0
    >>> # a1    x  x  x  x  .
    >>> # b0    x  x  .  .  x

    Padding sees itself alone, so that its softmax stays finite.
    """
    query = jax.tree.map(lambda x: x[:, :, None], queries)
    key = jax.tree.map(lambda x: x[:, None, :], keys)
    same_group = (query.group == key.group) & (query.group > 0)
    on_path = (key.branch == 0) | (key.branch == query.branch)
    return (same_group & on_path & (key.index <= query.index)) | ((query.index == key.index) & (query.group == 0))


def in_window(queries: Layout, keys: Layout, window: Array | int) -> Array:
    """bool [B, Tq, Tk]: fewer than `window` positions lie between key and query, the query's own included."""
    return queries.position[:, :, None] - keys.position[:, None, :] < window


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visible:
    """What queries see: a mask, bool [B, T, S], and what a kernel derives from it, the same for all layers that share it.

    All arrays of the schedule lead with B. `kernel` is a name in KERNELS.
    """

    mask_BTS: Array
    schedule: tuple[Array, ...]
    kernel: str = field(metadata={"static": True})


def visible(mask_BTS: Array, *, kernel: str, H: int) -> Visible:
    """A mask made ready for a kernel, or for `attend_einsum` where the kernel does not take its shape."""
    T, S = mask_BTS.shape[1:]
    kernel = kernel if takes(kernel, T=T, S=S, H=H) else "einsum"
    return Visible(mask_BTS, SCHEDULES[kernel](mask_BTS) if kernel in SCHEDULES else (), kernel)


def kernel_for(platform: str, *, asked: str = "auto") -> str:
    """The name in KERNELS of the kernel that a platform ("cpu", "tpu", "gpu" or "cuda") attends with, unless one is asked for.

    Raises UserError where that one does not run on the platform.
    """
    if asked not in ("auto", *KERNELS):
        raise UserError(f"model.attention={asked!r} is not a kernel; {nearest(asked, ['auto', *KERNELS])}")
    own = {"cpu": "tiles", "tpu": "splash"}.get(platform, "triton")
    if asked in ("splash", "triton") and asked != own:
        raise UserError(
            f"model.attention={asked} is a kernel of {'TPUs' if asked == 'splash' else 'GPUs'}, and this is a {platform}; "
            "leave model.attention at auto, or ask for einsum, which runs everywhere."
        )
    return own if asked == "auto" else asked


def attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, visible: Visible, scale: float, softcap: float | None
) -> Array:
    """What `attend_einsum` computes, by the kernel that the mask was made ready for -> [B, T, N, H].

    Every device attends for its own rows and heads; nothing is communicated.
    """
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]

    def function(q: Array, k: Array, v: Array, seen: Visible) -> Array:
        schedule = {"schedule": seen.schedule} if seen.schedule else {}
        return KERNELS[seen.kernel](q, k, v, mask_BTS=seen.mask_BTS, scale=scale, softcap=softcap, **schedule)

    mesh = jax.sharding.get_abstract_mesh()
    if visible.kernel == "einsum" or mesh.empty or mesh.size == 1:
        return function(q_BTNH, k_BSKH, v_BSKH, visible)
    heads = "tensor" if N % mesh.shape["tensor"] == 0 and K % mesh.shape["tensor"] == 0 else None
    by_head, by_row = PartitionSpec(ROW_AXES, None, heads), PartitionSpec(ROW_AXES)
    return jax.shard_map(
        function, mesh=mesh, in_specs=(by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False
    )(q_BTNH, k_BSKH, v_BSKH, visible)


def takes(kernel: str, *, T: int, S: int, H: int) -> bool:
    """Whether a kernel takes T queries and S keys a row, in heads of width H."""
    if kernel == "tiles":
        return T % TILE == 0 and S % TILE == 0
    if kernel == "splash":
        return T == S and T % SPLASH_MULTIPLE == 0
    if kernel == "triton":
        return T % GPU_MULTIPLE == 0 and S % GPU_MULTIPLE == 0 and H >= 16 and H & (H - 1) == 0
    return True


def attend_einsum(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, mask_BTS: Array, scale: float, softcap: float | None
) -> Array:
    """Grouped-query attention -> [B, T, N, H]. Scores and softmax in float32; S counts keys here.

    softcap: scores become softcap * tanh(scores / softcap) before the mask (Gemma 2, 2024, section 2).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTNH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH).reshape(B, T, N, H)
    return checkpoint_name(out_BTNH, "attention_out")


KERNELS: dict[str, Callable[..., Array]] = {
    "einsum": attend_einsum,
    "tiles": attend_tiles,
    "splash": attend_splash,
    "triton": attend_triton,
}
SCHEDULES: dict[str, Callable[[Array], tuple[Array, ...]]] = {"tiles": tile_schedule, "triton": triton_schedule}


def of_layer(
    everywhere: Visible, queries: Layout, keys: Layout, *, window: Array, windows: tuple[int, ...], kernel: str, H: int
) -> Visible:
    """What queries see in one scanned layer: `window` is this layer's, `windows` (static) says whether any layer has one."""
    if all(width == FULL_ATTENTION for width in windows):
        return everywhere
    return visible(everywhere.mask_BTS & in_window(queries, keys, window), kernel=kernel, H=H)


def rotary_angles(position_BT: Array, *, rope: Rope, H: int) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, float32 [B, T, H / 2] (Su et al., "RoFormer", 2021, eq. 15)."""
    frequency = rope_frequencies(rope, H)
    angle = position_BT[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope_frequencies(rope: Rope, H: int) -> Array:
    """float32 [H / 2], radians a position. llama3: long wavelengths are slowed by `factor`, with a smooth passage."""
    frequency = 1.0 / rope.theta ** (jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    if rope.kind == "default":
        return frequency
    if rope.kind == "linear":
        return frequency / rope.factor
    turns = rope.original_max_positions * frequency / (2 * jnp.pi)  # within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * frequency / rope.factor + smooth * frequency


def rotate(x_BTNH: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates the pairs (i, i + H/2) of every head, the pairing of Hugging Face checkpoints; computed in float32."""
    cos, sin = (angle[:, :, None, :] for angle in angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
