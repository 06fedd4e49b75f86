"""One configuration on one target: its batch plan, its compiled step, FLOP counts, and a roofline estimate of time."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rapo_jax.accounting import Work, mfu, real_work, recomputed_flops, step_flops
from rapo_jax.batch import Scored
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, group_lengths
from rapo_jax.batching.splitting import GroupLengths
from rapo_jax.config.files import as_dict, from_dict, insert
from rapo_jax.config.tree import Config
from rapo_jax.config.yaml_text import parse_yaml
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import make_mesh, shards_of_rows
from rapo_jax.plan.compile import Memory, compile_step, resident_memory
from rapo_jax.plan.hlo import parse_hlo
from rapo_jax.plan.kernels import Attention, attention_of
from rapo_jax.plan.lengths import Lengths
from rapo_jax.plan.program import Program, read_program, sent_bytes
from rapo_jax.plan.targets import Target
from rapo_jax.train.forward import attention_kernel
from rapo_jax.train.reference import reference_is_resident

MATMUL_SHARE = 0.6  # of peak FLOP/s reached by matrix products of this size; well-tuned trainers report 0.5 to 0.7


@dataclass(frozen=True)
class Question:
    """A configuration, its data and a target; `changes` are overrides of the user's configuration, as KEY=VALUE."""

    config: Config
    spec: Spec
    lengths: Lengths
    target: Target
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packing:
    """The batch plan in numbers; `mean_microbatches` is a step's average, of at most M in `shape`, and `mean_moved` that of
    the further rows that its split groups stand in."""

    shape: dict[str, Any]
    num_groups: int
    num_steps: int
    batch_size: int
    real_token_fraction: float
    mean_microbatches: float
    mean_moved: float
    seconds: float

    @property
    def scored(self) -> Scored:
        return self.shape["scored"]


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step on all devices: `compiled` is counted in the compiled program; the others, counted by hand,
    should add up to it."""

    compiled: float
    useful: float
    padding: float
    recomputed: float

    @property
    def by_hand(self) -> float:
        return self.useful + self.padding + self.recomputed


@dataclass(frozen=True)
class Seconds:
    """Seconds of one step if each resource were the only limit."""

    compute: float
    memory: float
    links: float
    network: float = 0.0  # between slices

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.links, self.network)


@dataclass(frozen=True)
class Assessment:
    """All results for a configuration on a target. Those that need the compiled program are None without one."""

    question: Question
    mesh: dict[str, int]
    packing: Packing
    memory: Memory
    compile_seconds: float | None  # None: not compiled, because the resident bytes alone do not fit
    attention: Attention | None = None
    program: Program | None = None
    flops: Flops | None = None
    seconds: Seconds | None = None

    @property
    def limit(self) -> float | None:
        return self.question.target.chip.memory

    @property
    def fits(self) -> bool:
        return self.program is not None and (self.limit is None or self.memory.peak <= self.limit)

    @property
    def mfu(self) -> float | None:
        if self.seconds is None or self.flops is None:
            return None
        devices = self.question.target.devices
        rate = self.flops.useful / self.seconds.step
        return mfu(rate, device_kind=devices[0].device_kind, num_devices=len(devices))

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds.step * self.packing.num_steps / 3600


def changed(config: Config, changes: tuple[str, ...]) -> Config:
    """The configuration with key=value changes."""
    tree = as_dict(config)
    for change in changes:
        key, _, value = change.partition("=")
        insert(tree, key.split("."), parse_yaml(value, said=change))
    return from_dict(tree)


def assess(question: Question, *, temporaries: float | None = None) -> Assessment:
    """Compiles the step and counts its work. `temporaries` is a known lower bound of its bytes beyond resident arrays
    and gradients; with it, a step that cannot fit is not compiled."""
    config, spec, target = changed(question.config, question.changes), question.spec, question.target
    mesh = make_mesh(**vars(config.mesh), devices=target.devices)
    started = time.monotonic()
    plan = pipeline.plan_training(question.lengths.groups, config, **shards_of_rows(mesh))
    packing = packing_of(plan, config, len(question.lengths.groups), time.monotonic() - started)
    said = (question, dict(mesh.shape), packing)
    least = resident_memory(config, spec, mesh, plan.shape)
    if temporaries is not None and target.chip.memory is not None and least.peak + temporaries > target.chip.memory:
        return Assessment(*said, replace(least, peak=least.peak + temporaries), None)
    compiled = compile_step(config, spec, mesh, plan.shape, num_steps=packing.num_steps)
    if compiled.text is None:
        return Assessment(*said, compiled.memory, compiled.seconds)
    module = parse_hlo(compiled.text)
    attention = attention_of(
        attention_kernel(config, mesh), spec, groups=question.lengths.groups, plan=plan, remat=config.model.remat
    )
    bounds = (packing.mean_microbatches,) * (plan.shape.M > 1) + (attention.tiles_per_query_tile,)
    program = read_program(module, bounds=bounds, num_devices=len(target.devices), num_slices=target.num_slices)
    lengths = GroupLengths(*group_lengths(question.lengths.groups))
    compiled_flops = (program.matmul_flops + attention.kernel_flops(program)) * len(target.devices)
    work = by_hand(spec, lengths, packing=packing, attention=attention, config=config)
    flops = replace(work, compiled=compiled_flops)
    seconds = roofline(target, program, flops)
    return Assessment(*said, compiled.memory, compiled.seconds, attention, program, flops, seconds)


def packing_of(plan: BatchPlan, config: Config, num_groups: int, seconds: float) -> Packing:
    return Packing(
        shape=asdict(plan.shape),
        num_groups=num_groups,
        num_steps=len(plan.steps),
        batch_size=config.train.batch_size,
        real_token_fraction=plan.real_token_fraction,
        mean_microbatches=float(np.mean([-(-len(rows) // plan.shape.B) for rows in plan.steps])),
        mean_moved=sum(map(len, plan.moved.values())) / len(plan.steps),
        seconds=seconds,
    )


def by_hand(spec: Spec, lengths: GroupLengths, *, packing: Packing, attention: Attention, config: Config) -> Flops:
    """FLOPs of an average step, by hand: useful work of its groups, padding, and rematerialization."""
    shape, reference = packing.shape, reference_is_resident(config)
    real = real_work(lengths.prompts, lengths.branches, spec.windows, scored=packing.scored)
    share = packing.batch_size / len(lengths.prompts)
    real = Work(real.tokens * share, real.scored * share, real.pairs * share)
    num_rows = packing.mean_microbatches * shape["B"]
    positions = 0 if packing.scored == "last" else num_rows * shape["S"]  # multiplied by the vocabulary matrix
    rows = Work(num_rows * shape["T"], positions, num_rows * spec.L * attention.pairs_per_row)
    useful = step_flops(spec, real, reference=reference)
    padding = step_flops(spec, rows, reference=reference) - useful
    again = recomputed_flops(spec, rows, remat=config.model.remat, scores_again=attention.scores_again)
    return Flops(compiled=useful + padding + again, useful=useful, padding=padding, recomputed=again)


def roofline(target: Target, program: Program, flops: Flops) -> Seconds | None:
    """A step's seconds for each resource alone; the step takes the longest of them if they overlap perfectly."""
    chip, num_devices = target.chip, len(target.devices)
    if target.peak_flops is None or chip.memory_bandwidth is None or chip.link is None:
        return None
    if chip.network is None and target.num_slices > 1:
        return None
    inside = {k: v for k, v in program.collectives.items() if k[1] <= target.linked or not chip.network}
    outside = {k: v for k, v in program.collectives.items() if k not in inside}
    links = sent_bytes(inside) / chip.link
    links += sent_bytes(outside) / chip.network if outside and chip.network else 0.0
    return Seconds(
        compute=flops.compiled / num_devices / (target.peak_flops * MATMUL_SHARE),
        memory=program.memory_bytes / chip.memory_bandwidth,
        links=links,
        network=program.network_bytes / chip.network if chip.network else 0.0,
    )
