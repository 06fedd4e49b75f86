"""What an evaluation found: numbers with intervals, as text for a terminal, as JSON and as CSV."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rapo_jax.evaluate.bootstrap import Estimate

NAME_WIDTH = 38
WIDTH = 79


@dataclass(frozen=True)
class Measure:
    """One number of one model. `quantity` says what it is, in words, with its unit; `where`, which prompts it is of.
    A `detail` is left to the files."""

    quantity: str
    model: str
    estimate: Estimate
    where: str = "all"
    detail: bool = False


@dataclass(frozen=True)
class Result:
    """The measures of a suite, in order. `explains` tells a reader what to look for; `curves` are the numbers of its figure."""

    suite: str
    explains: str
    measures: tuple[Measure, ...]
    curves: dict[str, Any] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """For JSON; what is not a number there is null."""
        return {
            "suite": self.suite,
            "explains": self.explains,
            "measures": [
                {"quantity": m.quantity, "where": m.where, "model": m.model} | numbers_of(m.estimate)
                for m in self.measures
            ],
            "curves": self.curves,
        }


def result_of(tree: dict[str, Any]) -> Result:
    """The inverse of `Result.tree`, but that it knows no details. Raises KeyError or TypeError for another tree."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    measures = [
        Measure(
            m["quantity"],
            m["model"],
            Estimate(number(m["value"]), number(m["low"]), number(m["high"]), m["n"]),
            m["where"],
        )
        for m in tree["measures"]
    ]
    return Result(tree["suite"], tree["explains"], tuple(measures), tree["curves"])


def numbers_of(estimate: Estimate) -> dict[str, float | int | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def table(result: Result, *, details: bool = True) -> str:
    """One block a quantity, one line a model and group of prompts; 80 columns unless a name is long."""
    lines = [result.suite]
    measures = [m for m in result.measures if details or not m.detail]
    for quantity in dict.fromkeys(m.quantity for m in measures):
        lines += textwrap.wrap(quantity, WIDTH, initial_indent="  ", subsequent_indent="    ")
        for m in (m for m in measures if m.quantity == quantity):
            name = m.model if m.where == "all" else f"{m.model}, {m.where}"
            lines.append(f"    {name:<{NAME_WIDTH}} {shown(m.estimate)}")
    return "\n".join([*lines, *textwrap.wrap(result.explains, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def shown(estimate: Estimate) -> str:
    """ "0.713 [0.652, 0.770] n 90": value, 95 % interval, prompts."""
    if not estimate.n:
        return "no prompts"
    if math.isnan(estimate.value):  # a rank correlation of equal numbers
        return f"not defined, n {estimate.n:,}"
    numbers = (estimate.value, estimate.low, estimate.high)
    digits = 1 if max(abs(number) for number in numbers if not math.isnan(number)) >= 100 else 3
    value, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{value:>7} [{low}, {high}] n {estimate.n:,}"


def as_csv(results: Sequence[Result]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("suite", "quantity", "where", "model", "value", "low", "high", "n"))
    for result in results:
        for m in result.measures:
            writer.writerow((result.suite, m.quantity, m.where, m.model, *numbers_of(m.estimate).values()))
    return out.getvalue()
