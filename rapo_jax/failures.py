"""How libraries fail: the errors of an exchange with other processes, and aborts, which Python does not see."""

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from rapo_jax.errors import UserError
from rapo_jax.memory import OUT_OF_MEMORY

# How the text of a failed exchange begins: JAX raises ValueError, too, with the text of a status.
STATUS = "UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|CANCELLED|FAILED_PRECONDITION"
EXCHANGE = re.compile(rf"(?:{STATUS}): |(?:Barrier|Gloo)\b")

_on_abort: Any = None  # kept alive for the system, which calls it


def on_abort(act: Callable[[int], None] | None) -> None:
    """Has a function called when a library aborts, which Python's own signal handlers are not; None: nothing is called."""
    global _on_abort
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(act) if act else None
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p) if handler else None)
    _on_abort = handler


@contextmanager
def aborting_says(sentence: str, *, code: int) -> Iterator[None]:
    """Where a library aborts in the block, the last line is the sentence, and the exit code is `code`."""

    def speak(_signal: int) -> None:
        print(sentence, file=sys.stderr, flush=True)
        os._exit(code)

    on_abort(speak)
    try:
        yield
    finally:
        on_abort(None)


def is_exchange(error: BaseException | None) -> bool:
    """Whether an error came of a computation or a wait that several processes take part in."""
    while error is not None:
        if isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
            found = OUT_OF_MEMORY not in str(error)  # which is this process's own
        else:
            found = not isinstance(error, (UserError, OSError)) and bool(EXCHANGE.match(str(error)))
        if found:
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def has_error() -> bool:
    """Whether the main thread has an error or an interruption, which is on its way out or being handled."""
    current: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    return current not in (None, (None, None, None))  # a tuple in Python 3.11
