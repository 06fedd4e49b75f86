"""The least that a step must move, given how the mesh splits its arrays: bytes between devices, and to and from memory.

Nothing is compiled here. A compiled program moves more; `rapo plan` prints both, and a search for the fastest setting leaves
out those that could not win even if they moved no more than this.
"""

from collections.abc import Mapping
from math import prod

import jax.numpy as jnp

from rapo_jax.config.tree import Config
from rapo_jax.models.decoder import KEPT, logits_are_kept
from rapo_jax.models.parameters import parameter_letters, shape_of, trained_letters
from rapo_jax.models.spec import Spec
from rapo_jax.plan.program import Collective
from rapo_jax.train.reference import reference_is_resident

FLOAT32 = 4  # bytes; of master weights, moments and accumulated gradients
REDUCED_TWICE = 2  # activations that a layer sums over `tensor` in one pass: those of o and of down

Collectives = dict[tuple[str, int], Collective]


def least_collectives(
    config: Config,
    spec: Spec,
    mesh: Mapping[str, int],
    *,
    microbatches: float,
    tokens: int,
    num_slices: int = 1,
    gradient_bytes: int = FLOAT32,
) -> Collectives:
    """What a device must exchange within its slice in a step: every pass gathers the weights once in the compute dtype, every microbatch
    scatters the gradients once, in numbers of `gradient_bytes`; replicas (`data`) sum theirs once a step, and `tensor`
    sums the activations of a layer twice a pass. `tokens` are those of a device's rows in a microbatch.

    The table of embeddings moves as the activations that are looked up in it, where those are smaller.
    """
    fsdp, tensor, data = (mesh[axis] for axis in ("fsdp", "tensor", "data"))
    itemsize, passes = jnp.dtype(config.model.dtype).itemsize, num_passes(config)
    looked_up, matrices = sizes_of(spec, parameter_letters(spec))
    activations = tokens * spec.D
    gathered = passes * matrices / tensor + (passes - 1) * min(looked_up / tensor, activations)
    scattered_table, trained = sizes_of(spec, trained_letters(spec))
    scattered = trained / tensor + min(scattered_table / tensor, activations)
    summed = REDUCED_TWICE * passes * spec.L * activations
    sent = {
        ("all-gather", fsdp): microbatches * gathered * itemsize,
        ("reduce-scatter", fsdp): microbatches * scattered * gradient_bytes,
        ("all-reduce", tensor): microbatches * summed * itemsize,
    }
    replicas = ("all-reduce", data // num_slices), gradients_of_replicas(spec, mesh) * gradient_bytes
    collectives: Collectives = {}
    for (kind, group), num_bytes in [*sent.items(), replicas]:
        if group > 1:
            each = collectives.setdefault((kind, group), Collective())
            each.number, each.num_bytes = each.number + 1, each.num_bytes + num_bytes
    return collectives


def least_between_slices(
    spec: Spec, mesh: Mapping[str, int], *, num_slices: int, gradient_bytes: int = FLOAT32
) -> Collectives:
    """What a device must exchange with other slices in a step: the sum of the gradients of its slice, of which each of the
    replicas there may carry its part."""
    if num_slices == 1:
        return {}
    carried = gradients_of_replicas(spec, mesh) / (mesh["data"] // num_slices) * gradient_bytes
    return {("all-reduce", num_slices): Collective(1, carried)}


def gradients_of_replicas(spec: Spec, mesh: Mapping[str, int]) -> float:
    """The gradients that a device sums with its replicas, in numbers."""
    return sum(sizes_of(spec, trained_letters(spec))) / mesh["tensor"] / mesh["fsdp"]


def least_traffic(config: Config, spec: Spec, mesh: Mapping[str, int], *, microbatches: float, tokens: int) -> float:
    """Bytes that a device must read from and write to its memory in a step: the weights of every pass, parameters and
    moments that the optimizer reads and writes, gradients that every microbatch adds to, and activations that are kept."""
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    itemsize, passes = jnp.dtype(config.model.dtype).itemsize, num_passes(config)
    weights = passes * sizes_of(spec, parameter_letters(spec))[1] / tensor * itemsize
    trained = sum(sizes_of(spec, trained_letters(spec))) / tensor / fsdp
    kept = kept_bytes(config, spec, tensor=tensor, tokens=tokens, scored=0)
    moment = jnp.dtype(config.optimizer.mu_dtype).itemsize
    update = 2 * trained * (FLOAT32 + moment + FLOAT32)
    return microbatches * (weights + 2 * trained * FLOAT32 + 2 * kept) + update


def kept_bytes(config: Config, spec: Spec, *, tensor: int, tokens: int, scored: int) -> float:
    """Bytes of what the forward pass keeps on a device for the backward pass: by layer its input and what model.remat
    says, and for `scored` positions the logits if they are kept."""
    remat, itemsize = config.model.remat, jnp.dtype(config.model.dtype).itemsize
    widths = widths_of(spec, tensor)
    numbers = tokens * spec.L * (spec.D + sum(widths[name] for name in KEPT[remat]))
    if logits_are_kept(remat, spec) and not spec.scored:
        numbers += scored * spec.V / tensor
    return numbers * itemsize


def widths_of(spec: Spec, tensor: int) -> dict[str, float]:
    """Numbers per token and layer on one device, by the name under which a layer may keep them (models/decoder.py)."""
    branches = 1 if spec.norms == "before" else 2  # what only a sum reads is not kept
    return {
        "attention_in": (spec.N + 2 * spec.K) * spec.H / tensor,
        "attention_out": spec.N * spec.H / tensor,
        "residual_branch": branches * spec.D,
        "hidden": 2 * spec.F / tensor,
        "adapter": len(spec.lora.targets) * spec.lora.rank if spec.lora else 0,
    }


def num_passes(config: Config) -> int:
    """Forward and backward pass, and the reference's forward pass if the step computes it."""
    return 2 + reference_is_resident(config)


def sizes_of(spec: Spec, letters: Mapping[tuple[str, ...], str]) -> tuple[float, float]:
    """(numbers in a table of embeddings that is only looked up in, numbers in all other matrices); vectors are left out,
    which every device holds whole."""
    matrices = {path: dims for path, dims in letters.items() if len(dims.strip("L")) > 1 and "D" in dims}
    looked_up = 0 if spec.tied else sum(prod(shape_of(spec, d)) for path, d in matrices.items() if path == ("embed",))
    return float(looked_up), float(sum(prod(shape_of(spec, dims)) for dims in matrices.values()) - looked_up)
