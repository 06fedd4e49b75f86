"""The numbers of a page, for programs: one JSON tree, and one CSV table of what is a single number."""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from rapo_jax.evaluate.result import numbers_of, reliability_bins
from rapo_jax.report.answers import goal_label, mean_scores
from rapo_jax.report.charts import MOST_POINTS, PANELS
from rapo_jax.report.facts import SIDES, speed
from rapo_jax.report.inputs import Inputs
from rapo_jax.report.run_directory import RunRecord, curve

HEADER = ("kind", "name", "suite", "quantity", "where", "model", "value", "low", "high", "n")


def numbers_tree(inputs: Inputs, *, made_by: str, command: str) -> dict[str, Any]:
    """For JSON; what is not finite is null."""
    tree = {
        "made_by": made_by,
        "command": command,
        "runs": [run_tree(run) for run in inputs.runs],
        "evaluations": [
            {"name": each.name, "path": str(each.path), "results": [result.tree() for result in each.results]}
            for each in inputs.evaluations
        ],
        "sweeps": [
            {"name": sweep.name, "goals": list(sweep.goals), "num_prompts": sweep.num_prompts}
            | {"models": [vars(line) for line in sweep.lines]}
            for sweep in inputs.sweeps
        ],
        "answers": [
            {"model": model, "goal": goal, "mean_score": statistics.fmean(scores), "n": len(scores)}
            for model, by_goal in mean_scores(inputs.answers).items()
            for goal, scores in by_goal.items()
        ],
    }
    return plain(tree)


def run_tree(run: RunRecord) -> dict[str, Any]:
    curves = {}
    for prefix in ("", "eval_"):
        for metric in (prefix + side + metric for _, side in SIDES for _, _, metric in PANELS):
            steps, values, size = curve(run.records, metric, most=MOST_POINTS)
            if steps:
                curves[metric] = {"step": steps, "value": values, "reports_each": size}
    return {
        "name": run.name,
        "path": str(run.path),
        "steps": run.steps,
        "planned_steps": run.planned,
        "config": run.config,
        "data": run.data,
        "last": run.last,
        "evaluated": run.evaluated,
        "speed": {name: number for name, (_, number) in speed(run).items()},
        "curves": curves,
    }


def plain(value: Any) -> Any:
    """A tree that JSON can hold: lists for tuples, null for what is not finite, text for anything else."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int():
            return value
        case dict():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
    return str(value)


def as_csv(inputs: Inputs) -> str:
    """A row for each measure, each mean of a sweep, and each last number of a run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(csv_rows(inputs))
    return out.getvalue()


def csv_rows(inputs: Inputs) -> Iterator[Sequence[Any]]:
    """The rows below the header."""
    for run in inputs.runs:
        last = run.last | {name: x for name, x in run.evaluated.items() if name.startswith("eval_")}
        numbers = last | {f"speed/{name}": x for name, (_, x) in speed(run).items() if x is not None}
        yield from (("run", run.name, "", name, "", "", plain(x), "", "", "") for name, x in numbers.items())
    for each in inputs.evaluations:
        for result in each.results:
            for m in result.measures:
                measured = numbers_of(m.estimate).values()
                yield "evaluation", each.name, result.suite, m.quantity, m.where, m.model, *measured
            for model, _, surety, right, count in reliability_bins(result) if result.suite == "preference" else ():
                where = f"sigmoid of the margin {surety:.3f}"
                row = ("share of preferences that are right", where, model, right, "", "", count)
                yield "evaluation", each.name, result.suite, *row
    for sweep in inputs.sweeps:
        for line in sweep.lines:
            for n, (goal, mean) in enumerate(zip(sweep.goals, line.means, strict=True)):
                low, high = (bounds[n] if bounds else "" for bounds in (line.low, line.high))
                row = ("mean judged score", f"goal {goal:g}", line.model, mean, low, high, sweep.num_prompts)
                yield "sweep", sweep.name, "", *row
    for model, by_goal in mean_scores(inputs.answers).items():
        for goal, scores in by_goal.items():
            where = f"goal {goal_label(goal)}" if goal else "no goal"
            yield "answers", "", "", "mean score", where, model, statistics.fmean(scores), "", "", len(scores)
