"""Scorers that are not models of ours, row by row: every row is written down when it is scored, and asked for once.

Ctrl-C, also within what somebody else wrote, ends the command; what was scored is in the directory, and the same command
goes on.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from rapo_jax.borders import json_line, parse_json, read_json_lines, read_object, write_json
from rapo_jax.data.values import BadRow
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted, shown
from rapo_jax.messages import Record
from rapo_jax.score.scorer import Origin, RowScores, row_scores
from rapo_jax.space import on_disk
from rapo_jax.train.journal import PRINT_EVERY
from rapo_jax.train.screen import duration

Found = Generator[tuple[int, RowScores], None, None]  # (place among the records, its scores), in any order
Ask = Callable[[Sequence[Record]], Found]


@dataclass(frozen=True)
class OutsideScorer:
    """The scorer of whatever answers `ask`. `identity` is what its scores belong to, besides the rows."""

    origin: Origin
    identity: dict[str, str]
    ask: Ask

    @property
    def kind(self) -> str:
        return str(self.origin["kind"])

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        if jax.process_count() > 1:
            raise UserError(
                f"{self.kind}: such a scorer needs none of the other processes; run the command as one process."
            )
        refuse_more_than_texts(records, kind=self.kind)
        rows = KeptRows(kept, self.identity | {"rows": fingerprint_of_records(records)})
        known = rows.open(records)
        missing = [at for at in range(len(records)) if at not in known]
        say(
            f"{len(known):,} of {counted(len(records), 'row')} found in {kept}"
            + "; asking for the others ..." * bool(missing)
        )
        pace = Pace(sum(len(records[at].responses) for at in missing))
        if missing:
            with on_disk(rows.path), closing(self.ask([records[at] for at in missing])) as found:
                for place, scores in found:
                    at = missing[place]
                    rows.add(records[at].row, scores)
                    known[at] = scores
                    pace.add(len(scores.rewards))
        return [known[at] for at in range(len(records))]


@dataclass
class KeptRows:
    """rows.jsonl of a directory, a line for every row that is scored, and belongs.json: what they belong to."""

    directory: Path
    identity: dict[str, str]

    @property
    def path(self) -> Path:
        return self.directory / "rows.jsonl"

    def open(self, records: Sequence[Record]) -> dict[int, RowScores]:
        """The scores of earlier calls, by their place among the records. Raises UserError where they are of something else."""
        about = self.directory / "belongs.json"
        remedy = f"Choose another --out, or remove {self.directory}. Nothing was overwritten."
        if self.path.exists() or about.exists():
            before = read_object(about, remedy=f"remove {self.directory} to start anew") if about.exists() else {}
            changed = [name for name in self.identity if before.get(name) != self.identity[name]]
            if changed:
                raise UserError(
                    f"{self.directory} holds scores of something else; changed: {'; '.join(changed)}. {remedy}"
                )
        write_json(about, self.identity)
        if not self.path.exists():
            return {}
        places = {record.row: at for at, record in enumerate(records)}
        known = {}
        for number, line in lines_of_killed_writer(
            self.path, key="row", remedy=f"remove {self.directory} to start anew"
        ):
            row = row_of(line, places)
            try:
                if row is None:
                    raise BadRow("row", f"there is no row {shown(line.get('row'))}")
                known[places[row]] = row_scores(line, len(records[places[row]].responses))
            except BadRow as bad:
                raise UserError(f"{self.path} line {number}: {bad}; remove {self.directory} to start anew.") from bad
        return known

    def add(self, row: int, scores: RowScores) -> None:
        """Writes a row's scores; a process that is killed after this has kept them."""
        with on_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(scores.as_line(row)) + "\n")


def row_of(values: Mapping[str, Any], rows: Mapping[int, int]) -> int | None:
    """The number under "row", if it is one of these; 1.0 and true are none, although Python finds them there."""
    row = values.get("row")
    return row if type(row) is int and row in rows else None


def lines_of_killed_writer(path: Path, *, key: str, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of every line of a file that is appended to, whose last writer may have been killed within a line.

    After the last line the end is mended: half a line that begins as ours do, with `key`, is cut off. The file is as it was
    where the reader of the lines stops before, or where its end is something else, for which UserError is raised.
    """
    yield from read_json_lines(path, drop_torn_line=True, remedy=remedy)
    with on_disk(path), path.open("rb+") as file:
        tail = file.read().rpartition(b"\n")[2]
        if not tail.strip():
            return
        if is_object(tail):
            file.write(b"\n")
            return
        begins = f'{{"{key}": '.encode()
        if tail[: len(begins)] != begins[: len(tail)]:
            raise UserError(f"{path} ends with {shown(tail.decode(errors='replace'))}; {remedy}.")
        file.seek(-len(tail), os.SEEK_END)
        file.truncate()


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    with suppress(UserError):
        return isinstance(parse_json(line, said="it"), dict)
    return False


def refuse_more_than_texts(records: Sequence[Record], *, kind: str) -> None:
    """Raises UserError for rows whose responses are more than their texts, which is all that such a scorer gets."""
    rows = [record for record in records if record.tools or record.more]
    if rows:
        names = {name for answer in rows[0].answers for name in answer.others()} | (
            {"tools"} if rows[0].tools else set()
        )
        raise UserError(
            f"a {kind} gets the texts of responses alone, and {counted(len(rows), 'row has', 'rows have')} more (the first: "
            f"row {rows[0].row}, with {', '.join(sorted(names))}); leave such rows out, or score with --model."
        )


def fingerprint_of_records(records: Sequence[Record]) -> str:
    """The beginning of a SHA-256 of all prompts and responses."""
    hashes = hashlib.sha256()
    for record in records:
        hashes.update(json_line([record.row, *texts_of(record)]).encode())
    return hashes.hexdigest()[:12]


def texts_of(record: Record) -> tuple[list[dict[str, Any]], list[str]]:
    """A record as other programs get it: the prompt's messages, and the responses."""
    return [turn.as_dict() for turn in record.prompt], list(record.responses)


@dataclass
class Pace:
    """Counts responses, and prints from time to time how many there are, how fast, and how long the rest takes."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)

    def add(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        if now - self.printed > PRINT_EVERY and self.done < self.total:
            rate = self.done / (now - self.started)
            left = duration((self.total - self.done) / rate)
            say(f"  {self.done:,} of {counted(self.total, 'response')}  {rate:.1f}/s  {left} left")
            self.printed = now
