"""What a setting needs and how long its step takes, in closed form: shapes and arithmetic, nothing is traced or compiled.

Resident bytes are exact, times are lower bounds, the temporaries are an estimate: what the forward pass keeps, the work
space of one layer and of the vocabulary. Compiling decides; this says what is worth compiling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.batch import LETTERS, Shape
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.splitting import GroupLengths
from rapo_jax.config.tree import Config
from rapo_jax.logprobs import CHUNK
from rapo_jax.models.parameters import parameter_letters, shape_of, trained_letters
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import num_row_shards, sharding
from rapo_jax.plan.assess import Packing, Seconds, by_hand, packing_of, roofline
from rapo_jax.plan.compile import Memory
from rapo_jax.plan.kernels import Attention, attention_of
from rapo_jax.plan.least import (
    FLOAT32,
    kept_bytes,
    least_between_slices,
    least_collectives,
    least_traffic,
    sizes_of,
    widths_of,
)
from rapo_jax.plan.program import Program
from rapo_jax.plan.targets import Target
from rapo_jax.train.reference import weights_are_resident

SAMPLED_STEPS = 16


@dataclass(frozen=True)
class SampledRows:
    """One way to pack, on a sample of the steps, and what attention computes in its rows."""

    packing: Packing
    shape: Shape
    attention: Attention


@dataclass(frozen=True)
class StepEstimate:
    """`memory.peak` is estimated, its other parts are exact; `seconds` are lower bounds, for FLOPs as counted by hand."""

    memory: Memory
    seconds: Seconds


def sampled(groups: Sequence[Group], batch_size: int) -> list[Group]:
    """Groups of a few steps, evenly taken, with the longest group and the longest prompt and response, which decide how
    long rows must be."""
    number = SAMPLED_STEPS * batch_size
    if len(groups) <= 2 * number:
        return list(groups)
    some = [groups[int(at)] for at in np.linspace(0, len(groups) - 1, number)]
    longest = max(groups, key=lambda group: group.num_tokens)
    widest = max(groups, key=lambda group: len(group.prompt) + max(map(len, group.continuations)))
    return [longest, widest, *some[2:]]


def rows_of(config: Config, spec: Spec, groups: Sequence[Group], *, num_row_shards: int, kernel: str) -> SampledRows:
    """How sampled groups are packed for so many row shards."""
    once = replace(config, train=replace(config.train, max_steps=None, num_epochs=1.0))
    plan = pipeline.plan_training(groups, once, num_row_shards=num_row_shards)
    attention = attention_of(kernel, spec, groups=groups, plan=plan, remat=config.model.remat)
    return SampledRows(packing_of(plan, config, len(groups), 0.0), plan.shape, attention)


def estimate_step(
    config: Config, spec: Spec, target: Target, *, mesh: Mesh, rows: SampledRows, lengths: GroupLengths
) -> StepEstimate:
    """The estimate of one setting on a mesh over the target's devices."""
    sizes, shape, packing = dict(mesh.shape), rows.shape, rows.packing
    per_shard = shape.B // num_row_shards(mesh)
    flops = by_hand(spec, lengths, packing=packing, attention=rows.attention, config=config)
    moved = {"microbatches": packing.mean_microbatches, "tokens": per_shard * shape.T}
    itemsize = jnp.dtype(config.model.dtype).itemsize
    least = Program(
        memory_bytes=least_traffic(config, spec, sizes, **moved),
        collectives=least_collectives(
            config, spec, sizes, **moved, num_slices=target.num_slices, gradient_bytes=itemsize
        ),
        between_slices=least_between_slices(spec, sizes, num_slices=target.num_slices, gradient_bytes=itemsize),
    )
    seconds = roofline(target, least, flops)
    assert seconds is not None, "the speed of the target is known"
    memory = resident(config, spec, mesh, shape)
    scores = per_shard * spec.N * shape.T**2 if rows.attention.name == "einsum" else 0.0
    work = temporaries(config, spec, sizes, tokens=per_shard * shape.T, scored=per_shard * shape.S, scores=scores)
    return StepEstimate(replace(memory, peak=memory.peak + work), seconds)


def resident(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> Memory:
    """What compile.resident_memory says, from shapes' letters alone: thousands of settings are estimated."""

    def numbers(letters: Mapping[tuple[str, ...], str]) -> float:
        return float(sum(shard(dims, shape_of(spec, dims)) for dims in letters.values()))

    def shard(dims: str, size: tuple[int, ...]) -> int:
        return prod(sharding(mesh, dims, size).shard_shape(size))

    trained = numbers(trained_letters(spec)) * FLOAT32
    frozen = numbers(parameter_letters(spec)) if weights_are_resident(config) else 0.0
    batch = sum(shard(dims, tuple(getattr(shape, letter) for letter in dims)) for dims in LETTERS.values()) * 4.0
    moments = trained * (1 + jnp.dtype(config.optimizer.mu_dtype).itemsize / FLOAT32)
    reference = frozen * jnp.dtype(config.model.dtype).itemsize
    peak = trained + moments + reference + batch + trained
    return Memory(trained, moments, reference, batch, gradients=trained, peak=peak)


def temporaries(
    config: Config, spec: Spec, sizes: Mapping[str, int], *, tokens: int, scored: int, scores: float
) -> float:
    """Estimated bytes beyond resident arrays and gradients at the worst moment of the backward pass, on one device.

    `tokens` and `scored` positions are those of its rows in a microbatch, `scores` the numbers of a layer's attention scores
    that exist at once.
    """
    fsdp, tensor, itemsize = sizes["fsdp"], sizes["tensor"], jnp.dtype(config.model.dtype).itemsize
    every, gradient = sum(sizes_of(spec, parameter_letters(spec))), 0 if spec.lora else FLOAT32
    layer = (every - spec.V * spec.D * (1 if spec.tied or spec.scored else 2)) / spec.L / tensor
    cast = 0 if itemsize == FLOAT32 or spec.lora else every / tensor / fsdp * itemsize
    kept = kept_bytes(config, spec, tensor=tensor, tokens=tokens, scored=scored)
    # A layer: its products and their gradients, norms in float32, its weights and the next ones being gathered, and the
    # gradient of its largest matrix before it is scattered.
    products = tokens * (2 * sum(widths_of(spec, tensor).values()) * itemsize + 4 * spec.D * FLOAT32)
    weights = 2 * layer * itemsize * (fsdp > 1 or bool(cast)) + spec.D * spec.F / tensor * gradient
    of_layer = products + weights + 2 * scores / tensor * FLOAT32
    # The vocabulary, a chunk at a time: its weights and their gradient, logits and theirs; hidden states in float32.
    chunk = min(spec.V, CHUNK) / tensor
    of_vocabulary = chunk * (spec.D * (itemsize + gradient) + scored * (2 * FLOAT32 + itemsize))
    return cast + kept + max(of_layer, 0.0 if spec.scored else of_vocabulary + 2 * scored * spec.D * FLOAT32)
