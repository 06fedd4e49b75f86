"""The suite `frontier`: what score is reached at what distance from the reference, over models, checkpoints and goals. A pure
function.

Gao et al., "Scaling laws for reward model overoptimization", 2023: score against KL, with best of n beside it, whose KL from the
model that it samples is log n - (n - 1) / n (Stiennon et al., "Learning to summarize from human feedback", 2020, appendix G.3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.evaluate.bootstrap import Estimate, interval
from rapo_jax.evaluate.goals.best_of import best_of
from rapo_jax.evaluate.goals.suite import NO_GOAL, SCORE, Scored, mean
from rapo_jax.evaluate.result import Measure, Result

KL = "KL to the reference asked for no goal (nats an answer)"
EXPLAINS = (
    "Up and to the left is better: more score for less distance. KL is estimated as the mean of log pi - log pi_ref over the model's own "
    "answers; best of n spends n answers where a trained model spends one."
)


@dataclass(frozen=True)
class Ratios:
    """Of the answers of one model under one goal: log pi - log pi_ref (nats), the reference asked for nothing and asked alike, and
    numbers of tokens."""

    plain_PN: Float[np.ndarray, "P N"]
    alike_PN: Float[np.ndarray, "P N"]
    tokens_PN: Float[np.ndarray, "P N"]


@dataclass(frozen=True)
class Point:
    """Score and KL under a goal, or under none."""

    goal: float | None
    score: Estimate
    kl: Estimate


def kl_of_best(n: int) -> float:
    """
    >>> kl_of_best(1), round(kl_of_best(4), 4)
    (0.0, 0.6363)
    """
    return math.log(n) - (n - 1) / n


def per_token(ratios_PN: Float[np.ndarray, "P N"], tokens_PN: Float[np.ndarray, "P N"]) -> Estimate:
    """The sum of log-ratios over the sum of tokens, with its interval over prompts."""
    ratios_P, tokens_P = ratios_PN.sum(axis=1), tokens_PN.sum(axis=1)

    def ratio(drawn: Int[np.ndarray, " n"]) -> float:
        return float(ratios_P[drawn].sum() / tokens_P[drawn].sum()) if tokens_P[drawn].sum() else math.nan

    return interval(len(ratios_P), ratio)


def frontier(
    models: Sequence[Scored], ratios: Mapping[str, Mapping[float | None, Ratios]], *, reference: str
) -> Result:
    """`ratios` by model and goal (None for none); of the reference, whose distance is 0, there are none."""
    measures, curves = [], {}
    for one in models:
        points: list[Point] = []
        for goal, found in ratios.get(one.model, {}).items():
            scores_PN = scores_of(one, goal)
            where = NO_GOAL if goal is None else f"goal {goal:g}"
            score, distance = mean(scores_PN.mean(axis=1)), mean(found.plain_PN.mean(axis=1))
            points.append(Point(goal, score, distance))
            alike, token = mean(found.alike_PN.mean(axis=1)), per_token(found.plain_PN, found.tokens_PN)
            measures += [
                Measure(SCORE, one.model, score, where),
                Measure(KL, one.model, distance, where),
                Measure("KL to the reference asked for no goal (nats a token)", one.model, token, where, True),
                Measure("KL to the reference asked alike (nats an answer)", one.model, alike, where, True),
            ]
        if one.model == reference and one.plain is not None:
            measures.append(Measure(SCORE, one.model, mean(one.plain.scores_PN.mean(axis=1)), NO_GOAL))
        if points or one.model == reference:
            curves[one.model] = curve_of(points, one if one.model == reference else None)
    order = {quantity: n for n, quantity in enumerate(dict.fromkeys(m.quantity for m in measures))}
    return Result("frontier", EXPLAINS, tuple(sorted(measures, key=lambda m: order[m.quantity])), curves)


def scores_of(one: Scored, goal: float | None) -> Float[np.ndarray, "P N"]:
    if goal is None:
        assert one.plain is not None
        return one.plain.scores_PN
    return one.scores_PGN[:, one.goals.index(goal)]


def curve_of(points: Sequence[Point], plain: Scored | None) -> dict[str, list]:
    """The numbers of the figure: a model's points, goals ascending, none last; of the reference, best of n."""
    curve: dict[str, list] = {"goals": [point.goal for point in points]}
    for name in ("score", "kl"):
        found: list[Estimate] = [getattr(point, name) for point in points]
        curve[name] = [each.value for each in found]
        curve[f"{name}_low"] = [each.low for each in found]
        curve[f"{name}_high"] = [each.high for each in found]
    best_N = [] if plain is None or plain.plain is None else best_of(plain.plain.scores_PN).mean(axis=0).tolist()
    return curve | {"best": best_N, "best_kl": [kl_of_best(n + 1) for n in range(len(best_N))]}
