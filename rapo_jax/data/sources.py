"""Files -> records: whatever the source calls its columns, one row becomes a prompt, its responses and their rewards.

Later stages never see the source's column names; goals and tokens play no part here. A row that cannot be used is never
lost silently: bad rows are reported together in one error or, with data.bad_rows=drop, counted by reason.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

from rapo_jax.config.tree import Columns, Data, SourceOptions
from rapo_jax.data.files import FileRow, read_rows
from rapo_jax.data.row_needs import RowNeeds, Want
from rapo_jax.data.schemas.pairs import ANSWERS, QUESTIONS
from rapo_jax.data.schemas.registry import require_schema, resolve_schema
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import EMPTY, MORE, BadRow, finite_score, text, tools_of
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Message, Record, more_of
from rapo_jax.objectives import OBJECTIVES

SHOWN = 5  # facts that a message about many rows lists
# Columns that usually belong to the prompt, and the key that has them read; "" where none does.
CONTEXT = {
    "system": "data.columns.system",
    "system_prompt": "data.columns.system",
    "input": "data.columns.input",
    "context": "data.columns.input",
    "functions": "",
    "images": "",
    "tools": "",  # where it is a text, and no list of tools
}
FOR_EXAMPLE: dict[Want, str] = {"labelled": "kto", "pair": "dpo", "one": "sft"}  # an objective that wants such rows
UNREAD, UNREAD_KEY = "unread_column_", "unread_key_"  # how notes about columns and about keys of messages begin


@dataclass(frozen=True)
class SourceRecords:
    """What was read: len(records) + merged + sum(dropped.values()) == num_rows.

    `merged` rows went into the record of an earlier one; `notes` counts what was left out of records or changed in them;
    `columns` are the resolved ones; `schema` is the name of the schema.
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
    source: SourceOptions, need: RowNeeds, *, option: str = "data.path", data: Data | None = None
) -> SourceRecords:
    """Reads the records of a source: with one response where one is wanted, else with all that a row has.

    `source.path` is a .jsonl, .json or .parquet file, a directory of them, a directory written by `save_to_disk`, or,
    if no such file exists, a data set on the hub. `source.schema` and `source.columns` override the detection on the
    first row. `data` gives bad_rows and score_defect; `option` is what the user calls the path. A row with fewer than
    two different responses is dropped and counted where two are wanted. Raises UserError, one for all bad rows together.
    """
    data = Data() if data is None else data
    require_schema(source.schema)
    said = f"{option}={source.path}"
    rows = read_rows(source.path, split=source.split, revision=source.revision, option=option)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{said} has no rows; at least one is needed.")
    first_row = FirstRow(said, first.values, source.columns, need.want)
    schema, columns = schema_of(first_row, source.schema, need)
    reader = row_reader(schema, columns, ReadOptions(defect=data.score_defect))
    found = _Rows.read(chain([first], rows), reader)
    if found.facts and data.bad_rows == "error":
        raise UserError(_bad_rows_message(found.facts, found.num_rows))
    records = merge_by_prompt(found.records) if schema.merges_prompts else found.records
    reasons = [_too_few(record, need.want) for record in records]
    usable = [record for record, reason in zip(records, reasons, strict=True) if reason is None]
    found.dropped.update(reason for reason in reasons if reason)
    if not usable:
        alone = found.dropped["fewer_than_two_responses"]
        others = " or ".join(objectives_for(first_row, source.schema)) or "sft"
        one = f" The objective compares several; rows of data.schema={schema.name} have one, as for objective.name={others}."
        hint = one if alone else ""
        raise UserError(
            f"{said}: none of {counted(found.num_rows, 'row')} can be used; dropped: {counts_in_words(found.dropped)}.{hint}"
        )
    return SourceRecords(
        records=usable,
        num_rows=found.num_rows,
        dropped=dict(found.dropped),
        columns=columns,
        reward_source=schema.scores_from(columns),
        schema=schema.name,
        merged=len(found.records) - len(records),
        notes=dict(found.notes),
    )


def schema_of(first: FirstRow, name: str, need: RowNeeds) -> tuple[Schema, Columns]:
    """As `resolve_schema`, whose error also names the objectives that can use rows like this one."""
    try:
        return resolve_schema(first, name, need)
    except UserError as error:
        others = objectives_for(first, name) if need.want in ("one", "pair", "labelled", "all") else []
        if not others or any(OBJECTIVES[other].responses == need.want for other in others):
            raise
        goals = "" if not need.scores else "; relabel.goals=[] where they have no scores"
        raise UserError(f"{error} Such rows are for objective.name={' or '.join(others)}{goals}.") from error


def objectives_for(first: FirstRow, name: str) -> list[str]:
    """An objective of each kind that can use a row, those that use most of it first."""
    found, named = [], first.columns
    likely = named
    if not first.first_of(["chosen", "rejected", "prompt"]):
        likely = replace(
            named,
            prompt=named.prompt or first.first_of(QUESTIONS),
            response=named.response or first.first_of(ANSWERS),
        )
    for want, objective in FOR_EXAMPLE.items():
        try:
            row = replace(first, want=want, columns=likely if want == "one" else named)
            schema, columns = resolve_schema(row, name, RowNeeds(want))
            record, _ = row_reader(schema, columns, ReadOptions())(first.values)
        except (UserError, BadRow):
            continue
        if _too_few(record, want) is None:
            found.append(objective)
    return found


@dataclass(frozen=True)
class _Rows:
    """The records of all rows, and the facts about those that cannot be used."""

    records: list[Record]
    facts: list[str]
    notes: Counter[str]
    dropped: Counter[str]
    num_rows: int

    @classmethod
    def read(cls, rows: Iterator[FileRow], reader: Callable[[Mapping[str, Any]], Parsed]) -> "_Rows":
        records, facts, notes, dropped, num_rows = [], [], Counter(), Counter(), 0
        for row in rows:
            num_rows += 1
            try:
                record, noted = reader(row.values)
            except BadRow as bad:
                dropped[bad.reason] += 1
                facts.append(f"{row.place}: {bad}")
                continue
            notes.update(noted)
            records.append(replace(record, row=row.number))
        return cls(records, facts, notes, dropped, num_rows)


def row_reader(schema: Schema, columns: Columns, options: ReadOptions) -> Callable[[Mapping[str, Any]], Parsed]:
    """The function that reads a row of this schema, with its source and its weight."""

    def read(values: Mapping[str, Any]) -> Parsed:
        record, notes = schema.read(values, columns, options)
        record = replace(record, prompt=with_context(record.prompt, values, columns))
        tools = tools_of(values)
        notes = (
            *notes,
            *(f"{UNREAD}{name}" for name in unread(values, columns, tools=tools)),
            *(f"{UNREAD_KEY}{key}" for key in unread_keys(values, columns)),
        )
        source = values.get(columns.source) if columns.source else ""
        source = ", ".join(map(str, source)) if isinstance(source, list) else str("" if source is None else source)
        weight = finite_score(values.get(columns.weight), columns.weight) if columns.weight else 1.0
        if weight < 0:
            raise BadRow("weight", f"{columns.weight} is {weight}, less than 0")
        return Parsed(replace(record, source=source, weight=weight, tools=tools or record.tools), notes)

    return read


def with_context(prompt: tuple[Message, ...], values: Mapping[str, Any], columns: Columns) -> tuple[Message, ...]:
    """The prompt with the texts of the system and input columns, where they are named and not empty."""
    system = text(values.get(columns.system) or "", columns.system) if columns.system else ""
    more = text(values.get(columns.input) or "", columns.input) if columns.input else ""
    if more.strip():
        prompt = (*prompt[:-1], replace(prompt[-1], content=f"{prompt[-1].content}\n\n{more}"))
    if not system.strip() or prompt[0] == Message("system", system):
        return prompt
    if prompt[0].role == "system":
        raise BadRow("roles", f"the prompt has a system turn, and {columns.system} holds another")
    return (Message("system", system), *prompt)


def unread(values: Mapping[str, Any], columns: Columns, *, tools: str | None) -> list[str]:
    """Columns that usually belong to the prompt, hold something and are read by nobody; `tools` is what was read of those."""
    known = {getattr(columns, field.name) for field in fields(Columns)}
    if tools is not None:
        known.add("tools")
    return [name for name in CONTEXT if values.get(name) not in EMPTY and name not in known]


def unread_keys(values: Mapping[str, Any], columns: Columns) -> list[str]:
    """Keys of the messages in columns that are read, which hold something and which no reader knows."""
    read = {getattr(columns, field.name) for field in fields(Columns)}
    lists = [value for name, value in values.items() if name in read and isinstance(value, list)]
    turns = [turn for value in lists for turn in value if isinstance(turn, Mapping) and "role" in turn]
    return sorted({key for turn in turns for key in turn if turn[key] not in EMPTY} - {"role", "content", *MORE})


def _too_few(record: Record, want: Want) -> str | None:
    """Why a record is left out: ranked responses repeat, or there is one where two are wanted. None if it is not."""
    if record.ranked and len(set(record.answers)) < len(record.answers):
        return "identical_responses"
    enough = len(record.responses) > 1 or want in ("one", "each", "any") or (want == "labelled" and record.labels)
    return None if enough else "fewer_than_two_responses"


def merge_by_prompt(records: Sequence[Record]) -> list[Record]:
    """Records of one response each -> one per source, prompt and tools, in order of first occurrence, no response repeated."""
    by_prompt: dict[tuple[Any, ...], dict[tuple[Message, ...], Record]] = {}
    for record in records:
        by_prompt.setdefault((record.source, record.prompt, record.tools), {}).setdefault(record.answers, record)
    return [_merge(list(group.values())) for group in by_prompt.values()]


def _merge(group: Sequence[Record]) -> Record:
    return replace(
        group[0],
        responses=tuple(part for record in group for part in record.responses),
        rewards=_joined([record.rewards for record in group]),
        attributes=_joined([record.attributes for record in group]),
        more=more_of(answer for record in group for answer in record.answers),
    )


def _joined(parts: Sequence[tuple[Any, ...] | None]) -> tuple[Any, ...] | None:
    """All parts one after another; None where one of them is None."""
    present = [part for part in parts if part is not None]
    return tuple(chain.from_iterable(present)) if len(present) == len(parts) else None


def counts_in_words(dropped: Mapping[str, int]) -> str:
    """Counts for a message, such as 12 empty_response, 3 identical_responses."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number) or "none"


def several_facts(complaint: str, facts: Sequence[str]) -> str:
    """A message of several lines: the complaint, and the first few of the facts."""
    more = [f"... and {len(facts) - SHOWN} more"] if len(facts) > SHOWN else []
    return "\n  ".join([complaint, *facts[:SHOWN], *more])


def _bad_rows_message(facts: Sequence[str], num_rows: int) -> str:
    complaint = (
        f"{len(facts)} of {counted(num_rows, 'row')} cannot be used. A row needs turns that alternate and end with a user's, "
        "responses that are not empty and scores that are finite numbers; fix the rows or set data.bad_rows=drop."
    )
    return several_facts(complaint, facts)
