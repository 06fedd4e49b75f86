"""How the driver and its workers take turns: JSON lines on pipes, so that only one of the loaded processes computes.

A worker trains `--steps` optimizer steps on the batch of a prepared directory (see prepare.py). The first step compiles and
warms up without waiting; each later one waits for a line on stdin. After each step the worker answers with one line of
wall-clock seconds, processor seconds and its own figures. Standard library only, so that every worker can run in the
environment of the trainer that it measures.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path


class Turns:
    """`begin` waits for the driver and starts the clock, `end` stops it, `answer` sends the figures."""

    def __init__(self):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # keep library output away from the driver
        self.first = True

    def begin(self) -> None:
        if not self.first and not sys.stdin.readline():
            sys.exit(0)
        self.first = False
        self.started = time.perf_counter(), os.times()

    def end(self) -> None:
        (started, before), after = self.started, os.times()
        self.times = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": after.user - before.user + after.system - before.system,
            "of_these_in_the_kernel": after.system - before.system,
        }

    def answer(self, **figures) -> None:
        peak = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        self.answers.write(json.dumps(self.times | peak | figures) + "\n")
        self.answers.flush()


def worker_parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="written by prepare.py")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps including the warm-up")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of matrix products")
    return parser


def settings(directory: Path) -> dict:
    """Settings shared by all systems: beta, learning_rate, and AdamW's b1, b2, eps."""
    return json.loads((directory / "settings.json").read_text())


def pairs(directory: Path) -> list[dict]:
    """The optimizer batch: token ids of `prompt`, `chosen` and `rejected`, already truncated to max_length."""
    return [json.loads(line) for line in (directory / "batch.jsonl").read_text().splitlines()]


def lengths(directory: Path) -> list[list[int]]:
    """Token counts of prompt, chosen and rejected for every pair of the data."""
    return json.loads((directory / "lengths.json").read_text())


def by_length(rows: list[dict]) -> list[dict]:
    """Longest padded pair first, so that pairs of similar length are padded together."""
    return sorted(rows, key=lambda row: -len(row["prompt"]) - max(len(row["chosen"]), len(row["rejected"])))
