"""UltraFeedback as it was published: up to four completions, each with an overall score (1-10) and four ratings (1-5).

Source: Cui et al., "UltraFeedback: Boosting Language Models with Scaled AI Feedback", 2024.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.responses import Candidate, mapping, prompt_column, several
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import finite_score, list_of

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
DEFECT_NOTES = {"repair": "repaired", "drop": "left_out", "keep": "kept"}


def read_ultrafeedback(values: Mapping[str, Any], columns: Columns, options: ReadOptions) -> Parsed:
    """The completions of a row; completions with a rating that is not a number are left out, as in the paper's code."""
    candidates, notes = [], []
    for index, completion in enumerate(list_of(values, columns.responses)):
        name = f"{columns.responses}[{index}]"
        entry = mapping(completion, name)
        ratings = _ratings(entry.get("annotations"))
        if ratings is not None and any(math.isnan(rating) for rating in ratings.values()):
            notes.append("rating_not_available")
            continue
        reward = finite_score(entry.get(columns.rewards), f"{name}.{columns.rewards}")
        if _is_ten_for_one(reward, entry, ratings, name):
            notes.append(f"score_10_for_1_{DEFECT_NOTES[options.defect]}")
            if options.defect == "drop":
                continue
            reward = 1.0 if options.defect == "repair" else reward
        if entry.get("custom_system_prompt"):
            notes.append("written_under_a_hidden_instruction")
        candidates.append(Candidate(f"{name}.response", entry.get("response"), reward, ratings))
    parsed = several(prompt_column(values, columns.prompt), candidates)
    return parsed._replace(notes=(*notes, *parsed.notes))


def _is_ten_for_one(reward: float, entry: Mapping[str, Any], ratings: dict[str, float] | None, name: str) -> bool:
    """Whether the annotation program wrote 10 for 1: the fine-grained score (else the mean rating) is at most 2.

    The published correction of the data set sets these scores to 1.
    """
    fine = entry.get("fine-grained_score")
    if fine is not None:
        fine = finite_score(fine, f"{name}.fine-grained_score")
    elif ratings:
        fine = statistics.fmean(ratings.values())
    return reward == 10 and fine is not None and fine <= 2


def _ratings(annotations: Any) -> dict[str, float] | None:
    """The four ratings, NaN where a rating is not a number; None without annotations."""
    if not isinstance(annotations, Mapping):
        return None
    return {aspect: _rating(annotations.get(aspect)) for aspect in ASPECTS}


def _rating(annotation: Any) -> float:
    try:
        rating = float(annotation["Rating"])
    except (KeyError, TypeError, ValueError, OverflowError):  # "N/A", or no annotation at all
        return math.nan
    return rating if math.isfinite(rating) else math.nan


def has_completions(first: FirstRow) -> bool:
    return isinstance(first.values.get("completions"), list)


def key_of_completions(columns: Columns) -> str:
    return f"{columns.rewards} of {columns.responses}"


ULTRAFEEDBACK = Schema(
    name="ultrafeedback",
    meaning="instruction and completions, each with overall_score and annotations (UltraFeedback as published)",
    read=read_ultrafeedback,
    detects=has_completions,
    usual=Columns(prompt="instruction", responses="completions", rewards="overall_score"),
    inside=frozenset({"rewards"}),
    scores_from=key_of_completions,
)
