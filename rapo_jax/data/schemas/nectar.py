"""Nectar: up to seven answers a row, ranked from 1 to 7."""

from collections.abc import Mapping
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.responses import Candidate, mapping, prompt_column, several
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import finite_score, list_of


def read_nectar(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    """Rank 1 has reward 10, rank 7 has reward 1, linearly between."""
    candidates = []
    for index, answer in enumerate(list_of(values, columns.responses)):
        name = f"{columns.responses}[{index}]"
        entry = mapping(answer, name)
        rank = finite_score(entry.get(columns.rewards), f"{name}.{columns.rewards}")
        candidates.append(Candidate(f"{name}.answer", entry.get("answer"), 10 - 9 * (rank - 1) / 6, None))
    return several(prompt_column(values, columns.prompt), candidates)


def has_ranked_answers(first: FirstRow) -> bool:
    answers = first.values.get("answers")
    return isinstance(answers, list) and answers != [] and isinstance(answers[0], dict) and "rank" in answers[0]


def ranks(_: Columns) -> str:
    return "rank 1-7 as 10-1"


NECTAR = Schema(
    name="nectar",
    meaning="answers, each with its rank (Nectar)",
    read=read_nectar,
    detects=has_ranked_answers,
    usual=Columns(prompt="prompt", responses="answers", rewards="rank"),
    inside=frozenset({"rewards"}),
    scores_from=ranks,
)
