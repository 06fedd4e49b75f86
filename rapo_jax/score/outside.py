"""Scorers that are not models of ours, row by row: every row is written down when it is scored, and asked for once.

Ctrl-C, also within what somebody else wrote, ends the command; what was scored is in the directory, and the same command
goes on.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from rapo_jax.borders import json_line, read_json_lines, read_object, write_json
from rapo_jax.data.values import BadRow
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
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

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        if jax.process_count() > 1:
            raise UserError(
                f"{self.origin['kind']}: such a scorer needs none of the other processes; run the command as one process."
            )
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
        elif any(path.name != "in_use" for path in self.directory.iterdir()):
            raise UserError(f"{self.directory} holds scores by another kind of scorer. {remedy}")
        write_json(about, self.identity)
        if not self.path.exists():
            return {}
        drop_torn_line(self.path)
        places: dict[Any, int] = {record.row: at for at, record in enumerate(records)}
        known = {}
        for number, line in read_json_lines(self.path):
            at = places.get(line.get("row"), -1)
            try:
                known[at] = row_scores(line, len(records[at].responses) if at >= 0 else 0)
            except BadRow as bad:
                raise UserError(f"{self.path} line {number}: {bad}; remove {self.directory} to start anew.") from bad
        return known

    def add(self, row: int, scores: RowScores) -> None:
        """Writes a row's scores; a process that is killed after this has kept them."""
        with on_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(scores.as_line(row)) + "\n")


def drop_torn_line(path: Path) -> None:
    """Cuts off a last line without line feed, whose writer was killed."""
    with path.open("rb+") as file:
        whole = file.read().rpartition(b"\n")
        file.truncate(len(whole[0]) + len(whole[1]))


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
