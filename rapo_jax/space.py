"""Disk space: said before it is missing where the need is known, and as one sentence where it runs out."""

import errno
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapo_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries make of these errors: TensorStore, safetensors, pyarrow.
SAID = re.compile(
    r"No space left on device|ENOSPC|StorageFull|Disk quota exceeded|EDQUOT|File too large|EFBIG|os error 28"
)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is about a full disk."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or SAID.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def on_disk(path: Path, *, need: int | None = None, safe: str = "") -> Iterator[None]:
    """A block that writes `path`. Raises UserError where the disk is full, with the bytes that it `need`s, if known.

    `safe` is a sentence on what is not lost.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise no_space(path, need, safe) from error


def require_space(path: Path, need: int, *, safe: str = "") -> None:
    """Raises UserError where `need` bytes, written at `path`, would not fit on its disk."""
    if free_at(path) < need:
        raise no_space(path, need, safe)


def no_space(path: Path, need: int | None, safe: str) -> UserError:
    needed = f"needs {said(need)}, and " if need is not None else "needs more than is free: "
    free = free_at(path)
    there = f"{said(int(free))} of its disk are free" if free < math.inf else "its disk does not say how much is free"
    return UserError(
        f"no space left for {path}: it {needed}{there}. {safe}{' ' if safe else ''}Make "
        "space, and run the same command again."
    )


def free_at(path: Path) -> float:
    """Free bytes of the disk that holds a path, which need not exist; infinite where a file system, such as one over the
    network, says that it has none at all."""
    path = Path(path).absolute()
    usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
    return usage.free if usage.total else math.inf


def said(size: int) -> str:
    """12 bytes, 3.4 kB, 5.6 MB, 7.8 GB."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} bytes"
