"""`rapo`, which is also `python -m rapo_jax`: Ctrl-C is taken care of before anything else is imported."""

import os
import sys

from rapo_jax.interruption import STOPPED, Stopper


def start() -> None:
    """Runs the command line."""
    Stopper(sys.argv[1] if len(sys.argv) > 1 else "").install()
    from rapo_jax.cli import main

    try:
        main()
    except SystemExit as end:
        if end.code == STOPPED:  # Python would end by the signal itself, if it saw the exception pass an import
            sys.stdout.flush()
            os._exit(STOPPED)
        raise


if __name__ == "__main__":
    start()
