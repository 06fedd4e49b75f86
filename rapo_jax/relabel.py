"""The paper's method: which response is preferred under a goal, and the sentence that asks for the goal.

Standard library only: rewards and goals, no tokens, no files, no models.

Source: Zhang et al., "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs", 2024, section 4 (the rule),
section 6.2 and appendix B.3 (other goal sets, other scales, several attributes) and appendix B.1 (the sentence).
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["chosen", "rejected"]
GoalOf = Literal["chosen", "rejected", "best"]
Ties = Literal["drop", "keep"]
Fit = Literal["minmax", "quantile", "zscore"]
Goal = float | tuple[float, ...]  # one reward, or one for each of several attributes

SIDES: tuple[Side, ...] = ("chosen", "rejected")
NO_LIMITS = (-math.inf, math.inf)

# Appendix B.1 says "target score". The released code says "target scores" and breaks the line before the number.
TEMPLATES = {
    "paper": (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target score (on a scale of {goal_min}-{goal_max}, where {goal_min} is lowest and {goal_max} is highest): "
        "Overall score: {goal}."
    ),
    "released_code": (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target scores (on a scale of {goal_min}-{goal_max}, where {goal_min} is lowest and {goal_max} is highest):\n"
        "Overall score: {goal}."
    ),
}
# Several attributes: the same sentence with one line per attribute (section 6.2 gives no text).
SEVERAL = (
    "You are an assistant that generates responses for the instruction while implicitly achieving the following "
    "target scores (on a scale of {goal_min}-{goal_max}, where {goal_min} is lowest and {goal_max} is highest):\n{goals}"
)


@dataclass(frozen=True)
class Preference:
    """A ranking of a row's responses, and the goal under which it holds.

    `order` lists indices into the row's responses, most preferred first. `goal` is a number, one number per attribute, or
    None without goal conditioning (the plain baseline); `goal_of` is the response whose reward became the goal.
    """

    goal: Goal | None
    goal_of: GoalOf | None
    order: tuple[int, ...]


def goal_reward(goal: Goal, reward: Goal) -> float:
    """R(x, y, g) = -(g - r(x, y))^2, in squared units of the reward (paper, section 4); summed over attributes."""
    if isinstance(goal, tuple) and isinstance(reward, tuple):
        return sum(goal_reward(part, attribute) for part, attribute in zip(goal, reward, strict=True))
    if isinstance(goal, tuple) or isinstance(reward, tuple):
        raise ValueError(f"a goal has one number per attribute, not {goal!r} for {reward!r}")
    distance = goal - reward
    return -(distance * distance)  # not ** 2, which raises OverflowError beyond 1e154 instead of giving infinity


def prefer(goal: Goal, rewards: Sequence[Goal]) -> tuple[int, ...] | None:
    """Ranks responses by their goal reward; ties keep their order. None when all are equally far from the goal.

    >>> prefer(9, (9, 6)), prefer(6, (9, 6)), prefer(7.5, (9, 6)), prefer(6, (9, 6, 7))
    ((0, 1), (1, 0), None, (1, 2, 0))
    """
    found = [goal_reward(goal, reward) for reward in rewards]
    if all(reward == found[0] for reward in found):
        return None
    return tuple(sorted(range(len(found)), key=lambda index: -found[index]))


def relabel(
    rewards: Sequence[Goal] | None,
    *,
    goals: Iterable[Side] = SIDES,
    ties: Ties = "drop",
    rejected_goals: tuple[float, float] = NO_LIMITS,
    best_goal: Goal | None = None,
    num_responses: int = 2,
) -> list[Preference]:
    """The preferences of one row: one per goal, or the row's own order without goals.

    Args:
        rewards: of (chosen, rejected, rejected, ...), one number or one per attribute each; None for a row without scores,
            which needs goals=().
        goals: whose rewards become goals. Every rejected response gives one; with several, equal goals count once.
        ties: a tie (all rewards equal) expresses no preference under any goal. "drop" drops it, also without goals, so that
            the baseline trains on the same rows as the method. "keep" ranks the response that set the goal first, as the
            released code does: two contradicting preferences under one goal.
        rejected_goals: the (lowest, highest) reward of a rejected response that becomes a goal (appendix B.3).
        best_goal: adds the chosen response alone under this goal, the term of Algorithm 1 (appendix A.2).
        num_responses: the number of the row's responses, read only where `rewards` is None.

    Raises ValueError where goals are asked for and there are no rewards.

    >>> [(p.goal, p.order) for p in relabel((9, 6))]
    [(9, (0, 1)), (6, (1, 0))]
    """
    goals = tuple(goals)
    if rewards is None and goals:
        raise ValueError("goals come from rewards; this row has none")
    if rewards is not None and ties == "drop" and all(reward == rewards[0] for reward in rewards):
        return []
    own = tuple(range(num_responses if rewards is None else len(rewards)))
    best = [] if best_goal is None else [Preference(goal=best_goal, goal_of="best", order=(0,))]
    if rewards is None or not goals:
        return [Preference(goal=None, goal_of=None, order=own), *best]
    preferences: list[Preference] = []
    asked: list[tuple[Side, int]] = [
        (side, index) for side in goals for index in (own[:1] if side == "chosen" else own[1:])
    ]
    for goal_of, index in asked:
        goal = rewards[index]
        repeated = len(own) > 2 and any(goal == before.goal for before in preferences)
        if repeated or (goal_of == "rejected" and not within_limits(goal, rejected_goals)):
            continue
        order = prefer(goal, rewards) or (index, *(other for other in own if other != index))
        preferences.append(Preference(goal=goal, goal_of=goal_of, order=order))
    return preferences + best


def mean_goal(goal: Goal) -> float:
    """A goal as one number: the mean over its attributes."""
    return statistics.fmean(goal) if isinstance(goal, tuple) else goal


def within_limits(goal: Goal, limits: tuple[float, float]) -> bool:
    return limits[0] <= mean_goal(goal) <= limits[1]


# The scale of goals.


@dataclass(frozen=True)
class Scale:
    """A linear map of rewards from [low, high] onto [goal_min, goal_max] (appendix B.1), rounded to `decimals` unless None.

    `clip` moves rewards outside [low, high] to its ends. Raises ValueError for a range of zero width.

    >>> Scale(low=0, high=4)(3), Scale(low=1, high=10, goal_max=5, decimals=1)(8)
    (7.75, 4.1)
    """

    low: float
    high: float
    goal_min: float = 1.0
    goal_max: float = 10.0
    clip: bool = True
    decimals: int | None = None

    def __post_init__(self):
        if not self.high > self.low:
            raise ValueError(f"a scale of zero width, from {self.low} to {self.high}, maps all rewards to one")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"a scale from {self.low} to {self.high} is wider than a number goes")

    def __call__(self, reward: float) -> float:
        if self.clip:
            reward = min(max(reward, self.low), self.high)
        if (self.low, self.high) != (self.goal_min, self.goal_max):
            share = (reward - self.low) / (self.high - self.low)
            reward = self.goal_min + (self.goal_max - self.goal_min) * share
        return reward if self.decimals is None else round(reward, self.decimals)


def fit_range(
    rewards: Sequence[float], how: Fit, *, quantile: float = 0.01, deviations: float = 2.0
) -> tuple[float, float]:
    """The (low, high) that a scale maps from.

    "minmax" takes the extremes, "quantile" the quantiles `quantile` and 1 - `quantile`, "zscore" the mean minus and plus
    `deviations` standard deviations.

    >>> fit_range([4, 0, 1, 3], "minmax"), fit_range([0, 1, 2, 3, 4], "quantile", quantile=0.125)
    ((0, 4), (0.5, 3.5))
    """
    if how == "zscore":
        mean, reach = statistics.fmean(rewards), deviations * statistics.pstdev(rewards)
        return mean - reach, mean + reach
    if how == "minmax":
        return min(rewards), max(rewards)
    ordered = sorted(rewards)

    def at(share: float) -> float:
        below, part = divmod(share * (len(ordered) - 1), 1)
        above = ordered[min(int(below) + 1, len(ordered) - 1)]
        return ordered[int(below)] + part * (above - ordered[int(below)])

    return at(quantile), at(1 - quantile)


def goal_direction(share: float, *, degrees: float = 45.0) -> tuple[float, float]:
    """100 (cos t, sin t), rounded to integers; t goes from -`degrees` at share 0 to +`degrees` at share 1.

    Directional Preference Alignment asks for a direction instead of scores (Wang et al., "Arithmetic Control of LLMs for
    Diverse User Preferences", 2024) and ranks responses by their reward along it; see `order_along`.
    """
    angle = math.radians((2 * share - 1) * degrees)
    return round(100 * math.cos(angle)), round(100 * math.sin(angle))


def reward_along(goal: Goal, reward: Goal) -> float:
    """The inner product of a direction and a response's attributes."""
    if not (isinstance(goal, tuple) and isinstance(reward, tuple)):
        raise ValueError(f"a direction has one number per attribute, not {goal!r} for {reward!r}")
    return sum(part * attribute for part, attribute in zip(goal, reward, strict=True))


def order_along(goal: Goal, rewards: Sequence[Goal]) -> tuple[int, ...] | None:
    """Ranks responses by their reward along a direction; None when all are equal."""
    found = [reward_along(goal, reward) for reward in rewards]
    if all(reward == found[0] for reward in found):
        return None
    return tuple(sorted(range(len(found)), key=lambda index: -found[index]))


# The sentence.


def format_score(score: float) -> str:
    """A score as it appears in a prompt: integers without a decimal point, everything else as Python prints it.

    >>> format_score(8.0), format_score(7.5)
    ('8', '7.5')
    """
    return str(int(score)) if float(score).is_integer() else str(float(score))


def goal_text(
    goal: Goal | None,
    *,
    template: str = "paper",
    goal_max: float = 10,
    goal_min: float = 1,
    attributes: Sequence[str] = (),
    source: str = "",
) -> str:
    """The sentence that asks for `goal`. `template` is the name of a preset in TEMPLATES, or a text with {goal}.

    With `attributes`, a goal is one number per attribute, or one number for all; the text has {goals} (one line per
    attribute) or each attribute's name in braces. {source} is the row's source and may appear without any goal. Goal
    prompts of training, generation, evaluation and exported chat templates all come from this function. Raises ValueError
    for a template without a place for the goal.
    """
    complaint = template_complaint(template, attributes)
    if complaint:
        raise ValueError(complaint)
    values = {"goal_min": format_score(goal_min), "goal_max": format_score(goal_max), "source": source}
    if goal is not None and attributes:
        goals = goal if isinstance(goal, tuple) else (goal,) * len(attributes)
        said = dict(zip(attributes, map(format_score, goals), strict=True))
        values |= said | {"goals": "\n".join(f"{title(name)}: {score}" for name, score in said.items())}
    elif goal is not None:
        values["goal"] = format_score(mean_goal(goal))
    text = _preset(template, attributes)
    return re.sub(r"\{([^{}]*)\}", lambda found: values.get(found[1], found[0]), text)


def title(attribute: str) -> str:
    """instruction_following -> Instruction following"""
    return re.sub(r"[_-]+", " ", attribute).strip().capitalize()


def _preset(template: str, attributes: Sequence[str]) -> str:
    return (SEVERAL if attributes else TEMPLATES[template]) if template in TEMPLATES else template


def template_complaint(template: str, attributes: Sequence[str] = ()) -> str | None:
    """Why this template cannot ask for a goal, for a UserError; None if it can."""
    text = _preset(template, attributes)
    if attributes:
        absent = [name for name in attributes if f"{{{name}}}" not in text]
        needed = "" if "{goals}" in text or not absent else f"{{goals}} and no {{{absent[0]}}}"
    else:
        needed = "" if "{goal}" in text or "{source}" in text else "{goal}"
    place = "{goals}" if attributes else "{goal}"
    presets = ", ".join(TEMPLATES)
    return (
        f"relabel.template={template!r} has no {needed}; write one with {place} or name one of: {presets}."
        if needed
        else None
    )
