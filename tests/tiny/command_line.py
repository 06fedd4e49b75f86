"""The command line in this process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

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


@contextmanager
def compilations_kept(directory: Path) -> Iterator[None]:
    """Within it every compilation is kept in the directory: the second run of a kind starts in seconds."""
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
