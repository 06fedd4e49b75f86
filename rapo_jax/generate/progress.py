"""How far `rapo generate` is: answers, rate and time left, without the time that went into compiling."""

import time
from dataclasses import dataclass, field

from rapo_jax.distributed import say
from rapo_jax.errors import counted
from rapo_jax.generate.engine import Drawn
from rapo_jax.train.journal import PRINT_EVERY, duration


@dataclass
class Progress:
    """Counts what an engine draws, and prints a line from time to time. `answers` of `total` were known at the start."""

    total: int
    answers: int
    tokens: int = 0
    compiling: float = 0.0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    finished: int = 0  # answers since the start
    seconds: float = 0.0  # of work until the last of them
    at_once: int = 1

    def start(self) -> None:
        """Starts the clock."""
        self.started = self.printed = time.monotonic()

    @property
    def working(self) -> float:
        """Seconds since the start without those that went into compiling."""
        return time.monotonic() - self.started - self.compiling

    def add(self, drawn: Drawn) -> None:
        """Counts what was drawn; prints at most every two seconds, and not at the end, which has a line of its own."""
        self.answers += len(drawn.samples)
        self.tokens += drawn.num_tokens
        self.compiling += drawn.compiling
        self.at_once = drawn.at_once
        if drawn.samples:
            self.finished, self.seconds = self.finished + len(drawn.samples), self.working
        if time.monotonic() - self.printed > PRINT_EVERY and self.answers < self.total:
            say("  " + "  ".join(self.parts()))
            self.printed = time.monotonic()

    def parts(self) -> list[str]:
        """The parts of a line. The time left is told once as many answers have finished as are drawn at once."""
        parts = [f"{self.answers:,} of {counted(self.total, 'answer')}", self.rate]
        if self.finished >= self.at_once:
            left = self.seconds / self.finished * (self.total - self.answers) - (self.working - self.seconds)
            parts += [f"{duration(left)} left"] * (left > 0)  # nothing can be said where it is overdue
        return parts

    @property
    def rate(self) -> str:
        return f"{self.tokens / max(self.working, 1e-9):.0f} new tokens/s"
