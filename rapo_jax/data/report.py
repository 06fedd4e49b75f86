"""The data report: rows read, dropped by reason and tied; the distributions of scores, margins and goals."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.config.tree import Config
from rapo_jax.data.prepare import Prepared
from rapo_jax.data.relabelled import Relabelled, is_tie, num_limited
from rapo_jax.messages import Record
from rapo_jax.relabel import SIDES, Side, mean_goal


def report_of(prepared: Prepared, relabelled: Sequence[Relabelled], num_ties: int, config: Config) -> dict[str, Any]:
    """The part of data_report.json that is known before tokenization."""
    records, options = prepared.records, config.relabel
    sides = by_side(records)
    goals = [r.preference.goal for r in relabelled if r.preference.goal is not None]
    report = {
        "path": ", ".join(source.path for source in prepared.sources),
        "rows_read": prepared.num_rows,
        "rows_dropped": prepared.dropped,
        "records": len(records),
        "ties": {"found": sum(is_tie(record, config) for record in records), "dropped": num_ties},
        "scores_from": prepared.reward_source,
        "scores": score_histogram(records),
        "margins": margin_histogram(records),
        "rejected_above_half_of_scale": share(sides.get("rejected", []), lambda score: score > options.goal_max / 2),
        "chosen_below_half_of_scale": share(sides.get("chosen", []), lambda score: score < options.goal_max / 2),
        "length_follows_score": length_correlation(records),
        "label_against_scores": sum(r.rewards is not None and r.rewards[0] < r.rewards[-1] for r in records),
        "preferences": dict(Counter(r.preference.goal_of or "no_goal" for r in relabelled)),
        "goals": {
            "kind": options.goal_kind,
            "attributes": list(options.attributes),
            "outside_limits": num_limited(records, config),
            "outside_scale": sum(not options.goal_min <= mean_goal(goal) <= options.goal_max for goal in goals)
            if options.goal_kind == "levels"
            else 0,
            "finer_than_two_decimals": sum(round(mean_goal(goal), 2) != mean_goal(goal) for goal in goals),
        },
        "scale": prepared.scales.tree(),
    }
    several = {"sources": [vars(source) for source in prepared.sources]} if len(prepared.sources) > 1 else {}
    merged = {"rows_merged": prepared.merged} if prepared.merged else {}
    return report | several | merged | ({"notes": prepared.notes} if prepared.notes else {})


@dataclass(frozen=True, eq=False)
class Distributions:
    """The numbers that the report's figure draws: scores and lengths (in characters) by side, and margins.

    Sides that have none are left out. They are kept without the texts, which a run does not need once it is tokenized.
    """

    scores: dict[Side, Float[np.ndarray, "_"]]
    margins: Float[np.ndarray, "_"]
    lengths: dict[Side, Int[np.ndarray, "_"]]


def distributions_of(records: Sequence[Record]) -> Distributions:
    """Scores are those of the records: on the goal scale where relabel.scale maps them."""
    lengths = ([len(r.responses[0]) for r in records], [len(one) for r in records for one in r.responses[1:]])
    return Distributions(
        scores={side: np.array(scores, float) for side, scores in by_side(records).items()},
        margins=np.array(record_margins(records), float),
        lengths={side: np.array(each) for side, each in zip(SIDES, lengths, strict=True) if each},
    )


def by_side(records: Sequence[Record]) -> dict[Side, list[float]]:
    """The scores of the chosen (first) responses and of the others; sides without scores are left out."""
    scored = [record.rewards for record in records if record.rewards is not None]
    sides = zip(SIDES, ([r[0] for r in scored], [one for r in scored for one in r[1:]]), strict=True)
    return {side: scores for side, scores in sides if scores}


def share(values: Sequence[float], holds: Callable[[float], bool]) -> float | None:
    return round(sum(map(holds, values)) / len(values), 4) if values else None


def length_correlation(records: Sequence[Record]) -> float | None:
    """Spearman's rank correlation between a response's score and its length in characters; None if either is constant."""
    scored = [r for r in records if r.rewards is not None]
    scores = [reward for r in scored for reward in r.rewards or ()]
    lengths = [len(response) for r in scored for response in r.responses]
    if len(set(scores)) < 2 or len(set(lengths)) < 2:
        return None
    from scipy.stats import spearmanr  # a second, which every other start would pay

    return round(float(cast(Any, spearmanr(scores, lengths)).statistic), 4)


def score_histogram(records: Sequence[Record]) -> dict[Side, dict[str, int]]:
    """Per side, the number of responses by their score, rounded to a whole number."""
    return {side: _whole_numbers(scores) for side, scores in by_side(records).items()}


def record_margins(records: Sequence[Record]) -> list[float]:
    """The chosen response's score minus the last one's, for every record with several scored responses."""
    return [r.rewards[0] - r.rewards[-1] for r in records if r.rewards is not None and len(r.rewards) > 1]


def margin_histogram(records: Sequence[Record]) -> dict[str, int]:
    return _whole_numbers(record_margins(records))


def _whole_numbers(values: Sequence[float]) -> dict[str, int]:
    """The number of values by the whole number that they round to; halves round up, as bins of a figure would have it."""
    return {str(n): k for n, k in sorted(Counter(int(np.floor(value + 0.5)) for value in values).items())}
