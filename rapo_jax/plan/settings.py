"""The settings among which `rapo plan --fastest` searches: changes of a configuration that leave its data, batches and
objective as they are, each with its estimate.

How the devices are arranged, what is recomputed, how rows are packed, whether the reference is cached, and the dtype of the
first moment. Only the last changes the numbers of a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import get_args

from jax.sharding import Mesh

from rapo_jax.batching.batch_plan import Group, group_lengths
from rapo_jax.batching.dealing import ROW_MULTIPLE
from rapo_jax.batching.pipeline import number_of_steps
from rapo_jax.batching.splitting import GroupLengths, round_up
from rapo_jax.config.tree import Config, MeshSizes, Remat, Split
from rapo_jax.parallel import make_mesh, num_row_shards
from rapo_jax.plan.assess import Question, Seconds
from rapo_jax.plan.estimate import SampledRows, StepEstimate, estimate_step, rows_of, sampled
from rapo_jax.plan.kernels import scores_again
from rapo_jax.plan.suggest import CACHE, RESIDENT, TENSOR
from rapo_jax.train.forward import attention_kernel
from rapo_jax.train.reference import reference_is_resident

BFLOAT16_MOMENT = RESIDENT[0]

PER_SHARD = (1, 2, 4, 8)
OwnRows = tuple[int | None, int | None, Split | None]  # rows.length, rows.per_shard, rows.split
SEARCHED = ("data", "fsdp", "tensor")  # axes of the mesh; others stay as they are


@dataclass(frozen=True)
class Setting:
    """A configuration with changes, and its estimate. `once` are the seconds that each step of the run pays for the pass
    that caches the reference: 0 where none is needed."""

    changes: tuple[str, ...]
    config: Config
    mesh: dict[str, int]
    estimate: StepEstimate
    once: float = 0.0

    @property
    def changes_numbers(self) -> bool:
        return BFLOAT16_MOMENT in self.changes

    def cost(self, seconds: Seconds) -> float:
        """Seconds of a step and its share of the pass."""
        return seconds.step + self.once


def settings_for(question: Question) -> list[Setting]:
    """Every setting, the configuration's own first."""
    config, spec, target = question.config, question.spec, question.target
    groups = sampled(question.lengths.groups, config.train.batch_size)
    lengths = GroupLengths(*group_lengths(groups))
    share = passes_per_step(config, len(question.lengths.groups))
    packed: dict[int, list[tuple[tuple[str, ...], Config, SampledRows]]] = {}
    found = []
    for sizes, mesh_changes in meshes_of(question):
        mesh = make_mesh(**vars(sizes), devices=target.devices)
        shards = num_row_shards(mesh)
        if shards not in packed:
            packed[shards] = list(ways_to_pack(replace(config, mesh=sizes), question, groups, mesh))
        for (row_changes, with_rows, rows), (more, options) in product(packed[shards], list(options_of(config))):
            chosen = replace(options, mesh=sizes, rows=with_rows.rows)
            under = under_remat(rows, chosen.model.remat)
            settings = {"mesh": mesh, "rows": under, "lengths": lengths}
            est, once = estimate_step(chosen, spec, target, **settings), 0.0
            if CACHE in more:
                resident = replace(chosen, reference=config.reference)
                once = share * saved(estimate_step(resident, spec, target, **settings).seconds, est.seconds)
            found.append(Setting((*mesh_changes, *row_changes, *more), chosen, dict(mesh.shape), est, once))
    return found


def passes_per_step(config: Config, num_groups: int) -> float:
    """Groups of the data for each group that the run trains on: the pass computes every group of the data once."""
    options = {"batch_size": config.train.batch_size, "num_groups": num_groups}
    num_steps = number_of_steps(config.train.num_epochs, config.train.max_steps, **options)
    return num_groups / max(1, num_steps) / config.train.batch_size


def saved(more: Seconds, less: Seconds) -> float:
    """Seconds of what one step does and the other does not."""
    parts = ("compute", "memory", "links", "network")
    return Seconds(*(getattr(more, part) - getattr(less, part) for part in parts)).step


def meshes_of(question: Question) -> Iterator[tuple[MeshSizes, tuple[str, ...]]]:
    """The configuration's own mesh, then all others over the same devices."""
    own, spec = question.config.mesh, question.spec
    resolved = make_mesh(**vars(own), devices=question.target.devices).shape
    yield own, ()
    free, slices = prod(resolved[axis] for axis in SEARCHED), question.target.num_slices
    for tensor in (size for size in (1, *TENSOR) if spec.K % size == 0 and free % size == 0):
        for data in (size for size in range(slices, free // tensor + 1, slices) if free // tensor % size == 0):
            sizes = {"data": data, "fsdp": free // tensor // data, "tensor": tensor}
            if any(resolved[axis] != size for axis, size in sizes.items()):
                changed = {axis: size for axis, size in sizes.items() if getattr(own, axis) not in (-1, size)}
                yield replace(own, **changed), tuple(f"mesh.{axis}={size}" for axis, size in changed.items())


def ways_to_pack(
    config: Config, question: Question, groups: Sequence[Group], mesh: Mesh
) -> Iterator[tuple[tuple[str, ...], Config, SampledRows]]:
    """The configuration's own rows, the planner's, more and fewer rows at a time, and rows of whole tiles of a kernel, where
    these differ."""
    kernel, shards = attention_kernel(config, mesh), num_row_shards(mesh)
    seen, most = set(), 0.0

    def packed(length: int | None, per_shard: int | None, split: Split | None) -> tuple[Config, SampledRows]:
        chosen = replace(config, rows=replace(config.rows, length=length, per_shard=per_shard, split=split))
        return chosen, rows_of(chosen, question.spec, groups, num_row_shards=shards, kernel=kernel)

    own = config.rows.length, config.rows.per_shard, config.rows.split
    asked = [own, *((None, number, own[2]) for number in (None, *PER_SHARD))]
    for length, per_shard, split in asked:
        if per_shard is not None and (length, per_shard, split) != own and most == 1:
            continue  # all rows of a step are computed at once already
        chosen, rows = packed(length, per_shard, split)
        if per_shard is not None:
            most = rows.shape.M
        if rows.shape.T % ROW_MULTIPLE:
            rounded = round_up(
                rows.shape.T, ROW_MULTIPLE
            )  # where groups are split, too short for the longest whole one
            asked.append((rounded, per_shard, "always" if rows.shape.split else split))
        if (rows.shape.T, rows.shape.B, rows.shape.split) not in seen:
            seen.add((rows.shape.T, rows.shape.B, rows.shape.split))
            yield row_changes(own, (length, per_shard, split)), chosen, rows


def row_changes(own: OwnRows, asked: OwnRows) -> tuple[str, ...]:
    names = "rows.length", "rows.per_shard", "rows.split"
    return tuple(
        f"{name}={'null' if new is None else new}"
        for name, old, new in zip(names, own, asked, strict=True)
        if new != old
    )


def options_of(config: Config) -> Iterator[tuple[tuple[str, ...], Config]]:
    """What is recomputed, whether the reference is cached, and the first moment's dtype."""
    for remat in (config.model.remat, *(level for level in get_args(Remat) if level != config.model.remat)):
        changes = (f"model.remat={remat}",) * (remat != config.model.remat)
        chosen = replace(config, model=replace(config.model, remat=remat))
        yield changes, chosen
        cached = replace(chosen, reference=replace(chosen.reference, cache=CACHE.partition("=")[2]))
        if reference_is_resident(config):
            yield (*changes, CACHE), cached
        if config.optimizer.mu_dtype != "bfloat16":
            small = replace(config.optimizer, mu_dtype="bfloat16")
            yield (*changes, BFLOAT16_MOMENT), replace(chosen, optimizer=small)
            if reference_is_resident(config):
                yield (*changes, CACHE, BFLOAT16_MOMENT), replace(cached, optimizer=small)


def under_remat(rows: SampledRows, remat: str) -> SampledRows:
    """The rows, with what the kernel recomputes under this level of rematerialization."""
    again = scores_again(rows.attention.name, remat)
    return replace(rows, attention=replace(rows.attention, scores_again=again))
