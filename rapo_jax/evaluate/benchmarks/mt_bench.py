"""MT-Bench (Zheng et al., "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena", 2023): 80 questions of two turns, the second about
the first answer; a judge rates each answer from 1 to 10. Formats and temperatures are those of FastChat.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax.borders import json_line
from rapo_jax.data.files import FileRow
from rapo_jax.errors import UserError, shown
from rapo_jax.evaluate.benchmarks.benchmark import Benchmark, BenchmarkAnswer, BenchmarkQuestion, Published, Verdicts
from rapo_jax.evaluate.benchmarks.measuring import by_group, groups_of, numbered
from rapo_jax.evaluate.result import Result

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
OTHER_TEMPERATURE = 0.7
# The categories of the published questions, ten of each from 81 on; verdicts do not repeat them.
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST = 81
FAILED = -1  # the score of a verdict in which none was found


def is_question(row: Mapping[str, Any]) -> bool:
    turns = row.get("turns")
    return "question_id" in row and isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)


def question_of(row: FileRow) -> BenchmarkQuestion:
    number, turns, category = (row.values.get(name) for name in ("question_id", "turns", "category"))
    if type(number) is not int or not isinstance(category, str):
        raise UserError(
            f"{row.place}: question_id={shown(number)} and category={shown(category)} must be an integer and a text; take the "
            "published file."
        )
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(t, str) and t.strip() for t in turns):
        raise UserError(f"{row.place}: turns must be two texts, and is {shown(turns)}; take the published file.")
    return BenchmarkQuestion(number, tuple(turns), category)


def answers_text(answers: Sequence[BenchmarkAnswer], model: str, time: float) -> str:
    """model_answer/NAME.jsonl."""
    return "".join(
        json_line(
            {
                "question_id": answer.question.id,
                "answer_id": answer_id(model, answer),
                "model_id": model,
                "choices": [{"index": 0, "turns": list(answer.turns)}],
                "tstamp": time,
            }
        )
        + "\n"
        for answer in answers
    )


def answer_id(model: str, answer: BenchmarkAnswer) -> str:
    """An id that follows from what it names."""
    named = json.dumps([model, answer.question.id, *answer.turns])
    return hashlib.sha256(named.encode()).hexdigest()[:22]


def advice(out: Path, name: str, _: Sequence[BenchmarkQuestion]) -> list[str]:
    judge = "FastChat/fastchat/llm_judge"
    return [
        "git clone https://github.com/lm-sys/FastChat && pip install 'fschat' 'openai<1' pandas    # needs OPENAI_API_KEY",
        f"mkdir -p {judge}/data/mt_bench/model_answer && cp {out} {judge}/data/mt_bench/model_answer/",
        f"(cd {judge} && python gen_judgment.py --model-list {name} --judge-model gpt-4 --parallel 2)",
        f"rapo report {judge}/data/mt_bench/model_judgment/gpt-4_single.jsonl -o report.html",
    ]


@dataclass(frozen=True)
class Rating:
    """A row of JUDGE_single.jsonl. `judge` is the judge's name and that of its prompt."""

    question_id: int
    model: str
    score: float
    turn: int
    judge: tuple[str, ...] = ("?",)


def judged(verdicts: Verdicts) -> Result:
    """Mean scores over both turns, of each, and of each category, with intervals over questions. Those of show_result.py."""
    rows, measures = list(verdicts.picked(Rating)), []
    scored = [row for row in rows if row.score != FAILED]
    if not scored:
        raise UserError(f"{verdicts.path} has no verdict with a score; judge again.")
    for (model, judge), own in groups_of(scored, lambda row: (row.model, row.judge[0])):
        score_N, prompt_N = np.array([row.score for row in own]), numbered(row.question_id for row in own)
        quantity = f"mean score of 1 to 10, judge {judge}"
        every, *turns = by_group(quantity, model, score_N, prompt_N, [f"turn {row.turn}" for row in own])
        _, *categories = by_group(quantity, model, score_N, prompt_N, [category_of(row.question_id) for row in own])
        measures += [every, *sorted(turns, key=lambda measure: measure.where), *categories]
    left = len(rows) - len(scored)
    explains = "Means over both turns of the questions." + f" {left} verdicts without a score are left out." * bool(
        left
    )
    return Result("MT-Bench", explains, tuple(measures))


def category_of(question: int) -> str:
    """
    >>> category_of(81), category_of(160), category_of(161)
    ('writing', 'humanities', '')
    """
    place = (question - FIRST) // 10
    return CATEGORIES[place] if 0 <= place < len(CATEGORIES) else ""


MT_BENCH = Benchmark(
    name="mt_bench",
    title="MT-Bench",
    columns="question_id, category and turns",
    published=Published("lmsys/mt-bench", "space", "data/mt_bench/question.jsonl", (80,)),
    suffix=".jsonl",
    named_by_file=True,
    max_new_tokens=1024,
    asks=is_question,
    read=question_of,
    temperature=lambda question: TEMPERATURES.get(question.category, OTHER_TEMPERATURE),
    write=answers_text,
    advice=advice,
    judges=lambda row: {"question_id", "model", "score", "turn"} <= row.keys(),
    judged=judged,
)
