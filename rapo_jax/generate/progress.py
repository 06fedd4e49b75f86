"""How far `rapo generate` is: answers, rate and time left, without the time that went into compiling."""

import time
from dataclasses import dataclass, field

from rapo_jax.distributed import say
from rapo_jax.errors import counted
from rapo_jax.generate.decode import Segment
from rapo_jax.train.journal import PRINT_EVERY, duration


@dataclass
class Progress:
    """Counts what segments bring, and prints a line from time to time. `answers` of `total` were known at the start."""

    total: int
    answers: int
    tokens: int = 0
    compiling: float = 0.0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    batch_ended: float = 0.0  # seconds of work until the last batch that is whole
    batches_left: int | None = None
    batches_done: int = 0

    def start(self) -> None:
        """Starts the clock."""
        self.started = self.printed = time.monotonic()

    @property
    def working(self) -> float:
        """Seconds since the start without those that went into compiling."""
        return time.monotonic() - self.started - self.compiling

    def add(self, segment: Segment) -> None:
        """Counts a segment; prints at most every two seconds, and not at the end, which has a line of its own."""
        self.answers += len(segment.finished)
        self.tokens += segment.num_tokens
        self.compiling += segment.compiling
        if segment.ends:
            self.batch_ended, self.batches_done = self.working, segment.batch
        self.batches_left = segment.num_batches - self.batches_done
        if time.monotonic() - self.printed > PRINT_EVERY and self.answers < self.total:
            say("  " + "  ".join(self.parts()))
            self.printed = time.monotonic()

    def parts(self) -> list[str]:
        """The parts of a line. The time left is told from the second batch on: the first one says how long a batch takes."""
        parts = [f"{self.answers:,} of {counted(self.total, 'answer')}", self.rate]
        if self.batches_done and self.batches_left:
            left = self.batch_ended / self.batches_done * self.batches_left - (self.working - self.batch_ended)
            parts.append(f"{duration(max(left, 0))} left")
        return parts

    @property
    def rate(self) -> str:
        return f"{self.tokens / max(self.working, 1e-9):.0f} new tokens/s"
