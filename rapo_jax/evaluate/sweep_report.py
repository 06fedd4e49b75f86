"""Goal sweeps as a table and as a figure: mean judged score over requested goal, one line per model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rapo_jax.evaluate.sweep import Sweep

Sweeps = Mapping[str, Sequence[Sweep]]  # model name -> its sweeps, one per training seed
STYLES = (("s", ":"), ("^", "--"), ("o", "-"), ("D", "-."))  # marker and line, to distinguish models without colour


def sweep_table(sweeps: Sweeps) -> str:
    """Mean judged score by goal, one column per model (mean over its sweeps), rank correlations in the last row."""
    names, goals = list(sweeps), next(iter(sweeps.values()))[0].goals
    width = max(12, *(len(name) + 2 for name in names))
    lines = ["goal asked".ljust(18) + "".join(name.rjust(width) for name in names)]
    for index, goal in enumerate(goals):
        means = [np.mean([s.by_goal[index] for s in sweeps[name]]) for name in names]
        lines.append(f"{goal:g}".rjust(10).ljust(18) + "".join(f"{mean:.2f}".rjust(width) for mean in means))
    correlations = [np.mean([s.rank_correlation for s in sweeps[name]]) for name in names]
    lines.append("rank correlation".ljust(18) + "".join(f"{rho:+.2f}".rjust(width) for rho in correlations))
    return "\n".join(lines)


def draw_sweeps(sweeps: Sweeps, path: Path, *, title: str) -> None:
    """Writes the figure: one line per model, with the range of its sweeps shaded where there are several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    goals = next(iter(sweeps.values()))[0].goals
    axes.plot(goals, goals, color="0.8", label="score = goal", zorder=0)
    for index, (name, runs) in enumerate(sweeps.items()):
        marker, dashes = STYLES[index % len(STYLES)]
        means = np.array([run.by_goal for run in runs])
        rho = np.mean([run.rank_correlation for run in runs])
        label = f"{name}  (rank correlation {rho:+.2f})"
        (line,) = axes.plot(goals, means.mean(0), marker=marker, linestyle=dashes, label=label)
        if len(runs) > 1:
            axes.fill_between(goals, means.min(0), means.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="goal asked", ylabel="mean judged score", title=title, xticks=goals, ylim=(0, max(goals) + 0.5))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
