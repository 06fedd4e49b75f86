"""Where metrics go: metrics.jsonl (the record), TensorBoard, Weights & Biases if configured, and the terminal.

Only process 0 writes. A resumed run first truncates the record to the restored step, so that every step is in it once.
"""

import importlib.util
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from rapo_jax.borders import json_line, json_text, read_json_lines, write_json_lines
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, masked, shown
from rapo_jax.space import on_disk, require_space
from rapo_jax.train.samples import SampleAnswer, as_text, metrics_of
from rapo_jax.train.screen import Clock, Table, duration, table_of

SAMPLES = "samples.jsonl"
PRINT_EVERY = 2.0  # seconds between progress lines
KEPT = "Every step up to here is in it."
MUCH_FREE = 2**20  # bytes; with less, the disk is what ended the thread that writes for TensorBoard
KEPT_FREE = 2**16  # bytes of the disk, which what is written between two steps does not exceed
REMEDY = "remove the line, or move the file away; the checkpoints do not depend on it"


class Journal:
    """The log of one run. `step` counts from 1 here: the number of optimizer steps done."""

    def __init__(self, run_dir: Path, config: Config, *, num_steps: int, first_step: int):
        self.enabled = jax.process_index() == 0
        self.num_steps, self.first_step = num_steps, first_step
        self.config, self.printed = config, time.monotonic()
        self.table: Table | None = None  # its columns are known with the first metrics
        self.clock = Clock()
        if not self.enabled:
            return
        self.path = run_dir / "metrics.jsonl"
        if gap := said_of_gap(self.path, first_step, log_every=config.train.log_every):
            self.say(gap)
        cut_back(self.path, first_step)
        cut_back(run_dir / SAMPLES, first_step)
        require_space(self.path, KEPT_FREE, safe=KEPT)
        # A queue long enough for a step, because the thread that empties it may die of a full disk.
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1, max_queue=10_000)
        self.wandb = start_wandb(config, run_dir) if config.train.wandb_project else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one JSON object. Metrics of absent groups (NaN) are left out; other non-finite numbers become null."""
        if not self.enabled:
            return
        record = {"step": step} | {k: v for k, v in metrics.items() if not (math.isnan(v) and "/" in k)}
        written = {name: value if math.isfinite(value) else None for name, value in record.items()}
        require_space(self.path, KEPT_FREE, safe=KEPT)
        board = self.path.parent / "tensorboard"
        # tensorboardX has no public way to ask.
        worker: Any = self.board.file_writer.event_writer._worker  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        if not worker.is_alive():
            require_space(board, MUCH_FREE, safe=KEPT)
            raise UserError(
                f"{board} cannot be written any more. {KEPT} Look at its disk, and run the same command again."
            )
        with on_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(written) + "\n")
        for name, value in record.items():
            if name != "step" and math.isfinite(value):  # the board warns of others on the screen, twice
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(record, step=step)

    def progress(self, step: int, metrics: dict[str, float], *, pauses: float = 0.0) -> None:
        """Prints a line at most every two seconds, and always for the first and the last step.

        `pauses` are the seconds that evaluations and saves are expected to take until the end.
        """
        self.clock.saw(metrics["time/step_s"])
        now = time.monotonic()
        edge = step in (self.first_step + 1, self.num_steps)
        if not self.enabled or (now - self.printed < PRINT_EVERY and not edge):
            return
        self.printed = now
        left = self.clock.left(self.num_steps - step, pauses)
        rate = "-" if left is None and step < self.num_steps else f"{metrics['pairs_per_s']:.1f}"
        end = f"{rate:>13}{'-' if left is None else duration(left):>11}"
        self.say(self.with_header(metrics).row(step, metrics, end=end))

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Prints a line about an evaluation."""
        self.say(self.with_header(metrics).row(step, metrics, prefix="eval_", end="  held out"))

    def samples(self, step: int, answers: Sequence[SampleAnswer]) -> None:
        """Appends answers to samples.jsonl, one a line, and shows them as a text of TensorBoard."""
        if not self.enabled:
            return
        path = self.path.with_name(SAMPLES)
        lines = "".join(json_line({"step": step, **vars(answer)}) + "\n" for answer in answers)
        require_space(path, KEPT_FREE + len(lines.encode()), safe=KEPT)
        with on_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(lines)
        self.board.add_text("samples", as_text(answers), step)
        found = metrics_of(answers)
        error = found.get("samples/control_error")
        self.say(
            f"  {len(answers)} answers after step {step} in {path}"
            + (f", control error {error:.2f}" if error is not None else "")
        )

    def with_header(self, metrics: dict[str, float]) -> Table:
        """The table; prints its header before the first row."""
        if self.table is None:
            self.table = table_of(self.config, metrics, num_steps=self.num_steps)
            for line in self.table.header():
                self.say(line)
        return self.table

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def close(self) -> None:
        if self.enabled:
            with on_disk(self.path.parent / "tensorboard"):
                self.board.close()
            if self.wandb:
                self.wandb.finish()


def cut_back(path: Path, last_step: int) -> None:
    """Drops records after `last_step`, and a last line that a kill left incomplete."""
    if not path.exists():
        return
    write_json_lines(path, [record for record in records_of(path) if record["step"] <= last_step])


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl. Raises UserError for a line that is no record of a step."""
    records = []
    for number, record in read_json_lines(path, drop_torn_line=True, remedy=REMEDY):
        if type(record.get("step")) is not int:
            raise UserError(f"{path} line {number} is no record of a step: step={shown(record.get('step'))}; {REMEDY}.")
        records.append(record)
    return records


def said_of_gap(path: Path, first_step: int, *, log_every: int) -> str | None:
    """A line for the user where the record does not reach the step of the checkpoint, or there is no checkpoint to it."""
    last = max((record["step"] for record in records_of(path)), default=0) if path.exists() else 0
    if first_step == 0 and last:
        return f"{path} reaches step {last}, but there is no checkpoint: the run starts anew."
    if last < first_step - first_step % log_every:
        ends = f"ends at step {last}" if last else "is not there"
        return f"{path} {ends}, the checkpoint is of step {first_step}: the steps between are missing from it."
    return None


def last_record(run_dir: Path) -> dict[str, float]:
    """The last metrics in the record, without the step; {} where there are none."""
    path = run_dir / "metrics.jsonl"
    records = records_of(path) if path.exists() else []
    return {name: value for name, value in records[-1].items() if name != "step"} if records else {}


def require_wandb(config: Config) -> None:
    """Raises UserError where a run is to be logged to Weights & Biases, which is not installed."""
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb_project is set, but wandb is not installed: pip install 'rapo_jax[wandb]'.")


def start_wandb(config: Config, run_dir: Path):
    require_wandb(config)
    import wandb  # pyright: ignore[reportMissingImports] (optional)

    settings = json.loads(masked(json_text(as_dict(config))))
    return wandb.init(
        project=config.train.wandb_project, name=run_dir.name, dir=str(run_dir), config=settings, resume="allow"
    )
