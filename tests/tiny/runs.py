"""Whole runs through the command line, in this process and in others, and what they leave behind."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapo_jax.checkpoint import Store
from rapo_jax.fingerprints import flat
from rapo_jax.quickstart.world import write_world
from rapo_jax.runs.setup import open_run_dir, set_up
from rapo_jax.train.optim import adamw
from rapo_jax.train.state import abstract_state
from tests.tiny.directories import write_weights

DONE, USER_ERROR, INTERRUPTED = 0, 2, 75
NUM_STEPS = 10  # of 8 pairs: more than the epoch of some 70
BETA = 0.1

CONFIG = f"""
model: {{dtype: float32, remat: none, attention: einsum}}
objective: {{beta: {BETA}}}
optimizer: {{learning_rate: 1e-3}}
rows: {{length: 128}}
train: {{batch_size: 8, max_steps: {NUM_STEPS}, save_every: 2, eval_every: 5, keep_last: 3}}
"""
CLOCKED = ("pairs_per_s", "real_tokens_per_s", "time/")
PATIENCE = 200  # seconds for anything that another process does
WITHOUT_TORCH = Path(__file__).parent / "without_torch"  # in PYTHONPATH, as tests/conftest.py has it
PROGRAM = "from rapo_jax.__main__ import start\nstart()\n"


@dataclass(frozen=True)
class World:
    """A tiny model, its data and a configuration, on disk."""

    directory: Path

    def train(self, run_dir: Path, *more: str) -> list[str]:
        """The arguments of `rapo train`."""
        files = {
            "model.path": self.directory,
            "data.path": self.directory / "pairs.jsonl",
            "data.eval_path": self.directory / "eval_pairs.jsonl",
            "run_dir": run_dir,
        }
        return ["train", str(self.directory / "run.yaml"), *(f"{key}={path}" for key, path in files.items()), *more]


def make_world(directory: Path) -> World:
    world = World(directory / "world")
    write_world(world.directory, num_pairs=38, num_conversations=1, num_eval_pairs=10, num_prompts=1)
    shape = json.loads((world.directory / "config.json").read_text())
    write_weights(world.directory, shape | {"hidden_size": 32, "head_dim": 8, "intermediate_size": 64})
    (world.directory / "run.yaml").write_text(CONFIG)
    return world


@contextmanager
def started(
    arguments: list[str], *, num_devices: int = 8, log: Path, program: tuple[str, ...] = ("-c", PROGRAM)
) -> Iterator[subprocess.Popen]:
    """A verb in a process of its own, which does not outlive the block."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"  # the last one counts
    environment = os.environ | {"XLA_FLAGS": flags}
    with log.open("w") as output:
        command = [sys.executable, *program, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen, log: Path) -> None:
    """Polls almost without pause: the moments of interest last milliseconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        ended = [process.poll() for process in processes]
        assert ended == [None] * len(ended), f"ended with {ended}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"nothing happened in {PATIENCE} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.002)


def metrics_of(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the numbers that depend on the clock."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in record.items() if not name.startswith(CLOCKED)} for record in records]


def steps_of(run_dir: Path) -> list[int]:
    """Committed checkpoints, read off the file system."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit())


def arrays_of(run_dir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    setup = set_up(open_run_dir(run_dir))
    store = Store(run_dir, writes=False)
    restored = store.restore(abstract_state(setup.spec, setup.mesh, adamw(setup.config.optimizer, setup.spec)))
    store.close()
    assert restored.step == NUM_STEPS
    return {name: np.asarray(array) for name, array in flat(restored.state).items()}


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Bit for bit: every metric of every step, and every array at the end."""
    mine, theirs = metrics_of(run_dir), metrics_of(other)
    assert [record["step"] for record in mine] == list(range(1, NUM_STEPS + 1))
    assert mine == theirs
    arrays, others = arrays_of(run_dir), arrays_of(other)
    assert arrays.keys() == others.keys()
    assert [name for name in arrays if arrays[name].tobytes() != others[name].tobytes()] == []


def assert_same_metrics(
    run_dir: Path, other: Path, *, same_rows: bool = True, exact_ties: bool = True, num_steps: int = NUM_STEPS
) -> None:
    """To 1e-6, for runs whose sums were taken in another order. Rewards are beta times differences of log-probabilities
    and cannot be more exact than these. Another number of row shards means other rows, and another share of padding. Without
    `exact_ties` rewards may differ from 0 by rounding as long as the policy is the reference (the first step and, as its
    learning rate is 0, the second), and their accuracies mean nothing."""
    mine, theirs = metrics_of(run_dir), metrics_of(other)
    assert [record["step"] for record in mine] == list(range(1, num_steps + 1)) and len(theirs) == num_steps
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        incomparable = set() if same_rows else {"real_token_fraction"}
        if a["step"] <= 2 and not exact_ties:
            incomparable |= {name for name in a if name.endswith("accuracies")}
        for name in a.keys() - incomparable:
            scale = BETA * abs(b["logps/chosen"]) if "rewards/" in name else abs(b[name])
            assert abs(a[name] - b[name]) <= 1e-6 * max(1.0, scale), f"{name} at step {a['step']}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
