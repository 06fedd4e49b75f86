"""What an evaluation found: numbers with intervals, as text for a terminal, as JSON and as CSV."""

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapo_jax.borders import shaped
from rapo_jax.errors import UserError
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


@dataclass(frozen=True)
class MeasureTree:
    """A measure in `Result.tree`."""

    quantity: str
    where: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ResultTree:
    """`Result.tree`."""

    suite: str
    explains: str
    measures: tuple[MeasureTree, ...]
    curves: dict[str, Any]


@dataclass(frozen=True)
class Reliability:
    """The curve of a model in the suite `preference`, one number a bin."""

    said: list[float]
    right: list[float]
    preferences: list[int]

    def __post_init__(self) -> None:
        if not len(self.said) == len(self.right) == len(self.preferences):
            raise ValueError("said, right and preferences are not of one length")


@dataclass(frozen=True)
class HeatMap:
    """The curve of a model in the suite `likelihood`: a row a reward, a column a goal."""

    goals: list[float]
    rewards: list[Any]
    logp_per_token: list[list[float]]

    def __post_init__(self) -> None:
        ragged = any(len(row) != len(self.goals) for row in self.logp_per_token)
        if ragged or not self.goals or not 0 < len(self.rewards) == len(self.logp_per_token):
            raise ValueError("logp_per_token has not a row for each of rewards and a column for each of goals")


@dataclass(frozen=True)
class BestOf:
    """The best of n answers that are asked for no goal: n, its mean score, and the tokens that it takes."""

    n: list[int]
    best: list[float]
    tokens: list[float]

    def __post_init__(self) -> None:
        if not len(self.n) == len(self.best) == len(self.tokens) > 0:
            raise ValueError("n, best and tokens are not of one length")


@dataclass(frozen=True)
class Control:
    """The curve of a model in the suite `goals`: mean scores with their interval and mean tokens by goal. `goals` is [] for a model
    that was asked for none; `on_scale` says that scores are on the scale of the goals."""

    goals: list[float]
    score: list[float]
    low: list[float]
    high: list[float]
    tokens: list[float]
    on_scale: bool
    plain: BestOf | None = None

    def __post_init__(self) -> None:
        if not len(self.goals) == len(self.score) == len(self.low) == len(self.high) == len(self.tokens):
            raise ValueError("goals, score, low, high and tokens are not of one length")


@dataclass(frozen=True)
class Frontier:
    """The curve of a model in the suite `frontier`: score and KL by goal (null: none), with their intervals; of the reference,
    score and KL of the best of 1, 2, ... answers."""

    goals: list[float | None]
    score: list[float]
    score_low: list[float]
    score_high: list[float]
    kl: list[float]
    kl_low: list[float]
    kl_high: list[float]
    best: list[float]
    best_kl: list[float]

    def __post_init__(self) -> None:
        points = [self.score, self.score_low, self.score_high, self.kl, self.kl_low, self.kl_high]
        if any(len(each) != len(self.goals) for each in points) or len(self.best) != len(self.best_kl):
            raise ValueError("its lists are not of one length")


CURVES = {"preference": Reliability, "likelihood": HeatMap, "goals": Control, "frontier": Frontier}  # by suite


def result_of(tree: Any, *, said: str = "the result", remedy: str = "") -> Result:
    """The inverse of `Result.tree`, but that it knows no details. Raises UserError for another tree, which it calls `said`."""
    read = shaped(tree, ResultTree, said=said, remedy=remedy)
    models = {m.model for m in read.measures}
    for model, curve in read.curves.items() if read.suite in CURVES else ():
        shaped(curve, CURVES[read.suite], said=f"{said}: curves of {model}", remedy=remedy)
    if read.suite in CURVES and read.curves and (bare := sorted(models - set(read.curves))):
        raise UserError(f"{said} has no curves of {bare[0]}; {remedy or 'evaluate again'}.")
    measures = [Measure(m.quantity, m.model, estimate_of(m), m.where) for m in read.measures]
    if read.suite == "unlearning":
        places = {m: {(x.quantity, x.where) for x in measures if x.model == m} for m in models}
        if any(each - of for each in places.values() for of in places.values() if is_logps(each - of)):
            raise UserError(
                f"{said} has log-probabilities of one model that another lacks; {remedy or 'evaluate again'}."
            )
    return Result(read.suite, read.explains, tuple(measures), read.curves)


def is_logps(places: set[tuple[str, str]]) -> bool:
    return any(quantity.startswith("log-probability under") for quantity, _ in places)


def estimate_of(m: MeasureTree) -> Estimate:
    value, low, high = (math.nan if x is None else x for x in (m.value, m.low, m.high))
    return Estimate(value, low, high, m.n)


def reliability_bins(result: Result) -> Iterator[tuple[str, int, float, float, int]]:
    """(model, number of the bin, mean of sigmoid(margin) there, share of it that is right, preferences) of `preference`."""
    for model, curve in result.curves.items():
        bins = zip(curve["said"], curve["right"], curve["preferences"], strict=True)
        yield from ((model, place, *each) for place, each in enumerate(bins))


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
