"""Intervals of numbers, in which configuration fields and loss options declare the values that they allow."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The finite numbers between `low` and `high`; each end belongs to it unless it is open.

    `because` gives the reason for the ends, for the error about a number outside.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    because: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return is_finite(value) and above and below

    def __str__(self) -> str:
        """Short, for tables: > 0, >= 0, [0, 0.5); empty for all finite numbers."""
        if math.isinf(self.high):
            return "" if math.isinf(self.low) else f"{'>' if self.low_open else '>='} {self.low:g}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    @property
    def constraint(self) -> str:
        """The rest of a sentence that begins with the value: `must be positive and finite`."""
        if self.low == 0 and math.isinf(self.high):
            said = "must be positive and finite" if self.low_open else "must be a finite number, not negative"
        elif math.isinf(self.high):
            said = "must be a finite number" if math.isinf(self.low) else f"must be {self} and finite"
        else:
            said = f"must lie in {self}"
        return f"{said}: {self.because}" if self.because else said


def is_finite(value: float) -> bool:
    """Whether it is finite as a float, which an integer above 1e308 is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


LARGEST = 3.4028234663852886e38  # of float32, in which rewards and weights are trained with
FINITE = Interval()
POSITIVE = Interval(0, low_open=True)
NOT_NEGATIVE = Interval(0)
UNIT = Interval(0, 1)
