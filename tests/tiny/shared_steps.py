"""Steps of runs in this process: made, traced and compiled once for all runs whose steps are the same.

Half of a tiny run's seconds is Python tracing a step that an earlier run has traced. Runs in processes of their own trace
theirs as users do.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rapo_jax.config.tree import Config
from rapo_jax.train.metrics import METRICS

MAKERS = (
    "rapo_jax.runs.train.make_train_step",
    "rapo_jax.runs.train.make_evaluate_step",
    "rapo_jax.passes.forward_pass.make_logps_step",
)


def share_steps(patch: pytest.MonkeyPatch) -> None:
    for name in MAKERS:
        module, _, function = name.rpartition(".")
        patch.setattr(name, made_once(getattr(__import__(module, fromlist=[function]), function)))


def made_once(make: Callable) -> Callable:
    """`make`, whose results are kept by everything in its arguments that a step can see."""
    made: dict[Any, Callable] = {}

    def step(*arguments: Any, **options: Any) -> Callable:
        seen = tuple(repr(without_paths(x)) if isinstance(x, Config) else x for x in arguments)
        key = (seen, tuple(options.items()), tuple(METRICS))
        if key not in made:
            made[key] = make(*arguments, **options)
        return made[key]

    return step


def without_paths(config: Config) -> Config:
    """What a step sees of a configuration: rows and goals come to it as tokens."""
    default = Config()
    reference = replace(config.reference, cache="cache" if config.reference.cache else "")
    return replace(config, run_dir="", data=default.data, relabel=default.relabel, reference=reference)
