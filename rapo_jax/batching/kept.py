"""Tokenized data sets that are kept on disk between starts: found, waited for, or made and written.

Each is a directory of a place (DIR/train-0123456789abcdef), named after everything that decides its content
(rapo_jax/batching/origin.py). One process writes it, which holds a lock, and the others of all hosts that share the place
wait for it and read. What a killed writer left has no record, and is removed by the next.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rapo_jax.batching.dataset import Dataset
from rapo_jax.batching.origin import Kind
from rapo_jax.batching.stored import RECORD, Damaged, Origin, arrays_of, read_dataset, write_dataset
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
from rapo_jax.locks import IN_USE, content, holding, locked
from rapo_jax.peers import at
from rapo_jax.space import free_at, on_disk, require_space, said

Turn = Literal["at once", "after another", "never"]
MOST_WAITED = 1800.0  # seconds for the tokens that another process makes
LOOKS_EVERY = 0.5  # seconds
SAFE = "Without room for it, data.cache= (empty) keeps no tokens."


@dataclass(frozen=True)
class Place:
    """A directory of kept data sets, of data files of at `least` so many bytes. One that is the run's `own` holds the newest of
    each kind alone, and only where the disk has room."""

    directory: Path
    own: bool = False
    least: int = 0


def kept(place: Place, kind: Kind, origin: Callable[[], Origin | None], *, make: Callable[[], Dataset]) -> Dataset:
    """The data set of this origin: the one that is kept, or the one that `make` makes, which is then kept.

    Raises UserError where the place cannot be used.
    """
    belongs_to = origin()
    if belongs_to is None:
        return make()
    if place.directory.exists() and not place.directory.is_dir():
        raise UserError(f"data.cache={place.directory} is a file; it must be a directory.")
    entry = place.directory / f"{kind}-{key_of(belongs_to)}"
    found = sound(entry, belongs_to)
    if found:
        return found
    with ExitStack() as stack:
        turn = begin(entry, stack)
        if turn == "never":
            return make()
        found = sound(entry, belongs_to, tell=False)  # another process may have made it in the meantime
        if found:
            return found
        if turn == "after another":  # which kept nothing, for lack of room: those that wait too need not do so in turn
            stack.close()
            return make()
        clear(entry)
        data = make()
        if origin() != belongs_to:
            say(f"{entry}: the data were changed while they were read; their tokens are not kept.")
        elif keep(entry, data, belongs_to, only_with_room=place.own) and place.own:
            remove_others(entry, kind)
        return data


def key_of(origin: Origin) -> str:
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]


def sound(entry: Path, origin: Origin, *, tell: bool = True) -> Dataset | None:
    """The whole data set in a directory; None where there is none or where, as is told, it is damaged."""
    try:
        found = read_dataset(entry, origin)
    except Damaged as damage:
        if tell:
            say(f"{entry} is damaged ({damage}); its data are tokenized again.")
        return None
    if found:
        say(f"{tokens_of(found)} found in {entry}")
    return found


def tokens_of(data: Dataset) -> str:
    return f"tokens of {counted(len(data.groups), 'group')}"


def begin(entry: Path, stack: ExitStack) -> Turn:
    """Takes the lock of a data set, until the stack is left: at once or after another process; "never" where that had it for
    too long."""
    deadline, told, lock = time.monotonic() + MOST_WAITED, False, entry / IN_USE
    stack.callback(remove_empty, [path for path in (entry, *entry.parents) if not path.exists()])
    while (file := locked(lock)) is None:
        if not told:
            holder = content(lock) or "another process"
            say(f"{entry} is being written by {holder}; waiting for it, at most {MOST_WAITED / 60:.0f} minutes ...")
            at("the tokens that another process makes", "elsewhere")
            told = True
        if time.monotonic() > deadline:
            say(f"{entry} was not written within {MOST_WAITED / 60:.0f} minutes; tokenizing here, and keeping nothing.")
            break
        time.sleep(LOOKS_EVERY)
    if told:
        at("reading the data")
    if file is not None:
        stack.enter_context(holding(file, lock))
    if file is None:
        return "never"
    return "after another" if told else "at once"


def clear(entry: Path) -> None:
    """Removes what a writer left that was killed, and what is damaged; first the record, so that no half looks whole."""
    (entry / RECORD).unlink(missing_ok=True)
    left = [path for path in entry.iterdir() if path.name != IN_USE]
    for path in left:
        path.unlink()
    if left:
        say(f"removed {counted(len(left), 'file')} that an earlier start left in {entry}")


def keep(entry: Path, data: Dataset, origin: Origin, *, only_with_room: bool) -> bool:
    """Writes a data set, and says whether it did; after an error nothing of it is left."""
    arrays = arrays_of(data)
    size = sum(array.nbytes for array in arrays.values())
    if only_with_room and free_at(entry) < size:
        say(f"{tokens_of(data)} ({said(size)}) are not kept in {entry}: its disk has too little room")
        return False
    try:
        require_space(entry, size, safe=SAFE)
        with on_disk(entry, safe=SAFE):
            write_dataset(entry, data, arrays, origin=origin)
    except FileNotFoundError:  # on a file system without locks, or with a host's own, several processes may write
        say(f"{entry} was written by another process at the same time; these tokens are not kept.")
        return False
    except BaseException:
        for path in entry.iterdir():
            if path.name != IN_USE:
                path.unlink()
        raise
    say(f"{tokens_of(data)} ({said(size)}) kept for later starts in {entry}")
    return True


def remove_others(entry: Path, kind: Kind) -> None:
    """Removes data sets of a kind that the run had before, of other data or another version."""
    for other in entry.parent.glob(f"{kind}-{'[0-9a-f]' * 16}"):
        if other != entry:
            shutil.rmtree(other, ignore_errors=True)


def remove_empty(directories: Sequence[Path]) -> None:
    """Removes those that are empty, the innermost first."""
    for directory in directories:
        if directory.exists() and not any(directory.iterdir()):
            directory.rmdir()
