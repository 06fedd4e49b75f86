"""What a run's model says while it is trained: answers to a few held-out prompts. Who samples and who scores is handed in."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rapo_jax.train.state import State

PREFIX = "samples/"


@dataclass(frozen=True)
class SampleAnswer:
    """An answer to `prompt`, which asked for `goal` (None: for none), its length in tokens, and its score, if anybody gave one."""

    prompt: str
    goal: float | None
    response: str
    tokens: int
    score: float | None = None


Sampler = Callable[[State, dict[str, Any]], list[SampleAnswer]]  # (state, frozen weights) -> answers


def metrics_of(answers: Sequence[SampleAnswer]) -> dict[str, float]:
    """Mean lengths and scores by goal, and the control error: the mean of |score - goal| over answers that were asked for one.

    >>> two = [SampleAnswer("Hi", 1.0, "a", 1, 3.0), SampleAnswer("Hi", 9.0, "b", 3, 8.0)]
    >>> metrics_of(two)["samples/control_error"], metrics_of(two)["samples/tokens/goal_9"]
    (1.5, 3.0)
    """
    found: dict[str, float] = {}
    for goal in dict.fromkeys(answer.goal for answer in answers):
        some = [answer for answer in answers if answer.goal == goal]
        name = "no_goal" if goal is None else f"goal_{goal:g}"
        found[f"{PREFIX}tokens/{name}"] = statistics.fmean(answer.tokens for answer in some)
        scores = [answer.score for answer in some if answer.score is not None]
        found |= {f"{PREFIX}score/{name}": statistics.fmean(scores)} if scores else {}
    errors = [abs(a.score - a.goal) for a in answers if a.score is not None and a.goal is not None]
    return found | ({f"{PREFIX}control_error": statistics.fmean(errors)} if errors else {})


def as_text(answers: Sequence[SampleAnswer]) -> str:
    """Markdown, as TensorBoard shows it: every prompt with its answers, the lowest goal first."""
    parts = []
    for prompt in dict.fromkeys(answer.prompt for answer in answers):
        parts.append("**" + " ".join(prompt.split()) + "**")
        for answer in (each for each in answers if each.prompt == prompt):
            goal = "no goal" if answer.goal is None else f"goal {answer.goal:g}"
            scored = "" if answer.score is None else f", score {answer.score:.3g}"
            parts.append(f"*{goal}{scored}*\n\n" + "\n".join("    " + line for line in answer.response.splitlines()))
    return "\n\n".join(parts) + "\n"
