"""How every prompt is asked: by the command line, else by columns of its own row, else by the defaults."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.data.files import FileRow
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.sampling import Sampling
from rapo_jax.relabel import Goal, format_score

LIMITS: dict[str, tuple[type, float, float]] = {  # of the columns, as those of the options in rapo_jax/arguments
    "max_new_tokens": (int, 1, 10**6),
    "temperature": (float, 0, math.inf),
    "top_p": (float, 1e-6, 1),
    "seed": (int, -(2**63), 2**63 - 1),
    "top_k": (int, 0, 2**31 - 1),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 0.01, 100),
}
DEFAULTS = Sampling()


@dataclass(frozen=True)
class Asked:
    """The goal that one prompt asks for, and how its answer is drawn. `said`: the prompt holds the sentence already, perhaps
    for a goal that is not known here."""

    goal: Goal | None
    sampling: Sampling
    said: bool = False


@dataclass(frozen=True)
class GivenSampling:
    """The options of the command line; None leaves a setting to the rows."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    logps: bool = False

    def of(self, row: FileRow) -> Sampling:
        """The settings of one row. Raises UserError for a column's value that is none."""
        found: dict[str, Any] = {name: self.setting(name, row) for name in LIMITS}
        return Sampling(**found, stop=self.stop_of(row), logps=self.logps)

    def stop_of(self, row: FileRow) -> tuple[str, ...]:
        """The stop strings of a row: a text, or several."""
        own = row.values.get("stop") if self.stop is None else self.stop
        texts = () if own is None else (own,) if isinstance(own, str) else own
        if not isinstance(texts, list | tuple) or not all(isinstance(each, str) and each for each in texts):
            where = f"{row.place}: column stop" if self.stop is None else "--stop"
            raise UserError(
                f"{where} holds {own!r:.40}, and must be a text that is not empty, or several; mend it, or give --stop TEXT, "
                "which replaces the column."
            )
        return tuple(texts)

    def setting(self, name: str, row: FileRow) -> float:
        given = getattr(self, name)
        if given is not None:
            return given
        own = row.values.get(name)
        if own is None:
            return getattr(DEFAULTS, name)
        kind, least, most = LIMITS[name]
        number = as_number(own)
        if number is None or not least <= number <= most or (kind is int and not number.is_integer()):
            what = "an integer" if kind is int else "a number"
            bounds = f" of at least {least:g}" + f" and at most {most:g}" * (most < math.inf)
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{row.place}: column {name} holds {own!r:.40}, and must be {what}{bounds}; mend it, or give {option}, which "
                "replaces the column."
            )
        return kind(own)


def as_number(value: Any) -> float | None:
    """A finite number, or None. True and texts are none."""
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def goal_of_row(row: FileRow, attributes: Sequence[str]) -> Goal | None:
    """The goal in a row's column `goal`: a number, or one per attribute of the model's goal prompt. Raises UserError."""
    own = row.values.get("goal")
    if own is None:
        return None
    if attributes and isinstance(own, Mapping):
        own = [own.get(name) for name in attributes]
    parts = [as_number(each) for each in (own if isinstance(own, list | tuple) else [own])]
    numbers = tuple(part for part in parts if part is not None)
    if len(numbers) == len(parts) == 1:
        return numbers[0]
    if len(numbers) == len(parts) == len(attributes):
        return numbers
    each = f" or one for each of {', '.join(attributes)}" if attributes else ""
    raise UserError(
        f"{row.place}: column goal holds {own!r:.40}, and must be a number{each}; mend it, or give --goal or --no-goal, which "
        "replace the column."
    )


def require_on_scale(goal_prompt: GoalPrompt, goals: Mapping[str, Goal | None], *, model: str) -> None:
    """Raises UserError for goals outside the scale that the sentence names. `goals` are keyed by where they were given."""
    low, high = goal_prompt.goal_min, goal_prompt.goal_max
    outside = {
        where: goal
        for where, goal in goals.items()
        for part in (goal if isinstance(goal, tuple) else (goal,))
        if part is not None and not low <= part <= high
    }
    if outside:
        where, goal = next(iter(outside.items()))
        said = " ".join(map(format_score, goal if isinstance(goal, tuple) else (goal,)))  # pyright: ignore[reportArgumentType]
        more = f" (and {counted(len(outside) - 1, 'other')})" if len(outside) > 1 else ""
        scale = f"{format_score(low)} to {format_score(high)}"
        raise UserError(
            f"{where} {said}{more} is outside the scale of {model}, whose goal prompt names {scale}; ask for a goal on the "
            "scale, or add --any-goal."
        )
