"""Goal sweeps as a table and as a figure: mean judged score over requested goal, one line per model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.drawing import save_png, short, styled
from rapo_jax.evaluate.bootstrap import interval
from rapo_jax.evaluate.figures import GoalLine, draw_goal_lines
from rapo_jax.evaluate.sweep import Sweep

Sweeps = Mapping[str, Sequence[Sweep]]  # model name -> its sweeps, one per training seed


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
    from matplotlib.figure import Figure

    goals, lines = next(iter(sweeps.values()))[0].goals, {}
    for name, runs in sweeps.items():
        means = np.array([run.by_goal for run in runs])
        rho = np.mean([run.rank_correlation for run in runs])
        num_prompts = f"n {runs[0].scores.shape[1]}" + f" x {len(runs)} seeds" * (len(runs) > 1)
        label = f"{short(name)}  (rank correlation {rho:+.2f}, {num_prompts})"
        bounds = (means.min(0), means.max(0)) if len(runs) > 1 else ((), ())
        lines[name] = GoalLine(label, means.mean(0), *bounds)
    with styled():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.subplots()
        draw_goal_lines(axes, goals, lines)
        axes.set(title=title, ylim=(0, max(goals) + 0.5))
        save_png(figure, path, dpi=150)


def sweep_tree(sweeps: Sweeps) -> dict[str, Any]:
    """The numbers for JSON: means by goal with 95 % intervals over prompts, and rank correlations."""
    first = next(iter(sweeps.values()))[0]
    return {
        "goals": [int(goal) if float(goal).is_integer() else goal for goal in first.goals],
        "num_prompts": first.scores.shape[1],
        "models": {name: [numbers_of_sweep(run) for run in runs] for name, runs in sweeps.items()},
    }


def numbers_of_sweep(sweep: Sweep) -> dict[str, Any]:
    bounds = [interval(len(row), lambda drawn, row=row: float(row[drawn].mean())) for row in sweep.scores]
    return {
        "mean_score_by_goal": sweep.by_goal.tolist(),
        "low_by_goal": [each.low for each in bounds],
        "high_by_goal": [each.high for each in bounds],
        "rank_correlation": sweep.rank_correlation,
    }
