"""A forward pass over a data set, group by group, that resumes where it stopped.

Rows are packed as in training, a batch is one microbatch, results are fetched one step late and written every few
seconds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int

from rapo_jax.batch import Scored
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, Group, make_plan, num_branches
from rapo_jax.batching.splitting import Moved
from rapo_jax.config.tree import Config, Rows
from rapo_jax.distributed import from_first, interruptible, say
from rapo_jax.errors import Interrupted, UserError
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import matmul_precision, my_rows, shards_of_rows, to_device
from rapo_jax.passes.column import Column
from rapo_jax.peers import waiting
from rapo_jax.train.forward import Forward, forward_of
from rapo_jax.train.journal import PRINT_EVERY
from rapo_jax.train.reference import frozen_copy
from rapo_jax.train.screen import duration
from rapo_jax.train.step import make_logps_step

WRITE_EVERY = 10.0  # seconds of work that a kill can lose
PACKED_AT_ONCE = 1000  # groups whose parts are packed together


@dataclass(frozen=True)
class Weights:
    """A model on a mesh. Adapters of `spec` are ignored: a pass computes the base model."""

    spec: Spec
    parameters: dict[str, Any]
    mesh: Mesh


@dataclass(frozen=True)
class PassOptions:
    """How a pass computes, which rows it packs, and whether prompts, responses or last tokens are scored."""

    forward: Forward
    rows: Rows
    scored: Scored


def pass_options(config: Config, spec: Spec, mesh: Mesh, *, scored: Scored) -> PassOptions:
    """The options of a pass on a mesh from the model and rows sections of a configuration."""
    return PassOptions(forward_of(config, spec, mesh), config.rows, scored)


def fill(
    model: Weights,
    groups: Sequence[Group],
    options: PassOptions,
    *,
    column: Column | None,
    needed: Int[np.ndarray, " n"],
    said: str,
    place: str | Path,
) -> Float[np.ndarray, "G A"]:
    """The summed log-probability (or score) of every branch; computes those of the groups `needed` that are unknown.

    Process 0 passes an open column, the others None. `said` names the pass and `place` the column on the terminal.
    Raises Interrupted when a signal came; what was computed is in the column.
    """
    known = column.values if column else np.empty((len(groups), num_branches(groups)), np.float32)
    known = from_first(np.array(known))
    missing = needed[np.isnan(known[needed]).any(1)]
    found = f"{said}: {len(needed) - len(missing):,} of {len(needed):,} found in {place}"
    say(f"{found}; computing the others ..." if len(missing) else found)
    if len(missing):
        plan = plan_pass(groups, missing, options, **shards_of_rows(model.mesh))
        with matmul_precision(options.forward.dtype.name):
            run_pass(model, groups, options, plan=plan, results=Results(said, groups, known, column, len(missing)))
    if column and not column.is_complete and not np.isnan(known).any():
        column.finish()
    return known


def plan_pass(
    groups: Sequence[Group],
    members: Int[np.ndarray, " n"],
    options: PassOptions,
    *,
    num_row_shards: int,
    context: int = 1,
) -> BatchPlan:
    """The batch plan of the groups `members`, with one microbatch per step.

    A pass has rows enough to fill without splitting groups: they are split only by rows.split=always, PACKED_AT_ONCE at a time,
    because packing their parts takes the square of their number.
    """
    split = "always" if options.rows.split == "always" else "never"
    num_chunks = -(-len(members) // PACKED_AT_ONCE) if split == "always" else 1
    whole = make_plan(
        groups,
        np.array_split(members, num_chunks),
        row_length=options.rows.length,
        rows_per_shard=options.rows.per_shard,
        num_row_shards=num_row_shards,
        context=context,
        scored=options.scored,
        split=split,
    )
    B, steps = whole.shape.B, []
    moved: dict[int, list[Moved]] = {}
    for chunk, rows in enumerate(whole.steps):
        for part in whole.moved.get(chunk, ()):
            batch = len(steps) + part.row // B
            moved.setdefault(batch, []).append(replace(part, row=part.row % B, to=part.to % B))
        steps += [rows[start : start + B] for start in range(0, len(rows), B)]
    return replace(whole, steps=steps, shape=replace(whole.shape, M=1), moved=moved)


@dataclass
class Results:
    """Results on their way from the devices to the column, and the pass's progress."""

    said: str  # what the pass is called
    groups: Sequence[Group]
    known: np.ndarray  # [G, A]
    column: Column | None
    total: int
    done: int = 0
    unwritten: list[np.ndarray] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)

    def fetch(self, rows: Sequence[Sequence[int]], logps_BPA: Float[Array, "B P A"]) -> None:
        """Waits for the numbers of a batch; `rows` are the groups in each of its rows. Raises UserError for NaN and
        infinities, before they are kept."""
        fetched_BPA = jax.device_get(logps_BPA)
        for b, row in enumerate(rows):
            finite = np.isfinite(fetched_BPA[b, : len(row)]).all(-1)
            if not finite.all():
                raise UserError(
                    f"{self.said}: the model gives row {self.groups[row[int(finite.argmin())]].row} of the data a number that "
                    "is not finite; use model.dtype=float32, or another model."
                )
            self.known[row] = fetched_BPA[b, : len(row)]
            self.unwritten.append(np.array(row, int))  # a row may hold moved responses alone
            self.done += len(row)

    def write(self) -> None:
        """Writes what has been fetched."""
        if self.unwritten and self.column:
            members = np.concatenate(self.unwritten)
            self.column.write(members, self.known[members])
        self.unwritten.clear()

    def keep_up(self) -> None:
        """Writes and prints from time to time."""
        now = time.monotonic()
        if now - self.written > WRITE_EVERY:
            self.write()
            self.written = now
        if now - self.printed > PRINT_EVERY and self.done:
            rate = self.done / (now - self.started)
            left = duration((self.total - self.done) / rate)
            say(f"  {self.done:,} of {self.total:,}  {rate:.1f} groups/s  {left} left")
            self.printed = now


def run_pass(
    model: Weights, groups: Sequence[Group], options: PassOptions, *, plan: BatchPlan, results: Results
) -> None:
    """Computes the groups of a plan. Raises Interrupted after writing what was computed."""
    mesh = model.mesh
    weights = frozen_copy(model.parameters, model.spec, mesh, dtype=options.forward.dtype)
    step = make_logps_step(options.forward, model.spec, mesh, plan.shape)
    batches = pipeline.batches(groups, plan, my_rows(mesh, plan.shape.B))
    pending = None
    with jax.set_mesh(mesh), interruptible() as interrupted:
        for number, (rows, batch) in enumerate(zip(plan.steps, batches(0), strict=True)):
            with waiting(f"batch {number + 1} of {len(plan.steps)}"):
                logps_BPA = step(weights, to_device(batch, mesh, plan.shape.B))
                if pending:
                    results.fetch(*pending)
            pending = rows, logps_BPA
            results.keep_up()
            stop = interrupted(number)
            if stop or number == len(plan.steps) - 1:
                results.fetch(*pending)
                results.write()
            if stop:
                raise Interrupted("what was computed is kept")
