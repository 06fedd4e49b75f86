"""What the processes of a pod know of each other, so that one that dies, fails or hangs is named by the others.

Each process keeps a record (who it is, where it is in its work, how it ended) in the key-value store of JAX's coordinator,
which lives in process 0, and reads the records of the others every few seconds. A process stops all others by ending its
record with its exit code and its last words. One that stops without a word is noticed by a failed exchange or by JAX's
heartbeats, and named from its last record. With a single process, everything here does nothing.
"""

import ctypes
import dataclasses
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import jax

from rapo_jax.errors import UserError, masked

INTERRUPTED = 75  # exit code: all processes were told to stop, and saved
LOST = 76  # exit code: another process was killed or lost, or was waited for in vain
SILENT = 10.0  # seconds without a new record, after which a failed exchange is that process's death
PATIENCE = 1800.0  # seconds that a process waits for the others in one place
STUCK = 6 * 3600.0  # seconds that no compilation and no save takes
GRACE = 3.0  # seconds in which a process that was told to stop may come to the same end by itself
CLOSING = 60.0  # the same, where it has an error of its own and closes what is open
PLACE = "rapo_jax/peers/"  # of the records in the key-value store

# How the text of a failed exchange begins: JAX raises ValueError, too, with the text of a status.
STATUS = "UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|CANCELLED|FAILED_PRECONDITION"
EXCHANGE = re.compile(rf"(?:{STATUS}): |(?:Barrier|Gloo)\b")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the text of XLA's error about it, which is this process's own

FROM_JAX = (jax.errors.JaxRuntimeError, ValueError)  # what its client raises

# long: compiles or saves, for which the others wait longer; elsewhere: in the hands of another run or of the hub, for as long as
# that takes.
Kind = Literal["works", "waits", "long", "elsewhere"]


@dataclass(frozen=True)
class Record:
    """One process: who it is, where it is in its work and, when it ends, its exit code and last words."""

    process: int
    host: str
    pid: int
    at: str = "start"
    kind: Kind = "works"
    within: str = ""  # where it was when it came to wait at `at`: "step 3" of "comparing flags"
    beat: int = 0
    code: int | None = None
    words: str = ""

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


class Peers:
    """This process's view of the others, kept by a thread. `client` is that of JAX's coordinator."""

    def __init__(self, client: Any, *, process: int, num_processes: int, coordinator: str):
        self.client, self.num_processes, self.coordinator = client, num_processes, coordinator
        self.mine = Record(process, socket.gethostname(), os.getpid())
        self.since = time.monotonic()  # when this process came to where it is
        self.period = max(2.0, num_processes / 32)  # each process reads the records of all
        self.seen: dict[int, Seen] = {}
        self.words = ""  # of the error that ends this process
        self.client_usable = True
        self.changing = threading.Lock()  # held while `mine` and `since` change
        self.writing = threading.Lock()  # held while `mine` is written, so that no older text is stored last
        self.leaving = threading.Event()
        self.ending = threading.Lock()
        self.thread = threading.Thread(target=self.keep, daemon=True, name="peers")

    def keep(self) -> None:
        """The thread: writes the own record and reads the others', until this process leaves."""
        try:
            while not self.leaving.is_set():
                faulthandler.dump_traceback_later(PATIENCE + 60, exit=True)  # ends a process whose interpreter hangs
                try:
                    self.turn()
                except Exception:  # a process that does not watch would hang with the others, or seem dead to them
                    print(masked(f"while watching the others: {traceback.format_exc()}"), file=sys.stderr, flush=True)
                self.leaving.wait(self.period)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def turn(self) -> None:
        """Writes and reads the records once, and ends the process where they say so."""
        self.publish(beat=self.mine.beat + 1)
        self.look()
        told = self.that_ended()
        # All processes are interrupted at the same step: this one comes to it by itself, or fails without the others.
        if told and told.record.code != INTERRUPTED and told.age >= (CLOSING if has_error() else GRACE):
            self.follow(told.record)
        self.give_up()

    def change(self, **changes: Any) -> None:
        """Changes the own record, here alone."""
        with self.changing:
            self.mine = dataclasses.replace(self.mine, **changes)

    def go(self, place: str, kind: Kind, *, within: str = "") -> None:
        """Notes that this process came to a place, `within` another."""
        with self.changing:
            self.since = time.monotonic()
            self.mine = dataclasses.replace(self.mine, at=place, kind=kind, within=within)

    def publish(self, **changes: Any) -> None:
        """Changes the own record, here and in the store."""
        self.change(**changes)
        with self.writing, suppress(*FROM_JAX):  # process 0 is gone; whoever waits for it finds out
            text = json.dumps(dataclasses.asdict(self.mine))
            self.client.key_value_set(f"{PLACE}{self.mine.process}", text, allow_overwrite=True)

    def look(self) -> None:
        """Reads the records of the others."""
        try:
            texts = [text for _, text in self.client.key_value_dir_get(PLACE)]
        except FROM_JAX:
            return  # as above
        for record in map(record_of, texts):
            before = self.seen.get(record.process)
            if record.process != self.mine.process and (before is None or before.record != record):
                self.seen[record.process] = Seen(record, time.monotonic())

    def that_ended(self) -> Seen | None:
        """A process that ended with an error, and said so; one that was interrupted only if no other failed."""
        ended = [seen for seen in list(self.seen.values()) if seen.record.code]
        return min(ended, key=lambda seen: seen.record.code == INTERRUPTED, default=None)

    def silent(self) -> list[Seen]:
        """Processes that should have written a new record long ago."""
        bound = max(SILENT, 5 * self.period)
        return [seen for seen in list(self.seen.values()) if seen.record.code is None and seen.age >= bound]

    def follow(self, other: Record) -> NoReturn:
        """Ends this process because another one ended, with its exit code."""
        assert other.code is not None
        self.end(other.code, f"{other} stopped {other.where}, and with it this one: {other.words}")

    def mourn(self, lost: list[Seen]) -> NoReturn:
        """Ends this process because others are gone."""
        first, more = lost[0], f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        self.end(
            LOST,
            f"{first.record}{more} was last seen {first.record.where}, {first.age:.0f} s ago: it was "
            "killed, or its host was lost. This process stops too; run the same command on all of them to go on.",
        )

    def give_up(self) -> None:
        """Ends this process where it has waited too long for others that do something else, or has been in one place, with or
        without the others, for longer than anything takes."""
        with self.changing:
            mine, waited = self.mine, time.monotonic() - self.since
        others = [seen.record for seen in list(self.seen.values())]
        kinds = {mine.kind, *(other.kind for other in others)}
        missing = [other for other in others if other.kind != "waits"] or [o for o in others if o.at != mine.at]
        bound = PATIENCE if mine.kind == "waits" and missing and "long" not in kinds else STUCK
        if waited < bound or "elsewhere" in kinds:
            return
        missing = missing or others  # all hang in the same place
        said = "; ".join(f"{other} is {other.where.removeprefix('while ')}" for other in missing[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        self.end(
            LOST,
            f"process {mine.process} has waited {waited / 60:.0f} minutes for the others {mine.where}: {said}{more}. "
            "All processes stop; run the same command on all of them to go on.",
            tell=True,
        )

    def explain(self) -> None:
        """After a failed exchange: ends this process as soon as it is known which other one is to blame.

        Returns where none is, within the time in which JAX's heartbeats would have noticed.
        """
        deadline = time.monotonic() + max(SILENT, 5 * self.period) + 2 * self.period
        while time.monotonic() < deadline:
            self.look()
            if told := self.that_ended():
                self.follow(told.record)
            if lost := self.silent():
                self.mourn(lost)
            time.sleep(0.5)

    def aborted(self, _signal: int) -> None:
        """Called instead of an abort in a library, such as JAX's when the coordinator is gone or a heartbeat stops."""
        if self.leaving.is_set():
            os._exit(self.mine.code or 0)
        self.client_usable = False  # its lock may be held below this call
        if told := self.that_ended():
            if (told.record.code == INTERRUPTED or has_error()) and self.leaving.wait(CLOSING):
                os._exit(self.mine.code or 0)
            self.follow(told.record)
        first = self.seen.get(0)
        if first and not answers(self.coordinator):
            self.mourn([first])
        if lost := self.silent():
            self.mourn(lost)
        on_abort(None)  # this process is the one that crashed: let it, and tell the others
        last = {"code": 128 + signal.SIGABRT, "words": "it crashed in a library; its own log says where."}
        telling = threading.Thread(target=self.publish, kwargs=last, daemon=True)
        telling.start()
        telling.join(GRACE)

    def end(self, code: int, sentence: str, *, tell: bool = False) -> NoReturn:
        """Prints a sentence, and ends the process at once: the shutdown of JAX would wait for the others."""
        self.ending.acquire()  # never released: the first that comes here speaks
        sentence = masked(sentence)
        if tell:
            self.publish(code=code, words=sentence)
        sys.stdout.flush()
        print(sentence, file=sys.stderr, flush=True)
        self.leave(code)

    def leave(self, code: int) -> NoReturn:
        """Ends the process with an error that the others are told. Process 0, which has the records, waits until they left."""
        self.change(code=code, words=self.mine.words or self.words)
        self.leaving.set()
        if not self.client_usable:
            os._exit(code)
        self.publish()
        deadline = time.monotonic() + GRACE + 2 * self.period + 2
        while self.mine.process == 0 and time.monotonic() < deadline:
            self.look()
            gone = [seen for seen in list(self.seen.values()) if seen.record.code is not None] + self.silent()
            if len(gone) == self.num_processes - 1:
                break
            time.sleep(0.1)
        os._exit(code)


def record_of(text: str) -> Record:
    """A record as its process wrote it. What only another version knows is left out."""
    known = {field.name for field in dataclasses.fields(Record)}
    return Record(**{name: value for name, value in json.loads(text).items() if name in known})


def has_error() -> bool:
    """Whether the main thread has an error or an interruption, which is on its way out or being handled."""
    current: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    return current not in (None, (None, None, None))  # a tuple in Python 3.11


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


_peers: Peers | None = None  # like JAX's own state of the processes, one per process
_on_abort: Any = None  # kept alive for the system, which calls it


def watch(client: Any, *, process: int, num_processes: int, coordinator: str) -> None:
    """Starts to keep the records, after the processes have joined."""
    global _peers
    _peers = Peers(client, process=process, num_processes=num_processes, coordinator=coordinator)
    on_abort(_peers.aborted)
    _peers.thread.start()


def on_abort(act: Callable[[int], None] | None) -> None:
    """Has a function called when a library aborts, which Python's own signal handlers are not; None: nothing is called."""
    global _on_abort
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(act) if act else None
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p) if handler else None)
    _on_abort = handler


@contextmanager
def aborting_says(sentence: str, *, code: int) -> Iterator[None]:
    """Where a library aborts in the block, the last line is the sentence, and the exit code is `code`."""

    def speak(_signal: int) -> None:
        print(sentence, file=sys.stderr, flush=True)
        os._exit(code)

    on_abort(speak)
    try:
        yield
    finally:
        on_abort(None)


def at(place: str, kind: Kind = "works") -> None:
    """Notes where this process is in its work. Where it waits for others, they have half an hour to come, or STUCK."""
    if _peers is not None:
        _peers.go(place, kind)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Notes that this process waits for all others, at `what`, while the block runs."""
    if _peers is None:
        yield
        return
    before = _peers.mine
    _peers.go(what, "waits", within=before.within or before.at)
    try:
        yield
    finally:
        _peers.go(before.at, before.kind, within=before.within)


@contextmanager
def told_to_others() -> Iterator[None]:
    """An error in the block ends the other processes too, with its sentence; one that comes of another process's end is
    replaced by the name of that process."""
    try:
        yield
    except BaseException as error:
        if _peers is not None:
            text = masked(str(error))
            _peers.words = text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"
            if is_exchange(error):
                _peers.explain()
        raise


def is_exchange(error: BaseException | None) -> bool:
    """Whether an error came of a computation or a wait that several processes take part in."""
    while error is not None:
        if isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
            found = OUT_OF_MEMORY not in str(error)
        else:
            found = not isinstance(error, (UserError, OSError)) and bool(EXCHANGE.match(str(error)))
        if found:
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def leave(code: int) -> None:
    """Ends the part of this process in the pod: returns after a success, and otherwise ends the process."""
    if _peers is None:
        return
    if code:
        _peers.leave(code)
    _peers.leaving.set()
    jax.distributed.shutdown()
