"""Compiles the real train step for a target, from shapes alone, and reads the compiler's memory figures."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rapo_jax.batch import FLOATS, LETTERS, Batch, Shape
from rapo_jax.config.tree import Config
from rapo_jax.memory import OUT_OF_MEMORY
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import matmul_precision
from rapo_jax.train.optim import adamw
from rapo_jax.train.state import abstract_parameters, abstract_state
from rapo_jax.train.step import batch_shardings, make_train_step, reference_shardings

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes per device. `peak` is the compiler's figure, even if it exceeds the memory; uncompiled, a lower bound."""

    parameters: float
    optimizer: float
    reference: float
    batch: float
    gradients: float  # float32, part of the temporaries
    peak: float

    @property
    def resident(self) -> float:
        """Bytes that are allocated before the step begins."""
        return self.parameters + self.optimizer + self.reference + self.batch

    @property
    def temporaries(self) -> float:
        """Activations, casts, gathered weights and everything else that lives within the step, except gradients."""
        return max(0.0, self.peak - self.resident - self.gradients)


@dataclass(frozen=True)
class Compiled:
    """`text` is the optimized HLO, or None if the program exceeded the target's memory."""

    memory: Memory
    text: str | None
    seconds: float


def abstract_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> tuple:
    """Shapes and shardings of (state, reference, batch)."""
    state = abstract_state(spec, mesh, adamw(config.optimizer, spec))
    reference = {}
    if reference_shardings(config, spec, mesh):
        reference = abstract_parameters(spec, mesh, jnp.dtype(config.model.dtype))
    where, batch = batch_shardings(mesh, shape), {}
    for name, letters in LETTERS.items():
        sizes = tuple(getattr(shape, letter) for letter in letters)
        dtype = jnp.float32 if name in FLOATS else jnp.int32
        batch[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=getattr(where, name))
    return state, reference, Batch(**batch)


def resident_memory(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> Memory:
    """Memory that follows from shapes alone; its peak is a lower bound for any program."""
    state, reference, batch = abstract_step(config, spec, mesh, shape)
    parameters = per_device(state.parameters)
    parts = {
        "parameters": parameters,
        "optimizer": per_device(state.optimizer),
        "reference": per_device(reference),
        "batch": per_device(batch),
        "gradients": parameters,
    }
    return Memory(**parts, peak=sum(parts.values()))


def per_device(tree) -> float:
    """Bytes per device of a tree of sharded shapes."""
    leaves = jax.tree.leaves(tree)
    return float(sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def compile_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape, *, num_steps: int) -> Compiled:
    """Compiles the step. Exceeding the target's memory is a result, not an error."""
    least = resident_memory(config, spec, mesh, shape)
    step = cast(jax.stages.Wrapped, make_train_step(config, spec, mesh, shape, num_steps=num_steps))
    arguments = abstract_step(config, spec, mesh, shape)  # before the mesh is set: its devices hold no constants
    started = time.monotonic()
    with jax.set_mesh(mesh), matmul_precision(config.model.dtype):
        with presented(mesh):
            lowered = step.lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            peak = needed_bytes(str(error))
            if peak is None:
                raise
            return Compiled(with_peak(least, max(peak, least.peak)), None, time.monotonic() - started)
    seconds = time.monotonic() - started
    peak = peak_bytes(compiled.memory_analysis(), mesh.devices.flat[0].platform)
    return Compiled(with_peak(least, peak), compiled.as_text(), seconds)


@contextmanager
def presented(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh's first device the default device, by which GPU kernels choose their variant."""
    if mesh.devices.flat[0].platform in ("cpu", "tpu"):
        yield
    else:
        with jax.default_device(mesh.devices.flat[0]):
            yield


def peak_bytes(analysis, platform: str) -> float:
    """Bytes that a device must have. The TPU compiler schedules buffers over time, reusing arguments, so its peak is the
    requirement; elsewhere all temporaries are one allocation beside the arguments."""
    if platform == "tpu":
        return analysis.peak_memory_in_bytes
    beside = analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    return max(analysis.peak_memory_in_bytes, analysis.argument_size_in_bytes + beside)


def with_peak(memory: Memory, peak: float) -> Memory:
    return Memory(memory.parameters, memory.optimizer, memory.reference, memory.batch, memory.gradients, float(peak))


def needed_bytes(message: str) -> float | None:
    """The bytes that a RESOURCE_EXHAUSTED error asked for, or None for any other error.

    >>> needed_bytes("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.")
    22011707392.0
    """
    if OUT_OF_MEMORY not in message or "vmem" in message.lower():
        return None  # a kernel that overflows on-chip memory is a bug, not a model that is too large
    found = re.search(r"Used ([\d.]+)([KMGT])i?B? of", message) or re.search(
        r"\(([\d.]+)([KMGT])i?B?\) exceeds", message
    )
    return float(found[1]) * UNITS[found[2]] if found else 0.0
