"""The benchmarks, and which of them a file is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapo_jax.data.files import read_rows
from rapo_jax.errors import UserError, counted
from rapo_jax.evaluate.benchmarks.alpaca_eval import ALPACA_EVAL
from rapo_jax.evaluate.benchmarks.arena_hard import ARENA_HARD
from rapo_jax.evaluate.benchmarks.benchmark import Benchmark, BenchmarkQuestion, Verdicts
from rapo_jax.evaluate.benchmarks.mt_bench import MT_BENCH
from rapo_jax.evaluate.result import Result

BENCHMARKS = {benchmark.name: benchmark for benchmark in (ALPACA_EVAL, MT_BENCH, ARENA_HARD)}


def read_questions(path: str, benchmark: Benchmark) -> list[BenchmarkQuestion]:
    """The questions of a file. Raises UserError for one of another benchmark, for ids that stand twice, and for none at all."""
    questions, places = [], {}
    for row in read_rows(path, split="eval", option="--input"):
        if not benchmark.asks(row.values):
            raise UserError(f"{row.place} {of_another(row.values, benchmark)}")
        question = benchmark.read(row)
        if question.id in places:
            raise UserError(
                f"{row.place} asks the question of {places[question.id]} again ({str(question.id)[:60]!r}), and "
                f"{benchmark.title} tells questions apart by it; remove one of the two."
            )
        places[question.id] = row.place
        questions.append(question)
    if not questions:
        raise UserError(f"{path} holds no questions; take {benchmark.published.place}.")
    return questions


def of_another(row: Mapping[str, Any], benchmark: Benchmark) -> str:
    """What is wrong with a row that is no question of a benchmark."""
    take = f"take {benchmark.published.place}"
    other = next((each for each in BENCHMARKS.values() if each.asks(row)), None)
    if other:
        return f"is a question of {other.title}; give --benchmark={other.name}, or for {benchmark.title} {take}."
    if isinstance(turns := row.get("turns"), list) and turns and isinstance(turns[0], dict):
        return f"is a question of Arena-Hard in its old format (question_id, turns); {take}."
    return (
        f"is no question of {benchmark.title}: it has {', '.join(map(str, row))}, and not {benchmark.columns}; {take}."
    )


def judge_of(row: Any) -> Benchmark | None:
    """The benchmark whose judge wrote a file that begins with this row; None for any other file."""
    if not isinstance(row, Mapping):
        return None
    return next((benchmark for benchmark in BENCHMARKS.values() if benchmark.judges(row)), None)


def read_verdicts(path: Path, benchmark: Benchmark) -> Result:
    """What a judge's file says. Raises UserError for rows that are not all of its format."""
    rows = list(read_rows(str(path), split="", option=str(path)))
    other = next((row for row in rows if not benchmark.judges(row.values)), None)
    if other:
        of_all = counted(len(rows), "row")
        raise UserError(
            f"{other.place} is no verdict of {benchmark.title}, as others of its {of_all} are; mend the file."
        )
    return benchmark.judged(Verdicts(path, rows))
