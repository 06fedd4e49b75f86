"""Two integers per array that change with any flipped bit and are the same on any mesh and process count.

Computed on the devices, every shard by itself, with one small sum over all of them at the end. `begin` only dispatches, so that
a loop goes on while they are computed.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped, UInt32

WORD = jnp.uint32
DIMENSION, INDEX, MIXED = 0x01000193, 0x9E3779B1, 0x85EBCA6B  # odd, so that multiplying by them loses nothing
BLOCK = 2**16  # words that stay in the cache of a CPU core


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by path, "parameters.blocks.q": the names under which arrays are stored."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprints that are being computed: uint32 [arrays, 2]."""

    names: tuple[str, ...]
    sums: Array

    def collect(self) -> dict[str, list[int]]:
        """Waits for them; by name of the array."""
        return dict(zip(self.names, jax.device_get(self.sums).tolist(), strict=True))


def begin(tree: Any) -> Fingerprint:
    """Starts to compute the fingerprints of all arrays of a tree. All processes have to call this."""
    arrays = dict(sorted(flat(tree).items()))  # one order, and one program, for a state and for what was restored of it
    placed = [array.sharding for array in arrays.values()]
    meshes = {where.mesh if isinstance(where, NamedSharding) else None for where in placed}
    mesh = meshes.pop() if len(meshes) == 1 else None
    specs = tuple(where.spec for where in placed) if mesh is not None else ()
    return Fingerprint(tuple(arrays), _sums(list(arrays.values()), mesh=mesh, specs=specs))


def fingerprint(tree: Any) -> dict[str, list[int]]:
    """Two integers per array, by path: equal on any mesh and process count, different after any single bit flip."""
    return begin(tree).collect()


@functools.partial(jax.jit, static_argnames=("mesh", "specs"))
def _sums(arrays: list[Array], *, mesh: Mesh | None, specs: tuple[PartitionSpec, ...]) -> Array:
    """uint32 [arrays, 2]. Arrays that are not all sharded over one mesh are left to the compiler."""
    if mesh is None:
        return jnp.stack([sums_of(array, [0] * array.ndim) for array in arrays])

    def of_shards(shards: list[Array]) -> Array:
        found = [_sums_of_shard(shard, spec, mesh) for shard, spec in zip(shards, specs, strict=True)]
        return jax.lax.psum(jnp.stack(found), mesh.axis_names)

    over = jax.shard_map(of_shards, mesh=mesh, in_specs=(list(specs),), out_specs=PartitionSpec(), check_vma=False)
    return over(arrays)


def _sums_of_shard(shard: Array, spec: PartitionSpec, mesh: Mesh) -> Array:
    """The share of this shard; of copies, that of the first."""
    parts = [_axes(part) for part in (*spec, *[None] * (shard.ndim - len(spec)))]
    starts = [jax.lax.axis_index(axes) * size if axes else 0 for axes, size in zip(parts, shard.shape, strict=True)]
    copies = [axis for axis in mesh.axis_names if not any(axis in axes for axes in parts)]
    sums = sums_of(shard, starts)
    return jnp.where(jax.lax.axis_index(tuple(copies)) == 0, sums, WORD(0)) if copies else sums


def _axes(part: Any) -> tuple[str, ...]:
    """The mesh axes over which a dimension is split."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def sums_of(x: Shaped[Array, "..."], starts: Sequence[Any]) -> UInt32[Array, " 2"]:
    """uint32 [2]: sums of all words, weighted by position, of a part of an array that begins at `starts`."""
    starts = [jnp.asarray(start, WORD) for start in starts]
    rows = BLOCK // max(1, x.shape[-1]) if x.ndim else 0
    if rows < 1 or x.size <= 2 * BLOCK:
        return _at_once(x, *starts)
    by_blocks = functools.partial(_by_blocks, rows=rows)
    return jax.lax.platform_dependent(x, *starts, cpu=by_blocks, default=_at_once)


def _at_once(x: Array, *starts: Array) -> Array:
    """As one sum, which the compilers of GPUs and TPUs make one pass over memory."""
    index = WORD(0)
    for dimension, start in enumerate(starts):
        index = index * WORD(DIMENSION) + start + jax.lax.broadcasted_iota(WORD, x.shape, dimension)
    return jnp.stack([jnp.sum(part, dtype=WORD) for part in _weighted(x, index)])


def _by_blocks(x: Array, *starts: Array, rows: int) -> Array:
    """The same sums, block of rows by block of rows: XLA sums integers on a CPU word by word, but adds blocks in vectors."""
    *leading, width = x.shape
    index = jnp.zeros(leading, WORD)
    for dimension, start in enumerate(starts[:-1]):
        index = index * WORD(DIMENSION) + start + jax.lax.broadcasted_iota(WORD, index.shape, dimension)
    index, table, num_rows = index.reshape(-1), x.reshape(-1, width), math.prod(leading)
    columns = starts[-1] + jnp.arange(width, dtype=WORD)

    def block(first: Any, size: int) -> tuple[Array, Array]:
        part, rows_of = (jax.lax.dynamic_slice_in_dim(each, first, size) for each in (table, index))
        return _weighted(part, rows_of[:, None] * WORD(DIMENSION) + columns)

    def add(number: Any, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.tree.map(jnp.add, so_far, block(number * rows, rows))

    num_blocks = num_rows // rows
    sums = jax.lax.fori_loop(0, num_blocks, add, (jnp.zeros((rows, width), WORD),) * 2)
    rest = block(num_blocks * rows, num_rows % rows)
    return jnp.stack([jnp.sum(a, dtype=WORD) + jnp.sum(b, dtype=WORD) for a, b in zip(sums, rest, strict=True)])


def _weighted(x: Array, index: Array) -> tuple[Array, Array]:
    """Every word times an odd weight that its position decides, and that mixed once more."""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    word = jax.lax.bitcast_convert_type(x, bits).astype(WORD)
    weighted = word * ((index * WORD(INDEX)) | WORD(1))
    return weighted, (weighted ^ (weighted >> 15)) * WORD(MIXED)
