"""Training a run from a configuration, from the start or from its last checkpoint.

Composes the other rooms; the loop is rapo_jax/train/loop.py. Nothing but tokens (data.cache) is written before everything
has been checked.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rapo_jax.accounting import real_work, step_flops
from rapo_jax.batch import Batch
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, group_lengths
from rapo_jax.chat.templates import padding_token
from rapo_jax.checkpoint import Store
from rapo_jax.config.tree import Config
from rapo_jax.distributed import anywhere, is_first, say
from rapo_jax.errors import UserError, nearest
from rapo_jax.locks import IN_USE, claimed
from rapo_jax.opened import require_ids_fit
from rapo_jax.parallel import matmul_precision, my_rows, shards_of_rows
from rapo_jax.peers import at, steps_watched
from rapo_jax.runs.agreement import require_same_configuration, require_same_inputs, require_same_model
from rapo_jax.runs.announce import announce, write_records
from rapo_jax.runs.identity import Identity, identify
from rapo_jax.runs.references import cached_references
from rapo_jax.runs.samples import Score, sampler_of
from rapo_jax.runs.setup import TOKENS, Setup, read_held_out_data, read_training_data, set_up, starting_parameters
from rapo_jax.runs.start import Start, starting_state
from rapo_jax.space import on_disk
from rapo_jax.train.best import aim_of
from rapo_jax.train.forward import attention_kernel
from rapo_jax.train.journal import Journal, last_record, require_wandb
from rapo_jax.train.loop import Cost, Evaluation, Finished, Run, run_loop
from rapo_jax.train.metrics import METRICS, SIDE_PREFIX
from rapo_jax.train.reference import reference_is_resident, resident_reference
from rapo_jax.train.state import State, trainable
from rapo_jax.train.step import make_evaluate_step, make_train_step


@dataclass(frozen=True)
class Trained:
    """A complete run. `state` lives on the mesh of the run; the same is in the newest checkpoint of run_dir."""

    run_dir: Path
    step: int
    num_steps: int
    state: State
    metrics: dict[str, float]  # of the last step that was written to metrics.jsonl


@dataclass(frozen=True)
class Inputs:
    """What a run reads: training groups, evaluation sets by the prefix of their metrics, and the batch plan."""

    data: pipeline.Dataset
    held_out: dict[str, pipeline.Dataset]
    plan: BatchPlan

    @property
    def num_steps(self) -> int:
        return len(self.plan.steps)


def train_or_resume(config: Config, *, score: Score | None = None) -> Trained:
    """Trains from the start, or from the last checkpoint of run_dir, to the last step. `score` is for the answers of
    train.sample_every.

    Raises UserError for what cannot be trained, and Interrupted when a signal came and everything is saved.
    """
    require_same_configuration(config)
    require_wandb(config)
    setup = set_up(config)
    attention_kernel(config, setup.mesh)  # raises for a kernel that does not exist or does not run here
    if setup.spec.scored:
        padding_token(setup.tokenizer, list(setup.stop_tokens))  # raises: what could not be exported is not trained
    refuse_foreign_directory(setup)
    at("reading the data")
    inputs = read_inputs(setup)
    refuse_unknown_metrics(config, inputs.held_out)
    sampler = sampler_of(setup, inputs.data.scales, score)
    require_same_model(setup.model_dir)
    at("loading the model")
    parameters = starting_parameters(setup)
    identity = identify(setup, parameters, inputs.data)
    require_same_inputs(identity, inputs.held_out)
    with one_writer(setup.run_dir):
        columns = cached_references(
            setup, parameters, identity=identity, plan=inputs.plan, data=inputs.data, held_out=inputs.held_out
        )
        run = replace(make_run(setup, inputs, identity=identity, columns=columns), sampler=sampler)
        store = Store(
            setup.run_dir,
            config.train.checkpoints,
            keep_last=config.train.keep_last,
            keep_best=config.train.keep_best if inputs.held_out else 0,
            rank=aim_of(config.train.keep_best_by).rank,
        )
        try:
            reference = resident_reference(parameters, config, setup.spec, setup.mesh)
            first = None if store.steps() else trainable(parameters, setup.spec, setup.mesh, seed=config.seed)
            del parameters  # restoring needs the memory
            start = starting_state(setup, first, store=store, identity=identity, num_groups=len(inputs.data.groups))
            write_records(setup, inputs.data, held_out=inputs.held_out, plan=inputs.plan)
            announce(setup, inputs.data, plan=inputs.plan, start=start)
            if start.resuming_after is not None and (goes_on := how_to_go_on(start, inputs, config)):
                say(f"nothing to do: {setup.run_dir} is complete at step {start.resuming_after}.")
                say(f"  next: rapo export {setup.run_dir} OUT_DIR, or a longer run, such as {goes_on}")
                metrics = last_record(setup.run_dir)
                return Trained(setup.run_dir, start.resuming_after, inputs.num_steps, start.state, metrics)
            finished = finish(run, start, reference=reference, store=store)
        finally:
            store.close()
        skipped = f"; {finished.skipped.total} of its steps changed nothing" if finished.skipped.total else ""
        say(f"done: {setup.run_dir} is complete at step {finished.step}{skipped}.")
        say(f"  next: rapo export {setup.run_dir} OUT_DIR")
        return Trained(setup.run_dir, finished.step, inputs.num_steps, finished.state, finished.metrics)


def how_to_go_on(start: Start, inputs: Inputs, config: Config) -> str:
    """The setting that would make a run that is complete longer; "" for one that is not complete."""
    if start.resuming_after is not None and start.resuming_after >= inputs.num_steps:
        return f"train.max_steps={2 * inputs.num_steps}"
    train = config.train
    ended = train.stop_on and start.best.metric == aim_of(train.stop_on).said and start.best.since >= train.patience
    return f"train.patience={start.best.since + train.patience}" if ended else ""


def refuse_unknown_metrics(config: Config, held_out: Mapping[str, pipeline.Dataset]) -> None:
    """Raises UserError for a metric that no evaluation of this run has, before anything is computed."""
    sides = ("", *(prefix for prefix in SIDE_PREFIX.values() if prefix))
    reported = [name for name, metric in METRICS.items() if metric.applies_to(config.objective)]
    known = [f"{prefix}_{side}{name}" for prefix in held_out for side in sides for name in reported]
    for key, text in (("stop_on", config.train.stop_on), ("keep_best_by", config.train.keep_best_by)):
        metric = aim_of(text).metric
        if text and known and metric not in known:
            raise UserError(f"train.{key}={text}: evaluations of this run have no {metric}; {nearest(metric, known)}")
    if config.train.stop_on and not held_out:
        raise UserError(
            f"train.stop_on={config.train.stop_on} looks at evaluations, and nothing is held out: set data.eval_path or data.eval_fraction."
        )


@contextmanager
def one_writer(run_dir: Path) -> Iterator[None]:
    """Keeps run_dir for this run, on process 0; a run that is refused later leaves no empty directory.

    Raises UserError on every process where another run has it, and OSError where it cannot be written.
    """
    refused: Exception | None = None
    with ExitStack() as stack:
        if is_first():
            try:
                with on_disk(run_dir):
                    if not run_dir.exists():
                        run_dir.mkdir(parents=True)
                        stack.callback(remove_if_empty, run_dir)
                    stack.enter_context(claimed(run_dir, said=f"run_dir={run_dir}"))
            except (UserError, OSError) as error:
                refused = error
        if anywhere(refused is not None):
            raise refused or UserError(f"run_dir={run_dir} cannot be used; process 0 says why.")
        yield


def remove_if_empty(directory: Path) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()


def refuse_foreign_directory(setup: Setup) -> None:
    """Raises UserError for a run_dir that holds something other than a run, or than what a killed start left."""
    run_dir, caches = setup.run_dir, (setup.config.reference.cache, setup.config.data.cache)
    if not run_dir.exists():
        return
    ours = {IN_USE, TOKENS}
    for cache in caches:
        if cache and run_dir.resolve() in Path(cache).resolve().parents:
            ours.add(Path(cache).resolve().relative_to(run_dir.resolve()).parts[0])
    is_empty = run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= ours
    if not (is_empty or (run_dir / "checkpoints").exists()):
        raise UserError(f"run_dir={run_dir} exists and is not a run of rapo_jax; choose another run_dir.")


def read_inputs(setup: Setup) -> Inputs:
    """Reads the data and assigns it to steps. Raises UserError for what cannot be read or is too little."""
    data = read_training_data(setup)
    held_out = read_held_out_data(setup, data)
    for each in (data, *held_out.values()):
        if each.largest_id is None or each.largest_id >= setup.spec.V:
            texts = (tokens for group in each.groups for tokens in (group.prompt, *group.continuations))
            require_ids_fit(texts, setup.tokenizer, setup.spec, said=f"model.path={setup.config.model.path}")
    plan = pipeline.plan_training(data.groups, setup.config, **shards_of_rows(setup.mesh), report=data.report)
    return Inputs(data, held_out, plan)


def make_run(setup: Setup, inputs: Inputs, *, identity: Identity, columns: dict[str, Float[np.ndarray, "_ _"]]) -> Run:
    """What the loop needs: compiled steps, batches and costs."""
    config, plan, groups = setup.config, inputs.plan, inputs.data.groups
    return Run(
        config=config,
        mesh=setup.mesh,
        train_step=make_train_step(config, setup.spec, setup.mesh, plan.shape, num_steps=inputs.num_steps),
        batches=pipeline.batches(groups, plan, my_rows(setup.mesh, plan.shape.B), reference=columns.get("train")),
        num_rows=plan.shape.B,
        num_steps=inputs.num_steps,
        num_groups=len(groups),
        costs=step_costs(inputs.data, plan, setup),
        source_rows=lambda step: sorted({groups[member].row for row in plan.steps[step] for member in row}),
        evaluations={
            name: evaluation_of(setup, held, reference=columns.get(name)) for name, held in inputs.held_out.items()
        },
        identity=identity.record(),
    )


def evaluation_of(
    setup: Setup, held_out: pipeline.Dataset, *, reference: Float[np.ndarray, "G A"] | None
) -> Evaluation:
    """An evaluation over all groups of a held-out set; `reference` is its column of the cache."""
    plan = pipeline.plan_evaluation(held_out.groups, setup.config, **shards_of_rows(setup.mesh))
    start = pipeline.batches(held_out.groups, plan, my_rows(setup.mesh, plan.shape.B), reference=reference)

    def batches() -> Iterator[Batch]:
        return start(0)

    step = make_evaluate_step(setup.config, setup.spec, setup.mesh, plan.shape)
    return Evaluation(step=step, batches=batches, num_rows=plan.shape.B)


def step_costs(data: pipeline.Dataset, plan: BatchPlan, setup: Setup) -> Callable[[int], Cost]:
    """Step (from 0) -> its cost, as rapo_jax/accounting.py defines it."""
    B, T = plan.shape.B, plan.shape.T
    in_step = reference_is_resident(setup.config)

    def cost(step: int) -> Cost:
        rows = plan.steps[step]
        groups = [data.groups[member] for row in rows for member in row]
        work = real_work(*group_lengths(groups), setup.spec.windows, scored=plan.shape.scored)
        return Cost(
            real_tokens=int(work.tokens),
            positions=-(-len(rows) // B) * B * T,
            useful_flops=step_flops(setup.spec, work, reference=in_step),
        )

    return cost


def finish(run: Run, start: Start, *, reference: dict, store: Store) -> Finished:
    """Runs the loop to the last step, with a journal, in the precision of the configuration."""
    first_step = start.resuming_after or 0
    if is_first():
        store.require_space(start.state)
    run_dir = Path(run.config.run_dir)
    journal = Journal(run_dir, run.config, num_steps=run.num_steps, first_step=first_step)
    try:
        with matmul_precision(run.config.model.dtype), steps_watched(run_dir, run.config.train.hang_factor):
            more = {"reference": reference, "store": store, "journal": journal, "skipped": start.skipped}
            return run_loop(run, start.state, best=start.best, **more)
    finally:
        journal.close()
