"""What a run reports before its first step, on the terminal and in run_dir."""

import textwrap
from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from rapo_jax import __version__
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan
from rapo_jax.borders import whole_file, write_json, write_text
from rapo_jax.chat.dates import pinned_day
from rapo_jax.chat.encoding import notes_on_unwritten
from rapo_jax.chat.goal_prompt import read_goal_prompt
from rapo_jax.chat.jinja import variables
from rapo_jax.chat.options import options_of
from rapo_jax.chat.templates import written_before_answers
from rapo_jax.config.files import to_yaml
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config
from rapo_jax.data.notes import notes_on_goals, notes_on_rows
from rapo_jax.data.report_figure import draw_report
from rapo_jax.data.scaling import SCALE_FILE
from rapo_jax.data.sources import counts_in_words
from rapo_jax.distributed import say
from rapo_jax.errors import axes_in_words, counted, shown
from rapo_jax.models.parameters import parameter_letters, shape_of, trained_letters
from rapo_jax.models.spec import Spec, read_config
from rapo_jax.runs.setup import Setup
from rapo_jax.runs.start import Start
from rapo_jax.train.optim import learning_rate

FIGURE = "data_report.png"
MUCH_CUT = 0.1  # the share of all tokens whose truncation deserves a note


def write_records(
    setup: Setup, data: pipeline.Dataset, *, held_out: dict[str, pipeline.Dataset], plan: BatchPlan
) -> None:
    """Writes config.yaml, data_report.json, its figure and, where scores were mapped, the map. On process 0 alone."""
    if jax.process_index() != 0:
        return
    report = {"train": data.report, "eval": held_out["eval"].report if held_out else None}
    report["plan"] = vars(plan.shape) | {
        "steps": len(plan.steps),
        "real_token_fraction": round(plan.real_token_fraction, 4),
        "groups_left_over": max(0, len(data.groups) - len(plan.steps) * setup.config.train.batch_size),
    }
    report["run"] = made_of(setup)
    setup.run_dir.mkdir(parents=True, exist_ok=True)
    write_text(setup.run_dir / "config.yaml", to_yaml(setup.config))
    write_json(setup.run_dir / "data_report.json", report)
    if data.scales.tree():
        write_json(setup.run_dir / SCALE_FILE, data.scales.tree())
    figure = setup.run_dir / FIGURE
    if data.distributions and not figure.exists():
        with whole_file(figure) as path:
            draw_report(path, data.distributions, data.report, title=setup.run_dir.name)


def made_of(setup: Setup) -> dict[str, Any]:
    """What no setting says: versions, devices and how they are arranged, the size of the model."""
    return {
        "rapo_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "num_devices": setup.mesh.size,
        "num_processes": jax.process_count(),
        "mesh": dict(setup.mesh.shape),
        "family": setup.spec.family,
        "parameters": parameter_count(setup.spec),
        "trained_parameters": trained_count(setup.spec),
    }


def announce(setup: Setup, data: pipeline.Dataset, *, plan: BatchPlan, start: Start) -> None:
    """Prints one screen of 80 columns: machine, model, data, batch plan, loss, and what deserves a look."""
    config, shape, num_steps = setup.config, plan.shape, len(plan.steps)
    axes = axes_in_words(setup.mesh.shape)
    say(f"rapo_jax {__version__}, jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].device_kind} ({axes})")
    tell("model", f"{config.model.path}:")
    tell("", f"{setup.spec.family}, {parameter_count(setup.spec):,} parameters, {config.model.dtype}")
    if lora := setup.spec.lora:
        tell("lora", f"rank {lora.rank} on {', '.join(lora.targets)}, scale {lora.scale:g}:")
        tell("", f"{trained_count(setup.spec):,} parameters trained")
    announce_data(setup, data)
    unit = config.objective.unit.removesuffix("s")
    tell("plan", f"{counted(num_steps, 'step')} of {counted(config.train.batch_size, unit)};")
    tell("", f"{counted(shape.B, 'row')} of {shape.T} a microbatch, {plan.real_token_fraction:.1%} real tokens")
    tell("loss", f"{loss_in_words(config.objective)}; into {setup.run_dir}")
    if (after := start.resuming_after) is not None:
        tell("", f"resuming after step {after}")
    notes = [*notes_on(setup, data), *notes_on_extension(config, start, num_steps)]
    for note in notes:
        tell("note", note)
    if after is None or after < num_steps:
        say("compiling the step ...")


def tell(label: str, text: str) -> None:
    """Prints a labelled text in 79 columns; what is longer than a line, such as a path, is not broken."""
    lines = textwrap.wrap(text, width=70, break_long_words=False, break_on_hyphens=False)
    say("\n".join(f"  {label if n == 0 else '':<7}{line}" for n, line in enumerate(lines)))


def announce_data(setup: Setup, data: pipeline.Dataset) -> None:
    """Prints what became of the rows."""
    report, relabel = data.report, setup.config.relabel
    unit = setup.config.objective.unit.removesuffix("s")
    reasons, ties = report["rows_dropped"], report["ties"]["dropped"]
    held_out = reasons.get("held_out", 0)
    dropped = sum(reasons.values()) - held_out + ties
    placement = setup.goal_prompt.placement
    goals = f"goals of {' and '.join(relabel.goals)} in the {placement} turn" if relabel.goals else "no goals"
    held = f", {held_out:,} held out" if held_out else ""
    cut, share = tokens_cut(data)
    of_all = f" ({share:.0%} of all)" if cut else ""
    tell("data", f"{counted(report['rows_read'], 'row')}, {dropped:,} dropped ({counted(ties, 'tie')}){held}")
    tell("", f"-> {counted(report['groups'], unit)}, {counted(cut, 'token')} cut{of_all};")
    tell("", goals)


def tokens_cut(data: pipeline.Dataset) -> tuple[int, float]:
    """The number of tokens that truncation removed, and their share of all tokens."""
    cut = data.report["cut"]["prompt_tokens_cut"] + data.report["cut"]["response_tokens_cut"]
    return cut, cut / (cut + sum(group.num_tokens for group in data.groups))


def notes_on(setup: Setup, data: pipeline.Dataset) -> Iterator[str]:
    """Sentences about what is not read, much of it cut, goals off the scale, one-sided labels, and rows that are too long."""
    report, relabel, config = data.report, setup.config.relabel, setup.config
    _, share = tokens_cut(data)
    if share >= MUCH_CUT:
        yield (
            f"{share:.0%} of all tokens are cut; data.max_length={config.data.max_length} and "
            f"data.max_prompt_length={config.data.max_prompt_length} set how much is kept"
        )
    if config.objective.responses == "labelled":
        yield from notes_on_labels(data)
    yield from notes_on_rows(report)
    if lost := report["cut"]["dropped"]:
        yield f"{sum(lost.values()):,} of {counted(report['cut']['num_items'], 'preference')} were dropped as tokens: {counts_in_words(lost)}"
    yield from notes_on_unwritten(report["cut"]["not_written"], "row")
    yield from notes_on_template(setup)
    yield from notes_on_goals(report["goals"], relabel)
    own = read_goal_prompt(setup.model_dir)
    if own and own.baked is not None and relabel.goals and not own.asks_like(setup.goal_prompt):
        yield f"the starting model was asked in other words: ...{str(own.sentence(own.baked))[-50:]!r}; see relabel.*"
    model = read_config(setup.model_dir)
    if dropout := model.get("attention_dropout"):
        yield f"the model's config.json asks for attention_dropout={dropout} in training; none is applied"
    positions = model.get("max_position_embeddings")
    longest = max(len(group.prompt) + max(map(len, group.continuations)) for group in data.groups)
    if positions and longest > positions:
        yield f"a row has {longest:,} tokens, the model {positions:,} positions; see data.max_length"


def notes_on_template(setup: Setup) -> Iterator[str]:
    """Sentences about what the chat template writes by itself: a date, what options ask for, a thought before a response."""
    template = setup.goal_prompt.chat_template
    if day := pinned_day(template):
        yield f"the chat template writes {day} as today, also when exported (data.date)"
    if options := options_of(template):
        said = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
        yield f"the chat template is given {said}, also when exported (data.template_options)"
    if (before := written_before_answers(setup.tokenizer)).strip():
        switch = "data.template_options={enable_thinking: false} writes it into the prompt"
        knob = f"; {switch}" if "enable_thinking" in variables(template) else ""
        yield f"the chat template begins a response without a thought with {before!r}{knob}"


def notes_on_labels(data: pipeline.Dataset) -> Iterator[str]:
    """A sentence where all responses have one label."""
    desirable = sum(len(group.responses[0]) > 0 for group in data.groups)
    undesirable = sum(len(group.responses[1]) > 0 for group in data.groups)
    if not (desirable and undesirable):
        label = "desirable" if desirable else "undesirable"
        yield f"all of {counted(desirable + undesirable, 'response')} are {label}; there are no margins and no accuracy to show"


def notes_on_extension(config: Config, start: Start, num_steps: int) -> Iterator[str]:
    """What a longer run does to the schedule of the run that it continues."""
    before, after = start.planned, start.resuming_after
    if before is None or after is None or num_steps <= before:
        return
    was, now = (float(learning_rate(config.optimizer, num_steps=n)(jnp.asarray(after))) for n in (before, num_steps))
    yield (
        f"extended from {before:,} to {counted(num_steps, 'step')}; the learning rate now follows their schedule: "
        f"{now:.3g} after step {after}, where it was {was:.3g}"
    )


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
