"""Bounds on the time and the memory of a chat template: a program of strangers, which may loop or grow for ever."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rapo_jax.errors import UserError

SECONDS = 3.0  # for a few conversations, each of which takes a millisecond
BYTES = 2**31  # beyond what the process has taken already
STATM = Path("/proc/self/statm")  # of Linux; elsewhere memory has no bound


class TookTooLong(Exception):
    """The block ran into its bound on time."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Raises TookTooLong or MemoryError inside the block when it exceeds a bound, and UserError where they leave it.

    Threads but the main one have no bounds. The bound on memory counts what the whole process reserves, an accelerator's
    runtime included, so the block should do nothing but render, while no other thread computes. Entering takes as long as
    rendering a conversation or two, so many are rendered in one block.
    """
    try:
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                if STATM.exists():
                    stack.enter_context(_memory())
                stack.enter_context(_deadline(seconds))
            yield
    except (TookTooLong, MemoryError) as error:  # raised while an earlier one was handled, or while the bounds are left
        raise UserError(
            f"the chat template needs more than {seconds:g} s or {BYTES / 2**30:g} GiB of memory; supply another with "
            "data.chat_template=FILE.jinja."
        ) from error


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TookTooLong(f"it takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again every second, should some code swallow the exception
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # also where the signal came just now
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(STATM.read_text().split()[0]) * resource.getpagesize()
    most = min(limit for limit in (taken + BYTES, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
