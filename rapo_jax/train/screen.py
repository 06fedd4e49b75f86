"""The table that a run prints on the terminal: loss, margin and accuracy by goal side, speed, and the time left.

  step     loss       margin for        accuracy for     pairs/s       left
                  chosen  rejected   chosen  rejected
 1/118   0.6931  +0.0000   +0.0000     0.00      0.00          -          -
40/118   0.6893  +0.0123   -0.0011     0.75      0.38        2.3   4 m 20 s
40/118   0.6871  +0.0150   +0.0034     0.72      0.61  held out
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rapo_jax.config.tree import Config
from rapo_jax.relabel import Side

MARGIN, ACCURACY = "rewards/margins", "rewards/accuracies"
REMEMBERED = 100  # reports whose step times estimate the time left


@dataclass(frozen=True)
class Table:
    """The columns of a run. `sides` are the goal sides that are shown apart; () shows the mean over all groups.

    A row is at most 80 characters wide while no number is extreme and there are fewer than 10,000 steps.
    """

    num_steps: int
    unit: str
    sides: tuple[Side, ...]
    compares: bool  # whether there are margins and accuracies

    def header(self) -> list[str]:
        """One line, and a second one where sides are shown apart."""
        width = 18 if self.sides else 9
        compared = f"{self._over('margin', width + 2)}{self._over('accuracy', width)}" if self.compares else ""
        lines = [f"{'step':>9}{'loss':>9}{compared}{self.unit + '/s':>13}{'left':>11}"]
        if self.compares and self.sides:
            named = "".join(f"{side:>10}" for side in self.sides) + "".join(f"{side:>9}" for side in self.sides)
            lines.append(" " * 18 + named)
        return lines

    def _over(self, name: str, width: int) -> str:
        return f"{name + ' for':^{width}}" if self.sides else f"{name:>{10 if name == 'margin' else 9}}"

    def row(self, step: int, metrics: Mapping[str, float], *, prefix: str = "", end: str) -> str:
        """A step's line; `prefix` is that of an evaluation's metrics, `end` what follows the numbers."""
        cells = [f"{f'{step}/{self.num_steps}':>9}", f"{metrics[prefix + 'loss']:9.4f}"]
        if self.compares:
            sides = [f"goal_{side}/" for side in self.sides] or [""]
            cells += [number(metrics.get(f"{prefix}{side}{MARGIN}"), "+.4f", 10) for side in sides]
            cells += [number(metrics.get(f"{prefix}{side}{ACCURACY}"), ".2f", 9) for side in sides]
        return "".join(cells) + end


def table_of(config: Config, metrics: Mapping[str, float], *, num_steps: int) -> Table:
    """The table for runs of this configuration, whose steps report `metrics`."""
    relabel, compares = config.relabel, MARGIN in metrics
    # With one side, or directions, which have no sides, the mean over all groups says it all.
    apart = len(relabel.goals) > 1 and relabel.goal_kind == "levels"
    return Table(num_steps, config.objective.unit, relabel.goals if apart and compares else (), compares)


def number(value: float | None, form: str, width: int) -> str:
    """The number, or a dash where a batch has none."""
    return f"{'-' if value is None or math.isnan(value) else format(value, form):>{width}}"


@dataclass
class Clock:
    """Estimates the time left from the median step. The first report of a run includes compilation and is left out."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    warm: bool = False

    def saw(self, seconds_per_step: float) -> None:
        if self.warm:
            self.seconds.append(seconds_per_step)
        self.warm = True

    def left(self, num_steps: int, pauses: float) -> float | None:
        """Seconds for so many more steps and for the pauses between them; None before there is an estimate."""
        return statistics.median(self.seconds) * num_steps + pauses if self.seconds else None


def duration(seconds: float) -> str:
    """45 s, 3 m 20 s, 2 h 05 m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} m"
    return f"{minutes} m {seconds:02d} s" if minutes else f"{seconds} s"
