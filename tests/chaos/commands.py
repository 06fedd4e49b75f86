"""A tiny world, the commands of `rapo` in it, and what they leave behind, to be compared byte by byte."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny import runs
from tests.tiny.runs import free_port

LIMIT = 600  # seconds for any command: what takes longer hangs
# Processes wait five minutes for one that was killed before it joined; here, less than what the survivors are given.
PROGRAM = runs.PROGRAM.replace(
    "start()\n", "from rapo_jax import distributed; distributed.JOIN_SECONDS = 40\nstart()\n"
)


@dataclass(frozen=True)
class Command:
    """A verb with its arguments and the paths that it writes, which `{out}` in the arguments stands for the directory of."""

    name: str
    arguments: list[str]
    processes: int = 1

    def into(self, out: Path) -> list[str]:
        return [argument.replace("{out}", str(out)) for argument in self.arguments]


@dataclass
class Ended:
    """How the processes of a command ended: exit codes, what they printed, and seconds from start (or kill) to the end."""

    codes: list[int]
    said: list[str]
    seconds: float
    killed: int | None = None

    def last_line(self, process: int) -> str:
        return (self.said[process].strip().splitlines() or ["nothing"])[-1]


def environment(cache: Path) -> dict[str, str]:
    """Small, quick to compile, and with compiled programs kept between commands."""
    return os.environ | {
        "PYTHONPATH": f"{runs.WITHOUT_TORCH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@contextmanager
def running(
    command: list[list[str]], *, log: Path, cache: Path, programs: Sequence[str] = (PROGRAM,) * 2
) -> Iterator[list[subprocess.Popen]]:
    """Starts one process for each list of arguments; they know each other if there are several."""
    port, started = free_port(), []
    try:
        for index, arguments in enumerate(command):
            pod = [
                "--coordinator",
                f"127.0.0.1:{port}",
                "--num-processes",
                str(len(command)),
                "--process-id",
                str(index),
            ]
            joined = [*arguments, *(pod if len(command) > 1 else [])]
            devices = [] if arguments[0] == "relabel" else ["--cpu-devices", str(2 // len(command))]
            with log.with_name(f"{log.name}-{index}").open("w") as output:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-c", programs[index], *joined, *devices],
                        env=environment(cache),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(
    command: list[list[str]], *, log: Path, cache: Path, kill: tuple[int, float] | None = None, **more: Any
) -> Ended:
    """Runs to the end; with `kill`, kills one of the processes after so many seconds."""
    started = time.monotonic()
    with running(command, log=log, cache=cache, **more) as processes:
        if kill:
            victim, after = kill
            while time.monotonic() - started < after and any(process.poll() is None for process in processes):
                time.sleep(0.01)
            processes[victim].kill()
            started = time.monotonic()
        codes = [process.wait(LIMIT) for process in processes]
    said = [log.with_name(f"{log.name}-{index}").read_text() for index in range(len(command))]
    return Ended(codes, said, time.monotonic() - started, kill[0] if kill else None)


def commands_of(world: runs.World, finished: Path, exported: Path) -> list[Command]:
    """Every verb that writes, in one process and in two; `finished` is a complete run and `exported` its export."""
    files = [f"model.path={world.directory}", f"data.path={world.directory / 'pairs.jsonl'}"]
    few = ["train.max_steps=6", "train.save_every=2", "data.eval_path=null"]  # a whole run without its evaluations
    train = [*world.train(Path("{out}/run")), "reference.cache={out}/run/cache", *few]
    score = ["score", str(world.directory / "run.yaml"), *files, "--model", str(exported), "--out", "{out}/out.jsonl"]
    relabel = ["relabel", str(world.directory / "run.yaml"), *files, "--out", "{out}/out.jsonl"]
    prompts = str(world.directory / "prompts.jsonl")
    generate = ["generate", str(exported), "--prompts", prompts, "--out", "{out}/out.jsonl", "--max-new-tokens", "16"]
    export = ["export", str(finished), "{out}/model"]
    return [
        *(Command("train", train, n) for n in (1, 2)),
        *(Command("export", export, n) for n in (1, 2)),
        *(Command("score", score, n) for n in (1, 2)),
        Command("relabel", relabel),
        *(Command("generate", [*generate, "--batch-size", "4", "--temperature", "1"], n) for n in (1, 2)),
    ]


def digests(out: Path) -> dict[str, str]:
    """What a command left: SHA-256 by file; of a run, what does not depend on the clock or on who wrote which part."""
    run_dir, found = out / "run", {}
    if run_dir.exists():
        found["metrics"] = json.dumps(runs.metrics_of(run_dir))
        found["steps"] = str(runs.steps_of(run_dir))
        newest = run_dir / "checkpoints" / str(runs.steps_of(run_dir)[-1])
        meta = json.loads(next((newest / "meta").glob("*data*")).read_text())
        found["arrays"] = json.dumps(meta["fingerprint"], sort_keys=True)
        found["names"] = str(sorted(path.name for path in run_dir.iterdir()))
        found["checkpoints"] = str(sorted(path.name for path in (run_dir / "checkpoints").iterdir()))
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out).parts
        if path.is_file() and (inside[0] != "run" or inside[1] == "cache"):
            found["/".join(inside)] = path.read_bytes().hex() if path.stat().st_size < 200 else sha256(path)
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
