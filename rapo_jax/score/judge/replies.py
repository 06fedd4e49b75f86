"""Replies that were paid for, on disk under what was asked, so that nothing is asked twice."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rapo_jax.borders import DECOMPRESSED, json_line, path_of, shaped
from rapo_jax.errors import UserError
from rapo_jax.locks import content, holding, locked
from rapo_jax.score.outside import lines_of_killed_writer
from rapo_jax.space import on_disk


@dataclass(frozen=True)
class Reply:
    """What a model answered, why it stopped, and the tokens that it read and wrote; None where the server does not say."""

    text: str
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class ReplyLine:
    """A line of the file. key: a SHA-256 of what was asked."""

    key: str
    reply: Reply


@dataclass
class ReplyFile:
    """The replies of a file, which is open to be appended to."""

    path: Path
    known: dict[str, Reply]
    file: BinaryIO

    def add(self, key: str, reply: Reply) -> None:
        """Keeps a reply; a process that is killed after this has kept it."""
        self.known[key] = reply
        with on_disk(self.path):
            self.file.write(json_line({"key": key, "reply": asdict(reply)}).encode() + b"\n")
            self.file.flush()


def key_of(asked: dict[str, Any]) -> str:
    """The key of a request: its server, its model and all that is sent."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@contextmanager
def opened_replies(path: Path) -> Iterator[ReplyFile]:
    """The replies of a file, for this process alone while the block runs. Raises UserError where another process has it, and
    for a file of something else."""
    path = path_of(path, said=f"--judge-cache={path}")
    if path.suffix in DECOMPRESSED:
        raise UserError(f"--judge-cache={path}: replies are appended as they are; give a name without {path.suffix}.")
    lock_path = path.with_name(path.name + ".lock")
    lock = locked(lock_path)
    if lock is None:
        holder = content(lock_path) or "another process"
        raise UserError(f"--judge-cache={path} is in use by {holder}; wait for it, or give another file.")
    with holding(lock, lock_path):
        known = {}
        remedy = "it must be a file of a judge's replies; give another --judge-cache, or remove it"
        if path.exists():
            for number, line in lines_of_killed_writer(path, key="key", remedy=remedy):
                kept = shaped(line, ReplyLine, said=f"{path} line {number}", remedy=remedy)
                known[kept.key] = kept.reply
        with on_disk(path), path.open("ab") as file:
            yield ReplyFile(path, known, file)
