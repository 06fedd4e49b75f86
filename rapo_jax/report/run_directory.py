"""A run directory as the numbers that a page shows. Runs of any version are read, also those that only began."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rapo_jax.borders import read_json_lines, read_object, read_text, shaped
from rapo_jax.config.yaml_text import parse_yaml
from rapo_jax.errors import UserError, shown
from rapo_jax.intervals import is_finite

REMEDY = "remove the line, or leave this run out"
SECONDS, HELD_OUT = "time/step_s", "eval_"


@dataclass(frozen=True)
class RunRecord:
    """One run: `config` by dotted key, the trees of data_report.json, and the records of metrics.jsonl. Of these, numbers that
    are not finite are NaN."""

    name: str
    path: Path
    config: dict[str, Any]
    data: dict[str, Any]
    records: tuple[dict[str, float], ...]

    @cached_property
    def steps(self) -> int:
        """Optimizer steps that are in the record."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def planned(self) -> int | None:
        """Optimizer steps that the run was to take; None where that is not known."""
        steps = part(self.data, "plan").get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def last(self) -> dict[str, float]:
        """The last record, without its evaluation."""
        return {
            name: x for name, x in (self.records[-1] if self.records else {}).items() if not name.startswith(HELD_OUT)
        }

    @cached_property
    def evaluated(self) -> dict[str, float]:
        """The last record that has an evaluation; {} where none has."""
        return next((each for each in reversed(self.records) if any(name.startswith(HELD_OUT) for name in each)), {})

    @property
    def seconds(self) -> float | None:
        """Seconds in optimizer steps, without evaluations and saves; None where no record says."""
        before, total = 0, 0.0
        for record in self.records:
            if math.isfinite(each := record.get(SECONDS, math.nan)):
                total += each * (record["step"] - before)
            before = int(record["step"])
        return total or None

    def median(self, metric: str) -> float | None:
        """The metric's median over the reports but the first, which includes compilation."""
        values = [x for record in self.records[1:] or self.records if math.isfinite(x := record.get(metric, math.nan))]
        return statistics.median(values) if values else None

    def highest(self, metric: str) -> float | None:
        """The metric's largest value over all reports."""
        return max((x for record in self.records if math.isfinite(x := record.get(metric, math.nan))), default=None)

    def lost(self, metric: str) -> list[int]:
        """The steps of the reports in which the metric is not finite: a run that diverged has many."""
        return [int(record["step"]) for record in self.records if math.isnan(record.get(metric, 0.0))]


@dataclass(frozen=True)
class ObjectiveKeys:
    """The keys of `objective` that are read as more than text."""

    name: str = "?"
    plus: list[Any] | None = None


@dataclass(frozen=True)
class RelabelKeys:
    """Those of `relabel`."""

    goals: list[str] | None = None
    attributes: list[Any] | None = None


@dataclass(frozen=True)
class DataKeys:
    """Those of `data`."""

    sources: list[Any] | None = None


SHAPES = {"objective.": ObjectiveKeys, "relabel.": RelabelKeys, "data.": DataKeys}


def part(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The object under these keys; {} where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None  # pyright: ignore[reportAssignmentType]
    return tree if isinstance(tree, dict) else {}


def read_run(path: Path, name: str) -> RunRecord:
    """A run directory. Raises UserError for files that cannot be read as what they are."""
    tree = parse_yaml(read_text(path / "config.yaml"), said=str(path / "config.yaml"))
    if not isinstance(tree, dict):
        raise UserError(f"{path / 'config.yaml'} holds no keys and values; it is not the configuration of a run.")
    config = flat(tree)
    for prefix, shape in SHAPES.items():
        read = {name: config[prefix + name] for name in vars(shape()) if prefix + name in config}
        shaped(read, shape, said=str(path / "config.yaml"), path=prefix, remedy="correct it, or leave this run out")
    report = path / "data_report.json"
    data = read_object(report) if report.exists() else {}
    return RunRecord(name, path, config, data, tuple(read_records(path / "metrics.jsonl")))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key.

    >>> flat({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2], 'd': {}}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def read_records(path: Path) -> list[dict[str, float]]:
    """The records of metrics.jsonl in the order of their steps, a last line that was cut off left out; [] without a file."""
    if not path.exists():
        return []
    records: dict[int, dict[str, float]] = {}
    for number, record in read_json_lines(path, drop_torn_line=True, remedy=REMEDY):
        step = record.get("step")
        if type(step) is not int:
            raise UserError(f"{path} line {number} is no record of a step: step={shown(step)}; {REMEDY}.")
        records[step] = {key: number_of(value) for key, value in record.items() if is_number(value)}
    return [records[step] for step in sorted(records)]


def is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def number_of(value: float | None) -> float:
    """A number, or NaN for what was not finite."""
    return float(value) if value is not None and is_finite(value) else math.nan


def curve(records: Sequence[dict[str, float]], metric: str, *, most: int) -> tuple[list[float], list[float], int]:
    """(steps, values, reports behind each of them) of a metric: where there are more reports than `most`, means over neighbours.

    >>> curve([{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}], "loss", most=2)
    ([1.5, 3.0], [3.0, 1.0], 2)
    """
    found = [(each["step"], x) for each in records if math.isfinite(x := each.get(metric, math.nan))]
    size = max(1, -(-len(found) // most))
    bins = [found[at : at + size] for at in range(0, len(found), size)]
    return (
        [statistics.fmean(s for s, _ in each) for each in bins],
        [statistics.fmean(x for _, x in each) for each in bins],
        size,
    )
