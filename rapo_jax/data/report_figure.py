"""The data report as one figure: scores, margins, response lengths, and what became of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rapo_jax.data.report import Distributions
from rapo_jax.drawing import CHOSEN, LOST, QUIET, REJECTED, save_png, styled
from rapo_jax.errors import counted

COLOUR = {"chosen": CHOSEN, "rejected": REJECTED}
NUM_BINS = 30


def draw_report(path: Path, drawn: Distributions, report: dict[str, Any], *, title: str) -> None:
    """Saves the figure as PNG. Scores are on the goal scale."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        ((scores, spread), (lengths, fate)) = figure.subplots(2, 2)
        rows, preferences = report["rows_read"], sum(report["preferences"].values())
        figure.suptitle(f"{title}: {counted(rows, 'row')}, {counted(preferences, 'preference')}")
        draw_scores(scores, drawn)
        draw_margins(spread, drawn)
        draw_lengths(lengths, drawn, report["length_follows_score"])
        draw_fate(fate, report)
        save_png(figure, path, dpi=110)


def draw_scores(axes: Any, drawn: Distributions) -> None:
    axes.set(title="Scores", xlabel="score", ylabel="responses")
    if not drawn.scores:
        return write_note(axes, "the rows have no scores")
    sides = {side: drawable(values) for side, values in drawn.scores.items()}
    edges = bins(np.concatenate(list(sides.values())))
    for side, values in sides.items():
        label = f"{side}, mean {np.mean(values):.3g}, n {len(values):,}"
        axes.hist(values, bins=edges, alpha=0.6, color=COLOUR[side], label=label)
    axes.legend()


def draw_margins(axes: Any, drawn: Distributions) -> None:
    found = drawable(drawn.margins)
    axes.set(title="Margins", xlabel="score of the chosen response less that of the last", ylabel="records")
    if not len(found):
        return write_note(axes, "no two scores to compare")
    axes.hist(found, bins=bins(found), color=QUIET)
    axes.axvline(0, color="black", linewidth=0.8)
    against, ties = np.mean(found < 0), np.mean(found == 0)
    axes.set_title(f"Margins: mean {found.mean():.3g}, {ties:.1%} ties, {against:.1%} against the label")
    axes.set_ylabel(f"records, n {len(found):,}")


def draw_lengths(axes: Any, drawn: Distributions, correlation: float | None) -> None:
    """Lengths in characters, on a log axis: if chosen responses are usually longer, the model learns length."""
    sides = drawn.lengths
    longest = max((values.max() for values in sides.values()), default=10)
    shortest = min((values.min() for values in sides.values()), default=1)
    edges = np.geomspace(shortest, max(longest, shortest + 9), NUM_BINS + 1)
    edges[-1] += 1  # rounding must not leave the longest out
    follows = "" if correlation is None else f": rank correlation with the score {correlation:+.2f}"
    axes.set(title=f"Lengths of responses{follows}", xlabel="characters", ylabel="responses", xscale="log")
    shown = sides if "rejected" in sides else {"response": sides["chosen"]} if sides else {}
    for side, values in shown.items():
        label = f"{side}, median {np.median(values):,.0f}, n {len(values):,}"
        axes.hist(values, bins=edges, alpha=0.6, color=COLOUR.get(side, QUIET), label=label)
    axes.legend(loc="upper left")


def draw_fate(axes: Any, report: dict[str, Any]) -> None:
    """One bar for the records used, one for those held out and one per reason for dropping; together they are all."""
    lost = {reason.replace("_", " "): number for reason, number in report["rows_dropped"].items() if number}
    dropped, held_out = report["ties"]["dropped"], lost.pop("held out", 0)
    bars = {"records used": report["records"] - dropped} | ({"held out": held_out} if held_out else {})
    colours = [CHOSEN, *[QUIET] * (len(bars) - 1)]
    bars |= ({"ties dropped": dropped} if dropped else {}) | lost
    names, numbers = list(bars), list(bars.values())
    colours += [LOST] * (len(bars) - len(colours))
    drawn = axes.barh(range(len(bars)), numbers, color=colours)
    axes.bar_label(drawn, labels=[f"{number:,}" for number in numbers], padding=3)
    axes.set_yticks(range(len(bars)), names)
    axes.set_ylim(max(len(bars), 5) - 0.5, -0.5)  # the first on top, and no bar thicker than a fifth of the height
    axes.margins(x=0.12)
    axes.set(title="What became of them", xlabel="records")


def drawable(values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Values clipped to +-1e100, so that axis ranges do not overflow."""
    return np.clip(values, -1e100, 1e100)


def bins(values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "edges"]:
    """Histogram edges: about one bin per value where values are few, else NUM_BINS bins of equal width."""
    distinct = np.unique(values)
    if len(distinct) == 1:
        return np.array([distinct[0] - 0.5, distinct[0] + 0.5])
    step = np.diff(distinct).min()
    low, high = distinct[0], distinct[-1]
    if (high - low) / step <= 2 * NUM_BINS:
        return np.arange(low - step / 2, high + step, step)
    return np.linspace(low, high, NUM_BINS + 1)


def write_note(axes: Any, what: str) -> None:
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=QUIET)
