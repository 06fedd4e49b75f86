"""The goal sweep: ask a model for every goal, judge its answers, and see whether quality follows the goal.

The paper sweeps three goals on AlpacaEval (Zhang et al., 2024, table 13); here any goals and any judge. How a sweep is
drawn and printed is in sweep_report.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.messages import Message
from rapo_jax.opened import OpenedModel, answer_text

MAX_PROMPT_LENGTH = 4096  # tokens
BATCH_SIZE = 64

Judge = Callable[[str, str], float]  # (prompt, response) -> score


@dataclass(frozen=True)
class Sweep:
    """Judged scores of one model, [goal, prompt], one example answer per goal, and all answers, [goal][prompt]."""

    goals: tuple[float, ...]
    scores: Float[np.ndarray, "goals prompts"]
    examples: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...] = ()

    @property
    def by_goal(self) -> Float[np.ndarray, " goals"]:
        """Mean score at each goal."""
        return self.scores.mean(axis=1)

    @property
    def rank_correlation(self) -> float:
        """Spearman's rho between requested goal and judged score over all answers; 0 if all scores are equal."""
        requested = np.repeat(self.goals, self.scores.shape[1])
        if np.ptp(self.scores) == 0:
            return 0.0
        from scipy.stats import spearmanr  # a second, which every other start would pay

        return float(spearmanr(requested, self.scores.ravel()).statistic)  # pyright: ignore[reportAttributeAccessIssue] (scipy has no types)


def sweep(
    model: OpenedModel, prompts: Sequence[str], *, goals: Sequence[float], judge: Judge, sampling: Sampling
) -> Sweep:
    """Answers every prompt at every goal and judges the answers.

    Raises UserError for a model whose goal prompt is unknown, and for prompts of more than 4,096 tokens.
    """
    if not model.has_own_goal_prompt:
        raise UserError(
            f"{model.name} was not exported by rapo; a sweep needs to know how the model is asked for a goal (rapo.json)."
        )
    items = [
        Item(index, (Message("user", prompt),), model.goal_prompt.sentence(goal), ())
        for goal in goals
        for index, prompt in enumerate(prompts)
    ]
    encoded, _ = encode_all(
        model.tokenizer,
        items,
        placement=model.goal_prompt.placement,
        max_length=MAX_PROMPT_LENGTH,
        max_prompt_length=MAX_PROMPT_LENGTH - 1,
    )
    tokens = [each.prompt for each in encoded if each is not None]
    if len(tokens) < len(items):
        raise UserError(
            f"{len(items) - len(tokens)} of {counted(len(items), 'prompt')} do not fit {MAX_PROMPT_LENGTH} tokens; shorten them."
        )
    answers = answer_tokens(model, tokens, sampling=sampling, batch_size=BATCH_SIZE)
    texts = [answer_text(model.tokenizer, answer.tokens) for answer in answers]
    scores = np.array([judge(item.prompt[0].content, text) for item, text in zip(items, texts, strict=True)], float)
    by_goal = tuple(tuple(texts[at : at + len(prompts)]) for at in range(0, len(texts), len(prompts)))
    return Sweep(tuple(goals), scores.reshape(len(goals), len(prompts)), tuple(each[0] for each in by_goal), by_goal)
