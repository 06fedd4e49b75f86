"""Another program as a scorer: `--scorer "command:PROGRAM ARGUMENTS"`, which may have an environment of its own.

The program reads a JSON object a line from its standard input, and writes one for each to its standard output, in any
order, each as soon as it likes:

    in   {"row": 3, "prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello", "No"]}
    out  {"row": 3, "rewards": [0.2, 1.7]}        and perhaps "attributes": [{"honesty": 4}, {"honesty": 2}]

It ends when its input ends. What it writes on standard error is for a person; the last of it is quoted where it fails.
"""

import hashlib
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import IO

from rapo_jax.borders import json_line, parse_json
from rapo_jax.config.tree import Config
from rapo_jax.data.values import BadRow
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted, shown
from rapo_jax.messages import Record
from rapo_jax.score.outside import Found, OutsideScorer, row_of, texts_of
from rapo_jax.score.scorer import MakeMesh, Origin, RowScores, ScoreRequest, refuse_options, row_scores, without_secrets

KEPT_BYTES = 4000  # of the end of standard error
SILENT_FOR = 600.0  # seconds without a line of its output
LONGEST_LINE = 2**24  # bytes
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}  # a program in Python that does not flush: each row is kept when it is scored
ENDS_WITHIN = 10.0  # seconds after the last score, and after being told to stop


def open_program(config: Config, request: ScoreRequest, mesh: MakeMesh) -> OutsideScorer:
    """--scorer=command:PROGRAM."""
    refuse_options(request, of=())
    command = request.scorer.removeprefix("command:")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(
            f"--scorer={without_secrets(request.scorer)}: {str(error).lower()}; quote its arguments as for a shell."
        ) from error
    if not words:
        raise UserError("--scorer=command: names no program; it must be command:PROGRAM, with its arguments.")
    digest = hashlib.sha256(request.scorer.encode("utf-8", "surrogateescape")).hexdigest()[:12]  # it may hold secrets
    identity = {"--scorer": digest, "the program's files": digest_of_files(words)}
    origin: Origin = {"kind": "program", "command": without_secrets(command)}
    return OutsideScorer(origin, identity, asking(words, request.patience or SILENT_FOR))


def digest_of_files(words: Sequence[str]) -> str:
    """The beginning of a SHA-256 of the scripts among the words of a command."""
    hashes = hashlib.sha256()
    for word in words:
        path = Path(word)
        with suppress(OSError, ValueError):
            if path.is_file() and path.stat().st_size < LONGEST_LINE:
                hashes.update(path.read_bytes())
    return hashes.hexdigest()[:12]


def asking(words: list[str], patience: float) -> Callable[[Sequence[Record]], Found]:
    """The run of a program for some records; it is ended with the generator."""

    def ask(records: Sequence[Record]) -> Found:
        program = Program.started(words, records, patience=patience)
        try:
            yield from program.answers()
        finally:
            program.stop()

    return ask


@dataclass
class Program:
    """A running program. Threads write its input, and read its output and its errors, so that neither waits for the other."""

    words: list[str]
    process: "subprocess.Popen[bytes]"
    records: Sequence[Record]
    patience: float
    lines: "queue.Queue[bytes | None]" = field(default_factory=queue.Queue)  # None: there are no more
    errors: bytes = b""  # the end of its standard error
    threads: list[threading.Thread] = field(default_factory=list)

    @staticmethod
    def started(words: list[str], records: Sequence[Record], *, patience: float) -> "Program":
        """Starts a program, in a session of its own: Ctrl-C is for this process, which then ends the program."""
        try:
            process = subprocess.Popen(
                words, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True, env=os.environ | UNBUFFERED
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--scorer=command: {words[0]} cannot be started ({reason}); correct the command."
            ) from error
        program = Program(words, process, records, patience)
        for work in (program.write_input, program.read_output, program.read_errors):
            program.threads.append(threading.Thread(target=work, daemon=True))
            program.threads[-1].start()
        return program

    def write_input(self) -> None:
        """In a thread: all rows, and the end."""
        with suppress(OSError, ValueError):  # it has ended, of which its output tells
            for record in self.records:
                prompt, responses = texts_of(record)
                line = json_line({"row": record.row, "prompt": prompt, "responses": responses})
                pipe_of(self.process.stdin).write(line.encode() + b"\n")
                pipe_of(self.process.stdin).flush()
        with suppress(OSError, ValueError):
            pipe_of(self.process.stdin).close()

    def read_output(self) -> None:
        """In a thread: its lines, and that there are no more."""
        with suppress(OSError, ValueError):
            while line := pipe_of(self.process.stdout).readline(LONGEST_LINE):
                self.lines.put(line)
        self.lines.put(None)

    def read_errors(self) -> None:
        """In a thread: the end of what it writes for a person, also of lines that it has not ended yet."""
        with suppress(OSError, ValueError):
            while part := os.read(pipe_of(self.process.stderr).fileno(), 2**16):
                self.errors = (self.errors + part)[-KEPT_BYTES:]

    def answers(self) -> Found:
        """The scores of the rows as they come. Raises UserError for a program that dies, hangs, writes what are no scores,
        leaves rows out, or writes more. The last row waits for the end, so that what is refused there is refused again."""
        left = {record.row: place for place, record in enumerate(self.records)}
        number = 0
        while left:
            line = self.next_line(number, len(left))
            if line is None:
                raise self.ended_early(list(left))
            number += 1
            if line.strip():
                row, scores = self.read(line, number, left)
                place = left.pop(row)
                if not left:
                    self.see_the_end()
                yield place, scores

    def next_line(self, number: int, num_left: int) -> bytes | None:
        """The next line of its output, or None after the last."""
        deadline = time.monotonic() + self.patience
        while (left := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                return self.lines.get(timeout=min(left, 1.0))
        raise self.wrong(
            f"has written nothing for {self.patience:g} s after line {number} of its output, with "
            f"{counted(num_left, 'row')} left; --scorer-timeout waits longer"
        )

    def read(self, line: bytes, number: int, left: dict[int, int]) -> tuple[int, RowScores]:
        """The row and the scores of one line of its output."""
        said = f"line {number} of its output"
        try:
            values = parse_json(line.strip(), said=said)
        except UserError as error:
            raise self.wrong(f"wrote no scores: {str(error).rstrip('.')}: {shown(as_text(line))}") from error
        row = row_of(values, left) if isinstance(values, dict) else None
        if row is None:
            has_row = isinstance(values, dict) and values.get("row") is not None
            fact = (
                f"row {shown(values['row'])} was not asked for, or has scores already" if has_row else "it has no row"
            )
            raise self.wrong(f"wrote no scores: {said} is {shown(as_text(line))}, and {fact}")
        try:
            return row, row_scores(values, len(self.records[left[row]].responses))
        except BadRow as bad:
            raise self.wrong(f"wrote no scores: {said} is of row {row}, and {bad}") from bad

    def ended_early(self, rows: list[int]) -> UserError:
        """What is said of a program that ended before all rows had scores."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_WITHIN)
        code = self.process.poll()
        how = "closed its output" if code is None else f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        return self.wrong(f"{how} before it had scored {counted(len(rows), 'row')} (the first: row {rows[0]})")

    def see_the_end(self) -> None:
        """After the last score: refuses further lines, and tells of a program that fails in the end."""
        with suppress(queue.Empty):
            line = self.lines.get(timeout=ENDS_WITHIN)
            if line is not None and line.strip():
                raise self.wrong(f"wrote more lines than rows: {shown(as_text(line))}")
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(ENDS_WITHIN)
            if code:
                say(f"note: {self.words[0]} ended with {code} after its last score{self.last_words()}")

    def wrong(self, fact: str) -> UserError:
        return UserError(f"--scorer=command: {self.words[0]} {fact}{self.last_words()}.")

    def last_words(self) -> str:
        """The end of what it wrote on standard error, as the end of a sentence."""
        time.sleep(0.1)  # what it wrote while it died
        text = " / ".join(as_text(self.errors).splitlines()[-5:])
        return (
            f"; last on its standard error: {text[-300:].rstrip('.')}"
            if text
            else "; it wrote nothing on its standard error"
        )

    def stop(self) -> None:
        """Ends the program with what it started, kindly and then not, and lets go of its pipes."""
        for number in (signal.SIGTERM, signal.SIGKILL):  # both, because what it started may live on where it has ended
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDS_WITHIN)
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        for thread, pipe in zip(self.threads, pipes, strict=True):
            thread.join(1.0)
            if not thread.is_alive():
                with suppress(OSError, ValueError):
                    pipe_of(pipe).close()


def pipe_of(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "all three are pipes"
    return pipe


def as_text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
