"""What a process tells the others of a pod about itself: who it is, where it is in its work, how it ended.

The records are exchanged, and acted upon, in rapo_jax/peers.py.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Literal

# long: compiles or saves, for which the others wait longer; elsewhere: in the hands of another run, of the hub or of a debugger,
# for as long as that takes.
Kind = Literal["works", "waits", "long", "elsewhere"]


@dataclass(frozen=True)
class Record:
    """One process: who it is, where it is in its work and, when it ends, its exit code and last words.

    Where the steps of a run are watched, `allowed` are the seconds that it may stay in this place, and `own_seconds` what of a
    step of `step_seconds` it does on the host without the others (medians); 0 where that is not known.
    """

    process: int
    host: str
    pid: int
    at: str = "start"
    kind: Kind = "works"
    within: str = ""  # where it was when it came to wait at `at`: "step 3" of "comparing flags"
    beat: int = 0
    code: int | None = None
    words: str = ""
    hung: bool = False  # it ends because it, or all of them, made no step any more
    allowed: float = 0.0
    own_seconds: float = 0.0
    step_seconds: float = 0.0

    def __str__(self) -> str:
        return f"process {self.process} (host {self.host}, pid {self.pid})"

    @property
    def where(self) -> str:
        """Where it is, as a part of a sentence: "at step 3", "while reading the data", "at step 3, comparing flags"."""
        place, *waits = [self.within, self.at] if self.within else [self.at]
        is_verb = place.partition(" ")[0].endswith("ing")
        return ", ".join([f"while {place}" if is_verb else f"at {place}", *waits])


@dataclass(frozen=True)
class Seen:
    """A record, and when it last changed, on this process's clock."""

    record: Record
    since: float

    @property
    def age(self) -> float:
        """Seconds since it last changed."""
        return time.monotonic() - self.since


def record_of(text: str) -> Record:
    """A record as its process wrote it. What only another version knows is left out."""
    known = {field.name for field in dataclasses.fields(Record)}
    return Record(**{name: value for name, value in json.loads(text).items() if name in known})
