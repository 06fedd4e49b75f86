"""The figure of each suite, and of a goal sweep, legible in grey: marks and lines differ in shape, axes carry units, and n is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.drawing import QUIET, save_png, series, short, styled
from rapo_jax.evaluate.result import Result

LEVELS = 32  # of a heat map's colours


def figure_name(suite: str) -> str:
    return f"{suite}.png"


def draw(result: Result, path: Path) -> None:
    """Saves the suite's figure as PNG."""
    with styled():
        save_png(figure_of(result), path)


def figure_of(result: Result, models: Sequence[str] = ()) -> Any:
    """The suite's figure, of all models or of these, as matplotlib has it. Call within `styled`."""
    from matplotlib.figure import Figure

    models = list(models) or models_of(result)
    panels = {"likelihood": len(models), "goals": 2}.get(result.suite, 1)
    width = {"likelihood": 4.2 * panels + 0.8, "goals": 10.4}.get(result.suite, 6.4)
    height = max(4.4, 1.5 * len(models)) if result.suite == "unlearning" else 4.4
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, panels))
    DRAWN[result.suite](figure, all_axes, result, models)
    return figure


def models_of(result: Result) -> list[str]:
    return list(dict.fromkeys(measure.model for measure in result.measures))


def prompts_of(result: Result, model: str) -> str:
    """ "n 149": the most prompts behind a measure of the model."""
    return f"n {max(measure.estimate.n for measure in result.measures if measure.model == model):,}"


def draw_likelihood(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """One heat map a model: bright where responses of these rewards are likelier than under the other goals. The colours of all
    models of the result mean the same."""
    from matplotlib import colormaps

    limit = max(float(np.abs(np.array(each["logp_per_token"])).max()) for each in result.curves.values()) or 1.0
    colours = colormaps["viridis"].resampled(LEVELS)
    for axes, model in zip(all_axes, models, strict=True):
        curve = result.curves[model]
        # Cells as shapes: an image would be blurred where it is scaled.
        image = axes.pcolormesh(np.array(curve["logp_per_token"]), cmap=colours, vmin=-limit, vmax=limit)
        title = f"{short(model)}, {prompts_of(result, model)} prompts"
        axes.set(title=title, xlabel="goal asked", ylabel="reward of the response")
        axes.set_xticks(np.arange(len(curve["goals"])) + 0.5, [f"{goal:g}" for goal in curve["goals"]])
        axes.set_yticks(np.arange(len(curve["rewards"])) + 0.5, curve["rewards"])
        if axes is all_axes[-1]:
            figure.colorbar(image, ax=axes, label="log-probability a token, less its mean over goals (nats)")


def draw_unlearning(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """Mean log-probabilities with 95 % intervals, one mark a model."""
    axes, unit = all_axes[0], ", nats"
    kinds = [m for m in result.measures if m.model == models[0] and m.quantity.endswith(unit) and "under" in m.quantity]
    places = [(m.quantity, m.where) for m in kinds if m.quantity.startswith("log-probability")]
    apart = min(0.18, 0.8 / len(models))
    for number, model in enumerate(models):
        found = {(m.quantity, m.where): m.estimate for m in result.measures if m.model == model}
        values = np.array([found[place].value for place in places])
        low, high = (np.array([getattr(found[place], end) for place in places]) for end in ("low", "high"))
        y = np.arange(len(places)) + apart * (number - (len(models) - 1) / 2)
        style = series(number) | {"linestyle": "none"}
        label = f"{short(model)}, {prompts_of(result, model)}"
        axes.errorbar(values, y, xerr=[values - low, high - values], **style, capsize=3, label=label)
    labels = [f"{where}\n{q.removeprefix('log-probability under ').removesuffix(unit)}" for q, where in places]
    axes.set_yticks(range(len(places)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="mean log-probability of a response (nats), 95 % interval")
    axes.legend()


def draw_preference(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """The reliability curve: how often the implicit reward is right against how sure it is."""
    axes = all_axes[0]
    axes.plot([0.5, 1], [0.5, 1], color=QUIET, label="as sure as right")
    for number, model in enumerate(models):
        curve = result.curves[model]
        label = f"{short(model)}, {sum(curve['preferences']):,} preferences"
        axes.plot(curve["said"], curve["right"], **series(number), label=label)
    axes.set(xlabel="sigmoid of the margin", ylabel="share of preferences that are right", ylim=(0, 1.02))
    axes.legend()


def draw_goals(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """Score and length against the goal asked; what is asked for no goal as a level line."""
    curves = [result.curves[model] for model in models]
    asked = sorted({goal for curve in curves for goal in curve["goals"]})
    on_scale = any(curve["on_scale"] for curve in curves)
    if on_scale and asked:
        all_axes[0].plot(asked, asked, color=QUIET, linewidth=1, label="score = goal", zorder=0)
    for number, (model, curve) in enumerate(zip(models, curves, strict=True)):
        style, label = series(number), f"{short(model)}, {prompts_of(result, model)}"
        if curve["goals"]:
            all_axes[0].plot(curve["goals"], curve["score"], **style, label=label)
            all_axes[0].fill_between(
                curve["goals"], curve["low"], curve["high"], color=style["color"], alpha=0.15, linewidth=0
            )
            all_axes[1].plot(curve["goals"], curve["tokens"], **style, label=label)
        elif curve["plain"]:
            for axes, name in zip(all_axes, ("best", "tokens"), strict=True):
                axes.axhline(curve["plain"][name][0], **style | {"marker": ""}, label=f"{label}, no goal")
    unit = "points of the scale" if on_scale else "points of the scorer"
    all_axes[0].set(ylabel=f"mean judged score ({unit}), 95 % interval")
    all_axes[1].set(ylabel="mean length of an answer (tokens)")
    for axes in all_axes:
        axes.set(xlabel="goal asked (points of the scale)", xticks=asked)
    all_axes[0].legend(fontsize="small")


def draw_frontier(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """Score against KL, a line a model over its goals, of which the first and the last stand beside their points; best of n in
    grey."""
    axes = all_axes[0]
    for number, model in enumerate(models):
        curve, style = result.curves[model], series(number)
        places = [n for n, goal in enumerate(curve["goals"]) if goal is not None]
        for some, more in (
            (places, {}),
            ([n for n in range(len(curve["goals"])) if n not in places], {"fillstyle": "none"}),
        ):
            if not some:
                continue
            kl, score = ([curve[name][n] for n in some] for name in ("kl", "score"))
            spread = [[curve["score"][n] - curve["score_low"][n] for n in some]]
            spread.append([curve["score_high"][n] - curve["score"][n] for n in some])
            label = f"{short(model)}, {prompts_of(result, model)}" + ", no goal" * bool(more)
            axes.errorbar(kl, score, yerr=spread, **style | more, capsize=2, label=label)
            for n in {some[0], some[-1]} if not more else ():
                axes.annotate(
                    f"{curve['goals'][n]:g}", (curve["kl"][n], curve["score"][n]), (3, 3), textcoords="offset points"
                )
        if curve["best"]:
            label = f"best of 1 to {len(curve['best'])} of {short(model)}"
            axes.plot(curve["best_kl"], curve["best"], color=QUIET, linestyle="--", marker=".", label=label)
    axes.set(xlabel="KL to the reference (nats an answer)", ylabel="mean judged score, 95 % interval")
    axes.legend(fontsize="small")


DRAWN: dict[str, Callable[..., None]] = {
    "frontier": draw_frontier,
    "goals": draw_goals,
    "likelihood": draw_likelihood,
    "unlearning": draw_unlearning,
    "preference": draw_preference,
}


@dataclass(frozen=True)
class GoalLine:
    """Mean judged scores by goal; `low` and `high` are () or bound each of them. `label` says whose they are."""

    label: str
    means: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def draw_goal_lines(axes: Any, goals: Sequence[float], lines: Mapping[str, GoalLine]) -> None:
    """One line a model: mean judged score against the goal asked, bounds shaded."""
    axes.plot(goals, goals, color=QUIET, linewidth=1, label="score = goal", zorder=0)
    for number, line in enumerate(lines.values()):
        style = series(number)
        axes.plot(goals, line.means, **style, label=line.label)
        if len(line.low):
            axes.fill_between(goals, line.low, line.high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="goal asked (points of the scale)", ylabel="mean judged score (points of the scale)", xticks=goals)
    axes.legend(loc="upper left")
