"""The pictures of a page, each as SVG with a caption: curves by goal side and over runs, scores and gaps of the data, goal sweeps, and
the figures of `rapo evaluate`. Call within `drawing.styled`.
"""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rapo_jax.drawing import INK, as_svg, series, short
from rapo_jax.errors import counted
from rapo_jax.evaluate.figures import DRAWN, GoalLine, draw_goal_lines, figure_of, models_of, prompts_of
from rapo_jax.evaluate.result import Result
from rapo_jax.report.answers import Answer, mean_scores
from rapo_jax.report.facts import SIDES
from rapo_jax.report.inputs import SweepRecord
from rapo_jax.report.run_directory import RunRecord, curve, part

MOST_POINTS, MOST_BARS = 120, 40
MOST_APART = 6  # runs that have pictures of their own; with more, a page would be slow and nobody would look at them
STYLE_OF_SIDE = (2, 0, 1, 3)  # of SIDES: chosen and rejected look alike in all pictures
WHERE = {"eval_": "held out", "": "training"}  # by what a metric's name begins with
BY_SIDE = ("rewards/accuracies", "rewards/margins")
# (title, unit, metric) of the curves of a run.
PANELS = (
    ("Loss", "loss (nats)", "loss"),
    ("Accuracy", "share of pairs", "rewards/accuracies"),
    ("Margin", "implicit reward", "rewards/margins"),
    ("Chosen responses", "log-probability (nats)", "logps/chosen"),
    ("Rejected responses", "log-probability (nats)", "logps/rejected"),
)


@dataclass(frozen=True)
class Chart:
    """One picture. `said` is its caption, which a screen reader says instead of it."""

    title: str
    svg: str
    said: str


class Easel:
    """Makes figures of one size, and charts of them with ids of their own."""

    def __init__(self) -> None:
        self.made = 0

    def axes(self, width: float = 4.4, height: float = 3.0) -> tuple[Any, Any]:
        """(figure, axes). Margins are fixed: a layout that is solved takes longer than all the rest."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.75 / width, 0.5 / height, 1 - 0.9 / width, 1 - 0.85 / height))
        axes.grid(axis="y")
        return figure, axes

    def chart(self, figure: Any, title: str, said: str) -> Chart:
        self.made += 1
        return Chart(title, as_svg(figure, f"f{self.made}"), said)


def run_charts(run: RunRecord, easel: Easel) -> Iterator[Chart]:
    """The curves of a run by goal side, held-out values as marks."""
    for title, unit, metric in PANELS:
        found = [(n, curve(run.records, side + metric, most=MOST_POINTS)) for n, (_, side) in enumerate(SIDES)]
        lines = [(n, line) for n, line in found if line[0]]
        lines = lines[1:] if len(lines) > 1 else lines  # the mean over sides says nothing that they do not
        if not lines:
            continue
        figure, axes = easel.axes()
        marks = ""
        for n, (steps, values, _) in lines:
            style = series(STYLE_OF_SIDE[n])
            axes.plot(steps, values, **style | {"marker": ""}, label=SIDES[n][0], linewidth=1.3)
            steps, values, _ = curve(run.records, f"eval_{SIDES[n][1]}{metric}", most=MOST_POINTS)
            axes.plot(steps, values, **style | {"linestyle": "none"}, markeredgecolor=INK)
            marks = " Marks are held-out values." if steps else marks
        finish(axes, title=title, xlabel="optimizer step", ylabel=unit)
        points, _, size = lines[0][1]
        said = f"{title} of {run.name} by goal side. {smoothing(size, len(points))}{marks}{undrawn([run], metric)}"
        yield easel.chart(figure, title, said)


def smoothing(size: int, points: int) -> str:
    if size > 1:
        return f"n {counted(points, 'point')}, each the mean of {size} reports."
    return f"n {counted(points, 'report')}."


def compared_charts(runs: Sequence[RunRecord], easel: Easel) -> Iterator[Chart]:
    """Every run in one picture a metric: held-out values where two runs have several, else those of training. Accuracy and
    margin also by goal side."""
    for title, unit, metric in PANELS:
        for said, side in SIDES[: 3 if metric in BY_SIDE else 1]:
            found = {
                prefix: [curve(run.records, prefix + side + metric, most=MOST_POINTS) for run in runs]
                for prefix in WHERE
            }
            prefix = next((p for least in (2, 1) for p, lines in found.items() if num_drawn(lines, least) > 1), None)
            if prefix is not None:
                lines = found[prefix]
                without = [run.name for run, (steps, _, _) in zip(runs, lines, strict=True) if not steps]
                missing = f" No values of {', '.join(without)}." if without else ""
                missing += undrawn(runs, prefix + side + metric)
                yield compared_chart(f"{title}, {said}, {WHERE[prefix]}", unit, lines, easel, missing=missing)


def undrawn(runs: Sequence[RunRecord], metric: str) -> str:
    """What a caption says of reports that have no finite value to draw; "" where there are none."""
    lost = {run.name: run.lost(metric) for run in runs}
    said = [f"{counted(len(at), 'report')} of {name}, first at step {at[0]:,}" for name, at in lost.items() if at]
    return f" Not finite, so not drawn: {'; '.join(said)}." if said else ""


def num_drawn(lines: Sequence[tuple[list[float], list[float], int]], least: int) -> int:
    """How many of these curves have so many points."""
    return sum(len(steps) >= least for steps, _, _ in lines)


def compared_chart(
    name: str, unit: str, lines: Sequence[tuple[list[float], list[float], int]], easel: Easel, *, missing: str
) -> Chart:
    figure, axes = easel.axes()
    for n, (steps, values, _) in enumerate(lines):
        style = series(n) | ({"marker": ""} if len(steps) > 12 else {})
        for drawn in axes.plot(steps, values, **style, linewidth=1.3):
            drawn.set_gid(f"series-{n}")
    finish(axes, legend=False, title=name, xlabel="optimizer step", ylabel=unit)
    size, points = max(size for _, _, size in lines), max(len(steps) for steps, _, _ in lines)
    return easel.chart(figure, name, f"{name}: one line a run. {smoothing(size, points)}{missing}")


def finish(axes: Any, *, legend: bool = True, **labels: str) -> None:
    axes.set(**labels)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def data_charts(report: dict[str, Any], name: str, easel: Easel) -> Iterator[Chart]:
    """Scores by side, and gaps, of one part of data_report.json."""
    scores = part(report, "scores")
    bars = {side: binned(part(scores, side)) for side in ("chosen", "rejected") if part(scores, side)}
    if bars:
        figure, axes = easel.axes()
        for n, (side, (at, heights, width)) in enumerate(bars.items()):
            each = width / len(bars)
            places = [x + each * (n - (len(bars) - 1) / 2) for x in at]
            axes.bar(places, heights, each, color=series(n)["color"], label=f"{side}, n {sum(heights):,}")
        finish(axes, title="Scores", xlabel="score, rounded", ylabel="responses")
        yield easel.chart(
            figure, "Scores", f"Scores of the chosen and the rejected responses of {name}, on the goal scale."
        )
    if gaps := part(report, "margins"):
        at, heights, width = binned(gaps)
        figure, axes = easel.axes()
        axes.bar(at, heights, width, color=series(2)["color"], label=f"n {sum(heights):,}")
        finish(axes, title="Gaps", xlabel="score of chosen less that of rejected, rounded", ylabel="records")
        yield easel.chart(figure, "Gaps", f"How much further up the scale the chosen responses of {name} are.")


def binned(histogram: dict[str, Any]) -> tuple[list[float], list[int], float]:
    """(places, heights, width) of bars for a histogram by whole number, over at most MOST_BARS bars.

    >>> binned({"1": 2, "3": 5})
    ([1.0, 3.0], [2, 5], 0.8)
    """
    whole = re.compile(r"-?[0-9]{1,9}").fullmatch
    counts = {int(score): n for score, n in histogram.items() if whole(score) and isinstance(n, int)}
    if not counts:
        return [], [], 0.8
    size = max(1, math.ceil((max(counts) - min(counts) + 1) / MOST_BARS))
    bars: dict[int, int] = {}
    for score, n in counts.items():
        bars[score // size] = bars.get(score // size, 0) + n
    return (
        [place * size + (size - 1) / 2 for place in sorted(bars)],
        [bars[place] for place in sorted(bars)],
        0.8 * size,
    )


def sweep_chart(sweep: SweepRecord, easel: Easel) -> Chart:
    """Mean judged score by goal, one line a model; the mean over its sweeps where it has several."""
    of = f", n {sweep.num_prompts}" if sweep.num_prompts else ""
    lines = {}
    for model in dict.fromkeys(line.model for line in sweep.lines):
        own = [line for line in sweep.lines if line.model == model]
        means = [statistics.fmean(each) for each in zip(*(line.means for line in own), strict=True)]
        bounds = (own[0].low, own[0].high) if len(own) == 1 else ((), ())
        seeds = f" x {len(own)} seeds" * (len(own) > 1)
        lines[model] = GoalLine(f"{short(model)}{of}{seeds}", means, *bounds)
    figure, axes = easel.axes(6.0, 4.2)
    draw_goal_lines(axes, sweep.goals, lines)
    shaded = " Shaded: 95 % interval over prompts." if any(len(line.low) for line in lines.values()) else ""
    return easel.chart(
        figure, "Judged score by goal", f"Mean judged score against the goal asked, {sweep.name}.{shaded}"
    )


def answer_chart(answers: Sequence[Answer], easel: Easel) -> Chart | None:
    """The same from the scores in answer files; None where fewer than two goals have any."""
    lines, every = {}, set()
    for model, by_goal in mean_scores(answers).items():
        goals = sorted(goal for goal in by_goal if len(goal) == 1)
        if len(goals) > 1:
            every |= {goal[0] for goal in goals}
            fewest = min(len(by_goal[goal]) for goal in goals)
            lines[model] = ([goal[0] for goal in goals], [statistics.fmean(by_goal[goal]) for goal in goals], fewest)
    if not lines:
        return None
    figure, axes = easel.axes(6.0, 4.2)
    for n, (model, (goals, means, fewest)) in enumerate(lines.items()):
        axes.plot(goals, means, **series(n), label=f"{short(model)}, n {fewest} a goal")
    finish(axes, xlabel="goal asked", ylabel="mean score of the answers", title="")
    return easel.chart(
        figure, "Score by goal", "Mean score of the answers against the goal asked, from the answer files."
    )


def result_charts(result: Result, easel: Easel) -> Iterator[Chart]:
    """The suite's figure; of a suite with a panel a model, one picture each. None of suites that have no figure."""
    if result.suite not in DRAWN or not result.measures or not result.curves:
        return
    if result.suite == "likelihood":
        for model in models_of(result):
            said = f"How much likelier responses of each reward are under each goal, {model}, {prompts_of(result, model)} prompts."
            yield easel.chart(figure_of(result, [model]), model, said)
        return
    said = f"{result.suite}: {', '.join(models_of(result))}. The table has the same numbers."
    yield easel.chart(figure_of(result), result.suite, said)
