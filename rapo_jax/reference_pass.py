"""One forward pass of the reference over a data set, written down group by group; it goes on where it was stopped."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, Group, num_branches
from rapo_jax.config.tree import Config
from rapo_jax.distributed import from_first, interruptible
from rapo_jax.errors import Interrupted
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import my_rows, num_row_shards
from rapo_jax.train.journal import PRINT_EVERY, duration
from rapo_jax.train.loop import to_device
from rapo_jax.train.reference import Column, frozen_copy
from rapo_jax.train.step import make_logps_step

WRITE_EVERY = 10.0  # seconds of work that a kill can lose


def fill(
    column: Column | None,
    groups: Sequence[Group],
    needed: np.ndarray,
    parameters: dict,
    *,
    config: Config,
    spec: Spec,
    mesh: Mesh,
    what: str,
    where: str | Path,
    say: Callable[[str], None],
) -> np.ndarray:
    """The log-probabilities of groups, float32 [groups, branches], computing those of `needed` that `column` lacks.

    Process 0 has the column, the others None; `where` it is and `what` of, for messages. Raises Interrupted; what was computed is kept.
    """
    known = column.values if column else np.empty((len(groups), num_branches(groups)), np.float32)
    known = from_first(np.array(known))
    missing = needed[np.isnan(known[needed]).any(1)]
    found = f"{len(needed) - len(missing):,} of {len(needed):,} found in {where}"
    say(f"{what}: {found}" + "; computing the others ..." * bool(len(missing)))
    if len(missing):
        plan = pipeline.plan_reference(groups, missing, config, num_row_shards=num_row_shards(mesh))
        run_pass(column, known, groups, plan, parameters, config=config, spec=spec, mesh=mesh, say=say)
    if column and "sha256" not in column.read_record() and not np.isnan(known).any():
        column.finish()
    return known


def run_pass(
    column: Column | None,
    known: np.ndarray,
    groups: Sequence[Group],
    plan: BatchPlan,
    parameters: dict,
    *,
    config: Config,
    spec: Spec,
    mesh: Mesh,
    say: Callable[[str], None],
) -> None:
    """Fills `known` and the column, results read one step late."""
    reference = frozen_copy(parameters, config, spec, mesh)
    step = make_logps_step(config, spec, mesh, plan.shape)
    batches = pipeline.batches(groups, plan, my_rows(mesh, plan.shape.B))
    total, done = sum(len(row) for rows in plan.steps for row in rows), 0
    started = printed = written = time.monotonic()
    unwritten: list[np.ndarray] = []
    pending: tuple[list[list[int]], Array] | None = None

    def read() -> None:
        rows, logps_BPA = pending[0], jax.device_get(pending[1])
        for b, row in enumerate(rows):
            known[row] = logps_BPA[b, : len(row)]
            unwritten.append(np.array(row))

    def write() -> None:
        if unwritten and column:
            members = np.concatenate(unwritten)
            column.write(members, known[members])
        unwritten.clear()

    with jax.set_mesh(mesh), interruptible() as interrupted:
        for number, (rows, batch) in enumerate(zip(plan.steps, batches(0), strict=True)):
            logps_BPA = step(reference, to_device(batch, mesh, plan.shape.B))
            if pending:
                read()
                done += sum(map(len, pending[0]))
            pending = rows, logps_BPA
            now = time.monotonic()
            if now - written > WRITE_EVERY:
                write()
                written = now
            if now - printed > PRINT_EVERY and done:
                rate = done / (now - started)
                say(f"  {done:,} of {total:,}  {rate:.1f} pairs/s  {duration((total - done) / rate)} left")
                printed = now
            if interrupted(number):
                read()
                write()
                raise Interrupted("what was computed is kept")
        read()
        write()
