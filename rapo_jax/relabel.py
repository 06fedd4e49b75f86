"""The method of the paper: which response is preferred once a goal is asked for, and the sentence that asks.

Standard library only. This module knows rewards and goals; it knows neither tokens, nor files, nor models.

Source: Zhang et al., "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs", 2024, section 4 (the rule)
and appendix B.1 (the sentence).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["chosen", "rejected"]
Ties = Literal["drop", "keep"]

SIDES: tuple[Side, ...] = ("chosen", "rejected")

# Appendix B.1 says "target score". The released code says "target scores" and breaks the line before the number.
TEMPLATES = {
    "paper": (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target score (on a scale of 1-{goal_max}, where 1 is lowest and {goal_max} is highest): Overall score: {goal}."
    ),
    "released_code": (
        "You are an assistant that generates responses for the instruction while implicitly achieving the following "
        "target scores (on a scale of 1-{goal_max}, where 1 is lowest and {goal_max} is highest):\n"
        "Overall score: {goal}."
    ),
}


@dataclass(frozen=True)
class Preference:
    """An order of a row's responses, and the goal under which it holds.

    `order` lists indices into the row's responses, most preferred first. `goal` is None where no goal is asked for
    (the plain baseline); `goal_of` says which response's reward became the goal.
    """

    goal: float | None
    goal_of: Side | None
    order: tuple[int, int]


def goal_reward(goal: float, reward: float) -> float:
    """R(x, y, g) = -(g - r(x, y))^2, in squared units of the reward (paper, section 4)."""
    distance = goal - reward
    return -(distance * distance)  # not ** 2, which raises OverflowError beyond 1e154 instead of giving infinity


def prefer(goal: float, rewards: Sequence[float]) -> tuple[int, int] | None:
    """Orders two responses by their goal reward; None when both are equally far from the goal.

    >>> prefer(9, (9, 6)), prefer(6, (9, 6)), prefer(7.5, (9, 6))
    ((0, 1), (1, 0), None)
    """
    first, second = (goal_reward(goal, reward) for reward in rewards)
    if first == second:
        return None
    return (0, 1) if first > second else (1, 0)


def relabel(rewards: Sequence[float] | None, *, goals: Iterable[Side] = SIDES, ties: Ties = "drop") -> list[Preference]:
    """The preferences that one row gives: one for each goal, or the row's own order when no goal is asked for.

    `rewards` are those of (chosen, rejected), or None for a row without scores, which only a run without goals can use.

    A tie (both rewards equal) says nothing under any goal and is dropped, so that a baseline without goals trains on the
    same rows as the method. `ties="keep"` takes the row's own order where its chosen response set the goal and the
    reverse where its rejected one did, as the released code does: two contradicting preferences under one goal.

    >>> [(p.goal, p.order) for p in relabel((9, 6))]
    [(9, (0, 1)), (6, (1, 0))]
    """
    goals = tuple(goals)
    tied = rewards is not None and rewards[0] == rewards[1]
    if tied and ties == "drop":
        return []
    if not goals:
        return [Preference(goal=None, goal_of=None, order=(0, 1))]
    if rewards is None:
        raise ValueError("goals come from rewards; this row has none")
    preferences = []
    for side in goals:
        index = SIDES.index(side)
        order = prefer(rewards[index], rewards) or (index, 1 - index)
        preferences.append(Preference(goal=rewards[index], goal_of=side, order=order))
    return preferences


def format_score(score: float) -> str:
    """A score as the model reads it: integers without a decimal point, everything else as Python writes it.

    >>> format_score(8.0), format_score(7.5)
    ('8', '7.5')
    """
    return str(int(score)) if float(score).is_integer() else str(float(score))


def goal_text(goal: float, *, template: str = "paper", goal_max: float = 10) -> str:
    """The sentence that asks for `goal`. `template` names a preset of TEMPLATES or is itself a text with {goal}.

    Training, generation, evaluation and the exported chat template all say it through this function. Raises ValueError
    for a template without {goal}.
    """
    text = TEMPLATES.get(template, template)
    if "{goal}" not in text:
        presets = ", ".join(TEMPLATES)
        raise ValueError(
            f"relabel.template={template!r} has no {{goal}}; write one with {{goal}} or name one of: {presets}."
        )
    return text.replace("{goal_max}", format_score(goal_max)).replace("{goal}", format_score(goal))
