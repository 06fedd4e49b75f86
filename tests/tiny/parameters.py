"""Specs of the tiny families, random parameters for them, and meshes over the test devices."""

import functools
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rapo_jax.models.parameters import parameter_letters, pick, place, shape_of, trained_letters
from rapo_jax.models.spec import Spec, spec_from_config
from rapo_jax.models.table import by_tensor, joined, table
from rapo_jax.parallel import AXES
from rapo_jax.train.state import parameter_shardings
from tests.tiny.families import FAMILIES

V = FAMILIES["llama3"]["vocab_size"]


@functools.cache
def tiny_spec(family: str) -> Spec:
    """3 or 4 layers, 4 query and 2 key heads, V = 96, D = 32; windows are 8 positions wide where there are any."""
    return spec_from_config(FAMILIES[family])


def random_parameters(spec: Spec, *, seed: int = 0) -> dict:
    """Host arrays large enough that every flag of the spec shows in the result."""
    return random_tree(spec, parameter_letters(spec), seed=seed)


def random_trained(spec: Spec, *, seed: int) -> dict:
    """The same for what is trained; with adapters, both factors of each differ from 0."""
    return random_tree(spec, trained_letters(spec), seed=seed)


def random_tree(spec: Spec, all_letters: dict, *, seed: int) -> dict:
    random, tree = np.random.default_rng(seed), {}
    for path, letters in all_letters.items():
        noise = random.normal(size=shape_of(spec, letters)).astype(np.float32)
        is_scale = path[-1].endswith("norm") and not spec.zero_centered_norms
        place(tree, path, 0.15 * noise + np.float32(is_scale))
    return tree


def file_tensors(parameters: dict, spec: Spec, *, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Whole parameters as the tensors of a file, in `dtype`."""
    found = {}
    for name, rows in by_tensor(table(spec)).items():
        arrays = [np.asarray(pick(parameters, row.path)) for row in rows]
        layers = [array if row.layer is None else array[row.layer] for row, array in zip(rows, arrays, strict=True)]
        parts = [(row, row.to_file(array.astype(dtype), spec)) for row, array in zip(rows, layers, strict=True)]
        found[name] = joined(parts, spec)
    return found


def mesh_of(data: int, fsdp: int, tensor: int, context: int = 1) -> Mesh:
    """A mesh over the first of the test devices, as many as the product of its sizes."""
    sizes = data, fsdp, context, tensor
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def on_mesh(parameters: dict, spec: Spec, mesh: Mesh) -> dict:
    return jax.device_put(parameters, parameter_shardings(spec, mesh))
