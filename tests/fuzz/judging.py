"""What became of an input: accepted, refused with one message, or a fault (a traceback, a hang, an endless message)."""

import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rapo_jax.errors import UserError

PATIENCE = 10  # seconds for one input
MOST_LINES, MOST_CHARACTERS = 12, 3100  # of a message


class Hang(BaseException):
    """Not an Exception, so that no reader catches it."""


@dataclass
class Tally:
    """What became of the inputs of one border."""

    accepted: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, object] = field(default_factory=dict)  # the first input of each fault
    traces: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    grown: int = 0  # MiB by which the process's peak memory rose

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.faults.total()

    def judge(self, read: Callable[[object], object], given: object) -> str | None:
        """Reads an input; the fault, if it is one."""
        started, before = time.monotonic(), peak_mib()
        fault, trace = None, ""
        try:
            with patience():
                read(given)
            self.accepted += 1
        except UserError as refusal:
            fault = fault_of_message(str(refusal))
            trace = str(refusal)[:3000] if fault else ""
            self.refused += fault is None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust library's panic is no Exception
            fault, trace = kind_of(error), traceback.format_exc()[-6000:]
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.grown += peak_mib() - before
        if fault:
            self.faults[fault] += 1
            self.examples.setdefault(fault, given)
            self.traces.setdefault(fault, trace)
        return fault


def fault_of_message(message: str) -> str | None:
    lines = message.count("\n") + 1
    if lines > MOST_LINES:
        return "a message of too many lines"
    return "a message of too many characters" if len(message) > MOST_CHARACTERS else None


def kind_of(error: BaseException) -> str:
    """The exception's type and the last line of ours that it passed."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "rapo_jax/" in f.filename]
    place = f"{ours[-1].filename.rpartition('rapo_jax/')[2]}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {place}"


@contextmanager
def patience() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"no answer in {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
