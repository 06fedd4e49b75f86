"""The command line in this process."""

import signal

from rapo_jax.cli import main
from rapo_jax.train.journal import Journal


def rapo(*arguments: object) -> int:
    """Runs the command line in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code
    raise AssertionError("the command line always exits")


def rapo_until(step: int, arguments: list[str], number: signal.Signals = signal.SIGTERM) -> int:
    """Runs a verb in this process, which gets a signal while it is at optimizer step `step`."""
    write = Journal.write

    def write_and_signal(journal: Journal, written: int, metrics: dict) -> None:
        write(journal, written, metrics)
        if written == step - 1:  # metrics are written one step late
            signal.raise_signal(number)

    Journal.write = write_and_signal
    try:
        return rapo(*arguments)
    finally:
        Journal.write = write
