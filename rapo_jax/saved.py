"""The arrays of a checkpoint, read in parts, so that a host needs memory for a part and none for a device's copy.

Orbax restores whole arrays onto devices; its files are those of TensorStore, of which any part can be read. What is read is
summed up, so that damage is noticed in the end.
"""

import functools
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import jax
import numpy as np
import tensorstore
from jax import Array
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

from rapo_jax.buckets import Directory, is_bucket
from rapo_jax.distributed import each_process
from rapo_jax.parts import Fingerprints, Sums, together

CHUNK = 2**26  # bytes of an array that are stored, and read, together
LOOK_SECONDS, SURE_SECONDS = 1.0, 3.0
IN_FLIGHT = 2**27  # bytes of stored chunks that are read at the same time
READS = "_read_array_index_and_device_put"  # of orbax: in the traceback of each of its reads, and of no save
UNCHANGING = {"recheck_cached_data": False, "recheck_cached_metadata": False}  # nobody writes into a step that is there
CACHES = {"cache_pool#nodes": {"total_bytes_limit": 2**26}}  # of the files' directories, not of arrays


class Corrupt(Exception):
    """The arrays of a step are not those that were written."""


class LateRecord(ocp.handlers.CheckpointableHandler[Callable[[], dict[str, Any]], None]):
    """What a step records beside its arrays, as JSON; it is asked for in the background, when they are being written."""

    def __init__(self) -> None:
        self.json = ocp.handlers.JsonHandler()

    async def save(self, directory: Any, checkpointable: Callable[[], dict[str, Any]]) -> Awaitable[None]:
        async def write() -> None:
            await (await self.json.save(directory, checkpointable()))

        return write()

    async def load(self, directory: Any, abstract_checkpointable: None = None) -> Awaitable[Any]:
        return await self.json.load(directory)

    async def metadata(self, directory: Any) -> None:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return callable(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None


class OwnFailure:
    """Whether a save has failed in this process alone. Orbax then waits for the other processes, and these for this one, until its
    barriers end after 20 minutes; meanwhile its thread holds the error."""

    def __init__(self) -> None:
        self.seen: tuple[BaseException | None, float] = (None, 0.0)

    def look(self) -> BaseException | None:
        """The error, once it was there for SURE_SECONDS: one that is being handled is no failure yet."""
        held = error_in("save_finalize") if jax.process_count() > 1 else None
        before, since = self.seen
        if held is None or held is not before:
            self.seen = (held, time.monotonic())
            return None
        return held if time.monotonic() - since >= SURE_SECONDS else None


def ended(saving: Any) -> bool:
    """Whether a save is over, after at most LOOK_SECONDS. Raises its error."""
    started = time.monotonic()
    try:
        saving.result(timeout=LOOK_SECONDS)
    except TimeoutError:
        if time.monotonic() - started < LOOK_SECONDS / 2:
            raise  # of its own
        return False
    return True


def error_in(name: str) -> BaseException | None:
    """The error on its way through a thread with this name."""
    threads = {thread.name: thread.ident for thread in threading.enumerate()}
    error = sys._current_exceptions().get(threads.get(name) or 0)
    return error[1] if isinstance(error, tuple) else error  # before Python 3.12


def orbax_context() -> ocp.Context:
    """How checkpoints are written and read. Uncompressed: zstd makes float32 a twelfth smaller, and takes five times the CPU time
    of all the rest, which would be the step's on a small host, and the preemption's on a large one."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    in_chunks(context)
    context.checkpointables.registry = ocp.handlers.local_registry().add(LateRecord, checkpointable_name="meta")
    return context


def in_chunks(context: ocp.Context) -> None:
    """Has arrays stored so that they can be read in parts: a layer of a matrix at a time, CHUNK at most."""
    options = ocp.options.ArrayOptions.Saving.StorageOptions

    def by_layer(key: Any, value: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
        name = jax.tree_util.keystr(key, simple=True, separator=".")
        is_stack = isinstance(value, Array) and value.ndim > 2 and ".blocks." in name
        return options(chunk_byte_size=CHUNK, shard_axes=(0,)) if is_stack else None

    context.array.saving.storage_options = options(chunk_byte_size=CHUNK)
    context.array.saving.scoped_storage_options_creator = by_layer


class SavedArrays:
    """The arrays in `directory` by name. Of a stored chunk all rows are kept until others are read: read in their order."""

    def __init__(self, directory: Directory, fingerprints: Mapping[str, Sequence[int]]):
        self.directory, self.fingerprints = directory, fingerprints
        self.sums = Sums()
        self._context = tensorstore.Context(CACHES)
        self._stores: dict[str, tensorstore.TensorStore] = {}
        self._held: tuple[str, int, np.ndarray] = ("", 0, np.empty(0))

    def read(self, name: str, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        """A part of an array. Raises Corrupt where it cannot be read."""
        try:
            part = self._rows(name, index[0])[(slice(None), *index[1:])]
        except (ValueError, OSError) as error:
            raise Corrupt(str(error).strip().splitlines()[0][:200]) from error
        self.sums.add(name, index, part)
        return part

    def require_sound(self, mine: Corrupt | None) -> None:
        """Raises Corrupt on all processes, which have read every element once, together, where they are not those that were
        saved or one process could not read its part (`mine`)."""
        told = each_process({"error": None if mine is None else str(mine), "sums": self.sums.found})
        if errors := [each["error"] for each in told if each["error"] is not None]:
            raise Corrupt(errors[0])
        found: Fingerprints = together(each["sums"] for each in told)
        changed = [name for name, sums in found.items() if sums != list(self.fingerprints[name])]
        if changed:
            raise Corrupt(f"fingerprint differs in {', '.join(changed[:3])}")

    def _open(self, name: str) -> tensorstore.TensorStore:
        if name not in self._stores:
            inside = f"{self.directory}/"
            files = inside if is_bucket(self.directory) else {"driver": "file", "path": inside}
            tree = {"driver": "ocdbt", "base": files, "path": f"{name}/", "cache_pool": "cache_pool#nodes"}
            spec = {"driver": "zarr3", "kvstore": tree, **UNCHANGING}
            self._stores[name] = tensorstore.open(spec, open=True, read=True, context=self._context).result()
        return self._stores[name]

    def _rows(self, name: str, rows: slice) -> Shaped[np.ndarray, "..."]:
        """Rows along the first dimension, from the stored chunks that have them."""
        array = self._open(name)
        chunk = cast(tuple[int, ...], array.chunk_layout.read_chunk.shape)
        first = rows.start // chunk[0] * chunk[0]
        last = min(-(-rows.stop // chunk[0]) * chunk[0], array.shape[0])
        held, at, kept = self._held
        if (held, at, len(kept)) != (name, first, last - first):
            kept = self._held = ("", 0, np.empty(0))  # before others are read
            kept = np.empty((last - first, *array.shape[1:]), array.dtype.numpy_dtype)
            in_flight = max(1, IN_FLIGHT // (prod(chunk) * kept.itemsize))
            boxes = chunks_of((last - first, *array.shape[1:]), chunk)
            while batch := list(itertools.islice(boxes, in_flight)):
                reading = [
                    tensorstore.array(kept)[box].write(
                        array[slice(first + box[0].start, first + box[0].stop), *box[1:]]
                    )
                    for box in batch
                ]
                for each in reading:
                    each.result()
            self._held = (name, first, kept)
        return kept[rows.start - first : rows.stop - first]


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose arrays are read in parts; identity and config are as they were saved."""

    step: int
    arrays: SavedArrays
    identity: dict[str, Any]
    config: dict[str, Any]


def chunks_of(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The parts of an array that are stored together.

    >>> list(chunks_of((3,), (2,)))
    [(slice(0, 2, None),), (slice(2, 3, None),)]
    """
    starts = itertools.product(*(range(0, size, part) for size, part in zip(shape, chunk, strict=True)))
    for start in starts:
        yield tuple(slice(at, min(at + part, size)) for at, part, size in zip(start, chunk, shape, strict=True))


@functools.cache
def hush_abandoned_reads() -> None:
    """From now on in this process, of arrays that orbax still reads when another one proves damaged nothing is printed: neither when
    their reads end after its event loop, nor when they are collected. Who restores tells of the damage once."""
    before = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        said = "".join(traceback.format_exception(lost.exc_value)) if lost.exc_value else ""
        if READS not in said and "Event loop is closed" not in said:
            before(lost)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: READS not in logging.Formatter().format(record))
