"""A run is opened here: a resolved configuration becomes mesh, model, data, plan and state, ready for the loop.

Nothing is written before everything has been checked.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rapo_jax import __version__
from rapo_jax.accounting import real_work, step_flops
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, group_lengths, num_branches
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.borders import write_text
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.templates import padding_token
from rapo_jax.checkpoint import Restored, Store, fingerprint
from rapo_jax.config.files import as_dict, load_config, to_yaml
from rapo_jax.config.tree import Config, Objective
from rapo_jax.data.scaling import SIDECAR
from rapo_jax.errors import UserError
from rapo_jax.models.directory import model_directory
from rapo_jax.models.files import load_parameters
from rapo_jax.models.lora import adapted_spec
from rapo_jax.models.parameters import parameter_letters, shape_of, trained_letters
from rapo_jax.models.spec import Spec, identity_fields, read_config, spec_to_train
from rapo_jax.opened import open_for_training
from rapo_jax.parallel import make_mesh, my_rows, num_row_shards
from rapo_jax.reference_pass import fill
from rapo_jax.train.journal import Journal
from rapo_jax.train.loop import INTERRUPTED, Cost, Evaluation, Run, train
from rapo_jax.train.optim import direction
from rapo_jax.train.reference import Column, reference_is_resident, resident_reference
from rapo_jax.train.state import abstract_state, first_state, random_parameters, trainable
from rapo_jax.train.step import make_evaluate_step, make_train_step

# What may differ between a run and its resumption: it changes no update, or the fingerprints decide.
MAY_CHANGE = ("run_dir", "mesh.", "rows.", "reference.cache")
MAY_CHANGE += tuple(f"model.{key}" for key in ("path", "remat", "scan_layers", "attention"))
MAY_CHANGE += tuple(f"data.{key}" for key in ("path", "eval_path", "eval_split", "eval_rewards", "split", "revision"))
MAY_CHANGE += tuple(
    f"train.{key}" for key in ("log_every", "eval_every", "save_every", "keep_", "wandb", "max_skipped", "profile")
)


@dataclass(frozen=True)
class Setup:
    """What every verb needs of a run. `spec` has the run's adapters, where it trains such."""

    config: Config
    run_dir: Path
    model_dir: Path
    spec: Spec
    mesh: Mesh
    tokenizer: PreTrainedTokenizerBase
    goal_prompt: GoalPrompt
    stop_tokens: tuple[int, ...]


def set_up(config: Config) -> Setup:
    """Resolves model, tokenizer and mesh. Raises UserError for the first thing that cannot be."""
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    model_dir = model_directory(config.model.path)
    spec = spec_of(config, model_dir)
    opened = open_for_training(model_dir, config)
    return Setup(
        config=config,
        run_dir=Path(config.run_dir),
        model_dir=model_dir,
        spec=spec,
        mesh=mesh,
        tokenizer=opened.tokenizer,
        goal_prompt=opened.goal_prompt,
        stop_tokens=opened.stop_tokens,
    )


def spec_of(config: Config, model_dir: Path) -> Spec:
    """What a run computes and trains: the model of a directory, with a score head for reward models, with adapters where
    the configuration asks for such."""
    scored, said = config.objective.is_reward_model, f"model.path={config.model.path}"
    return adapted_spec(spec_to_train(read_config(model_dir), scored=scored, path=said), **vars(config.lora))


def open_run_dir(run_dir: Path) -> Config:
    """The configuration of an existing run."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory of rapo_jax (it has no config.yaml).")
    return load_config(path)


def train_or_resume(config: Config) -> int:
    """Trains from the start, or from the last checkpoint of run_dir; returns the exit code of `rapo train`."""
    setup = set_up(config)
    if setup.spec.scored:
        padding_token(setup.tokenizer, list(setup.stop_tokens))  # raises: what cannot be exported is not trained either
    refuse_foreign_directory(setup.run_dir)
    data = load_training(setup)
    held_out = load_held_out(setup, data)
    plan = pipeline.plan_training(data.groups, config, num_row_shards=num_row_shards(setup.mesh))
    parameters = starting_parameters(setup)
    identity = identify(setup, parameters, data)
    transform = direction(config.optimizer, setup.spec)
    columns = cached_references(setup, parameters, identity, plan, data, held_out)
    if columns is None:
        return INTERRUPTED
    evaluations = {name: evaluation_of(setup, dataset, columns.get(name)) for name, dataset in held_out.items()}
    store = Store(setup.run_dir, keep_last=config.train.keep_last, keep_best=config.train.keep_best if held_out else 0)
    reference = resident_reference(parameters, config, setup.spec, setup.mesh)
    trained = None if store.steps() else trainable(parameters, setup.spec, setup.mesh, seed=config.seed)
    del parameters
    abstract = abstract_state(setup.spec, setup.mesh, transform)
    restored = store.restore(abstract, accept=lambda before, step: refuse_changes(before, step, identity, setup))
    if restored:
        for name in store.set_aside_after(restored.step):
            say(f"{store.directory / name} is damaged and was set aside; going on from step {restored.step}.")
    state = restored.state if restored else first_state(trained, setup.spec, setup.mesh, transform)
    del trained
    write_records(setup, data, held_out, plan)
    announce(setup, data, plan, restored)
    if restored and restored.step >= len(plan.steps):
        store.close()
        say(f"nothing to do: {setup.run_dir} is complete at step {restored.step}.")
        return 0
    run = Run(
        config=config,
        mesh=setup.mesh,
        train_step=make_train_step(config, setup.spec, setup.mesh, plan.shape, num_steps=len(plan.steps)),
        batches=pipeline.batches(data.groups, plan, my_rows(setup.mesh, plan.shape.B), reference=columns.get("train")),
        num_rows=plan.shape.B,
        num_steps=len(plan.steps),
        num_groups=len(data.groups),
        costs=step_costs(data, plan, setup),
        evaluations=evaluations,
        identity=identity,
    )
    journal = Journal(setup.run_dir, config, num_steps=run.num_steps, first_step=restored.step if restored else 0)
    try:
        with precision(config):
            code = train(run, state, reference, store, journal)
    finally:
        journal.close()
        store.close()
    if code == 0:
        say(f"done: {setup.run_dir} is complete at step {run.num_steps}.  Next: rapo export {setup.run_dir} OUT_DIR")
    return code


def step_costs(data: pipeline.Dataset, plan: BatchPlan, setup: Setup) -> Callable[[int], Cost]:
    """step -> what it has to compute, by the definitions of rapo_jax/accounting.py."""
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


def precision(config: Config):
    """float32 means float32, also on accelerators whose matrix units would round it."""
    return jax.default_matmul_precision("highest" if config.model.dtype == "float32" else None)


def load_training(setup: Setup) -> pipeline.Dataset:
    how = {"goal_prompt": setup.goal_prompt, "progress": jax.process_index() == 0}
    return pipeline.load_training(setup.config, setup.tokenizer, **how)


def load_held_out(setup: Setup, training: pipeline.Dataset) -> dict[str, pipeline.Dataset]:
    """What is evaluated, on the training's scale of scores, by what its metrics begin with: "eval", relabelled like the
    training data, and, where goals are asked for, "eval_plain", the same rows without. {} without an evaluation."""
    how = {"goal_prompt": setup.goal_prompt, "progress": jax.process_index() == 0, "scales": training.scales}
    load = functools.partial(pipeline.load_held_out, setup.config, setup.tokenizer, **how)
    relabelled = load()
    if relabelled is None:
        return {}
    return {"eval": relabelled} | ({"eval_plain": load(plain=True)} if setup.config.relabel.goals else {})


def starting_parameters(setup: Setup) -> dict:
    """The model's weights as they are trained, float32, or as they are frozen under adapters, in the computation's dtype."""
    return model_weights(setup, dtype=jnp.dtype(setup.config.model.dtype if setup.spec.lora else "float32"))


def model_weights(setup: Setup, *, dtype: jnp.dtype) -> dict:
    """The weights that a run starts from."""
    if setup.config.model.random_init:
        weights = random_parameters(setup.spec, setup.mesh, seed=setup.config.seed)
        return jax.tree.map(lambda x: x.astype(dtype), weights)
    return load_parameters(setup.model_dir, setup.spec, mesh=setup.mesh, dtype=dtype, seed=setup.config.seed)


def cached_references(
    setup: Setup,
    parameters: dict,
    identity: dict,
    plan: BatchPlan,
    data: pipeline.Dataset,
    held_out: dict[str, pipeline.Dataset],
) -> dict[str, np.ndarray] | None:
    """The reference's log-probabilities of training ("train") and held-out groups from the cache, which is filled first.

    {} without a cache, None where filling it was interrupted. Raises UserError when the cache belongs to something else.
    """
    config, columns = setup.config, {}
    needed = {"train": np.unique([member for rows in plan.steps for row in rows for member in row])}
    needed |= {name: np.arange(len(dataset.groups)) for name, dataset in held_out.items()}
    for name, dataset in ({"train": data} | held_out).items() if config.reference.cache else ():
        column = open_column(config, name, dataset, identity) if jax.process_index() == 0 else None
        with precision(config):
            columns[name] = fill(
                column,
                dataset.groups,
                needed[name],
                parameters,
                config=config,
                spec=setup.spec,
                mesh=setup.mesh,
                what=f"reference of {name}",
                where=config.reference.cache,
                say=say,
            )
        if columns[name] is None:
            return None
    return columns


def open_column(config: Config, name: str, data: pipeline.Dataset, identity: dict) -> Column:
    shape = (len(data.groups), num_branches(data.groups))
    belongs_to = reference_identity(identity, data, config)
    column = Column(Path(config.reference.cache), name, shape=shape, identity=belongs_to)
    column.open(lambda before, now: differences(before, now, sources_of(config, name)))
    return column


def reference_identity(identity: dict, data: pipeline.Dataset, config: Config) -> dict:
    """What log-probabilities of these groups depend on: weights, tokens, and the arithmetic. Of the settings, those that
    make tokens, to say what changed when the tokens did."""
    makes_tokens = ("data.max_", "data.chat_template", "relabel.", "model.dtype")
    kept = {key: value for key, value in identity["settings"].items() if key.startswith(makes_tokens)}
    kept["scored"] = what_is_scored(config)
    return identity | {"data": data.source_fingerprint, "tokens": data.fingerprint, "settings": kept}


def evaluation_of(setup: Setup, held_out: pipeline.Dataset, reference: np.ndarray | None) -> Evaluation:
    plan = pipeline.plan_evaluation(held_out.groups, setup.config, num_row_shards=num_row_shards(setup.mesh))
    start = pipeline.batches(held_out.groups, plan, my_rows(setup.mesh, plan.shape.B), reference=reference)

    def batches() -> Iterator:
        return start(0)

    step = make_evaluate_step(setup.config, setup.spec, setup.mesh, plan.shape)
    return Evaluation(step=step, batches=batches, num_rows=plan.shape.B)


def identify(setup: Setup, parameters: dict, data: pipeline.Dataset) -> dict:
    """What a checkpoint of this run belongs to: hashes of model, tokenizer and data, and the settings."""
    tokenizer = setup.tokenizer.backend_tokenizer.to_str() + str(setup.tokenizer.chat_template)
    return {
        "model": model_identity(setup, parameters),
        "tokenizer": sha256(tokenizer),
        "data": data.source_fingerprint,
        "tokens": data.fingerprint,
        "settings": settings(setup.config),
    }


def model_identity(setup: Setup, parameters: dict) -> str:
    """A hash of the model that a run started from, whether its weights or adapters over them are trained."""
    return sha256(json.dumps([fingerprint(parameters), identity_fields(setup.spec.base)]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def settings(config: Config) -> dict:
    """The configuration by dotted key, without what may change, and without `lora` where there is none."""
    leaves = {}

    def walk(tree: dict, where: str) -> None:
        for key, value in tree.items():
            walk(value, f"{where}{key}.") if isinstance(value, dict) else leaves.update({where + key: value})

    walk(as_dict(config), "")
    unread = MAY_CHANGE if config.lora.rank is not None else (*MAY_CHANGE, "lora.")
    return {key: value for key, value in leaves.items() if not key.startswith(unread)}


def refuse_changes(before: dict, step: int, identity: dict, setup: Setup) -> None:
    """Raises UserError naming everything that differs from what the checkpoint was trained with."""
    changed = differences(before, identity, sources_of(setup.config, "train"))
    if changed:
        raise UserError(
            f"{setup.run_dir} was trained up to step {step} with something else; changed: {'; '.join(changed)}. "
            f"Undo the change, or choose another run_dir. Nothing was overwritten."
        )


def sources_of(config: Config, name: str) -> dict[str, str]:
    """Where the parts of an identity came from."""
    data = config.data.path if name == "train" else config.data.eval_path
    return {"model": config.model.path, "tokenizer": config.model.path, "data": data}


def differences(before: dict, identity: dict, sources: dict[str, str]) -> list[str]:
    """In words, what differs between two identities."""
    changed = [f"the {what} ({path})" for what, path in sources.items() if before[what] != identity[what]]
    old, new = before["settings"], identity["settings"]
    changed += [
        f"{key} ({old.get(key)!r} -> {new.get(key)!r})" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if not changed and before["tokens"] != identity["tokens"]:
        changed = [f"the tokenization (another version of rapo_jax? this is {__version__})"]
    return changed


def refuse_foreign_directory(run_dir: Path) -> None:
    if run_dir.exists() and (
        not run_dir.is_dir() or (any(run_dir.iterdir()) and not (run_dir / "checkpoints").exists())
    ):
        raise UserError(f"run_dir={run_dir} exists and is not a run of rapo_jax; choose another run_dir.")


def write_records(setup: Setup, data: pipeline.Dataset, held_out: dict[str, pipeline.Dataset], plan: BatchPlan) -> None:
    if jax.process_index() != 0:
        return
    report = {"train": data.report, "eval": held_out["eval"].report if held_out else None}
    report["plan"] = vars(plan.shape) | {
        "steps": len(plan.steps),
        "real_token_fraction": round(plan.real_token_fraction, 4),
        "groups_left_over": max(0, len(data.groups) - len(plan.steps) * setup.config.train.batch_size),
    }
    setup.run_dir.mkdir(parents=True, exist_ok=True)
    write_text(setup.run_dir / "config.yaml", to_yaml(setup.config))
    write_text(setup.run_dir / "data_report.json", json.dumps(report, indent=2) + "\n")
    if data.scales.tree():
        write_text(setup.run_dir / SIDECAR, json.dumps(data.scales.tree(), indent=2) + "\n")


def announce(setup: Setup, data: pipeline.Dataset, plan: BatchPlan, restored: Restored | None) -> None:
    """What is about to happen, on one screen."""
    report, shape, config = data.report, plan.shape, setup.config
    unit = {"one": "responses", "pair": "pairs"}.get(config.objective.responses, "groups")
    axes = " x ".join(f"{size} {axis}" for axis, size in setup.mesh.shape.items())
    size, lora = parameter_count(setup.spec), setup.spec.lora
    dropped = sum(report["rows_dropped"].values()) + report["ties"]["dropped"] + sum(report["cut"]["dropped"].values())
    goals = (
        f"goals of {' and '.join(config.relabel.goals)} in the {setup.goal_prompt.placement} turn"
        if config.relabel.goals
        else "no goals"
    )
    cut = report["cut"]["prompt_tokens_cut"] + report["cut"]["response_tokens_cut"]
    say(f"rapo_jax {__version__}, jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].device_kind} ({axes})")
    say(f"  model  {config.model.path}: {setup.spec.family}, {size:,} parameters, {config.model.dtype}")
    if lora:
        number = trained_count(setup.spec)
        say(
            f"  lora   rank {lora.rank} on {', '.join(lora.targets)}, scale {lora.scale:g}: {number:,} parameters trained"
        )
    say(
        f"  data   {report['rows_read']:,} rows, {dropped:,} dropped ({report['ties']['dropped']:,} ties) -> {report['groups']:,} {unit}; {goals}; {cut:,} tokens cut"
    )
    say(
        f"  plan   {len(plan.steps)} steps of {config.train.batch_size}; {shape.B} rows of {shape.T} a microbatch, {plan.real_token_fraction:.1%} real tokens"
    )
    resuming = f", resuming after step {restored.step}" if restored else ""
    say(f"  loss   {loss_in_words(config.objective)}; into {setup.run_dir}{resuming}")
    if not restored or restored.step < len(plan.steps):
        say("compiling the step ...")


def loss_in_words(objective: Objective) -> str:
    """dpo + 2 sft"""
    terms = [term.name if term.weight == 1 else f"{term.weight:g} {term.name}" for term in objective.terms]
    best = objective.best_goal_weight
    return " + ".join(terms + ([f"{best:g} likelihood at the highest goal"] if best else []))


def parameter_count(spec: Spec) -> int:
    return sum(prod(shape_of(spec, letters)) for letters in parameter_letters(spec).values())


def trained_count(spec: Spec) -> int:
    return sum(prod(shape_of(spec, letters)) for letters in trained_letters(spec).values())


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
