"""What runs in this process share: steps, made, traced and compiled once for all runs whose steps are the same, and the picture
of the data report, rendered once.

Most of a tiny run's seconds are Python tracing a step that an earlier run has traced, and rendering. Runs in processes
of their own trace and render as users do.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapo_jax.config.tree import Config
from rapo_jax.data import report_figure
from rapo_jax.models.attention.dispatch import KERNELS
from rapo_jax.objectives.registry import OBJECTIVES
from rapo_jax.train.metrics import METRICS

MAKERS = (
    "rapo_jax.runs.train.make_train_step",
    "rapo_jax.runs.train.make_evaluate_step",
    "rapo_jax.passes.forward_pass.make_logps_step",
)


def share_runs(patch: pytest.MonkeyPatch) -> None:
    for name in MAKERS:
        patch.setattr(name, made_once(pkgutil.resolve_name(name)))
    patch.setattr(report_figure, "save_png", saved_once(report_figure.save_png))


def saved_once(save: Callable) -> Callable:
    """`save`, which renders the first figure of this process and writes the same file for every later one."""
    saved: list[bytes] = []

    def save_png(figure: Any, path: Path, **options: Any) -> None:
        if not saved:
            save(figure, path, **options)
            saved.append(path.read_bytes())
        path.write_bytes(saved[0])

    return save_png


def made_once(make: Callable) -> Callable:
    """`make`, whose results are kept by all that tracing reads: its arguments and the entries of the registries."""
    made: dict[Any, tuple[Callable, Any]] = {}

    def step(*arguments: Any, **options: Any) -> Callable:
        seen = tuple(repr(seen_by_a_step(x)) if isinstance(x, Config) else x for x in arguments)
        entries = [*METRICS.items(), *KERNELS.items(), *OBJECTIVES.items()]
        key = (seen, *options.items(), *((name, id(entry)) for name, entry in entries))
        if key not in made:
            made[key] = make(*arguments, **options), entries  # kept, so that their ids stay theirs
        return made[key][0]

    return step


def seen_by_a_step(config: Config) -> Config:
    """The configuration without what no step reads: paths, rows and goals, which come as arrays, and when to save."""
    default = Config()
    unread = ("log_every", "eval_every", "save_every", "keep_last", "keep_best", "checkpoints")
    unread += ("keep_best_by", "stop_on", "patience")
    unread += ("sample_every", "sample_prompts", "sample_tokens", "sample_scorer")
    return replace(
        config,
        run_dir="",
        model=replace(config.model, path=""),
        data=default.data,
        relabel=default.relabel,
        reference=replace(config.reference, cache="cache" if config.reference.cache else ""),
        train=replace(config.train, **{name: getattr(default.train, name) for name in unread}),
    )
