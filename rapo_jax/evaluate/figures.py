"""The figure of each suite, legible in grey: marks and lines differ in shape, and axes carry units."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.evaluate.result import Result
from rapo_jax.evaluate.sweep_report import STYLES


def figure_name(suite: str) -> str:
    return f"{suite}.png"


def draw(result: Result, path: Path) -> None:
    """Saves the suite's figure as PNG."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(measure.model for measure in result.measures))
    panels = len(models) if result.suite == "likelihood" else 1
    figure = Figure(figsize=(max(6.4, 4.2 * panels), 4.4), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, panels))
    DRAWN[result.suite](figure, all_axes, result, models)
    figure.savefig(path, dpi=130, format="png")


def draw_likelihood(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """One heat map a model: bright where responses of these rewards are likelier than under the other goals."""
    rows = [np.array(result.curves[model]["logp_per_token"]) for model in models]
    limit = max(float(np.abs(each).max()) for each in rows) or 1.0
    for axes, model, cells in zip(all_axes, models, rows, strict=True):
        curve = result.curves[model]
        image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis", vmin=-limit, vmax=limit)
        axes.set(title=model[-36:], xlabel="goal asked", ylabel="reward of the response")
        axes.set_xticks(range(len(curve["goals"])), [f"{goal:g}" for goal in curve["goals"]])
        axes.set_yticks(range(len(curve["rewards"])), curve["rewards"])
        if axes is all_axes[-1]:
            figure.colorbar(image, ax=axes, label="log-probability a token, less its mean over goals (nats)")


def draw_unlearning(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """Mean log-probabilities with 95 % intervals, one mark a model."""
    axes, unit = all_axes[0], ", nats"
    kinds = [m for m in result.measures if m.model == models[0] and m.quantity.endswith(unit) and "under" in m.quantity]
    places = [(m.quantity, m.where) for m in kinds if m.quantity.startswith("log-probability")]
    for number, model in enumerate(models):
        found = {(m.quantity, m.where): m.estimate for m in result.measures if m.model == model}
        values = np.array([found[place].value for place in places])
        low, high = (np.array([getattr(found[place], end) for place in places]) for end in ("low", "high"))
        y = np.arange(len(places)) + 0.18 * (number - (len(models) - 1) / 2)
        marker, _ = STYLES[number % len(STYLES)]
        axes.errorbar(values, y, xerr=[values - low, high - values], fmt=marker, capsize=3, label=model[-36:])
    labels = [f"{where}\n{q.removeprefix('log-probability under ').removesuffix(unit)}" for q, where in places]
    axes.set_yticks(range(len(places)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="mean log-probability of a response (nats), 95 % interval")
    axes.legend(frameon=False)


def draw_preference(figure: Any, all_axes: Sequence[Any], result: Result, models: Sequence[str]) -> None:
    """The reliability curve: how often the implicit reward is right against how sure it is."""
    axes = all_axes[0]
    axes.plot([0.5, 1], [0.5, 1], color="0.7", label="as sure as right")
    for number, model in enumerate(models):
        curve = result.curves[model]
        marker, line = STYLES[number % len(STYLES)]
        axes.plot(
            curve["said"],
            curve["right"],
            marker=marker,
            linestyle=line,
            label=f"{model[-36:]}, {sum(curve['preferences']):,} preferences",
        )
    axes.set(xlabel="sigmoid of the margin", ylabel="share of preferences that are right", ylim=(0, 1.02))
    axes.legend(frameon=False)


DRAWN: dict[str, Callable[..., None]] = {
    "likelihood": draw_likelihood,
    "unlearning": draw_unlearning,
    "preference": draw_preference,
}
