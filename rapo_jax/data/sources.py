"""Files -> records: whatever the source calls its columns, one row becomes a prompt, its responses and their rewards.

Everything after this module forgets the source's column names. It neither writes goals nor knows tokens. A row that
cannot be used is never lost silently: all of them are one error, or, on request, counted by reason.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from rapo_jax.config.tree import Columns
from rapo_jax.data.columns import FOR_GOALS, Want, resolve
from rapo_jax.data.files import read_rows
from rapo_jax.data.schemas import Defect, reader
from rapo_jax.data.values import BadRow
from rapo_jax.errors import UserError
from rapo_jax.messages import Record

SHOWN = 5
DETECT = Columns()


@dataclass(frozen=True)
class Source:
    """What was read: len(records) + merged + sum(dropped.values()) == num_rows.

    `merged` rows went into the record of an earlier one; `notes` counts what was left out of records or changed in them;
    `columns` are the resolved ones.
    """

    records: list[Record]
    num_rows: int
    dropped: dict[str, int]
    columns: Columns
    reward_source: str
    schema: str = "pairs"
    merged: int = 0
    notes: dict[str, int] = field(default_factory=dict)


def read_records(
    path: str,
    *,
    split: str = "train",
    revision: str = "",
    columns: Columns = DETECT,
    scores_required: bool,
    scores_for: tuple[str, str] = FOR_GOALS,
    want: Want = "pair",
    schema: str = "auto",
    bad_rows: Literal["error", "drop"] = "error",
    defect: Defect = "repair",
    option: str = "data.path",
) -> Source:
    """Reads records from a path or hub id: with one response where `want` is "one", else with all that a row has.

    `path` is a .jsonl, .json or .parquet file, a directory of them, a directory written by `save_to_disk`, or, if no
    such file exists, a hub data set. `schema` and `columns` override the detection, which looks at the first row. A row
    with fewer than two different responses is dropped and counted where two are wanted. `option` is what the user calls
    `path`, `scores_for` tells why scores are required. Raises UserError, for bad rows once for all of them.
    """
    rows = read_rows(path, split=split, revision=revision, option=option)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{option}={path} has no rows; at least one is needed.")
    said = f"{option}={path}"
    schema, resolved = resolve(
        said,
        columns,
        first.values,
        want=want,
        scores_required=scores_required,
        scores_for=scores_for,
        schema=schema,
    )
    read = reader(schema, resolved, defect=defect)
    records, notes, dropped, facts, num_rows = [], Counter(), Counter(), [], 0
    for row in chain([first], rows):
        num_rows += 1
        try:
            record, noted = read(row.values)
        except BadRow as bad:
            dropped[bad.reason] += 1
            facts.append(f"{row.place}: {bad}")
            continue
        notes.update(noted)
        records.append(replace(record, row=row.number))
    if facts and bad_rows == "error":
        raise UserError(_bad_rows_message(facts, num_rows))
    num_read = len(records)
    records = merge_by_prompt(records) if schema == "helpsteer" else records
    usable = [record for record in records if _too_few(record, want) is None]
    dropped.update(reason for record in records if (reason := _too_few(record, want)))
    if not usable:
        alone = dropped["fewer_than_two_responses"]
        hint = f" The objective compares several; rows of data.schema={schema} have one." if alone else ""
        raise UserError(f"{said}: none of {num_rows} rows can be used; dropped: {counts(dropped)}.{hint}")
    return Source(
        records=usable,
        num_rows=num_rows,
        dropped=dict(dropped),
        columns=resolved,
        reward_source=reward_source(schema, resolved),
        schema=schema,
        merged=num_read - len(records),
        notes=dict(notes),
    )


def _too_few(record: Record, want: Want) -> str | None:
    """Why a record has nothing to compare; None if it has, or if nothing is to be compared."""
    if record.ranked and len(set(record.responses)) < len(record.responses):
        return "identical_responses"
    enough = len(record.responses) > 1 or want in ("one", "each", "any") or (want == "labelled" and record.labels)
    return None if enough else "fewer_than_two_responses"


def merge_by_prompt(records: Sequence[Record]) -> list[Record]:
    """Records of one response each -> one record per prompt, where its first stood. A repeated response is left out."""
    by_prompt: dict[tuple, dict[tuple, Record]] = {}
    for record in records:
        by_prompt.setdefault((record.source, record.prompt), {}).setdefault(record.responses, record)
    return [_merge(list(group.values())) for group in by_prompt.values()]


def _merge(group: Sequence[Record]) -> Record:
    joined = {
        name: tuple(part for record in group for part in getattr(record, name))
        for name in ("responses", "rewards", "attributes")
    }
    return replace(group[0], **joined)


def reward_source(schema: str, columns: Columns) -> str:
    """Where rewards came from, in words for the report."""
    scores = [name for name in (columns.score_chosen, columns.score_rejected, columns.rewards) if name]
    named = f"column{'s' * (len(scores) > 1)} {', '.join(scores)}" if scores else "none"
    return {
        "nectar": "rank 1-7 as 10-1",
        "helpsteer": "helpfulness 0-4 as 1-10",
        "numbered": "columns response_0_reward, ...",
        "ultrafeedback": f"{columns.rewards} of {columns.responses}",
    }.get(schema, named)


def counts(dropped: Mapping[str, int]) -> str:
    """12 empty_response, 3 identical_responses; for messages."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "none"


def _bad_rows_message(facts: list[str], num_rows: int) -> str:
    more = [f"... and {len(facts) - SHOWN} more"] if len(facts) > SHOWN else []
    return "\n  ".join(
        [
            f"{len(facts)} of {num_rows} rows cannot be used. A row needs turns that alternate and end with a user's, "
            "responses that are not empty and scores that are finite numbers; fix the rows or set data.bad_rows=drop.",
            *facts[:SHOWN],
            *more,
        ]
    )
