"""The suite `goals`: does quality follow the goal that is asked for, and what does that cost? A pure function of scored answers.

Zhang et al., 2024, table 13, asks one model for three goals; here any goals, with intervals over prompts, calibration, lengths, what
else moves, and what the same number of tokens gives without goals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rapo_jax.evaluate.bootstrap import NOTHING, Estimate, interval
from rapo_jax.evaluate.goals.best_of import at_number, best_of
from rapo_jax.evaluate.result import Measure, Result
from rapo_jax.score.compare import kendall

SCORE = "judged score"
TOKENS = "tokens of an answer"
NO_GOAL = "no goal"
NEARLY = 0.05  # an answer more or less, which is not told
HIGHEST = "score at the highest goal"
EXPLAINS = (
    "A model that follows goals has a slope of 1, a rank correlation near 1 and scores near the goals; one that does not answers alike "
    "whatever it is asked for."
)


@dataclass(frozen=True)
class Plain:
    """Answers that were asked for no goal."""

    scores_PN: Float[np.ndarray, "P N"]
    tokens_PN: Float[np.ndarray, "P N"]


@dataclass(frozen=True)
class Scored:
    """The scored answers of one model: of prompt p the n-th at `goals[g]`, which ascend, on a scale with these ends."""

    model: str
    goals: tuple[float, ...]
    scale: tuple[float, float]
    scores_PGN: Float[np.ndarray, "P G N"]
    tokens_PGN: Float[np.ndarray, "P G N"]
    cut_PGN: Bool[np.ndarray, "P G N"]
    attributes: dict[str, Float[np.ndarray, "P G N"]] = field(default_factory=dict)
    plain: Plain | None = None

    @property
    def inside(self) -> list[int]:
        """The places of the goals that are on the scale."""
        return [g for g, goal in enumerate(self.goals) if self.scale[0] <= goal <= self.scale[1]]


@dataclass(frozen=True)
class Verdict:
    """What one scorer says of all models' answers, first those of models that know goals (`num_knowing`), then those that they are
    compared with. `on_scale`: its scores are on the scale of the goals."""

    scorer: str
    on_scale: bool
    models: tuple[Scored, ...]
    num_knowing: int


def goals(verdicts: Sequence[Verdict]) -> Result:
    """The measures by one scorer or two, which answered the same prompts."""
    measures: list[Measure] = []
    for verdict in verdicts:
        by = f", by {verdict.scorer}" if len(verdicts) > 1 else ""
        for place, one in enumerate(verdict.models):
            measures += named(one.model, measures_of(verdict, one, knows=place < verdict.num_knowing), by=by)
    for one in verdicts[0].models:
        measures += named(one.model, costs(one))
    if len(verdicts) > 1:
        measures += agreement(*verdicts)
    main = verdicts[0]
    curves = {one.model: curve_of(one, on_scale=main.on_scale) for one in main.models}
    order = {quantity: n for n, quantity in enumerate(dict.fromkeys(m.quantity for m in measures))}
    measures.sort(key=lambda m: order[m.quantity])  # one block a quantity, its models in their order
    return Result("goals", EXPLAINS, tuple(measures), curves)


Found = Iterator[tuple[str, Estimate, str, bool]]  # (quantity, estimate, which answers, whether it is a detail)


def named(model: str, found: Found, *, by: str = "") -> list[Measure]:
    return [Measure(quantity + by, model, each, where, detail) for quantity, each, where, detail in found]


def measures_of(verdict: Verdict, one: Scored, *, knows: bool) -> Found:
    """All that a scorer says of one model's answers."""
    yield from by_goal(one, one.scores_PGN, SCORE)
    if one.plain is not None:
        yield SCORE, mean(one.plain.scores_PN.mean(axis=1)), NO_GOAL, False
    if one.inside:
        yield from calibration(one, on_scale=verdict.on_scale)
        yield from side_effects(one)
    if knows:
        others = verdict.models[verdict.num_knowing :]
        first = verdict.models[: verdict.models[0] is not one]  # what others are compared with
        yield from against_best_of(one, [each for each in (one, *first, *others) if each.plain is not None])
        yield from against_others(one, others)


def mean(values_P: Float[np.ndarray, " P"]) -> Estimate:
    """The mean over prompts with its interval."""
    return interval(len(values_P), lambda drawn: float(values_P[drawn].mean()))


def by_goal(one: Scored, values_PGN: Float[np.ndarray, "P G N"], name: str, *, detail: bool = False) -> Found:
    """The mean at each goal."""
    for g, goal in enumerate(one.goals):
        outside = "" if g in one.inside else ", outside the scale"
        yield name, mean(values_PGN[:, g].mean(axis=1)), f"goal {goal:g}{outside}", detail


def calibration(one: Scored, *, on_scale: bool) -> Found:
    """How far scores are from goals, and how they follow them, over the goals on the scale."""
    goals_G, scores_PGN = np.array(one.goals)[one.inside], one.scores_PGN[:, one.inside]
    if on_scale:
        error_PGN = scores_PGN - goals_G[None, :, None]
        yield "score less goal, mean absolute (points)", mean(np.abs(error_PGN).mean(axis=(1, 2))), "all", False
        yield "score less goal, mean: bias (points)", mean(error_PGN.mean(axis=(1, 2))), "all", False
        for g, goal in enumerate(goals_G):
            yield "score less goal at each goal (points)", mean(error_PGN[:, g].mean(axis=1)), f"goal {goal:g}", True
    if len(goals_G) > 1:
        unit = "points a point; 1 follows it" if on_scale else "points of the scorer a point of the goal"
        yield f"slope of the score over the goal ({unit})", mean(slopes(goals_G, scores_PGN)), "all", False
        yield "rank correlation of goal and score", rank_correlation(goals_G, scores_PGN), "all", False


def slopes(goals_G: Float[np.ndarray, " G"], scores_PGN: Float[np.ndarray, "P G N"]) -> Float[np.ndarray, " P"]:
    """The slope of the least-squares line through the scores of each prompt; their mean is that through all scores, because every
    prompt has the same goals.

    >>> slopes(np.array([1.0, 3.0]), np.array([[[2.0], [5.0]], [[4.0], [4.0]]]))
    array([1.5, 0. ])
    """
    centred_G = goals_G - goals_G.mean()
    return scores_PGN.mean(axis=2) @ centred_G / (centred_G @ centred_G)


def rank_correlation(goals_G: Float[np.ndarray, " G"], scores_PGN: Float[np.ndarray, "P G N"]) -> Estimate:
    """Spearman's rho between goals and scores over all answers. NaN where all scores are equal."""
    from scipy.stats import rankdata  # a second, which every other start would pay

    asked_PGN = np.broadcast_to(goals_G[None, :, None], scores_PGN.shape)

    def rho(drawn: Int[np.ndarray, " n"]) -> float:
        ranks = np.stack([rankdata(each[drawn].ravel()) for each in (asked_PGN, scores_PGN)])
        return float(np.corrcoef(ranks)[0, 1]) if (np.ptp(ranks, axis=1) > 0).all() else float("nan")

    return interval(len(scores_PGN), rho)


def ends(one: Scored, values_PGN: Float[np.ndarray, "P G N"]) -> Float[np.ndarray, " P"]:
    """Of each prompt, the value at the highest goal on the scale less that at the lowest."""
    return (values_PGN[:, one.inside[-1]] - values_PGN[:, one.inside[0]]).mean(axis=1)


def costs(one: Scored) -> Found:
    """Lengths, which no scorer says."""
    yield from by_goal(one, one.tokens_PGN, TOKENS, detail=True)
    if one.plain is not None:
        yield TOKENS, mean(one.plain.tokens_PN.mean(axis=1)), NO_GOAL, True
    if len(one.inside) > 1:
        yield "tokens at the highest less at the lowest goal", mean(ends(one, one.tokens_PGN)), "all", False
    if one.goals:
        yield "answers cut at the longest length (share)", mean(one.cut_PGN.mean(axis=(1, 2))), "all", False


def side_effects(one: Scored) -> Found:
    """What moves with the goal besides the score: the scorer's attributes, in their own units."""
    if len(one.inside) < 2:
        return
    for name, values_PGN in one.attributes.items():
        yield "attribute at the highest less at the lowest goal", mean(ends(one, values_PGN)), name, False
        found = rank_correlation(np.array(one.goals)[one.inside], values_PGN[:, one.inside])
        yield "rank correlation of goal and attribute", found, name, True


def against_best_of(one: Scored, plain: Sequence[Scored]) -> Found:
    """One answer at the highest goal, and the best over all goals, less the best of as many plain answers as the same number of
    tokens pays for. A number of answers that is not whole lies between those around it."""
    if not one.inside:
        return
    highest = one.inside[-1]
    spent_P = one.tokens_PGN[:, highest].mean(axis=1), one.tokens_PGN[:, one.inside].mean(axis=2).sum(axis=1)
    reached_P = one.scores_PGN[:, highest].mean(axis=1), one.scores_PGN[:, one.inside].max(axis=1).mean(axis=1)
    names = "score at the highest goal", "best score over all goals"
    for each in plain:
        assert each.plain is not None
        best_PN, tokens_P = best_of(each.plain.scores_PN), each.plain.tokens_PN.mean(axis=1)
        for name, spent, reached in zip(names, spent_P, reached_P, strict=True):
            if not tokens_P.sum():
                continue
            number, most = spent.sum() / tokens_P.sum(), best_PN.shape[1]
            had = min(max(number, 1.0), float(most))
            said = f"n {number:.1f}" if abs(number - had) < NEARLY else f"n {had:.0f}, not {number:.1f}"

            def lead(
                drawn: Int[np.ndarray, " n"], spent=spent, reached=reached, best=best_PN, tokens=tokens_P
            ) -> float:
                return float(reached[drawn].mean()) - at_number(best[drawn], spent[drawn].sum() / tokens[drawn].sum())

            quantity = f"{name} less the best of n plain answers at equal tokens"
            yield quantity, interval(len(best_PN), lead), f"against {each.model}, {said}", False


def against_others(one: Scored, others: Sequence[Scored]) -> Found:
    """The answers at the highest goal less those of models without goals, prompt by prompt."""
    if not one.inside:
        return
    own_P = one.scores_PGN[:, one.inside[-1]].mean(axis=1)
    for other in others:
        where = f"against {other.model}"
        if other.plain is not None:
            yield f"{HIGHEST} less that of", mean(own_P - other.plain.scores_PN.mean(axis=1)), where, False
        elif other.inside:
            found = mean(own_P - other.scores_PGN[:, other.inside[-1]].mean(axis=1))
            yield f"{HIGHEST} less that of", found, where, False


def agreement(one: Verdict, other: Verdict) -> Iterator[Measure]:
    """Kendall's tau-b of two scorers over the answers to a prompt, as a mean over prompts in which neither says the same of
    all."""
    for first, second in zip(one.models, other.models, strict=True):
        taus = [kendall(a, b) for a, b in zip(every_score(first), every_score(second), strict=True)]
        known_P = np.array([tau for tau in taus if not np.isnan(tau)])
        found = mean(known_P) if len(known_P) else NOTHING
        quantity = f"agreement of {one.scorer} and {other.scorer} (Kendall's tau within prompts)"
        yield Measure(quantity, first.model, found)


def every_score(one: Scored) -> list[list[float]]:
    """Of each prompt, all scores."""
    plain_PN = np.empty((len(one.scores_PGN), 0)) if one.plain is None else one.plain.scores_PN
    return [[*a.ravel().tolist(), *b.tolist()] for a, b in zip(one.scores_PGN, plain_PN, strict=True)]


def curve_of(one: Scored, *, on_scale: bool) -> dict[str, Any]:
    """The numbers of the figure."""
    found = [mean(one.scores_PGN[:, g].mean(axis=1)) for g in range(len(one.goals))]
    curve: dict[str, Any] = {
        "goals": list(one.goals),
        "score": [each.value for each in found],
        "low": [each.low for each in found],
        "high": [each.high for each in found],
        "tokens": one.tokens_PGN.mean(axis=(0, 2)).tolist(),
        "on_scale": on_scale,
        "plain": None,
    }
    if one.plain is not None:
        best_N, tokens = best_of(one.plain.scores_PN).mean(axis=0), float(one.plain.tokens_PN.mean())
        curve["plain"] = {
            "n": list(range(1, len(best_N) + 1)),
            "best": best_N.tolist(),
            "tokens": [tokens * (n + 1) for n in range(len(best_N))],
        }
    return curve
