"""The verb: models, held-out pairs and suites in; tables, figures, JSON and CSV out, all in one directory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapo_jax.batching.pipeline import evaluation_source, read_part
from rapo_jax.borders import whole_file, write_json
from rapo_jax.config.tree import Config
from rapo_jax.data.mixture import sample
from rapo_jax.distributed import is_first, on_first, say
from rapo_jax.errors import UserError
from rapo_jax.evaluate.figures import draw
from rapo_jax.evaluate.likelihoods import Likelihoods, ask, labels_of, likelihoods
from rapo_jax.evaluate.result import Result, as_csv, table
from rapo_jax.evaluate.suites import likelihood, preference, unlearning
from rapo_jax.locks import claimed
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel, ModelDirectory
from rapo_jax.runs.agreement import require_same_configuration, require_same_model
from rapo_jax.space import on_disk

MOST_WHOLE_GOALS = 10
DEFAULT_BETA = 0.1  # where the configuration's objective has none


def evaluate(
    config: Config,
    models: Sequence[ClosedModel],
    *,
    reference: ClosedModel | None,
    suites: Sequence[str],
    goals: Sequence[float],
    most: int | None,
    out: Path,
) -> list[Result]:
    """Evaluates models on `most` of the configuration's held-out pairs, or of data.path where none are held out.

    `goals` are those of the grid; () takes whole numbers of the scale. `reference` is needed by the suite "preference" alone.
    Raises Interrupted (what was computed is kept in `out`), and UserError.
    """
    require_same_configuration(config)
    if "preference" in suites and reference is None:
        raise UserError(
            "the suite preference compares with the model that training started from: name it with --reference or model.path, "
            "or leave the suite out with --suite."
        )
    every = {model.name: model for model in models}
    if len(every) < len(models):
        raise UserError("--model names one model twice; name every model once.")
    if reference is not None and "preference" in suites:
        every.setdefault(reference.name, reference)
    labels = labels_of(list(every))
    asked = [ask(model, config, label=label) for model, label in zip(every.values(), labels, strict=True)]
    for model in every.values():
        if isinstance(model, ModelDirectory):  # the checkpoint of a run is read by all processes together
            require_same_model(model.directory)
    records = pairs_of(config, most=most)
    grid = tuple(goals) or grid_of(config)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a directory.")
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(claimed_directory(out)))
        tables = dict(zip(every, likelihoods(asked, records, config, grid=grid, out=out), strict=True))
        of_models = [tables[model.name] for model in models]
        of_reference = tables[reference.name] if reference is not None and reference.name in tables else None
        results = [
            one_suite(name, of_models, of_reference, beta=config.objective.options.get("beta")) for name in suites
        ]
        if is_first():
            write(results, out)
    return results


def claimed_directory(out: Path):
    """The output directory, made, and kept from other processes."""
    with on_disk(out):
        out.mkdir(parents=True, exist_ok=True)
    return claimed(out, said=f"--out={out}")


def pairs_of(config: Config, *, most: int | None) -> list[Record]:
    """The pairs to evaluate on, scores on the goal scale, the larger first. Raises UserError where scores are missing."""
    wanted = replace(config, relabel=replace(config.relabel, goals=("chosen", "rejected"), attributes=()))
    held_out = config.data.eval_path or config.data.eval_fraction
    if held_out:
        scales = read_part(wanted, "train").scales
        with evaluation_source(config):
            prepared = read_part(wanted, "eval", scales=scales)
    else:
        prepared = read_part(wanted, "train")
    pairs = [better_first(record) for record in prepared.records if len(record.responses) == 2]
    if not pairs:
        raise UserError(f"{prepared.said} has no pairs of scored responses to evaluate on.")
    drawn = sample(pairs, min(most or len(pairs), len(pairs)), seed=config.seed)
    where = "held out" if held_out else "of data.path (data.eval_path or data.eval_fraction would hold some out)"
    of_all = f" of {len(pairs):,}" if len(drawn) < len(pairs) else ""
    say(f"  data   {len(drawn):,}{of_all} pairs {where}")
    return drawn


def better_first(record: Record) -> Record:
    """The record with the response of the larger reward first."""
    assert record.rewards is not None
    if record.rewards[0] >= record.rewards[1]:
        return record
    reversed_fields = {
        name: tuple(reversed(value))
        for name in ("responses", "rewards", "attributes", "labels", "more")
        if (value := getattr(record, name))
    }
    return replace(record, **reversed_fields)


def grid_of(config: Config) -> tuple[float, ...]:
    """The whole numbers of the goal scale, or ten goals evenly spaced over a longer one."""
    low, high = config.relabel.goal_min, config.relabel.goal_max
    if high - low < MOST_WHOLE_GOALS and float(low).is_integer() and float(high).is_integer():
        return tuple(float(goal) for goal in np.arange(low, high + 1))
    return tuple(float(goal) for goal in np.linspace(low, high, MOST_WHOLE_GOALS))


def one_suite(name: str, models: Sequence[Likelihoods], reference: Likelihoods | None, *, beta: float | None) -> Result:
    if name == "preference":
        assert reference is not None
        return preference(models, reference, beta=DEFAULT_BETA if beta is None else beta)
    return {"likelihood": likelihood, "unlearning": unlearning}[name](models)


def write(results: Sequence[Result], out: Path) -> None:
    """results.json, results.csv, results.txt and one figure a suite."""
    write_json(out / "results.json", {result.suite: result.tree() for result in results})
    for name, text in (("results.csv", as_csv(results)), ("results.txt", text_of(results))):
        with whole_file(out / name) as path:
            path.write_text(text, encoding="utf-8")
    for result in results:
        with whole_file(out / f"{result.suite}.png") as path:
            draw(result, path)


def text_of(results: Sequence[Result], *, details: bool = True) -> str:
    return "\n\n".join(table(result, details=details) for result in results) + "\n"
