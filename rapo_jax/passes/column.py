"""A column: one number per prompt and response of a data set, on disk, computed once and kept after the run.

A column records what its numbers belong to, and opening it for anything else fails. It writes no messages for users:
the caller explains a `Mismatch`.
"""

import hashlib
import operator
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from rapo_jax.borders import read_object, shaped, whole_file, write_json

Belonging = dict[str, Any]  # what the numbers belong to (hashes of weights and tokens, settings), as JSON


class Mismatch(Exception):
    """A column belongs to something else; `before` is what it belongs to, `now` what was asked for."""

    def __init__(self, before: Belonging, now: Belonging):
        super().__init__(f"column of {before}, not of {now}")
        self.before, self.now = before, now


@dataclass(frozen=True)
class ColumnRecord:
    """NAME.json: what the numbers belong to and, once all are known, their SHA-256.

    Until then NAME.crc.npy alone tells damaged groups from sound ones: a CRC-32 of each, written with it.
    """

    identity: Belonging
    sha256: str | None = None


class Column:
    """float32 [groups, branches] in NAME.npy of a directory, NaN where unknown, NAME.crc.npy and NAME.json. For process 0
    only."""

    def __init__(self, directory: Path, name: str, *, shape: tuple[int, int], identity: Belonging):
        self.numbers, self.record = directory / f"{name}.npy", directory / f"{name}.json"
        self.checks = directory / f"{name}.crc.npy"
        self.shape, self.identity = shape, identity

    def open(self, fits: Callable[[Belonging, Belonging], bool] = operator.eq) -> None:
        """Maps the numbers into memory as `values`; starts over if there are none or the file is damaged as a whole, and
        forgets the groups whose numbers are damaged.

        `fits(before, now)` says whether the identity on record is that of this column. Raises Mismatch where it is not.
        """
        if self.record.exists():
            before = self.read_record().identity
            if not fits(before, self.identity):
                raise Mismatch(before, self.identity)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        if not self.record.exists() or self.is_damaged():
            self.start_over()
            self.write_record(ColumnRecord(self.identity))
            self.checks.unlink(missing_ok=True)
        self.values = np.lib.format.open_memmap(self.numbers, mode="r+")
        if not self.is_complete or np.isnan(self.values).any():  # else the checksum of the whole has been compared
            self.open_checks()

    def start_over(self) -> None:
        """A file of NaN. It is written before it is mapped: a map of a file that the disk has no room for kills the process."""
        with whole_file(self.numbers) as path, path.open("wb") as file:
            np.save(file, np.full(self.shape, np.nan, np.float32))

    def open_checks(self) -> None:
        """Maps the CRCs into memory; makes them for a column of an earlier version, which has none."""
        try:
            self.crcs = np.lib.format.open_memmap(self.checks, mode="r+")
            sound = self.crcs.shape == self.shape[:1] and self.crcs.dtype == np.uint32
        except Exception:  # whatever NumPy raises about a header that is not one
            sound = False
        if not sound:
            with whole_file(self.checks) as path, path.open("wb") as file:
                np.save(file, crcs_of(self.values))
            self.crcs = np.lib.format.open_memmap(self.checks, mode="r+")
        damaged = np.flatnonzero(self.crcs != crcs_of(self.values))
        if len(damaged):
            self.write(damaged, np.full((len(damaged), self.shape[1]), np.nan, np.float32))

    def is_damaged(self) -> bool:
        """Whether the numbers are missing, of another shape, or not those of the checksum."""
        try:
            values = np.load(self.numbers, mmap_mode="r", allow_pickle=False)
        except Exception:  # whatever NumPy raises about a header that is not one
            return True
        checksum = self.read_record().sha256
        return (
            values.shape != self.shape
            or values.dtype != np.float32
            or (checksum is not None and checksum != checksum_of(values))
        )

    def write(self, members: Int[np.ndarray, " n"], numbers: Float[np.ndarray, "n A"]) -> None:
        """Stores the numbers of the groups `members`; they are on disk when this returns."""
        self.values[members] = numbers
        self.crcs[members] = crcs_of(self.values[members])
        self.values.flush()
        self.crcs.flush()

    @property
    def is_complete(self) -> bool:
        """Whether the checksum has been recorded."""
        return self.read_record().sha256 is not None

    def finish(self) -> None:
        """Marks the column complete, with a checksum that `open` compares."""
        assert not np.isnan(self.values).any(), "a complete column knows all its numbers"
        self.write_record(ColumnRecord(self.identity, checksum_of(self.values)))

    def read_record(self) -> ColumnRecord:
        remedy = f"remove {self.record.parent} to start anew"
        return shaped(read_object(self.record, remedy=remedy), ColumnRecord, said=str(self.record), remedy=remedy)

    def write_record(self, record: ColumnRecord) -> None:
        write_json(self.record, {name: value for name, value in asdict(record).items() if value is not None})


def crcs_of(values: Float[np.ndarray, "n A"]) -> UInt32[np.ndarray, " n"]:
    """The CRC-32 of each group's numbers."""
    return np.fromiter((zlib.crc32(row.tobytes()) for row in np.asarray(values)), np.uint32, count=len(values))


def checksum_of(values: Float[np.ndarray, "G A"]) -> str:
    """A checksum of the numbers."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
