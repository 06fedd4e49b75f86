"""What the processes of a pod know of each other, so that one that dies, fails or hangs is named by the others.

Each process keeps a record (who it is, where it is in its work, how it ended) in the key-value store of JAX's coordinator,
which lives in process 0, and reads the records of the others every few seconds. A process stops all others by ending its
record with its exit code and its last words. One that stops without a word is noticed by a failed exchange or by JAX's
heartbeats, and named from its last record. While a run makes steps, a single process watches itself as well, and one that
hangs ends with its stacks (rapo_jax/hangs.py); otherwise, with a single process, everything here does nothing.
"""

import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax

from rapo_jax.errors import UserError, masked
from rapo_jax.failures import has_error, is_exchange, on_abort
from rapo_jax.hangs import (
    Pace,
    alike,
    dump_stacks,
    is_debugged,
    line_of_ours,
    print_last,
    said_of_hang,
    said_of_slow,
    said_of_wait,
    slow_ones,
)
from rapo_jax.places import Kind, Record, Seen, record_of
from rapo_jax.terminal import for_stream

INTERRUPTED = 75  # exit code: all processes were told to stop, and saved
LOST = 76  # exit code: another process was killed or lost, or was waited for in vain, or the run hangs
SILENT = 10.0  # seconds without a new record, after which a failed exchange is that process's death
PATIENCE = 1800.0  # seconds that a process waits for the others in one place
STUCK = 6 * 3600.0  # seconds that no compilation and no save takes
GRACE = 3.0  # seconds in which a process that was told to stop may come to the same end by itself
CLOSING = 60.0  # the same, where it has an error of its own and closes what is open
LATE = 5.0  # seconds by which the watcher may come late; more, and the whole process was stopped meanwhile
ALL_STOP = "All processes stop; run the same command on all of them to go on."
IT_STOPS = "Run the same command to go on; train.hang_factor=null waits for as long as it takes."
PLACE = "rapo_jax/peers/"  # of the records in the key-value store

FROM_JAX = (jax.errors.JaxRuntimeError, ValueError)  # what its client raises


class Peers:
    """This process's view of the others, kept by a thread. `client` is that of JAX's coordinator; None: there are no others."""

    def __init__(self, client: Any, *, process: int, num_processes: int, coordinator: str):
        self.client, self.num_processes, self.coordinator = client, num_processes, coordinator
        self.mine = Record(process, socket.gethostname(), os.getpid())
        self.since = time.monotonic()  # when this process came to where it is
        self.period = max(2.0, num_processes / 32)  # each process reads the records of all
        self.farewell = (
            GRACE + 2 * self.period + 2
        )  # seconds in which process 0, which has the records, waits for the others
        self.seen: dict[int, Seen] = {}
        self.words = ""  # of the error that ends this process
        self.pace: Pace | None = None  # while the steps of a run are watched
        self.run_dir: Path | None = None  # from then on; the stacks are written there
        self.debugged = False
        self.named: set[int] = set()  # processes that were said to be slow
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
                if self.client is not None:  # of a single one, this would end a process that was stopped for long
                    faulthandler.dump_traceback_later(PATIENCE + 60, exit=True)  # ends one whose interpreter hangs
                try:
                    self.turn()
                except Exception:  # a process that does not watch would hang with the others, or seem dead to them
                    print(masked(f"while watching the others: {traceback.format_exc()}"), file=sys.stderr, flush=True)
                self.rest()
        finally:
            if self.client is not None:
                faulthandler.cancel_dump_traceback_later()

    def rest(self) -> None:
        """Waits for the next turn. Time in which nothing of this process ran, because it was stopped, or its machine
        suspended, is no time in which it could have gone on."""
        started = time.monotonic()
        self.leaving.wait(self.period)
        stopped = time.monotonic() - started - self.period
        with self.changing:
            if stopped > LATE and self.since < started:  # else it came to this place afterwards
                self.since += stopped

    def turn(self) -> None:
        """Writes and reads the records once, and ends the process where they say so."""
        self.debugged = self.pace is not None and is_debugged()
        self.publish(beat=self.mine.beat + 1, **self.at_this_pace())
        self.look()
        told = self.that_ended()
        # All processes are interrupted at the same step: this one comes to it by itself, or fails without the others.
        if told and told.record.code != INTERRUPTED and told.age >= (CLOSING if has_error() else GRACE):
            self.follow(told.record)
        self.name_slow_ones()
        self.give_up()

    def pace_at(self, pace: Pace | None) -> None:
        """From here on, steps are watched, or no more."""
        if pace is not None:
            self.go("the first batch", "works")
        with self.changing:
            self.pace = pace
            self.mine = dataclasses.replace(self.mine, allowed=0.0, own_seconds=0.0, step_seconds=0.0)

    def at_this_pace(self) -> dict[str, float]:
        """What the record says of how long the process may stay where it is, and of its speed."""
        with self.changing:
            if self.pace is None:
                return {}
            own, step = self.pace.speed()
            allowed = self.pace.allowed(self.mine.at, self.mine.kind)
        return {"allowed": allowed, "own_seconds": own, "step_seconds": step}

    def change(self, **changes: Any) -> None:
        """Changes the own record, here alone."""
        with self.changing:
            self.mine = dataclasses.replace(self.mine, **changes)

    def go(self, place: str, kind: Kind, *, within: str = "") -> None:
        """Notes that this process came to a place, `within` another."""
        with self.changing:
            now = time.monotonic()
            if self.pace is not None:
                self.pace.left(self.mine, now - self.since, returns=bool(within))
            self.since = now
            self.mine = dataclasses.replace(self.mine, at=place, kind=kind, within=within)

    def publish(self, **changes: Any) -> None:
        """Changes the own record, here and in the store."""
        self.change(**changes)
        if self.client is None:
            return
        with self.writing, suppress(*FROM_JAX):  # process 0 is gone; whoever waits for it finds out
            told = dataclasses.replace(self.mine, kind="elsewhere") if self.debugged else self.mine
            text = json.dumps(dataclasses.asdict(told))
            self.client.key_value_set(f"{PLACE}{self.mine.process}", text, allow_overwrite=True)

    def look(self) -> None:
        """Reads the records of the others."""
        if self.client is None:
            return
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
        said = f"{other} stopped {other.where}, and with it this one: {other.words}"
        if other.hung:
            said += f" Stacks of process {self.mine.process}: {self.dump(said)}."
        self.end(other.code, said)

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
        without the others, for longer than anything takes, or than this takes in a run whose steps are watched."""
        with self.changing:
            mine, waited, pace = self.mine, time.monotonic() - self.since, self.pace
            usual = pace.usual(mine.at, mine.kind) if pace else None
        others = list(self.seen.values())
        if self.debugged or "elsewhere" in {mine.kind, *(seen.record.kind for seen in others)}:
            return
        missing = [s for s in others if s.record.kind != "waits"] or [s for s in others if s.record.at != mine.at]
        if waited < self.bound(mine, missing, others):
            return
        if pace is None or (mine.kind == "waits" and missing):
            said = said_of_wait(mine, missing or others, waited=waited)
        else:
            said = said_of_hang(mine, others, waited=waited, usual=usual)
        if pace is not None:
            said += f" Stacks of process {mine.process}{line_of_ours()}: {self.dump(said)}."
        self.end(LOST, f"{said} {ALL_STOP if others else IT_STOPS}", tell=True, hung=pace is not None)

    def bound(self, mine: Record, missing: list[Seen], others: list[Seen]) -> float:
        """Seconds that this process may be where it is. Who is to blame speaks first, and of several that are not, process 0."""
        allowed = [mine.allowed, *(seen.record.allowed for seen in others)]
        if self.pace is not None and len(allowed) == self.num_processes and all(allowed):
            innocent = mine.process > 0 if alike(mine, others) else mine.kind == "waits"
            return max(allowed) + (4 * self.period if innocent else 0.0)
        kinds = {mine.kind, *(seen.record.kind for seen in others)}
        return PATIENCE if mine.kind == "waits" and missing and "long" not in kinds else STUCK

    def dump(self, heading: str) -> str:
        """Writes the stacks of this process; returns where."""
        file = self.run_dir / f"stacks-{self.mine.process}.txt" if self.run_dir else None
        return dump_stacks(file, masked(heading))

    def name_slow_ones(self) -> None:
        """On process 0: names a process that slows the others down, once."""
        records = [self.mine, *(seen.record for seen in list(self.seen.values()))]
        if self.mine.process or self.pace is None or len(records) < self.num_processes:
            return
        for record, others in slow_ones(records):
            if record.process not in self.named:
                self.named.add(record.process)
                print(for_stream(said_of_slow(record, others), sys.stdout), flush=True)

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

    def end(self, code: int, sentence: str, *, tell: bool = False, hung: bool = False) -> NoReturn:
        """Prints a sentence, and ends the process at once: the shutdown of JAX would wait for the others."""
        self.ending.acquire()  # never released: the first that comes here speaks
        sentence = masked(sentence)
        if tell:
            self.publish(code=code, words=sentence, hung=hung)
        print_last(sentence)
        self.leave(code)

    def leave(self, code: int) -> NoReturn:
        """Ends the process with an error that the others are told. Process 0, which has the records, waits until they left."""
        self.change(code=code, words=self.mine.words or self.words)
        self.leaving.set()
        if not self.client_usable:
            os._exit(code)
        self.publish()
        deadline = time.monotonic() + self.farewell
        while self.mine.process == 0 and time.monotonic() < deadline:
            self.look()
            gone = [seen for seen in list(self.seen.values()) if seen.record.code is not None] + self.silent()
            if len(gone) == self.num_processes - 1:
                break
            time.sleep(0.1)
        os._exit(code)


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


_peers: Peers | None = None  # like JAX's own state of the processes, one per process


def watch(client: Any, *, process: int, num_processes: int, coordinator: str) -> None:
    """Starts to keep the records, after the processes have joined."""
    global _peers
    _peers = Peers(client, process=process, num_processes=num_processes, coordinator=coordinator)
    on_abort(_peers.aborted)
    _peers.thread.start()


def at(place: str, kind: Kind = "works") -> None:
    """Notes where this process is in its work. Where it waits for others, they have half an hour to come, or STUCK."""
    if _peers is not None:
        _peers.go(place, kind)


@contextmanager
def waiting(what: str, kind: Kind = "waits") -> Iterator[None]:
    """Notes that this process waits for all others, at `what`, while the block runs; or of another kind, that it does that
    within the place where it is."""
    if _peers is None:
        yield
        return
    before = _peers.mine
    _peers.go(what, kind, within=before.within or before.at)
    try:
        yield
    finally:
        _peers.go(before.at, before.kind, within=before.within)


@contextmanager
def steps_watched(run_dir: Path, factor: float | None) -> Iterator[None]:
    """While the block runs, a place that takes `factor` times as long as it usually does is a hang, which ends the process, and
    all others, with the stacks of each in run_dir; None: only the waits for others are bounded."""
    global _peers
    if factor is None:
        yield
        return
    alone, mine = _peers is None, _peers or Peers(None, process=0, num_processes=1, coordinator="")
    mine.run_dir = run_dir
    mine.pace_at(Pace(factor))
    if alone:
        _peers = mine
        mine.thread.start()
    try:
        yield
    finally:
        mine.pace_at(None)
        if alone:
            mine.leaving.set()
            _peers = None


def stepped(*, plain: bool) -> None:
    """Notes the end of a step; `plain`: nothing was compiled, evaluated or saved in it."""
    if _peers is not None and _peers.pace is not None:
        with _peers.changing:
            _peers.pace.stepped(plain=plain)


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


def leave(code: int) -> None:
    """Ends the part of this process in the pod: returns after a success, and otherwise ends the process."""
    if _peers is None:
        return
    if code:
        _peers.leave(code)
    _peers.leaving.set()
    jax.distributed.shutdown()
