"""AlpacaEval (Dubois et al., "Length-controlled AlpacaEval", 2024): 805 instructions; the answers of a model against those of another,
by a judge that says how probable it is that it prefers the model's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.borders import json_text
from rapo_jax.data.files import FileRow, read_rows
from rapo_jax.errors import UserError
from rapo_jax.evaluate.benchmarks.benchmark import Benchmark, BenchmarkAnswer, BenchmarkQuestion, Published, Verdicts
from rapo_jax.evaluate.benchmarks.measuring import by_group, groups_of, numbered, text_of
from rapo_jax.evaluate.bootstrap import Estimate, mean_of
from rapo_jax.evaluate.result import Measure, Result

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
NORMAL = 1.959964  # standard errors in half of a 95 % interval


def is_question(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "preference" not in row


def question_of(row: FileRow) -> BenchmarkQuestion:
    instruction = text_of(row, "instruction")
    dataset = text_of(row, "dataset") if row.values.get("dataset") is not None else ""
    return BenchmarkQuestion(instruction, (instruction,), dataset=dataset)


def answers_text(answers: Sequence[BenchmarkAnswer], model: str, _: float) -> str:
    """model_outputs.json: a list of objects. AlpacaEval finds an answer's reference by the text of the instruction."""
    return json_text(
        [
            {"instruction": answer.question.turns[0], "output": answer.turns[0], "generator": model}
            | ({"dataset": answer.question.dataset} if answer.question.dataset else {})
            for answer in answers
        ]
    )


def advice(out: Path, name: str, _: Sequence[BenchmarkQuestion]) -> list[str]:
    """The default annotator is GPT-4 Turbo, as on the leaderboard; results lie in a directory that is named after it."""
    verdicts = out.parent / f"judged-{name}"
    return [
        "pip install alpaca-eval    # needs OPENAI_API_KEY, and the hub for length-controlled win rates",
        f"alpaca_eval --model_outputs {out} --annotators_config {ANNOTATOR} --output_path {verdicts}",
        f"rapo report {verdicts / ANNOTATOR / 'annotations.json'} -o report.html",
    ]


@dataclass(frozen=True)
class Annotation:
    """A row of annotations.json. `preference` is 1 for the reference (generator_1), 2 for the model, 1.5 and 0 for neither, anything
    between where the judge is not sure, null where it failed."""

    instruction: str
    generator_1: str
    generator_2: str
    output_2: str
    preference: float | None
    dataset: str = ""
    annotator: str = "?"

    @property
    def win(self) -> float:
        """The probability that the model's answer is preferred."""
        if self.preference is None:
            return math.nan
        return 0.5 if self.preference == 0 else self.preference - 1

    def __post_init__(self) -> None:
        if self.preference is not None and not (self.preference == 0 or 1 <= self.preference <= 2):
            raise ValueError(f"preference={self.preference:g} is neither 0 nor between 1 and 2")


def judged(verdicts: Verdicts) -> Result:
    """Win rates with intervals over instructions, and mean lengths. Length-controlled win rates are those of the leaderboard.csv
    beside the file, where it has any: they cannot be had from these verdicts alone."""
    rows, measures = list(verdicts.picked(Annotation)), []
    for (model, reference, judge), own in groups_of(
        rows, lambda row: (row.generator_2, row.generator_1, row.annotator)
    ):
        prompt_N = numbered(row.instruction for row in own)
        win_N = np.array([100 * row.win for row in own])
        quantity = f"win rate against {reference}, %, judge {judge}"
        every, *datasets = by_group(quantity, model, win_N, prompt_N, [row.dataset for row in own])
        controlled = length_controlled(verdicts.path, model, n=every.estimate.n)
        said = f"length-controlled {quantity}, as AlpacaEval computed it"
        measures += [every, *datasets, *([Measure(said, model, controlled)] if controlled else [])]
        length_N = np.array([float(len(row.output_2)) for row in own])
        measures.append(Measure("mean length of an answer, characters", model, mean_of(length_N, prompt_N)))
    failed = sum(row.preference is None for row in rows)
    explains = (
        "A win rate of 50 % is as good as the reference; judges prefer long answers, which length control corrects."
    )
    return Result(
        "AlpacaEval", explains + f" {failed} verdicts that failed are left out." * bool(failed), tuple(measures)
    )


def length_controlled(path: Path, model: str, *, n: int) -> Estimate | None:
    """Of the leaderboard.csv beside annotations.json: the value with the interval of its standard error."""
    board = path.with_name("leaderboard.csv")
    if not board.is_file():
        return None
    for value, error in leaderboard(board, model):
        return Estimate(value, value - NORMAL * error, value + NORMAL * error, n)
    return None


def leaderboard(board: Path, model: str) -> Iterator[tuple[float, float]]:
    """(length-controlled win rate, its standard error) of the model, if they are there. Its first column has no name."""
    for row in read_rows(str(board), split="", option="leaderboard.csv"):
        value, error = row.values.get("length_controlled_winrate"), row.values.get("lc_standard_error")
        if str(row.values.get("")) == model and value is not None:
            if not (isinstance(value, float) and isinstance(error, float)):
                raise UserError(
                    f"{row.place}: a length-controlled win rate is no number; remove {board.name}, or mend it."
                )
            yield value, error


ALPACA_EVAL = Benchmark(
    name="alpaca_eval",
    title="AlpacaEval",
    columns="instruction (and dataset)",
    published=Published("tatsu-lab/alpaca_eval", "dataset", "alpaca_eval.json", (805,)),
    suffix=".json",
    named_by_file=False,
    max_new_tokens=2048,
    asks=is_question,
    read=question_of,
    temperature=lambda _: 0.0,
    write=answers_text,
    advice=advice,
    judges=lambda row: "preference" in row and "instruction" in row,
    judged=judged,
)
