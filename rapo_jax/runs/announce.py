"""What a run reports before its first step, on the terminal and in run_dir."""

from collections.abc import Iterator
from math import prod

import jax

from rapo_jax import __version__
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan
from rapo_jax.borders import write_json, write_text
from rapo_jax.config.files import to_yaml
from rapo_jax.config.objective import Objective
from rapo_jax.data.scaling import SCALE_FILE
from rapo_jax.data.sources import CONTEXT, UNREAD
from rapo_jax.distributed import say
from rapo_jax.models.parameters import parameter_letters, shape_of, trained_letters
from rapo_jax.models.spec import Spec, read_config
from rapo_jax.runs.setup import Setup


def write_records(
    setup: Setup, data: pipeline.Dataset, *, held_out: dict[str, pipeline.Dataset], plan: BatchPlan
) -> None:
    """Writes config.yaml, data_report.json and, where scores were mapped, the map. On process 0 alone."""
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
    write_json(setup.run_dir / "data_report.json", report)
    if data.scales.tree():
        write_json(setup.run_dir / SCALE_FILE, data.scales.tree())


def announce(setup: Setup, data: pipeline.Dataset, *, plan: BatchPlan, resuming_after: int | None) -> None:
    """Prints one screen: machine, model, data, batch plan, loss; a line fits 80 columns unless a path is long."""
    config, shape = setup.config, plan.shape
    axes = " x ".join(f"{size} {axis}" for axis, size in setup.mesh.shape.items())
    say(f"rapo_jax {__version__}, jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].device_kind} ({axes})")
    say(f"  model  {config.model.path}:")
    say(f"         {setup.spec.family}, {parameter_count(setup.spec):,} parameters, {config.model.dtype}")
    if lora := setup.spec.lora:
        say(f"  lora   rank {lora.rank} on {', '.join(lora.targets)}, scale {lora.scale:g}:")
        say(f"         {trained_count(setup.spec):,} parameters trained")
    announce_data(setup, data)
    say(f"  plan   {len(plan.steps)} steps of {config.train.batch_size} {config.objective.unit};")
    say(f"         {shape.B} rows of {shape.T} a microbatch, {plan.real_token_fraction:.1%} real tokens")
    resuming = f", resuming after step {resuming_after}" if resuming_after is not None else ""
    say(f"  loss   {loss_in_words(config.objective)}; into {setup.run_dir}{resuming}")
    if resuming_after is None or resuming_after < len(plan.steps):
        say("compiling the step ...")


def announce_data(setup: Setup, data: pipeline.Dataset) -> None:
    """Prints what became of the rows, and what of them deserves a look."""
    report, relabel = data.report, setup.config.relabel
    reasons, ties = report["rows_dropped"], report["ties"]["dropped"]
    held_out = reasons.get("held_out", 0)
    dropped = sum(reasons.values()) - held_out + ties + sum(report["cut"]["dropped"].values())
    cut = report["cut"]["prompt_tokens_cut"] + report["cut"]["response_tokens_cut"]
    of_all = f" ({cut / (cut + sum(group.num_tokens for group in data.groups)):.0%} of all)" if cut else ""
    goals = (
        f"goals of {' and '.join(relabel.goals)} in the {setup.goal_prompt.placement} turn"
        if relabel.goals
        else "no goals"
    )
    held = f", {held_out:,} held out" if held_out else ""
    say(f"  data   {report['rows_read']:,} rows, {dropped:,} dropped ({ties:,} ties){held}")
    say(f"         -> {report['groups']:,} {setup.config.objective.unit}, {cut:,} tokens cut{of_all};")
    say(f"         {goals}")
    for note in notes_on(setup, data):
        say(f"  note   {note}")


def notes_on(setup: Setup, data: pipeline.Dataset) -> Iterator[str]:
    """Sentences about columns that nobody reads, goals that no scale has, and rows longer than the model knows."""
    report, relabel = data.report, setup.config.relabel
    for note, number in report.get("notes", {}).items():
        if note.startswith(UNREAD):
            column = note.removeprefix(UNREAD)
            knob = f"; {key}={column} reads it" if (key := CONTEXT[column]) else ""
            yield f"{number:,} rows hold {column!r}, which is not read{knob}"
    for key, number in report["cut"]["not_written"].items():
        yield f"{number:,} rows hold {key!r}, which the chat template does not write"
    outside = report["goals"]["outside_scale"]
    if outside:
        yield f"{outside:,} goals are not from {relabel.goal_min:g} to {relabel.goal_max:g}; relabel.scale.fit maps scores"
    positions = read_config(setup.model_dir).get("max_position_embeddings")
    longest = max(len(group.prompt) + max(map(len, group.continuations)) for group in data.groups)
    if positions and longest > positions:
        yield f"a row has {longest:,} tokens, the model {positions:,} positions; see data.max_length"


def loss_in_words(objective: Objective) -> str:
    """The terms of a loss with their weights, such as "dpo + 2 sft"."""
    terms = [term.name if term.weight == 1 else f"{term.weight:g} {term.name}" for term in objective.terms]
    best = objective.best_goal_weight
    return " + ".join(terms + ([f"{best:g} likelihood at the highest goal"] if best else []))


def parameter_count(spec: Spec) -> int:
    """The number of the model's parameters, without adapters."""
    return sum(prod(shape_of(spec, letters)) for letters in parameter_letters(spec).values())


def trained_count(spec: Spec) -> int:
    """The number of parameters that are trained."""
    return sum(prod(shape_of(spec, letters)) for letters in trained_letters(spec).values())
