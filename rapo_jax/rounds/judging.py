"""How good a round's model is: its answers to held-out prompts, scored by the scorer of the rounds, with intervals over prompts."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rapo_jax.borders import read_json_lines, read_object, shaped, write_json
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process, on_first
from rapo_jax.evaluate.bootstrap import Estimate, interval
from rapo_jax.rounds.places import Place
from rapo_jax.rounds.sampling import Asking, read_scores, sample, score


@dataclass(frozen=True)
class Judged:
    """What the answers of one round's model say.

    goals: what it was asked for, the highest last; () where it knows none, and its answers were asked for nothing.
    score: mean score at the highest goal. by_goal: mean scores. follows: mean over prompts of Spearman's rank correlation
    between goal and score; None for one goal, and where every prompt's scores are equal. error: mean of |score - goal|.
    tokens: mean length at the highest goal. cut: share of answers that were cut at the longest length.
    """

    goals: tuple[float, ...]
    score: Estimate
    by_goal: tuple[float, ...]
    follows: Estimate | None
    error: Estimate | None
    tokens: float
    cut: float


def judge(config: Config, at: Place, asking: Asking) -> Judged:
    """Judges a model, or reads what was said of it. Goes on where an earlier call stopped."""
    if not each_process(on_first(at.judged.exists))[0]:
        sample(config, asking, at.answered)
        score(config, at.answered, every=True)
        on_first(lambda: write_json(at.judged, dataclasses.asdict(judged(asking.goals, at))))
    remedy = "remove it to have it made again"
    return shaped(read_object(at.judged, remedy=remedy), Judged, said=str(at.judged), remedy=remedy)


def judged(goals: tuple[float | None, ...], at: Place) -> Judged:
    """From the files of a round's answers."""
    scores_PG = np.array(read_scores(at.answered.scores))
    rows = [row for _, row in read_json_lines(at.answered.samples)]
    lengths_PG = np.array([row["num_tokens"] for row in rows]).reshape(scores_PG.shape)
    asked = tuple(goal for goal in goals if goal is not None)
    return Judged(
        goals=asked,
        score=mean(scores_PG[:, -1]),
        by_goal=tuple(scores_PG.mean(axis=0).tolist()),
        follows=mean_of_known(rank_correlations(scores_PG)),
        error=mean(np.abs(scores_PG - asked).mean(axis=1)) if asked else None,
        tokens=float(lengths_PG[:, -1].mean()),
        cut=sum(row["finish_reason"] == "length" for row in rows) / len(rows),
    )


def mean(values_P: Float[np.ndarray, " P"]) -> Estimate:
    """The mean over prompts with its 95 % interval."""
    return interval(len(values_P), lambda drawn: float(values_P[drawn].mean()))


def mean_of_known(values_P: Float[np.ndarray, " P"]) -> Estimate | None:
    """As `mean`, prompts with NaN left out; None where all are."""
    known = values_P[~np.isnan(values_P)]
    return mean(known) if len(known) else None


def rank_correlations(scores_PG: Float[np.ndarray, "P G"]) -> Float[np.ndarray, " P"]:
    """Spearman's rank correlation between goals, which ascend, and scores, for every prompt.

    >>> rank_correlations(np.array([[1.0, 5.0, 9.0], [9.0, 5.0, 1.0], [3.0, 3.0, 3.0]]))
    array([ 1., -1., nan])
    """
    from scipy.stats import rankdata  # a second, which every other start would pay

    if scores_PG.shape[1] < 2:
        return np.full(len(scores_PG), np.nan)
    ranks = rankdata(scores_PG, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    goals = np.arange(scores_PG.shape[1]) - (scores_PG.shape[1] - 1) / 2
    norms = np.linalg.norm(ranks, axis=1) * np.linalg.norm(goals)
    return np.divide(ranks @ goals, norms, out=np.full(len(ranks), np.nan), where=norms > 0)
