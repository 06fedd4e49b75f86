"""Fingerprints of arrays: what NumPy makes of the same words, however they are sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rapo_jax.fingerprints import BLOCK, begin, fingerprint
from rapo_jax.parallel import make_mesh

DRAWN = np.random.default_rng(0)
# Some are summed at once, some in blocks of rows: with rows left over, with several leading dimensions, over the edge of a shard.
ARRAYS = {
    "blocks": (DRAWN.normal(size=(3, 96, 520)).astype(np.float32), P(None, ("fsdp", "context"), "tensor")),
    "narrow": (DRAWN.normal(size=(8 * 9002, 16)).astype(np.float32), P("fsdp")),
    "half": (DRAWN.normal(size=(4, 64, 640)).astype(jnp.bfloat16), P(None, "tensor", ("fsdp", "context"))),
    "bytes": (np.arange(8, dtype=np.int8), P("fsdp")),
    "long": (DRAWN.normal(size=(2 * BLOCK + 4,)).astype(np.float32), P("tensor")),
    "copied": (DRAWN.normal(size=(400, 400)).astype(np.float32), P()),
    "number": (np.float32(3.5), P()),
}


def sums(array):
    """The definition, in NumPy: each word times an odd weight of its position, and that mixed once more, summed modulo 2^32."""
    words = np.asarray(array).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]).astype(np.uint32)
    index = np.zeros(words.shape, np.uint32)
    for dimension, size in enumerate(words.shape):
        places = np.arange(size, dtype=np.uint32).reshape([-1 if d == dimension else 1 for d in range(words.ndim)])
        index = index * np.uint32(0x01000193) + places
    with np.errstate(over="ignore"):
        weighted = words * (index * np.uint32(0x9E3779B1) | np.uint32(1))
        mixed = (weighted ^ (weighted >> np.uint32(15))) * np.uint32(0x85EBCA6B)
    return [int(np.sum(part, dtype=np.uint32)) for part in (weighted, mixed)]


@pytest.mark.parametrize(
    "mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 4, "fsdp": 2}], ids=str
)
def test_fingerprints_are_those_that_numpy_computes_on_any_mesh(mesh):
    """When this fails, every checkpoint of an earlier version, or of another mesh, is called damaged."""
    if mesh is None:
        tree = {name: jnp.asarray(array) for name, (array, _) in ARRAYS.items()}
    else:
        over = make_mesh(**mesh)
        tree = {name: jax.device_put(array, NamedSharding(over, spec)) for name, (array, spec) in ARRAYS.items()}
    assert fingerprint(tree) == {name: sums(array) for name, (array, _) in ARRAYS.items()}


def test_any_flipped_bit_changes_a_fingerprint():
    """When this fails, a run goes on from weights that rotted on disk."""
    words = np.asarray(ARRAYS["narrow"][0]).view(np.uint32)
    sound = begin({"x": jnp.asarray(words)}).collect()
    for place, bit in zip(DRAWN.integers(words.size, size=40), DRAWN.integers(32, size=40), strict=True):
        hurt = words.copy()
        hurt.flat[place] ^= np.uint32(1 << bit)
        assert begin({"x": jnp.asarray(hurt)}).collect() != sound
