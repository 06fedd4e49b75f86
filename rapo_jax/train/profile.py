"""A profiler trace of a few steps of a run, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

WARM_UP = 2  # steps before the trace starts, because they compile


class Profile:
    """Traces `num_steps` steps (None: none) into run_dir/profile; a context manager around the loop."""

    def __init__(self, run_dir: Path, num_steps: int | None, *, first: int):
        self.num_steps, self.directory = num_steps, run_dir / "profile"
        self.first, self.running = first + 1 + WARM_UP, False

    def before(self, step: int, pending: Any) -> None:
        """Starts or stops the trace before a step (from 1); `pending` are arrays of the step before, to be waited for."""
        if self.num_steps is None:
            return
        if step == self.first:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(str(self.directory))
            self.running = True
        elif step == self.first + self.num_steps:
            self.stop(pending)

    def stop(self, pending: Any = None) -> None:
        """Ends a trace that is running."""
        if self.running:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
            self.running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
