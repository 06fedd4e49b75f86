"""One writer at a time: files that a process holds, and the system lets go of when it dies."""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rapo_jax.errors import UserError
from rapo_jax.space import on_disk

IN_USE = "in_use"  # the file that names the holder of a directory


@contextmanager
def claimed(directory: Path, *, said: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keeps a directory for this process while the block runs; the system lets go of it when the process dies.

    Where another process has it, waits if it can `say` so, and otherwise raises UserError, which names the holder. `said`
    is what the user calls the directory. On a file system without locks nothing is kept.
    """
    path = directory / IN_USE
    file = locked(path)
    if file is None:
        fact = f"{said} is in use by {content(path) or 'another process'}"
        if say is None:
            raise UserError(f"{fact}; wait for it, stop it, or choose another directory.")
        say(f"{fact}; waiting for it ...")
        file = locked(path, wait=True)
        assert file is not None
    with holding(file, path):
        yield


@contextmanager
def holding(file: BinaryIO, path: Path) -> Iterator[None]:
    """Keeps a locked file, in which the holder is named, while the block runs; then removes it."""
    with held(file):
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with on_disk(path):
            file.truncate(0)
            file.write(holder.encode())
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def held(file: BinaryIO) -> Iterator[None]:
    """Closes the file, which lets go of its lock. After an error it does so in silence: what a full disk did not take, closing
    tries to write once more."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    file.close()


def content(path: Path) -> str:
    """The text of a file; "" where it was removed in the meantime."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def locked(path: Path, *, wait: bool = False) -> BinaryIO | None:
    """The file, open to be read and appended to, and locked until it is closed; None where another process has it, unless this
    one is to `wait`. One that its holder removed in the meantime is left for a new one; without locks nothing is kept."""
    while True:
        with on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            return file
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()
