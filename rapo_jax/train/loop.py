"""The training loop: batches in, checkpoints and metrics out; resumes exactly, stops safely on a signal.

It knows iterators of batches, not data files. Metrics are fetched one step late, so that the host never waits for the
device.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.accounting import mfu
from rapo_jax.batch import Batch
from rapo_jax.checkpoint import NONE_BEST, NONE_SKIPPED, Best, Skipped, Store
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.distributed import interruptible
from rapo_jax.errors import Interrupted, UserError
from rapo_jax.parallel import to_device
from rapo_jax.peers import at, stepped, waiting
from rapo_jax.train.best import aim_of
from rapo_jax.train.journal import Journal
from rapo_jax.train.metrics import GroupSums
from rapo_jax.train.profile import Profile
from rapo_jax.train.samples import SampleAnswer, Sampler, metrics_of
from rapo_jax.train.state import State
from rapo_jax.train.step import EvaluateStep, TrainStep

SHOWN_ROWS = 8


@dataclass(frozen=True)
class Evaluation:
    """A held-out set: `batches()` yields this process's rows of all of it, `num_rows` is B over all processes."""

    step: EvaluateStep
    batches: Callable[[], Iterator[Batch]]
    num_rows: int


@dataclass(frozen=True)
class Cost:
    """A step's useful tokens and FLOPs, as rapo_jax/accounting.py defines them, and its positions, padding included."""

    real_tokens: int
    positions: int
    useful_flops: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))


@dataclass(frozen=True)
class Run:
    """What stays the same over the loop.

    `batches(k)` yields this process's rows of steps k, k + 1, ... (from 0); `num_rows` is B over all processes;
    `costs(k)` is what step k computes, `source_rows(k)` the rows of the data that it reads; `identity` is stored with
    every checkpoint.
    """

    config: Config
    mesh: Mesh
    train_step: TrainStep
    batches: Callable[[int], Iterator[Batch]]
    num_rows: int
    num_steps: int
    num_groups: int  # in one epoch
    costs: Callable[[int], Cost]
    source_rows: Callable[[int], list[int]]
    evaluations: dict[str, Evaluation]  # by the prefix of their metrics, such as "eval"
    identity: dict[str, Any]
    sampler: Sampler | None = None


@dataclass
class Progress:
    """What the host remembers between steps: metrics that were not fetched yet, and the clock."""

    pending: tuple[int, dict] | None = None
    evaluation: dict[str, float] = field(default_factory=dict)
    samples: list[SampleAnswer] = field(default_factory=list)  # of the pending step
    clock: float = field(default_factory=time.monotonic)
    clock_step: int = 0
    waited_for_data: float = 0.0  # seconds since the clock was set
    stood_still: float = 0.0  # the same, for saves
    evaluation_seconds: float = 0.0  # of the last evaluation
    save_seconds: float = 0.0  # of the last save, as far as the loop waits for it
    skipped: Skipped = NONE_SKIPPED
    best: Best = NONE_BEST  # of train.stop_on
    written: dict[str, float] = field(default_factory=dict)  # the metrics that were written last


@dataclass(frozen=True)
class Finished:
    """The state after the last step that was taken, the metrics that were written last, and how many steps changed nothing."""

    step: int
    state: State
    metrics: dict[str, float]
    skipped: Skipped


def run_loop(
    run: Run,
    state: State,
    *,
    reference: dict,
    store: Store,
    journal: Journal,
    skipped: Skipped = NONE_SKIPPED,
    best: Best = NONE_BEST,
) -> Finished:
    """Trains from `state`, which it consumes, to the last step, or to the one at which train.stop_on ends it; `skipped` and `best`
    are of the steps up to there.

    Raises Interrupted after a checkpoint on SIGINT or SIGTERM, and UserError when too many steps in a row, or all of a
    run, had a gradient that is not finite.
    """
    config, first = run.config, int(state.step)
    step, progress = first, Progress(clock_step=first, skipped=skipped, best=best)
    with jax.set_mesh(run.mesh), interruptible() as interrupted, profile_of(run, first) as profile:
        for step, batch in enumerate(timed(run.batches(first), progress), start=first + 1):
            at(f"step {step}", "waits" if step > first + 1 else "long")  # the first is compiled
            with waiting("the profile", "long"):
                profile.before(step, progress.pending)
            state, metrics = run.train_step(state, reference, to_device(batch, run.mesh, run.num_rows))
            write_metrics(run, progress, journal=journal)
            store.check()
            progress.pending = (step, metrics)
            last, stop = step == run.num_steps, interrupted(step)
            evaluates = bool(run.evaluations) and (last or due(step, config.train.eval_every))
            if evaluates:
                with waiting("finishing the step"):
                    jax.block_until_ready(metrics)
                progress.evaluation = evaluate(run, state, reference=reference, progress=progress)
            if run.sampler and due(step, config.train.sample_every):
                progress.samples = sampled(run.sampler, state, reference, progress, step=step)
            better, ended = look_for_best(run, progress, step=step) if evaluates else (False, False)
            saves = last or stop or better or ended or due(step, config.train.save_every)
            if saves:
                save(run, progress, step, state, store=store, journal=journal)
            if ended and not last:
                journal.say(ending(progress.best, step=step))
                break
            if stop and not last:
                store.wait()
                raise Interrupted(f"step {step} is saved")
            stepped(plain=not (step == first + 1 or evaluates or saves))
            at(f"the batch after step {step}")
    at("the end of the last save", "long")
    store.wait()
    return Finished(step, state, progress.written, progress.skipped)


def sampled(sampler: Sampler, state: State, reference: dict, progress: Progress, *, step: int) -> list[SampleAnswer]:
    """Answers of the model as it is. The clock leaves out the time that it takes."""
    started = time.monotonic()
    with waiting(f"sampling after step {step}", "long"):
        answers = sampler(state, reference)
    progress.clock += time.monotonic() - started
    return answers


def look_for_best(run: Run, progress: Progress, *, step: int) -> tuple[bool, bool]:
    """(whether the evaluation is the best so far, whether train.stop_on ends the run), where train.stop_on is set."""
    train = run.config.train
    if not train.stop_on:
        return False, False
    progress.best = aim_of(train.stop_on).after(progress.best, progress.evaluation, step=step)
    return not progress.best.since, progress.best.since >= train.patience


def ending(best: Best, *, step: int) -> str:
    value = "" if best.value is None else f", {best.value:.4g}, is of step {best.step}"
    return f"step {step} ends the run by train.stop_on: the {best.metric}{value}, {best.since} evaluations ago."


def save(run: Run, progress: Progress, step: int, state: State, *, store: Store, journal: Journal) -> None:
    """Writes the metrics up to a step, and starts to write its checkpoint."""
    named = {"eval_loss", aim_of(run.config.train.keep_best_by).metric}
    found = {name: value for name, value in progress.evaluation.items() if name in named and math.isfinite(value)}
    write_metrics(run, progress, journal=journal)
    if step == run.num_steps:
        refuse_no_update(progress.skipped, run.num_steps)
    record = {"identity": run.identity, "config": as_dict(run.config), "skipped": progress.skipped}
    at(f"the checkpoint of step {step}", "long")
    started = time.monotonic()
    store.save(step, state, metrics=found or None, best=progress.best, **record)
    progress.save_seconds = time.monotonic() - started
    progress.stood_still += progress.save_seconds


def profile_of(run: Run, first: int) -> Profile:
    return Profile(Path(run.config.run_dir), run.config.train.profile_steps, first=first)


def pauses_after(step: int, run: Run, progress: Progress) -> float:
    """Seconds that evaluations and saves are expected to take until the end, as long as the last ones took."""
    evaluations = times_due(run.config.train.eval_every, step, run.num_steps) if run.evaluations else 0
    saves = times_due(run.config.train.save_every, step, run.num_steps)
    return evaluations * progress.evaluation_seconds + saves * progress.save_seconds


def times_due(every: int | None, step: int, num_steps: int) -> int:
    """How often something is due after `step`; once more at the end, unless it is due there anyway."""
    every = every or num_steps
    return num_steps // every - step // every + (num_steps % every > 0) if step < num_steps else 0


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def write_metrics(run: Run, progress: Progress, *, journal: Journal) -> None:
    """Fetches the metrics of the step before, which waits for that step only, and writes them with its evaluation."""
    if progress.pending is None:
        return
    (step, metrics), evaluation, samples = progress.pending, progress.evaluation, progress.samples
    progress.pending, progress.evaluation, progress.samples = None, {}, []
    with waiting(f"fetching the metrics of step {step}"):
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    watch_skipped(run, progress, values.pop("skipped"), step=step, journal=journal)
    values["skipped_steps"] = float(progress.skipped.total)
    train = run.config.train
    if step % train.log_every and step != run.num_steps and not (evaluation or samples):
        return
    now = time.monotonic()
    pairs = (step - progress.clock_step) * train.batch_size
    seconds = max(now - progress.clock, 1e-9)
    values |= {"epoch": step * train.batch_size / run.num_groups, "pairs_per_s": pairs / seconds}
    values |= speed(run, range(progress.clock_step, step), seconds, progress=progress)
    progress.clock, progress.clock_step, progress.waited_for_data, progress.stood_still = now, step, 0.0, 0.0
    progress.written = values | evaluation | metrics_of(samples)
    with waiting(f"writing the metrics of step {step}", "works"):
        journal.write(step, progress.written)
        journal.progress(step, values, pauses=pauses_after(step, run, progress))
        if evaluation:
            journal.evaluation(step, evaluation)
        if samples:
            journal.samples(step, samples)


def speed(run: Run, steps: range, seconds: float, *, progress: Progress) -> dict[str, float]:
    """How fast `steps` (from 0) went and where their time went; rapo_jax/accounting.py defines the terms.

    MFU needs a device whose peak is known, peak memory a device that reports it.
    """
    cost, devices = sum((run.costs(step) for step in steps[1:]), run.costs(steps[0])), run.mesh.devices.flat
    values = {
        "real_tokens_per_s": cost.real_tokens / seconds,
        "real_token_fraction": cost.real_tokens / cost.positions,
        "time/step_s": seconds / len(steps),
        "time/waiting_for_data_s": progress.waited_for_data / len(steps),
        "time/saving_s": progress.stood_still / len(steps),
    }
    utilisation = mfu(cost.useful_flops / seconds, device_kind=devices[0].device_kind, num_devices=run.mesh.size)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    values |= {"mfu": utilisation} if utilisation is not None else {}
    return values | ({"memory/peak_gib": memory / 2**30} if memory is not None else {})


def timed(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    """The same batches; adds up how long the loop waited for them."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        progress.waited_for_data += time.monotonic() - started
        yield batch


def watch_skipped(run: Run, progress: Progress, skipped: float, *, step: int, journal: Journal) -> None:
    """Counts the steps that were skipped, over restarts too. Raises UserError when too many were in a row."""
    before = progress.skipped
    if not skipped:
        progress.skipped = Skipped(before.total)
        return
    progress.skipped = Skipped(before.total + 1, before.in_a_row + 1)
    journal.say(f"step {step}: loss or gradient is not finite; the update was skipped.")
    rows = run.source_rows(step - 1)
    journal.say(f"  its rows: {', '.join(map(str, rows[:SHOWN_ROWS]))}{' ...' if len(rows) > SHOWN_ROWS else ''}")
    if progress.skipped.in_a_row >= run.config.train.max_skipped_steps:
        raise UserError(
            f"{progress.skipped.in_a_row} steps in a row up to step {step} had no finite gradient; start "
            f"again in another run_dir with a lower optimizer.learning_rate or with optimizer.max_grad_norm, or raise "
            f"train.max_skipped_steps."
        )


def refuse_no_update(skipped: Skipped, num_steps: int) -> None:
    """Raises UserError for a run whose every step was skipped: its model is the one that it started from."""
    if skipped.total >= num_steps:
        raise UserError(
            f"none of the {num_steps} steps had a finite gradient, so nothing was trained and the run is not complete; start "
            "again in another run_dir with a lower optimizer.learning_rate or with optimizer.max_grad_norm."
        )


means_of = jax.jit(GroupSums.means)


def evaluate(run: Run, state: State, *, reference: dict, progress: Progress) -> dict[str, float]:
    """Exact means over the groups of every evaluation set, by metric with the set's prefix.

    The clock leaves out the time it takes.
    """
    started, metrics, share_done = time.monotonic(), {}, state.step / run.num_steps
    for prefix, evaluation in run.evaluations.items():
        total = None
        for batch in evaluation.batches():
            with waiting(f"evaluating a batch of {prefix}"):
                batch = to_device(batch, run.mesh, evaluation.num_rows)
                sums = jax.device_get(evaluation.step(state.parameters, reference, batch, share_done))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        assert total is not None, "evaluation sets have groups"
        metrics |= {f"{prefix}_{name}": float(value) for name, value in means_of(total).items()}
    progress.evaluation_seconds = time.monotonic() - started
    progress.clock += progress.evaluation_seconds
    return metrics
