"""What rounds led to, as a table on the screen and as numbers on disk."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapo_jax.borders import write_json
from rapo_jax.evaluate.bootstrap import Estimate
from rapo_jax.rounds.judging import Judged

SUMMARY = "rounds.json"


@dataclass(frozen=True)
class Row:
    """One round, 0 for the model at the start. `ties`: share of its prompts whose samples all had one score."""

    number: int
    judged: Judged
    ties: float | None = None


def write_summary(run_dir: Path, rows: Sequence[Row]) -> None:
    write_json(run_dir / SUMMARY, [dataclasses.asdict(row) for row in rows])


def table(rows: Sequence[Row]) -> str:
    """A line a round, for 80 columns; intervals hold 95 % of what drawing the prompts again would give."""
    lines = [
        f"{'':<9}{'score at the':<20}{'rank correlation':<23}{'|score':>7}{'tokens':>8}{'cut':>6}{'ties':>6}",
        f"{'':<9}{'highest goal':<20}{'of goal and score':<23}{'-goal|':>7}",
    ]
    for row in rows:
        judged = row.judged
        parts = [
            f"{'start' if not row.number else f'round {row.number}':<9}",
            f"{estimated(judged.score):<20}",
            f"{estimated(judged.follows, signed=True):<23}",
            f"{'-' if judged.error is None else f'{judged.error.value:.2f}':>7}",
            f"{judged.tokens:>8.0f}",
            f"{judged.cut:>6.0%}",
            f"{'-' if row.ties is None else f'{row.ties:.0%}':>6}",
        ]
        lines.append("".join(parts))
    lines.append(f"  {rows[0].judged.score.n:,} held-out prompts; in brackets 95 % intervals over prompts")
    return "\n".join(lines)


def estimated(estimate: Estimate | None, *, signed: bool = False) -> str:
    """A number with its interval; - for none."""
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.2f} [{estimate.low:{sign}.2f}, {estimate.high:{sign}.2f}]"
