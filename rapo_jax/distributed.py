"""Several processes as one program: joining, agreeing on values, printing once, stopping together.

With a single process, everything here works without joining.
"""

import errno
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state as state  # its client has no public name
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from rapo_jax import __version__
from rapo_jax.errors import Lost, UserError, masked
from rapo_jax.failures import aborting_says
from rapo_jax.peers import LOST, answers, waiting, watch
from rapo_jax.terminal import for_stream

HEARTBEAT_SECONDS = 40  # a process that is silent for so long is dead, and the others stop
VERSIONS = "rapo_jax/versions/"  # in JAX's key-value store
SHOWN = 5  # differences that a message lists
JOIN_SECONDS = 300  # the processes of a pod start within so long
NO_CLUSTER = (
    "this host is no Cloud TPU, and no Slurm, Open MPI or (with the package kubernetes) Kubernetes started it. Give --coordinator, "
    "--num-processes and --process-id, or leave --distributed out where there is one process."
)
NOT_ALL = "not all of its processes came. Start all of them within that time, with the same --coordinator and --num-processes."


@dataclass(frozen=True)
class Pod:
    """How to find the other processes: by address or, without one, as JAX finds them (Cloud TPU, Slurm)."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    gpus: str | None = None  # "all" that this process sees, or their numbers, such as "0,1"; None: as JAX decides


def gpus_of(environment: Mapping[str, str]) -> str | None:
    """The GPUs that this process takes of those that it sees, as Pod.gpus.

    JAX gives a task of Slurm the one GPU with its number on the node, which wastes the others where there is one task a node,
    and does not exist where Slurm shows each task its own.
    """
    if {"JAX_LOCAL_DEVICE_IDS", "OMPI_MCA_orte_hnp_uri"} & environment.keys():
        return None
    shown = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    if not shown or not {"SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= environment.keys():
        return "all"
    # "2(x3),1": two tasks on each of the first three nodes, one on the fourth
    runs = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in shown.split(",")]
    tasks = [int(run[1]) for run in runs if run for _ in range(int(run[2] or 1))]
    node, task = int(environment.get("SLURM_NODEID", 0)), int(environment["SLURM_LOCALID"])
    here = tasks[node] if node < len(tasks) else 1
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    num_visible = len(visible.split(",")) if visible else here
    if "SLURM_GPUS_PER_TASK" in environment or num_visible < here or here == 1:
        return "all"
    each = num_visible // here
    return ",".join(str(gpu) for gpu in range(task * each, (task + 1) * each))


def join(pod: Pod) -> None:
    """Joins the processes of a pod. Has to come before the first use of a device.

    Raises UserError for an address that cannot be used, and Lost where the others do not come within JOIN_SECONDS.
    """
    by_hand: dict[str, Any] = {}
    deadline = time.monotonic() + JOIN_SECONDS
    visible = {name: jax.config.read(name) for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices")}
    slow = threading.Timer(5, print, [f"joining {described(pod)}; waits up to {JOIN_SECONDS} s ..."], {"flush": True})
    slow.daemon = True
    slow.start()
    try:
        if pod.coordinator:
            by_hand = {
                "coordinator_address": pod.coordinator,
                "num_processes": pod.num_processes,
                "process_id": pod.process_id,
                "coordinator_bind_address": address_to_bind(pod),
            }
            if pod.gpus is not None:  # nothing is left to find out, of Kubernetes or of a TPU's metadata server
                by_hand["cluster_detection_method"] = "deactivate"
            wait_for_first(pod, deadline)
        with aborting_says(f"could not join {described(pod)} within {JOIN_SECONDS} s: {NOT_ALL}", code=LOST):
            left = max(1, round(deadline - time.monotonic()))
            jax.distributed.initialize(
                **by_hand, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=left
            )
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        nothing_found = " should be defined." in str(error) and not pod.coordinator
        raise UserError(f"could not join {described(pod)}: {NO_CLUSTER if nothing_found else error}") from error
    finally:
        slow.cancel()
    if pod.gpus is not None:
        for name, before in visible.items():
            jax.config.update(name, before if pod.gpus == "all" else pod.gpus)
    if state.num_processes > 1:
        address = str(state.coordinator_address)
        watch(state.client, process=state.process_id, num_processes=state.num_processes, coordinator=address)
        require_same_versions({"the version of rapo_jax": __version__, "the version of jax": jax.__version__})


def described(pod: Pod) -> str:
    """What the user calls the pod."""
    if not pod.coordinator:
        return "the processes that --distributed finds (--coordinator names them by hand)"
    return f"{pod.coordinator} as process {pod.process_id} of {pod.num_processes}"


def address_to_bind(pod: Pod) -> str | None:
    """Where process 0 listens: at the address that it was told, if that is one of this host's and not a name, which can
    mean another address here than elsewhere. None: at all addresses. Raises UserError where the port cannot be had.
    """
    assert pod.coordinator is not None
    host, port = host_and_port(pod)
    if pod.process_id != 0:
        return None
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = ipaddress.ip_address("::")
    try:
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((str(address), port))
    except OSError as error:
        # Such as the outer address of a host behind a router; or the host has no IPv6.
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise UserError(
            f"--coordinator={pod.coordinator}: process 0 cannot listen there ({error.strerror})."
        ) from error
    if address.is_unspecified:
        return None
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def host_and_port(pod: Pod) -> tuple[str, int]:
    """The parts of the address. Raises UserError for what is none, and for a process that the pod cannot have."""
    host, _, port = (pod.coordinator or "").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={pod.coordinator} must be HOST:PORT, with a port from 1 to 65535.")
    process, number = pod.process_id or 0, pod.num_processes or 0
    if not 0 <= process < number:
        raise UserError(f"--process-id={process} must be from 0 to {number - 1}, because --num-processes={number}.")
    return host.strip("[]"), int(port)


def wait_for_first(pod: Pod, deadline: float) -> None:
    """Returns when process 0 listens. JAX would wait as well, but abort at the end."""
    while pod.process_id != 0 and not answers(str(pod.coordinator)):
        if time.monotonic() > deadline:
            raise Lost(
                f"could not join {described(pod)}: nothing answered there within {JOIN_SECONDS} s. Start process 0 on that "
                "host, with the same --coordinator, and the others within that time."
            )
        time.sleep(min(1.0, JOIN_SECONDS / 10))


def is_first() -> bool:
    """Whether this is process 0, the one that prints and writes files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, on process 0 alone, without the secrets of its addresses; a terminal shows it in several."""
    if is_first():
        print(for_stream(masked(text), sys.stdout), flush=True)


def from_first(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Process 0's array, on all processes."""
    if jax.process_count() == 1:
        return values
    with waiting("a broadcast"):
        return np.array(multihost_utils.broadcast_one_to_all(values))


def each_process(value: Any) -> list[Any]:
    """The JSON value of every process, on all processes; all have to call this."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    with waiting("comparing settings"):
        length = int(multihost_utils.process_allgather(np.array(len(text))).max())
        rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(length), np.uint8))
    return [json.loads(row.tobytes()) for row in np.asarray(rows)]


def require_same(mine: dict[str, Any]) -> None:
    """Raises UserError on every process where two have other values; all have to call this.

    Values are JSON. What they belong to is the key, as the user calls it.
    """
    refuse_differing(each_process(mine))


def require_same_versions(mine: dict[str, Any]) -> None:
    """The same for versions, through the key-value store: computations of other versions of JAX may hang together."""
    client = state.client
    assert client is not None, "the processes have joined"
    with waiting("comparing versions"):
        client.key_value_set(f"{VERSIONS}{state.process_id}", json.dumps(mine))
        client.wait_at_barrier("rapo_jax/versions", JOIN_SECONDS * 1000)
        told = {int(key.rpartition("/")[2]): json.loads(text) for key, text in client.key_value_dir_get(VERSIONS)}
    refuse_differing([told[process] for process in range(state.num_processes)])


def refuse_differing(told: list[dict[str, Any]]) -> None:
    """Raises UserError where two processes have other values, given those of each."""
    first, *others = told
    differing = [
        f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {process}"
        for process, other in enumerate(others, 1)
        for name in dict.fromkeys((*first, *other))
        if first.get(name) != other.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"the processes were not started with the same: {'; '.join(differing[:SHOWN])}{more}. Start all of them with one "
            "command, the same files and the same versions. Nothing was written."
        )


def on_first(work: Callable[[], Any]) -> Any:
    """What `work` returns on process 0, None on the others. A UserError of process 0 is raised on all."""
    found, complaint = None, None
    if is_first():
        try:
            found = work()
        except UserError as error:
            complaint = str(error)
    complaint = each_process(complaint)[0]
    if complaint is not None:
        raise UserError(complaint)
    return found


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return flag
    with waiting("comparing flags"):
        return bool(multihost_utils.process_allgather(np.array(flag)).any())


def barrier(name: str) -> None:
    """Returns when every process has reached this point."""
    if jax.process_count() > 1:
        with waiting(name):
            multihost_utils.sync_global_devices(name)


@contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
    """Catches SIGINT and SIGTERM while active; interrupted(step) returns whether one came, the same on all processes.

    With several processes JAX's own preemption notice is used, which is SIGTERM's alone and must keep its handler; Ctrl-C is
    passed on to it, so that whichever process is told first, all save the same step.
    """
    caught: list[int] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]]
    interrupted: Callable[[int], bool]
    if jax.process_count() > 1:
        interrupted = multihost_utils.reached_preemption_sync_point
        handlers = {signal.SIGINT: lambda number, _: os.kill(os.getpid(), signal.SIGTERM)}
    else:
        interrupted = lambda step: bool(caught)  # noqa: E731
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, _: caught.append(number))
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
