"""Ctrl-C from the first moment of a command: one line and exit code 130, wherever it comes.

Python raises KeyboardInterrupt in whatever code happens to run. In the first seconds that is code of others: the import of
an extension, which calls it an ImportError, or a callback of the garbage collector, where it is printed, ignored and lost.
Until work begins nothing has to be tidied up, so the process ends at once. Later KeyboardInterrupt is raised, and raised
again where somebody swallowed it. Work that saves something catches the signal itself (rapo_jax/distributed.py).
"""

import _thread
import os
import signal
import sys
import time
from types import FrameType

STOPPED = 130  # the exit code
AGAIN_SECONDS = 0.5  # between two attempts


class Stopper:
    """The handler of SIGINT for a command line process. `at_once`: nothing is to be tidied up yet."""

    def __init__(self, name: str):
        self.name, self.at_once, self.raised = name, True, False
        self.ending, self.main = _thread.allocate_lock(), _thread.get_ident()
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)

    def install(self) -> None:
        """Takes over from Python's own handler; leaves a signal that the parent process has ignored."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        signal.signal(signal.SIGINT, self)
        # Python calls its handlers between two steps of its own. This pipe tells a thread also while a library computes.
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        _thread.start_new_thread(self.watch, ())
        before = sys.unraisablehook

        def quiet_about_it(lost: "sys.UnraisableHookArgs") -> None:
            if not (lost.exc_type and issubclass(lost.exc_type, KeyboardInterrupt)):
                before(lost)

        sys.unraisablehook = quiet_about_it

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.at_once:
            self.stop()
        self.raised = True
        os.write(self.writer, bytes([number]))  # a library may have put its own pipe in place of this one
        raise KeyboardInterrupt

    def watch(self) -> None:
        """In a thread: ends the process at once while that is right, else insists."""
        while True:
            signals = os.read(self.reader, 1)
            if signals[0] != signal.SIGINT:
                continue
            if self.at_once and signal.getsignal(signal.SIGINT) is self:
                self.stop()
            time.sleep(AGAIN_SECONDS)
            if self.raised and not is_being_handled(self.main):
                self.raised = False
                signal.pthread_kill(self.main, signal.SIGINT)

    def stop(self) -> None:
        """Says it, and ends the process with no thread, callback or handler asked."""
        if not self.ending.acquire(blocking=False):  # handler and thread are told of the same signal
            time.sleep(AGAIN_SECONDS)
        os.write(2, f"rapo {self.name}: {NOTHING_SAVED}\n".encode())
        os._exit(STOPPED)


NOTHING_SAVED = "interrupted; nothing more was saved. Run the same command again."


def is_being_handled(thread: int) -> bool:
    """Whether a KeyboardInterrupt is on its way through a thread, whose blocks tidy up meanwhile."""
    error = sys._current_exceptions().get(thread)
    error = error[1] if isinstance(error, tuple) else error  # before Python 3.12
    seen = 0
    while error is not None and seen < 100:
        if isinstance(error, KeyboardInterrupt):
            return True
        error, seen = error.__context__, seen + 1
    return False


def work_begins() -> None:
    """From here on an interruption is an exception, so that files and locks are let go of."""
    stopper = signal.getsignal(signal.SIGINT)
    if isinstance(stopper, Stopper):
        stopper.at_once = False


def was_interrupted() -> bool:
    """Whether a KeyboardInterrupt was raised, of which a library may have made another exception."""
    stopper = signal.getsignal(signal.SIGINT)
    return isinstance(stopper, Stopper) and stopper.raised


def work_has_ended() -> None:
    """From here on an interruption changes nothing: what is left is to end."""
    if isinstance(signal.getsignal(signal.SIGINT), Stopper):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
