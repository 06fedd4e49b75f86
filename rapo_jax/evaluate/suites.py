"""Suites: what the likelihoods of scored responses say about a model. Each is a pure function Likelihoods -> Result.

likelihood: does what a model finds likely follow the goal it is asked for?
unlearning: did training take probability from good responses that happened to be rejected (Zhang et al., 2024, figure 3)?
preference: how often, and how surely, does the implicit reward prefer what the goal prefers (Rafailov et al., 2023, eq. 5)?
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from rapo_jax.evaluate import bootstrap
from rapo_jax.evaluate.bootstrap import Draw, Estimate, estimate
from rapo_jax.evaluate.likelihoods import Likelihoods
from rapo_jax.evaluate.result import Measure, Result

SIDES = ("chosen", "rejected")
FOLLOWS = "lead of the chosen response grows with the goal (share of pairs; chance 0.5)"
ACCURACY = "accuracy of the implicit reward (share)"
HIGH = 2 / 3  # a high reward is at least this quantile
MOST_ROWS = 10  # of a heat map
NUM_BINS = 10  # of the reliability curve


def likelihood(models: Sequence[Likelihoods]) -> Result:
    """Where the likelihood peaks against the reward, and whether the likelier response changes with the goal."""
    measures, curves = [], {}
    for table in models:
        mean_of = partial(bootstrap.mean_of, prompt_N=table.prompt_N)
        peak_N2 = np.array(table.grid)[table.grid_NG2.argmax(axis=1)]
        error_N = np.abs(peak_N2 - table.rewards_N2).mean(axis=1)
        lead_N2 = table.own_N22[:, :, 0] - table.own_N22[:, :, 1]  # of the chosen response, under each one's reward
        differ_N = table.rewards_N2[:, 0] != table.rewards_N2[:, 1]
        follows_N = np.where(differ_N, lead_N2[:, 0] > lead_N2[:, 1], np.nan)
        gap_N = np.abs(table.rewards_N2[:, 0] - table.rewards_N2[:, 1])
        add = adder(measures, table.model)
        add(FOLLOWS, mean_of(follows_N))
        for name, members in halves(gap_N, differ_N):
            add(FOLLOWS, mean_of(np.where(members, follows_N, np.nan)), name, detail=True)
        add("likelier response is the one nearer to the goal (share; chance 0.5)", mean_of(right_side(table)))
        add("likeliest goal against reward, mean absolute error (points of the scale)", mean_of(error_N))
        add("likeliest goal against reward, rank correlation", rank_correlation(peak_N2, table))
        curves[table.model] = heatmap(table)
    explains = "A model that knows the scale finds a response likeliest when asked for its reward; one that does not shows chance."
    return Result("likelihood", explains, tuple(measures), curves)


def right_side(table: Likelihoods) -> Float[np.ndarray, " N"]:
    """Per pair, over the goals of the grid: how often the likelier response is the one whose reward is nearer."""
    goals_G = np.array(table.grid)
    distance_NG2 = np.abs(table.rewards_N2[:, None, :] - goals_G[None, :, None])
    nearer_NG = np.sign(distance_NG2[:, :, 1] - distance_NG2[:, :, 0])  # 1 where the chosen response is
    likelier_NG = np.sign(table.grid_NG2[:, :, 0] - table.grid_NG2[:, :, 1])
    counts_N = (nearer_NG != 0).sum(axis=1)
    right_N = ((nearer_NG == likelier_NG) & (nearer_NG != 0)).sum(axis=1)
    return np.divide(right_N, counts_N, out=np.full(len(counts_N), np.nan), where=counts_N > 0)


def heatmap(table: Likelihoods) -> dict[str, list]:
    """Mean log-probability per token by bucket of rewards and goal, less its mean over goals."""
    per_token_NG2 = table.grid_NG2 / table.tokens_N2[:, None, :]
    centred_NG2 = per_token_NG2 - per_token_NG2.mean(axis=1, keepdims=True)
    rows, names = [], []
    for name, inside_N2 in buckets(table.rewards_N2):
        rows.append(centred_NG2.transpose(0, 2, 1)[inside_N2].mean(axis=0).tolist())
        names.append(name)
    return {"goals": list(table.grid), "rewards": names, "logp_per_token": rows}


def buckets(rewards_N2: Float[np.ndarray, "N 2"]) -> Iterator[tuple[str, Bool[np.ndarray, "N 2"]]]:
    """(name, members) of each reward or, where these are many, of as many ranges with equally many responses."""
    distinct = np.unique(rewards_N2)
    if len(distinct) <= MOST_ROWS:
        yield from ((f"{reward:g}", rewards_N2 == reward) for reward in distinct)
        return
    edges = np.unique(np.quantile(rewards_N2, np.linspace(0, 1, MOST_ROWS + 1)))
    for low, high in pairwise(edges):
        inside_N2 = (rewards_N2 >= low) & ((rewards_N2 < high) | (high == edges[-1]))
        if inside_N2.any():  # an edge between two rewards may leave nothing below it
            yield f"{low:.3g} to {high:.3g}", inside_N2


def unlearning(models: Sequence[Likelihoods]) -> Result:
    """Mean log-probabilities of chosen and rejected responses under no goal, their own and the highest; changes against the
    first model."""
    measures, curves = [], {}
    first = models[0]
    for table in models:
        mean_of = partial(bootstrap.mean_of, prompt_N=table.prompt_N)
        add = adder(measures, table.model)
        per_model = curves.setdefault(table.model, {})
        for side, name in enumerate(SIDES):
            good_N = table.rewards_N2[:, side] >= np.quantile(table.rewards_N2, HIGH)
            for goal, logps_N, before_N in conditions(table, first, side):
                for unit, scale_N in (("nats", 1.0), ("nats a token", table.tokens_N2[:, side])):
                    found = mean_of(logps_N / scale_N)
                    add(f"log-probability under {goal}, {unit}", found, name, detail=unit == "nats")
                    per_model[f"{name}, {goal}, {unit}"] = found.value
                    if table is first or unit == "nats":
                        continue
                    for which, members_N in (("", np.full(len(good_N), True)), (" with a high reward", good_N)):
                        change_N = np.where(members_N, (logps_N - before_N) / scale_N, np.nan)
                        add(f"change against {first.model} under {goal}, {unit}", mean_of(change_N), name + which)
    explains = "Good responses that were rejected should not lose more than chosen ones; under their own goal they should gain."
    return Result("unlearning", explains, tuple(measures), curves)


def conditions(table: Likelihoods, first: Likelihoods, side: int):
    """(name of the goal, log-probabilities of this side's responses under it, those of the first model)."""
    yield "no goal", table.none_N2[:, side], first.none_N2[:, side]
    yield "their own reward as goal", table.own_N22[:, side, side], first.own_N22[:, side, side]
    yield "the highest goal", table.highest_N2[:, side], first.highest_N2[:, side]


def preference(
    models: Sequence[Likelihoods], references: Sequence[Likelihoods], *, beta: float, reference: str
) -> Result:
    """Accuracy, margin and calibration of the implicit reward, by the side whose reward is the goal. Each model has a table of the
    reference on its own texts."""
    measures, curves = [], {}
    for table, of_reference in zip(models, references, strict=True):
        mean_of = partial(bootstrap.mean_of, prompt_N=table.prompt_N)
        add = adder(measures, table.model)
        gap_N = table.rewards_N2[:, 0] - table.rewards_N2[:, 1]
        differ_N = gap_N != 0
        h_N22 = beta * (table.own_N22 - of_reference.own_N22)
        lead_N2 = h_N22[:, :, 0] - h_N22[:, :, 1]  # of the chosen response, under each one's reward
        margins_N2 = np.where(differ_N[:, None], lead_N2 * [1, -1], np.nan)
        for side, name in enumerate(SIDES):
            where, margin_N = f"goal of {name}", margins_N2[:, side]
            right_N = (np.sign(margin_N) + 1) / 2  # a margin of 0 prefers neither
            add(ACCURACY, mean_of(right_N), where)
            for half, members in halves(gap_N, differ_N):
                add(ACCURACY, mean_of(np.where(members, right_N, np.nan)), f"{where}, {half}", detail=True)
            add("margin of the implicit reward", mean_of(margin_N), where)
        curves[table.model] = reliability(margins_N2[differ_N].ravel())
        calibrated = calibration(margins_N2[differ_N], table.prompt_N[differ_N])
        add("calibration error of sigmoid(margin) (ECE)", calibrated)
    explains = (
        f"margin = beta (log pi / pi_ref of the preferred response less that of the other), beta={beta:g}, reference {reference}. "
        "Plain DPO is right for goals of chosen and wrong for those of rejected responses."
    )
    return Result("preference", explains, tuple(measures), curves)


def reliability(margins: Float[np.ndarray, " n"]) -> dict[str, list]:
    """Of equal bins of sigmoid(|margin|), in [0.5, 1]: the mean, how often the larger reward was right, and how many fell in."""
    surety, right = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    bins = np.minimum(((surety - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    used = [b for b in range(NUM_BINS) if (bins == b).any()]
    return {
        "said": [float(surety[bins == b].mean()) for b in used],
        "right": [float(right[bins == b].mean()) for b in used],
        "preferences": [int((bins == b).sum()) for b in used],
    }


def calibration(margins_N2: Float[np.ndarray, "N 2"], prompt_N: Int[np.ndarray, " N"]) -> Estimate:
    """Expected calibration error (Guo et al., 2017) of the surety that the larger implicit reward is the right one."""

    def error(drawn: Draw) -> float:
        curve = reliability(margins_N2[drawn].ravel())
        said, right, number = (np.array(curve[name]) for name in ("said", "right", "preferences"))
        return float((np.abs(said - right) * number).sum() / number.sum())

    return estimate(prompt_N, error)


def rank_correlation(peak_N2: Float[np.ndarray, "N 2"], table: Likelihoods) -> Estimate:
    """Spearman's rho between likeliest goals and rewards, over responses. NaN where one of them is constant."""
    from scipy.stats import rankdata  # a second, which every other start would pay

    def rho(drawn: Draw) -> float:
        ranks = np.stack([rankdata(peak_N2[drawn].ravel()), rankdata(table.rewards_N2[drawn].ravel())])
        return float(np.corrcoef(ranks)[0, 1]) if (np.ptp(ranks, axis=1) > 0).all() else float("nan")

    return estimate(table.prompt_N, rho)


def halves(gap_N: Float[np.ndarray, " N"], differ_N: Bool[np.ndarray, " N"]):
    """(name, members) of the pairs with a small and those with a large gap of rewards, where gaps differ."""
    middle = float(np.median(gap_N[differ_N])) if differ_N.any() else 0.0
    large_N = differ_N & (gap_N > middle)
    if large_N.any():
        yield f"gap up to {middle:g}", differ_N & ~large_N
        yield f"gap above {middle:g}", large_N


def adder(measures: list[Measure], model: str) -> Callable[..., None]:
    """add(quantity, estimate, where, detail=...) for one model."""

    def add(quantity: str, found: Estimate, where: str = "all", *, detail: bool = False) -> None:
        measures.append(Measure(quantity, model, found, where, detail))

    return add
