"""The mesh, one sharding rule per shape letter, and global arrays assembled from each process's part.

Four axes: `data` replicates parameters and splits rows, `fsdp` splits rows and the model dimension of every matrix,
`context` splits the tokens within a row, and the model dimension too, `tensor` splits heads, feed-forward and vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypedDict

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from rapo_jax.batch import LETTERS, Batch
from rapo_jax.errors import UserError, counted
from rapo_jax.peers import waiting

Devices = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm] (jax declares the class as a variable)

AXES = ("data", "fsdp", "context", "tensor")
ROW_AXES = ("data", "fsdp")
CONTEXT = "context"
# Compiler flags that overlap collectives with computation; the other defaults are good.
OVERLAP = {
    "tpu": {
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
    },
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
}
# An adapter's rank is not sharded: it is small, and both of its matrices are sharded along their other dimension.
RULES = {
    "B": ROW_AXES,
    "T": CONTEXT,
    "S": CONTEXT,
    "D": ("fsdp", CONTEXT),
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    "R": None,
}


def make_mesh(
    *, data: int = 1, fsdp: int = -1, context: int = 1, tensor: int = 1, devices: Devices | None = None
) -> Mesh:
    """A mesh over `devices` (default: all of the machine or pod). One size may be -1: all remaining devices.

    Several TPU slices, between which the network is slow, hold replicas each: they are parts of the `data` axis. Raises UserError
    when the sizes do not multiply to the number of devices, or `data` is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, num_devices = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}, len(devices)
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items() if axis != CONTEXT or size != 1)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{asked}: sizes must be positive, and at most one may be -1 (all remaining devices).")
    if num_devices % fixed or (not free and fixed != num_devices):
        raise UserError(
            f"{asked} cannot use {counted(num_devices, 'device')}: the product of the sizes must equal the number of devices; "
            f"change one of them, or set one to -1 (all remaining devices)."
        )
    if free:
        sizes[free[0]] = num_devices // fixed
    types = (AxisType.Auto,) * len(AXES)
    num_slices, lite = number_of_slices(devices), "v5 lite" in devices[0].device_kind  # whose two axes may be split
    if num_slices == 1:  # jax.make_mesh would refuse several hosts with GPUs
        shape = tuple(sizes.values())
        return Mesh(create_device_mesh(shape, devices, allow_split_physical_axes=lite), AXES, axis_types=types)
    if sizes["data"] % num_slices:
        raise UserError(
            f"{asked} cannot use {num_slices} slices: each holds replicas, because the network between them is slow; "
            f"set mesh.data={num_slices}, or another multiple of it."
        )
    within, between = (sizes["data"] // num_slices, *list(sizes.values())[1:]), (num_slices, 1, 1, 1)
    arranged = create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=lite)
    return Mesh(arranged, AXES, axis_types=types)


def mesh_of_replicas() -> Mesh:
    """All devices of the machine or pod; each slice holds the model once, split over its devices."""
    return make_mesh(data=number_of_slices(jax.devices()), fsdp=-1)


def number_of_slices(devices: Devices) -> int:
    """TPU slices that only the network of the data center joins; 1 for all other devices (JAX numbers the hosts of GPUs alike)."""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def num_row_shards(mesh: Mesh) -> int:
    """The number of shards of a batch's rows."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


class ShardsOfRows(TypedDict):
    num_row_shards: int
    context: int


def shards_of_rows(mesh: Mesh) -> ShardsOfRows:
    """What a batch plan must know of a mesh: the number of shards of a batch's rows, and of each row's tokens."""
    return {"num_row_shards": num_row_shards(mesh), "context": mesh.shape[CONTEXT]}


def sharding(mesh: Mesh, letters: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array by its shape letters. A dimension that is not divisible by its axes is not sharded, but the model
    dimension still by fsdp alone if that divides it.

    Vectors of the model dimension (norms) are replicated: sharding them would save little and cost an all-gather.
    """
    if letters.strip("L") == "D":
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*(axes_of(mesh, c, size) for c, size in zip(letters, shape, strict=True))))


def axes_of(mesh: Mesh, letter: str, size: int) -> str | tuple[str, ...] | None:
    """The axes over which a dimension of this letter and size is split, None if it is not."""
    for axes in (RULES.get(letter), "fsdp" if letter == "D" else None):
        if axes is not None and size % math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes)) == 0:
            return axes
    return None


def constrain_rows(x: Shaped[Array, "B T *rest"]) -> Shaped[Array, "B T *rest"]:
    """Constrains activations [B, T, ...] to the sharding of rows, so that the compiler gathers weights, not activations.

    Without a mesh this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(ROW_AXES) <= set(mesh.axis_names):
        return x
    tokens = CONTEXT if num_context_shards(x.shape[1]) > 1 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, tokens, *(None,) * (x.ndim - 2)))


def looked_up(table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"], dtype: np.dtype) -> Float[Array, "B T D"]:
    """table[tokens] in a dtype, in the sharding of rows. The table is split along D. Where devices share rows, each looks up all of their
    tokens in its part, and they exchange the results along one axis after the other: both at once the compiler would replicate.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if num_context_shards(tokens_BT.shape[1]) == 1 or table_VD.shape[1] % (mesh.shape["fsdp"] * mesh.shape[CONTEXT]):
        return constrain_rows(table_VD[tokens_BT].astype(dtype))
    x = table_VD[jax.lax.with_sharding_constraint(tokens_BT, PartitionSpec("data"))].astype(dtype)
    for parts in (("data", None, ("fsdp", CONTEXT)), ("data", CONTEXT, "fsdp")):
        x = jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
    return constrain_rows(x)


def num_context_shards(T: int) -> int:
    """Over how many devices of the current mesh the T tokens of a row are split: 1 where their number is not divisible."""
    shards = jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1)
    return shards if T % shards == 0 else 1


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """Compiler options for a program with collectives on the platform of this mesh."""
    platform = mesh.devices.flat[0].platform
    return OVERLAP.get("gpu" if platform == "cuda" else platform, {}) if mesh.size > 1 else {}


def matmul_precision(dtype: str) -> AbstractContextManager:
    """A context in which float32 means float32, also on accelerators whose matrix units would round it."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else None)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def my_rows(mesh: Mesh, num_rows: int) -> list[int]:
    """The global rows that this process supplies, in order, read off the sharding.

    The process index would be wrong: several processes may share a row shard (tensor parallelism across hosts).
    """
    rows = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    indices = rows.addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for index in indices if index is not None for row in range(*index[0].indices(num_rows))})


def global_array(mesh: Mesh, letters: str, local: Shaped[np.ndarray, "..."], *, num_rows: int) -> Shaped[Array, "..."]:
    """A global array from this process's rows. The dimension with letter B holds `my_rows` of `num_rows` rows."""
    shape = tuple(num_rows if letter == "B" else size for letter, size in zip(letters, local.shape, strict=True))
    return jax.make_array_from_process_local_data(sharding(mesh, letters, shape), local, global_shape=shape)


def to_device(batch: Batch, mesh: Mesh, num_rows: int) -> Batch:
    """A batch of global arrays from this process's rows; `num_rows` is B, a microbatch's rows over all processes."""
    arrays = {name: np.asarray(getattr(batch, name)) for name in LETTERS}
    return Batch(
        **{name: global_array(mesh, LETTERS[name], array, num_rows=num_rows) for name, array in arrays.items()}
    )


def from_slices(
    mesh: Mesh, letters: str, shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], Shaped[np.ndarray, "..."]]
) -> Shaped[Array, "..."]:
    """A sharded array; every process reads only the slices that its devices hold, each once, and has one at a time."""
    where = sharding(mesh, letters, shape)
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}  # pyright: ignore[reportInvalidTypeForm]
    for device, index in where.addressable_devices_indices_map(shape).items():
        assert index is not None, "devices of this process hold something of every array"
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    parts: list[Array] = []
    for bounds, devices in holders.items():
        parts += on_each(devices, read(tuple(slice(*each) for each in bounds)))
    return jax.make_array_from_single_device_arrays(shape, where, parts)


def on_each(devices: Devices, x: Shaped[np.ndarray, "..."]) -> list[Shaped[Array, "..."]]:
    """Copies of an array on devices. When this returns, nothing needs it any more."""
    return jax.block_until_ready([jax.device_put(x, device) for device in devices])


def host_slice(x: Shaped[Array, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """An array as numpy on every process, gathered if it is sharded across processes. Use on one tensor at a time."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    with waiting("gathering an array"):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
