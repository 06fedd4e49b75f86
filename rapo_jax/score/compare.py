"""Two files of scores of the same responses: how far they agree, in numbers and a picture.

Kendall's tau-b (scipy) is that of the responses to one prompt, as a mean over prompts, because preferences are made within a
prompt, and that of all responses together. Best and worst agree on a prompt where both files have the same response there; of
equal scores one is drawn, so that a prompt counts with the chance that the draws agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.borders import whole_file
from rapo_jax.data.rewards import Scores, read_scores
from rapo_jax.errors import UserError, counted

Rewards = tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """Of two files: `rows` and `responses` that are in both, those of several responses (`compared`), and in how many of these
    a file has only equal scores (`constant`), which have no tau. Not a number where there is nothing to compute it of."""

    rows: int
    responses: int
    left_out: tuple[int, int]
    compared: int
    constant: int
    tau_within: float
    tau: float
    best: float
    worst: float
    by_chance: float


def compare_scores(one: Path, other: Path) -> tuple[Agreement, list[tuple[Rewards, Rewards]]]:
    """The agreement of two files, and the rewards of the rows that are in both. Raises UserError for files without a row in
    common, and for rows of unequal length."""
    files = [read_scores(str(path), option="--compare") for path in (one, other)]
    shared = sorted(files[0].rewards.keys() & files[1].rewards.keys())
    if not shared:
        raise UserError(
            f"--compare: {one} and {other} have no row with rewards in common; compare scores of the same data."
        )
    pairs = [(files[0].rewards[row], files[1].rewards[row]) for row in shared]
    unequal = [row for row, (a, b) in zip(shared, pairs, strict=True) if len(a) != len(b)]
    if unequal:
        a, b = (len(each.rewards[unequal[0]]) for each in files)
        raise UserError(
            f"--compare: row {unequal[0]} has {counted(a, 'reward')} in {one} and {b:,} in {other}, and so on in "
            f"{counted(len(unequal), 'row')}; compare scores of the same data."
        )
    return agreement(pairs, left_out=lone(files, len(shared))), pairs


def lone(files: Sequence[Scores], num_shared: int) -> tuple[int, int]:
    one, other = (len(each.rewards) - num_shared for each in files)
    return one, other


def agreement(pairs: Sequence[tuple[Rewards, Rewards]], *, left_out: tuple[int, int] = (0, 0)) -> Agreement:
    """The agreement of the two rewards of every response, row by row.

    >>> two = agreement([((1.0, 2.0, 3.0), (1.0, 3.0, 2.0)), ((5.0, 5.0), (1.0, 2.0))])
    >>> two.rows, two.compared, two.constant, round(two.tau_within, 3), two.best, two.worst
    (2, 2, 1, 0.333, 0.25, 0.75)
    """
    several = [(a, b) for a, b in pairs if len(a) > 1]
    varied = [(a, b) for a, b in several if len(set(a)) > 1 and len(set(b)) > 1]
    return Agreement(
        rows=len(pairs),
        responses=sum(len(a) for a, _ in pairs),
        left_out=left_out,
        compared=len(several),
        constant=len(several) - len(varied),
        tau_within=mean([kendall(a, b) for a, b in varied]),
        tau=kendall([x for a, _ in pairs for x in a], [x for _, b in pairs for x in b]),
        best=mean([same_end(a, b, max) for a, b in several]),
        worst=mean([same_end(a, b, min) for a, b in several]),
        by_chance=mean([1 / len(a) for a, _ in several]),
    )


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b; NaN where one of the two is constant."""
    from scipy.stats import kendalltau

    if len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan
    found: Any = kendalltau(one, other)
    return float(found.statistic)


def same_end(one: Rewards, other: Rewards, end) -> float:
    """The chance that both have the same response at their upper (max) or lower (min) end, where ties are drawn."""
    first, second = ({at for at, value in enumerate(each) if value == end(each)} for each in (one, other))
    return len(first & second) / (len(first) * len(second))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def agreement_in_words(found: Agreement, one: Path, other: Path) -> str:
    """The lines that are printed."""
    lines = [f"{counted(found.responses, 'response')} of {counted(found.rows, 'row')} that are in both"]
    for path, number in zip((one, other), found.left_out, strict=True):
        if number:
            lines.append(f"  {counted(number, 'row')} of {path} {'is' if number == 1 else 'are'} not in the other")
    lines += [
        f"  Kendall's tau   {figure(found.tau_within, '+.3f')} within a prompt (mean of {counted(found.compared - found.constant, 'prompt')}), "
        f"{figure(found.tau, '+.3f')} over all responses",
        f"  same best       {figure(found.best, '.1%')} of {counted(found.compared, 'prompt')} (by chance {figure(found.by_chance, '.1%')})",
        f"  same worst      {figure(found.worst, '.1%')}",
    ]
    if found.constant:
        lines.append(
            f"  {counted(found.constant, 'prompt has', 'prompts have')} equal scores alone in one of the files, and no tau"
        )
    return "\n".join(lines)


def figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def draw_agreement(
    found: Agreement, pairs: Sequence[tuple[Rewards, Rewards]], *, names: tuple[str, str], path: Path
) -> None:
    """Saves the picture as PNG: every response by its two rewards, and how often best and worst are the same."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.6, 4.4), layout="constrained")
    cloud, bars = picture.subplots(1, 2, width_ratios=(3, 2))
    one, other = (np.array([value for pair in pairs for value in pair[side]]) for side in (0, 1))
    if len(one) > 2000:
        image = cloud.hexbin(one, other, gridsize=40, bins="log", cmap="Greys", mincnt=1)
        picture.colorbar(image, ax=cloud, label="responses")
    else:
        cloud.plot(one, other, "o", markersize=3, alpha=0.5, color="black", markeredgewidth=0)
    tau = figure(found.tau_within, "+.3f")
    cloud.set(xlabel=names[0][-50:], ylabel=names[1][-50:], title=f"tau {tau} within a prompt")
    heights = [0.0 if math.isnan(each) else each for each in (found.best, found.worst)]
    drawn = bars.bar(["best", "worst"], heights, color="white", edgecolor="black", hatch=["//", ".."], width=0.6)
    bars.bar_label(drawn, [figure(each, ".0%") for each in (found.best, found.worst)])
    if not math.isnan(found.by_chance):
        bars.axhline(found.by_chance, linestyle="--", color="black", linewidth=1)
        bars.text(1.45, found.by_chance, "chance", va="bottom", ha="right")
    bars.set(ylim=(0, 1.08), ylabel="share of prompts", title=f"the same response, {counted(found.compared, 'prompt')}")
    with whole_file(path) as temporary:
        picture.savefig(temporary, dpi=130, format="png")
