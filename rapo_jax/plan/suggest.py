"""For a step that does not fit: the cheapest change that makes it fit, compiled to be sure.

From cheap to expensive: fewer rows at a time, more rematerialization, a smaller first moment, cached log-probabilities of the
reference, weights sharded further, a larger slice. Each change is tried alone, then together with the cheaper ones. Steps
whose resident bytes alone do not fit are not compiled.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import get_args

from rapo_jax.batching.dealing import ROW_MULTIPLE
from rapo_jax.config.tree import Remat
from rapo_jax.plan.assess import Assessment, Question, assess, changed
from rapo_jax.plan.targets import GiB, Target, larger, slice_target
from rapo_jax.train.reference import reference_is_resident

CACHE = "reference.cache=runs/reference"
RESIDENT = ("optimizer.mu_dtype=bfloat16", CACHE)  # changes that only reduce resident bytes
REMAT = get_args(Remat)
TENSOR = (2, 4, 8)
CONTEXT = (2, 4, 8, 16)
LONG_ROW = 16384  # tokens, from which devices may share rows


def nearest_that_fits(failed: Assessment, *, progress: Callable[[str], None]) -> Assessment | None:
    """The first candidate that fits, or None."""
    known = {failed.question.changes: failed}
    progress(f"{failed.question.target.name} does not fit: {needs(failed)}")
    for question in candidates(failed):
        name = ", ".join(question.changes) or question.target.name
        progress(f"trying {name} on {question.target.name} ...")
        tried = assess(question, temporaries=known_temporaries(question, known))
        progress(f"  {needs(tried)}")
        if question.target == failed.question.target and tried.compile_seconds is not None:
            known[question.changes] = tried
        if tried.fits and tried.compile_seconds is not None:
            return tried
    return None


def needs(tried: Assessment) -> str:
    least = "at least " if tried.program is None else ""
    of = "" if tried.limit is None else f" of {tried.limit / GiB:.2f}"
    return f"needs {least}{tried.memory.peak / GiB:.2f}{of} GiB"


def known_temporaries(question: Question, known: dict[tuple[str, ...], Assessment]) -> float:
    """A known lower bound of the temporaries: those of a tried configuration that differs in resident bytes only."""
    for changes, tried in known.items():
        added = set(question.changes) - set(changes)
        if (
            question.target == tried.question.target
            and set(changes) <= set(question.changes)
            and added <= set(RESIDENT)
        ):
            return tried.memory.temporaries
    return 0.0


def candidates(failed: Assessment) -> Iterator[Question]:
    """Single changes, then combinations, then larger slices."""
    question = failed.question
    cheap = cheap_changes(failed)
    yield from (replace(question, changes=(*question.changes, change)) for change in cheap)
    together = [(*question.changes, *cheap[:number]) for number in range(2, len(cheap) + 1)]
    yield from (replace(question, changes=changes) for changes in together)
    everything = (*question.changes, *cheap)
    for change in mesh_changes(failed):
        yield replace(question, changes=(*question.changes, *change))
        if cheap:
            yield replace(question, changes=(*everything, *change))
    for target in larger_targets(failed):
        yield replace(question, target=target, changes=(*question.changes, *grown(failed)))
        if cheap:
            yield replace(question, target=target, changes=(*everything, *grown(failed)))


def cheap_changes(failed: Assessment) -> list[str]:
    """Changes of the configuration that save memory, cheapest first."""
    config = changed(failed.question.config, failed.question.changes)
    changes = []
    if failed.packing.shape["B"] > failed.mesh["data"] * failed.mesh["fsdp"]:
        changes.append("rows.per_shard=1")
    changes += [f"model.remat={level}" for level in REMAT[REMAT.index(config.model.remat) + 1 :]]
    if config.optimizer.mu_dtype != "bfloat16":
        changes.append(RESIDENT[0])
    if reference_is_resident(config) and config.lora.rank is None:  # under adapters the reference takes no memory
        changes.append(CACHE)
    return changes


def mesh_changes(failed: Assessment) -> list[tuple[str, ...]]:
    """Weights sharded over all devices instead of replicated on some; then long rows shared by devices; then weights sharded
    over heads if their number is divisible."""
    mesh, spec, num_devices = failed.mesh, failed.question.spec, len(failed.question.target.devices)
    context, tensor = mesh["context"], mesh["tensor"]
    shared = [(context, tensor)] if mesh["data"] > 1 else []
    shared += [(size, tensor) for size in context_sizes(failed)]
    shared += [(context, size) for size in TENSOR if size > tensor and spec.K % size == 0]
    return [over_the_rest(failed, *sizes) for sizes in shared if num_devices % (sizes[0] * sizes[1]) == 0]


def over_the_rest(failed: Assessment, context: int, tensor: int) -> tuple[str, ...]:
    """The changes that leave all devices beyond these two axes to fsdp; a size that stays is said where it was -1."""
    own = changed(failed.question.config, failed.question.changes).mesh
    sizes = {"context": context, "tensor": tensor}
    stated = (f"mesh.{axis}={size}" for axis, size in sizes.items() if getattr(own, axis) != size)
    return "mesh.data=1", "mesh.fsdp=-1", *stated


def context_sizes(failed: Assessment) -> list[int]:
    """The numbers of devices that could share rows instead of those that do now."""
    T, tensor, num_devices = failed.packing.shape["T"], failed.mesh["tensor"], len(failed.question.target.devices)
    given = failed.question.config.rows.length or 0
    return [
        size
        for size in CONTEXT
        if T >= LONG_ROW
        and size > failed.mesh["context"]
        and num_devices % (size * tensor) == 0
        and given % (ROW_MULTIPLE * size) == 0
    ]


def grown(failed: Assessment) -> tuple[str, ...]:
    """With every mesh size fixed, fsdp must absorb the devices that a larger slice adds; also where context would, since rows
    may not be divisible by more."""
    sizes = changed(failed.question.config, failed.question.changes).mesh
    if sizes.context == -1:
        return f"mesh.context={failed.mesh['context']}", "mesh.fsdp=-1"
    return () if -1 in vars(sizes).values() else ("mesh.fsdp=-1",)


def larger_targets(failed: Assessment) -> Iterator[Target]:
    """The larger slices that the axes which stay as they are divide."""
    sizes = changed(failed.question.config, (*failed.question.changes, *grown(failed))).mesh
    fixed = prod(size for size in vars(sizes).values() if size != -1)
    for name in larger(failed.question.target):
        target = slice_target(failed.question.target.kind, name, failed.question.target.num_slices)
        if len(target.devices) % fixed == 0:
            yield target
