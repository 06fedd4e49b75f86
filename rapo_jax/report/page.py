"""The page: what was read, in the order in which a reader wants it, through a template that escapes every text.

It loads nothing from anywhere. A policy in the page itself forbids requests, and scripts other than its own.
"""

import base64
import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rapo_jax.borders import json_line
from rapo_jax.drawing import LINES, PAGE, series
from rapo_jax.evaluate.result import Result, reliability_bins, shown
from rapo_jax.report import charts, facts
from rapo_jax.report.answers import Answer, Gallery, gallery_of, goal_label, json_for_page, mean_scores, rank, tree_of
from rapo_jax.report.comparison import ABSENT, Differences, differences, setting
from rapo_jax.report.inputs import Evaluated, Inputs, SweepRecord
from rapo_jax.report.numbers import as_csv, numbers_tree
from rapo_jax.report.run_directory import RunRecord, part

HERE = Path(__file__).parent
MARK = "<!-- rapo report -->"  # in the first line, by which a page of ours is known
PRINTED_PROMPTS = 3
DASHES = dict(zip(LINES, ("", "6 3", "6 2 1 2", "1 2"), strict=True))  # of matplotlib's lines, in SVG


@dataclass(frozen=True)
class Table:
    """`rows` are (name, cells), without cells a heading of those that follow. Numbers stand on the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Section:
    """Pictures and tables under one heading."""

    title: str
    anchor: str
    explains: str
    charts: tuple[charts.Chart, ...]
    tables: tuple[Table, ...]


def page_of(inputs: Inputs, *, title: str, made_by: str, made_on: str, command: str) -> str:
    """The HTML of a page. Call within `drawing.styled`."""
    easel, gallery, few = charts.Easel(), gallery_of(inputs.answers), len(inputs.runs) <= charts.MOST_APART
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tree = numbers_tree(inputs, made_by=made_by, command=command)
    return environment.get_template("page.html.jinja").render(
        title=title,
        made=f"{made_by}, {made_on}",
        command=command,
        mark=Markup(MARK),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        overview=overview(inputs.runs),
        gallery=gallery,
        printed=printed(gallery),
        goal_label=goal_label,
        answers_json=Markup(json_for_page(json.dumps(tree_of(gallery)))),
        answer_chart=charts.answer_chart(inputs.answers, easel),
        answer_means=answer_means(inputs.answers),
        sweeps=[sweep_section(sweep, n, easel) for n, sweep in enumerate(inputs.sweeps)],
        results=[s for n, each in enumerate(inputs.evaluations) for s in result_sections(each, n, easel)],
        comparison=comparison(inputs.runs, easel) if len(inputs.runs) > 1 else None,
        runs=[run_view(run, n, drawn_by=easel if few else None) for n, run in enumerate(inputs.runs)],
        data=data_sections(inputs.runs, easel),
        numbers_json=Markup(json_for_page(json.dumps(tree))),
        numbers_csv=Markup(json_for_page(json.dumps(as_csv(inputs)))),
    )


def number(value: float | None) -> str:
    """
    >>> [number(each) for each in (None, float("nan"), 0.6931, 12345.6, 1e-07, 250.0)]
    ['\u2014', '\u2014', '0.6931', '12,346', '1e-07', '250']
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def overview(runs: Sequence[RunRecord]) -> Table | None:
    """One line a run: what it is, how far it came, its last metrics, its speed."""
    if not runs:
        return None
    columns = (
        "objective",
        "goals",
        "steps",
        "loss",
        "accuracy",
        *(f"accuracy, {said}" for said, _ in facts.SIDES[1:3]),
    )
    columns += ("groups/s", "hours")
    rows = []
    for run in runs:
        _, metrics = facts.metric_rows(run)
        found = dict(metrics)
        loss, accuracy = found.get("loss", [None]), found.get("accuracy", [None] * 3)
        speed = facts.speed(run)
        sides = run.config.get("relabel.goals") or []
        cells = [facts.objective_of(run.config), ", ".join(map(str, sides)) or "none", facts.steps_of(run)]
        cells += [number(each) for each in (loss[0], *accuracy[:3], speed["pairs_per_s"][1], speed["hours"][1])]
        rows.append((run.name, tuple(cells)))
    return Table("Runs; metrics are held-out ones where a run has any", columns, tuple(rows))


def printed(gallery: Gallery) -> list[tuple[str, list[tuple[str, list[tuple[str, list[str]]]]]]]:
    """(prompt, [(goal, [(model, texts)])]) at the lowest, middle and highest goal of the first prompts: for paper."""
    chosen = []
    for spectrum in gallery.spectra[:PRINTED_PROMPTS]:
        last = len(spectrum.goals) - 1
        at = sorted({0, last // 2, last})
        shown_at = [
            (
                goal_label(spectrum.goals[n]),
                [(m, [a.text for a in a_m]) for m, a_m in zip(gallery.models, spectrum.answers[n], strict=True)],
            )
            for n in at
        ]
        chosen.append((spectrum.prompt, shown_at))
    return chosen


def answer_means(answers: Sequence[Answer]) -> Table | None:
    """Models in rows, goals in columns; None without scores."""
    found = mean_scores(answers)
    goals = sorted({goal for by_goal in found.values() for goal in by_goal}, key=rank)
    rows = tuple(
        (model, tuple(mean_said(by_goal[goal]) if goal in by_goal else ABSENT for goal in goals))
        for model, by_goal in found.items()
    )
    return Table("Mean score of the answers by goal asked", tuple(map(goal_label, goals)), rows) if rows else None


def mean_said(scores: Sequence[float]) -> str:
    return f"{number(statistics.fmean(scores))}, n {len(scores):,}"


def reliability_table(result: Result) -> Table:
    """What the figure of the suite `preference` draws: each model's bins by how sure it was."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for model, place, surety, right, count in reliability_bins(result):
        if not place:
            rows.append((model, ()))
        rows.append((f"bin {place + 1}", (number(surety), number(right), f"{count:,}")))
    columns = ("sigmoid of the margin, mean", "share that is right", "preferences")
    return Table(f"{result.suite}: reliability by how sure the implicit reward is", columns, tuple(rows))


def sweep_section(sweep: SweepRecord, place: int, easel: charts.Easel) -> Section:
    rows = tuple(
        (
            line.model,
            (*map(number, line.means), ABSENT if line.rank_correlation is None else f"{line.rank_correlation:+.2f}"),
        )
        for line in sweep.lines
    )
    columns = (*(f"{goal:g}" for goal in sweep.goals), "rank correlation")
    of = f" of {sweep.num_prompts} prompts" if sweep.num_prompts else ""
    table = Table(f"Mean judged score{of} by goal asked", columns, rows)
    explains = "A model that follows goals has a line near score = goal."
    return Section(
        f"Goal sweep: {sweep.name}", f"sweep-{place}", explains, (charts.sweep_chart(sweep, easel),), (table,)
    )


def result_sections(each: Evaluated, place: int, easel: charts.Easel) -> list[Section]:
    """One section a suite: its figure and its tables."""
    sections = []
    for number, result in enumerate(each.results):
        drawn, anchor = tuple(charts.result_charts(result, easel)), f"result-{place}-{number}"
        tables = measure_tables(result)
        if result.suite == "preference" and result.curves:
            tables += (reliability_table(result),)
        sections.append(Section(f"{result.suite}: {each.name}", anchor, result.explains, drawn, tables))
    return sections


def measure_tables(result: Result) -> tuple[Table, ...]:
    """Groups of prompts in columns, quantities and models in rows; each cell a value with its interval and n. Quantities of the
    same groups share a table."""
    rows: dict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = {}
    for quantity in dict.fromkeys(m.quantity for m in result.measures):
        measures = [m for m in result.measures if m.quantity == quantity]
        places = tuple(dict.fromkeys(m.where for m in measures))
        found = {(m.model, m.where): shown(m.estimate).strip() for m in measures}
        rows.setdefault(places, []).append((quantity, ()))
        for model in dict.fromkeys(m.model for m in measures):
            rows[places].append((model, tuple(found.get((model, where), ABSENT) for where in places)))
    caption = f"{result.suite}: value, 95 % interval, prompts"
    return tuple(Table(caption, places, tuple(each)) for places, each in rows.items())


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `marks` are (name, colour, dashes) of their lines."""

    found: Differences
    charts: tuple[charts.Chart, ...]
    marks: tuple[tuple[str, str, str], ...]


def comparison(runs: Sequence[RunRecord], easel: charts.Easel) -> Comparison:
    found = differences([run.config for run in runs])
    marks = tuple(
        (run.name, PAGE[str(series(n)["color"])], DASHES[series(n)["linestyle"]]) for n, run in enumerate(runs)
    )
    return Comparison(found, tuple(charts.compared_charts(runs, easel)), marks)


def run_view(run: RunRecord, place: int, *, drawn_by: charts.Easel | None) -> dict[str, Any]:
    """What the template shows of a run; without an easel, its curves are in the comparison alone."""
    where, metrics = facts.metric_rows(run)
    names = [*(said for said, _ in facts.SIDES), "asked for no goal"]
    used = facts.columns_used(metrics, names)
    rows = tuple((name, tuple(number(values[n]) for n, _ in used)) for name, values in metrics)
    speed = [(unit, number(value)) for unit, value in facts.speed(run).values() if value is not None]
    return {
        "name": run.name,
        "anchor": f"run-{place}",
        "origin": facts.origin(run),
        "charts": list(charts.run_charts(run, drawn_by)) if drawn_by else [],
        "elsewhere": drawn_by is None,
        "metrics": Table(f"Metrics of {where}", tuple(name for _, name in used), rows),
        "speed": speed,
        "commands": facts.repeat(run),
        "config": [(key, setting(value)) for key, value in run.config.items()],
        "empty": not run.records,
    }


def data_sections(runs: Sequence[RunRecord], easel: charts.Easel) -> list[dict[str, Any]]:
    """One section for each different data set, with the names of the runs that were trained on it."""
    seen: dict[str, list[RunRecord]] = {}
    for run in runs:
        if report := part(run.data, "train"):
            seen.setdefault(json_line([report, run.data.get("eval")]), []).append(run)
    sections = []
    for place, members in enumerate(seen.values()):
        report, held_out = (part(members[0].data, name) for name in ("train", "eval"))
        said = str(report.get("path", "?"))
        sections.append(
            {
                "runs": [run.name for run in members],
                "anchor": f"data-{place}",
                "path": said,
                "charts": list(charts.data_charts(report, said, easel)),
                "facts": facts.data_facts(report),
                "held_out": facts.data_facts(held_out),
                "held_out_path": str(held_out.get("path", "")),
            }
        )
    return sections
