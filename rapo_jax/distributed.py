"""Several processes as one program: joining, agreeing on values, printing once, stopping together.

With a single process, everything here works without joining.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

HEARTBEAT_SECONDS = 60  # a process that is silent for so long is dead, and the others stop


@dataclass(frozen=True)
class Pod:
    """How to find the other processes: by address or, without one, as JAX finds them (Cloud TPU, Slurm)."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None


def join(pod: Pod) -> None:
    """Joins the processes of a pod. Has to come before the first use of a device."""
    by_hand = {
        "coordinator_address": pod.coordinator,
        "num_processes": pod.num_processes,
        "process_id": pod.process_id,
    }
    jax.distributed.initialize(**by_hand if pod.coordinator else {}, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def is_first() -> bool:
    """Whether this is process 0, the one that prints and writes files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, on process 0 alone."""
    if is_first():
        print(text, flush=True)


def from_first(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Process 0's array, on all processes."""
    if jax.process_count() == 1:
        return values
    return np.array(multihost_utils.broadcast_one_to_all(values))


def each_process(value: Any) -> list[Any]:
    """The JSON value of every process, on all processes; all have to call this."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    length = int(multihost_utils.process_allgather(np.array(len(text))).max())
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(length), np.uint8))
    return [json.loads(row.tobytes()) for row in np.asarray(rows)]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def barrier(name: str) -> None:
    """Returns when every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
    """Catches SIGINT and SIGTERM while active; interrupted(step) returns whether one came, the same on all processes.

    With several processes JAX's own preemption notice (SIGTERM only) is used; its handler must not be replaced.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    caught: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda step: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
