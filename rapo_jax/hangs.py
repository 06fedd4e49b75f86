"""When a process of a run hangs, which one it is, and where: how long it may stay in one place, and the stacks of its threads.

A place may take `factor` times as long as it usually does, and always some minutes; how long it usually takes is learned from
the run itself. rapo_jax/peers.py watches the clock and ends the processes. Time in which the whole process was stopped does
not count, nor does any in a debugger.
"""

import faulthandler
import re
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rapo_jax.places import Kind, Record, Seen
from rapo_jax.terminal import for_stream

# Seconds that a place of each kind may take in any case. A step may wait for a busy file system, or for a clock that is set back.
LEAST: dict[Kind, float] = {"waits": 300.0, "works": 900.0, "long": 1800.0}
# The same, while nothing is known yet of how long it takes: the first step compiles for up to an hour.
UNKNOWN = 2 * 3600.0
KNOWN = 3  # stays in a place, after which something is known
REMEMBERED = 64  # stays of each kind of place
STEPS = 16  # by which a process is compared with the others
WRITING = 10.0  # seconds in which the stacks are written, or the disk is what hangs
DEBUGGERS = {"pdb", "bdb", "debugpy", "pydevd", "_pydevd_bundle"}


class Pace:
    """How long a process stays where, in a run. Not safe to be used by two threads at once."""

    def __init__(self, factor: float):
        self.factor = factor
        self.stays: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self.steps: deque[float] = deque(maxlen=STEPS)
        self.own: deque[float] = deque(maxlen=STEPS)
        self.began: float | None = None  # this step
        self.own_now = 0.0  # seconds of this step on the host, without the others
        self.so_far = 0.0  # seconds in the place where the process is, before it came to wait within it

    def left(self, record: Record, seconds: float, *, returns: bool = False) -> None:
        """Notes that the process was where the record says for so many seconds; `returns`: it comes back after a wait."""
        if returns and not record.within:  # one stay, however often it is interrupted
            self.so_far += seconds
        else:
            before, self.so_far = (self.so_far, 0.0) if not record.within else (0.0, self.so_far)
            self.stays[sort_of(record.at)].append(before + seconds)
        waited = record.kind == "waits" and record.within
        if not waited and record.kind in ("works", "waits"):
            self.own_now += seconds

    def stepped(self, *, plain: bool) -> None:
        """Notes the end of a step; `plain`: nothing was compiled, evaluated or saved in it."""
        now = time.monotonic()
        if self.began is not None and plain:
            self.steps.append(now - self.began)
            self.own.append(self.own_now)
        self.began, self.own_now = now, 0.0

    def usual(self, at: str, kind: Kind) -> float | None:
        """Seconds that the place usually takes: the median, the longest where it is long; None while that is not known."""
        stays = self.stays.get(sort_of(at), ())
        if len(stays) < (1 if kind == "long" else KNOWN):
            return None
        return max(stays) if kind == "long" else statistics.median(stays)

    def allowed(self, at: str, kind: Kind) -> float:
        """Seconds that a process may stay there, before it hangs. Whoever waits may wait for a whole step of another."""
        usual = self.usual(at, kind)
        if usual is None:
            return UNKNOWN
        step = statistics.median(self.steps) if self.steps else 0.0
        return max(LEAST.get(kind, UNKNOWN), self.factor * max(usual, step))

    def speed(self) -> tuple[float, float]:
        """What the process does by itself on the host, and a whole step, in seconds; 0 before so many steps were made."""
        if len(self.own) < STEPS:
            return 0.0, 0.0
        return statistics.median(self.own), statistics.median(self.steps)


def sort_of(place: str) -> str:
    """Places that are alike: the number of a step does not matter."""
    return re.sub(r"\d+", "#", place)


def slow_ones(records: Sequence[Record]) -> list[tuple[Record, float]]:
    """The processes whose own part of a step is most of it and at least twice that of the others, with the others' median."""
    if len(records) < 2 or not all(record.own_seconds for record in records):
        return []
    found = []
    for record in records:
        others = statistics.median(other.own_seconds for other in records if other is not record)
        if record.own_seconds >= max(2 * others, record.step_seconds / 2, 0.05):
            found.append((record, others))
    return found


def said_of_slow(slow: Record, others: float) -> str:
    """The line about a slow process."""
    return (
        f"{slow} is slow: of a step of {duration(slow.step_seconds)} it takes {duration(slow.own_seconds)} on its host by itself, the "
        f"others {duration(others)} (medians of {STEPS} steps). Look at what else runs on that host, and at its disk."
    )


def said_of_wait(mine: Record, others: Sequence[Seen], *, waited: float) -> str:
    """The sentence about a wait for others that are somewhere else."""
    return f"process {mine.process} has waited {minutes(waited)} for the others {mine.where}: {said_of(others)}."


def alike(mine: Record, others: Sequence[Seen]) -> bool:
    """Whether all processes do the same in the same place."""
    return all((seen.record.where, seen.record.kind) == (mine.where, mine.kind) for seen in others)


def said_of_hang(mine: Record, others: Sequence[Seen], *, waited: float, usual: float | None) -> str:
    """The sentence about this process, or all, that made no step for so many seconds."""
    if not others:
        subject = "the run hangs"
    elif alike(mine, others):
        subject = f"all {len(others) + 1} processes hang"
    else:
        subject = f"{mine} hangs"
    known = "how long that usually takes is not known yet" if usual is None else f"usually {duration(usual)}"
    waiting = "" if alike(mine, others) else f"; meanwhile {said_of(others)}"
    return f"{subject} {mine.where}, for {duration(waited)} now ({known}){waiting}."


def said_of(others: Sequence[Seen]) -> str:
    """Where other processes are, and for how long one has been silent whose threads all stand still."""
    said = "; ".join(
        f"{seen.record} is {seen.record.where.removeprefix('while ')}"
        + (f" and has been silent for {duration(seen.age)}" if seen.age > 60 else "")
        for seen in others[:5]
    )
    return said + (f"; and {len(others) - 5} more" if len(others) > 5 else "")


def minutes(number: float) -> str:
    whole = round(number / 60)
    return f"{whole} minute{'s' * (whole != 1)}"


def duration(number: float) -> str:
    if number >= 120:
        return minutes(number)
    return f"{number:.0f} s" if number >= 10 else f"{number:.2g} s"


def dump_stacks(file: Path | None, heading: str) -> str:
    """Adds the stacks of all threads to a file; returns where they are, which is standard error where it cannot be written."""
    written: list[Path] = []

    def write() -> None:
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as opened:
                opened.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {heading} The main thread is the last.\n")
                opened.flush()
                faulthandler.dump_traceback(opened)
                opened.write("\n")
            written.append(file)
        except OSError as error:
            print(f"{file}: {error}", file=sys.stderr)

    # In a thread, because its disk may be what hangs.
    writer = threading.Thread(target=write, daemon=True, name="stacks")
    writer.start()
    writer.join(WRITING)
    if written:
        return str(file)
    faulthandler.dump_traceback(sys.stderr)
    return "above"


def is_debugged() -> bool:
    """Whether the process is in the hands of a debugger: one of Python's in the main thread, or another that traces it."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in DEBUGGERS:
            return True
        frame = frame.f_back
    try:
        traced = re.search(r"^TracerPid:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return False
    return traced is not None and traced[1] != "0"


def line_of_ours() -> str:
    """Where the main thread is in this package: " (train/loop.py:170, write_metrics)"; "" where it is not in it."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    home = Path(__file__).parent
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if home in path.parents:
            return f" ({path.relative_to(home)}:{frame.f_lineno}, {frame.f_code.co_name})"
        frame = frame.f_back
    return ""


def print_last(sentence: str) -> None:
    """Prints the last words of a process to stderr, and what is left in stdout; a terminal or pipe that nobody reads may be what
    hangs, and is waited for WRITING seconds."""

    def write() -> None:
        print(for_stream(sentence, sys.stderr), file=sys.stderr, flush=True)
        sys.stdout.flush()  # last: whoever hangs in writing there holds its lock

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(WRITING)
