"""The directory of `rapo round`, and what stands in it.

RUN_DIR/rounds.yaml             the configuration
RUN_DIR/prompts.jsonl           prompts that are trained on
RUN_DIR/eval_prompts.jsonl      prompts that every round is judged by
RUN_DIR/round-0/judged.json     the model at the start, judged
RUN_DIR/round-1/                the first round:
    asked.jsonl                 every prompt as it was sampled from, with its goal
    samples.jsonl               a response a row, as `rapo generate` writes them
    responses.jsonl             a prompt a row, with all its responses: what is scored and trained on
    scores.jsonl, scores.json   their rewards, as `rapo score` writes them
    run/                        the training run
    model/                      its export, the start of the next round
    judged/                     the answers of this model to eval_prompts.jsonl, and their scores
    judged.json                 what they say
"""

from dataclasses import dataclass
from pathlib import Path

SETTINGS = "rounds.yaml"


@dataclass(frozen=True)
class Sampled:
    """The files of one sampling: in `directory`."""

    directory: Path

    @property
    def asked(self) -> Path:
        return self.directory / "asked.jsonl"

    @property
    def samples(self) -> Path:
        return self.directory / "samples.jsonl"

    @property
    def responses(self) -> Path:
        return self.directory / "responses.jsonl"

    @property
    def scores(self) -> Path:
        return self.directory / "scores.jsonl"


@dataclass(frozen=True)
class Place:
    """The directory of one round; number 0 is the model at the start."""

    run_dir: Path
    number: int

    @property
    def directory(self) -> Path:
        return self.run_dir / f"round-{self.number}"

    @property
    def sampled(self) -> Sampled:
        return Sampled(self.directory)

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def answered(self) -> Sampled:
        return Sampled(self.directory / "judged")

    @property
    def judged(self) -> Path:
        return self.directory / "judged.json"
