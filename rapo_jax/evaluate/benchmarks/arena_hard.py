"""Arena-Hard-Auto (Li et al., "From crowdsourced data to high-quality benchmarks", 2024), versions 0.1 and 2.0: a judge compares the
answers of a model with those of a baseline, in both orders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.borders import json_line
from rapo_jax.data.files import FileRow
from rapo_jax.errors import UserError, shown
from rapo_jax.evaluate.benchmarks.benchmark import Benchmark, BenchmarkAnswer, BenchmarkQuestion, Published, Verdicts
from rapo_jax.evaluate.benchmarks.measuring import by_group, groups_of, numbered, text_of
from rapo_jax.evaluate.benchmarks.mt_bench import answer_id
from rapo_jax.evaluate.result import Result

STRONG = 3  # times that a verdict of "significantly better" counts
# What the first answer of a game (A) gets for a verdict.
SCORES = {
    "A>>B": [1.0] * STRONG, "A>B": [1.0], "A=B": [0.5], "A<B": [0.0], "A<<B": [0.0] * STRONG,
    "B>>A": [0.0] * STRONG, "B>A": [0.0], "B=A": [0.5], "B<A": [1.0], "B<<A": [1.0] * STRONG,
}  # fmt: skip
V01 = "arena-hard-v0.1"


def is_question(row: Mapping[str, Any]) -> bool:
    return "uid" in row and "prompt" in row


def question_of(row: FileRow) -> BenchmarkQuestion:
    category = row.values.get("category")
    prompt = text_of(row, "prompt")
    return BenchmarkQuestion(text_of(row, "uid"), (prompt,), category if isinstance(category, str) else "")


def answers_text(answers: Sequence[BenchmarkAnswer], model: str, time: float) -> str:
    """model_answer/NAME.jsonl. Without `metadata`, which only style control reads: its lengths are in tokens of another tokenizer,
    and the benchmark's own script counts them."""
    return "".join(
        json_line(
            {
                "uid": answer.question.id,
                "ans_id": answer_id(model, answer),
                "model": model,
                "messages": [
                    {"role": "user", "content": answer.question.turns[0]},
                    {"role": "assistant", "content": {"answer": answer.turns[0]}},
                ],
                "tstamp": time,
            }
        )
        + "\n"
        for answer in answers
    )


def advice(out: Path, name: str, questions: Sequence[BenchmarkQuestion]) -> list[str]:
    version = V01 if {question.category for question in questions} == {V01} else "arena-hard-v2.0"
    judge = f"arena-hard-auto/data/{version}"
    return [
        "git clone https://github.com/lmarena/arena-hard-auto && pip install -r arena-hard-auto/requirements.txt",
        f"cp {out} {judge}/model_answer/    # beside the baseline's, of the dataset lmarena-ai/arena-hard-auto",
        f"(cd arena-hard-auto && python gen_judgment.py --setting-file config/{version}.yaml)"
        f"    # with {name} in its model_list and the judge in config/api_config.yaml",
        f"rapo report {judge}/model_judgment/JUDGE/{name}.jsonl -o report.html",
    ]


@dataclass(frozen=True)
class Compared:
    """A row of model_judgment/JUDGE/NAME.jsonl. In the first game the baseline's answer is A, in the second the model's."""

    uid: str
    model: str
    games: list[Any]
    judge: str = "?"
    baseline: str = "the baseline"
    category: str = ""

    @property
    def scores(self) -> list[float]:
        """Of the model; [] where a game has no verdict."""
        first, second = map(verdict_of, self.games)
        return SCORES[second] + [1 - score for score in SCORES[first]] if first and second else []

    def __post_init__(self) -> None:
        if len(self.games) != 2:
            raise ValueError(f"there are {len(self.games)} games, and must be two, in both orders")
        for game in self.games:
            verdict_of(game)


def verdict_of(game: Any) -> str | None:
    """Such as "A>B"; None for a game without one. Raises ValueError for what is no game."""
    score = game.get("score") if isinstance(game, dict) else game
    if score is not None and not (isinstance(score, str) and score in SCORES):
        raise ValueError(f"{shown(score)} is no verdict; there are {', '.join(SCORES)}")
    return score


def judged(verdicts: Verdicts) -> Result:
    """Win rates with intervals over questions: the mean of what show_result.py draws from."""
    rows, measures = list(verdicts.picked(Compared)), []
    whole = [row for row in rows if row.scores]
    if not whole:
        raise UserError(f"{verdicts.path} has no question with two verdicts; judge again.")
    for (model, baseline, judge), own in groups_of(whole, lambda row: (row.model, row.baseline, row.judge)):
        prompt_N = numbered(row.uid for row in own for _ in row.scores)
        win_N = np.array([100 * score for row in own for score in row.scores])
        categories = [row.category for row in own for _ in row.scores]
        measures += by_group(f"win rate against {baseline}, %, judge {judge}", model, win_N, prompt_N, categories)
    left = len(rows) - len(whole)
    explains = "A win rate of 50 % is as good as the baseline; clear wins and losses count three times."
    explains += f" {left} questions without two verdicts are left out." * bool(left)
    return Result("Arena-Hard", explains, tuple(measures))


ARENA_HARD = Benchmark(
    name="arena_hard",
    title="Arena-Hard",
    columns="uid, category and prompt",
    published=Published("lmarena-ai/arena-hard-auto", "dataset", f"data/{V01}/question.jsonl", (500, 750)),
    suffix=".jsonl",
    named_by_file=True,
    max_new_tokens=4096,
    asks=is_question,
    read=question_of,
    temperature=lambda _: 0.0,
    write=answers_text,
    advice=advice,
    judges=lambda row: {"uid", "model", "games"} <= row.keys(),
    judged=judged,
)
