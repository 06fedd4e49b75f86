"""Rewards from outside the source: constants, or a score file written by a reward model, a judge or a policy.

A score file holds one JSON object per line: {"row": 3, "rewards": [0.2, 1.7]}, optionally with "attributes" (a list of
{name: number}), in the order of the row's responses. A first line without "row", or FILE.json beside FILE.jsonl, says what
produced the scores, such as {"kind": "implicit_reward", "beta": 0.01}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapo_jax.borders import path_of, read_json
from rapo_jax.data.files import read_rows
from rapo_jax.data.sources import several_facts
from rapo_jax.data.values import BadRow, finite_score
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record

CONSTANT = "constant"


@dataclass(frozen=True)
class Scores:
    """The scores of a file by source row, and what produced them."""

    path: str
    rewards: dict[int, tuple[float, ...]]
    attributes: dict[int, tuple[dict[str, float], ...]]
    origin: Mapping[str, Any]


def with_constants(records: Sequence[Record], chosen: float, rejected: float) -> list[Record]:
    """The same two rewards for every row: one for preferred or desirable responses, one for the others."""
    scored = []
    for record in records:
        if not record.ranked and record.labels is None:
            raise UserError(
                f"data.rewards=constant: row {record.row} has {counted(len(record.responses), 'response')} in no order of "
                "preference; it suits chosen and rejected ones. Use the source's scores (data.rewards='') or a file."
            )
        liked = record.labels or (True, *[False] * (len(record.responses) - 1))
        scored.append(replace(record, rewards=tuple(chosen if one else rejected for one in liked)))
    return scored


def read_scores(path: str, *, option: str = "data.rewards") -> Scores:
    """Reads a score file. Raises UserError that shows the first few bad lines and counts all."""
    file = path_of(path, said=f"{option}={path}")
    if not file.is_file():
        raise UserError(f"{option}={path}: no such file; it must be {CONSTANT}, or a .jsonl file of scores.")
    rewards, attributes, facts = {}, {}, []
    origin = _origin(file.with_suffix(".json")) if file.suffix == ".jsonl" else {}
    for line in read_rows(str(file), split="", option=option):
        if line.number == 1 and "row" not in line.values:
            origin = line.values
            continue
        try:
            row, found = _line(line.values)
        except BadRow as bad:
            facts.append(f"{line.place}: {bad}")
            continue
        if row in rewards or row in attributes:
            facts.append(f"{line.place}: row {row} has scores already")
        for kind, values in zip((rewards, attributes), found, strict=True):
            if values is not None:
                kind[row] = values
    _refuse(facts, f"{option}={path} has lines that are no scores; each must be like {EXAMPLE}")
    return Scores(path, rewards, attributes, origin)


def _origin(sidecar: Path) -> Mapping[str, Any]:
    """What FILE.json says about the scores; {} without one."""
    if not sidecar.is_file():
        return {}
    origin = read_json(
        sidecar, remedy="it lies beside a file of scores and should say what made them; fix or rename it"
    )
    return origin if isinstance(origin, dict) else {}


EXAMPLE = '{"row": 3, "rewards": [0.2, 1.7]}'


def _line(values: Mapping[str, Any]) -> tuple[int, tuple[Any, Any]]:
    row, rewards, attributes = (values.get(name) for name in ("row", "rewards", "attributes"))
    if type(row) is not int or not isinstance(rewards or attributes, list):
        raise BadRow("line", "it needs a row and a list of rewards or attributes")
    if rewards is not None:
        rewards = tuple(finite_score(value, f"rewards[{index}]") for index, value in enumerate(rewards))
    if attributes is not None:
        if not all(isinstance(each, dict) for each in attributes):
            raise BadRow("line", "each of attributes must be named numbers")
        attributes = tuple(
            {key: finite_score(value, f"attributes[{index}].{key}") for key, value in each.items()}
            for index, each in enumerate(attributes)
        )
    return row, (rewards, attributes)


def with_scores(
    records: Sequence[Record], scores: Scores, *, num_rows: int, option: str = "data.rewards"
) -> list[Record]:
    """The records with the file's rewards (and attributes) in place of their own.

    Raises UserError where the file does not fit the records: rows without scores, scores for rows that do not exist, or a
    number of scores other than the number of responses.
    """
    facts = [
        f"it has row {row}, and the data {counted(num_rows, 'row')}"
        for row in scores.rewards
        if not 1 <= row <= num_rows
    ]
    scored = []
    for record in records:
        found = {
            name: kind[record.row]
            for name, kind in (("rewards", scores.rewards), ("attributes", scores.attributes))
            if record.row in kind
        }
        wrong = [f"{len(values)} {name}" for name, values in found.items() if len(values) != len(record.responses)]
        if not found:
            facts.append(f"it has no scores of row {record.row}")
        elif wrong:
            facts.append(
                f"it has {' and '.join(wrong)} for the {counted(len(record.responses), 'response')} of row {record.row}"
            )
        scored.append(replace(record, **found))
    _refuse(facts, f"{option}={scores.path} does not belong to this data; score it anew")
    return scored


def _refuse(facts: list[str], complaint: str) -> None:
    if facts:
        raise UserError(several_facts(f"{complaint}.", facts))


def origin_in_words(scores: Scores) -> str:
    """Where the rewards come from, for the report."""
    by = ", ".join(f"{key} {value}" for key, value in scores.origin.items())
    return f"{scores.path}" + f" ({by})" * bool(by)
