"""Ctrl-C stops a command wherever it comes, with one line and exit code 130."""

import subprocess
import sys
import time

import pytest

from rapo_jax.interruption import STOPPED

MESSAGE = "rapo train: interrupted; nothing more was saved. Run the same command again.\n"
# As libraries are met in the first seconds: what each does with a KeyboardInterrupt that comes while it runs.
BEGIN = """
import gc, signal, sys, time
from rapo_jax import cli, interruption
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background has it ignored
sys.argv = ["rapo", "train", "x.yaml"]
def interrupt():
    signal.raise_signal(signal.SIGINT)
"""
END = """
cli.VERBS["train"] = train
from rapo_jax.__main__ import start
start()
"""
CASES = {
    "the import of an extension makes it an ImportError": """
def train(options):
    try:
        interrupt()
    except KeyboardInterrupt as error:
        raise ImportError("initializing the extension") from error
""",
    "a callback of the garbage collector loses it": """
def train(options):
    gc.callbacks.append(lambda *_: (gc.callbacks.clear(), interrupt()))
    gc.collect()
    time.sleep(30)
    return 0
""",
    "a library swallows it": """
def train(options):
    try:
        interrupt()
    except BaseException:
        pass
    time.sleep(30)
    return 0
""",
    "a library makes another exception of it": """
def train(options):
    try:
        interrupt()
    except BaseException:
        pass
    raise RuntimeError("not initialized")
""",
    "it passes an import": """
def train(options):
    exec("interrupt()")
""",
}


def run(program: str) -> tuple[int, str, float]:
    """Exit code, errors and seconds."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("begun", [False, True], ids=["before work begins", "while working"])
@pytest.mark.parametrize("case", CASES)
def test_an_interruption_is_not_lost(case, begun):
    """When this fails, Ctrl-C in the first seconds prints pages of others' code, or the run goes on for hours."""
    body = CASES[case].replace("options):", "options):\n    interruption.work_begins()") if begun else CASES[case]
    code, errors, seconds = run(BEGIN + body + END)
    assert (code, errors) == (STOPPED, MESSAGE) and seconds < 20


def test_what_tidies_up_is_let_do_so():
    """When this fails, the second attempt to interrupt breaks off the save that the first one waits for."""
    body = """
def train(options):
    interruption.work_begins()
    try:
        interrupt()
    finally:
        time.sleep(1.5)
        print("tidied up", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", BEGIN + body + END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (STOPPED, "tidied up\n", MESSAGE)


def test_an_interruption_after_the_work_changes_no_exit_code():
    body = """
import atexit
def train(options):
    atexit.register(interrupt)
    print("done")
    return 0
"""
    done = subprocess.run([sys.executable, "-c", BEGIN + body + END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
