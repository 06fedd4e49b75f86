"""`rapo answers`: a benchmark's questions become an answer file in its own format. Sampling is that of rapo_jax/generate.

The answers to each turn are kept in a store of their own beside OUT as they end, so that a repeated command samples nothing
twice: what the second turn's store belongs to includes the answers to the first.
"""

import hashlib
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapo_jax import __version__
from rapo_jax.borders import json_line, write_json, write_text
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.data.files import FileRow
from rapo_jax.distributed import each_process, on_first, say
from rapo_jax.errors import UserError, counted, first_line
from rapo_jax.evaluate.benchmarks.benchmark import Benchmark, BenchmarkAnswer, BenchmarkQuestion
from rapo_jax.evaluate.benchmarks.registry import read_questions
from rapo_jax.generate.answers import (
    Request,
    answer_rows,
    day_to_write,
    drawn_into,
    open_to_answer,
    own_engine,
    prepare,
    refuse_output,
)
from rapo_jax.generate.asked import LIMITS
from rapo_jax.generate.engine import Engine
from rapo_jax.generate.prompts import Prompt
from rapo_jax.messages import Message
from rapo_jax.models.spec import require_vocabulary
from rapo_jax.opened import ClosedModel, OpenedTokenizer
from rapo_jax.relabel import format_score

Row = dict[str, Any]  # of an answer file of `rapo generate`
RECORD = ".about.json"  # in place of OUT's ending: how the answers were drawn, and how long they are


@dataclass(frozen=True)
class Examination:
    """A model that answers a benchmark. Answers are kept at `kept` until they are written; `day` is what chat templates write for
    today's date."""

    model: ClosedModel
    opened: OpenedTokenizer
    benchmark: Benchmark
    questions: Sequence[BenchmarkQuestion]
    request: Request
    name: str
    kept: Path
    day: str

    @property
    def num_turns(self) -> int:
        return len(self.questions[0].turns)

    def store(self, turn: int) -> Path:
        return self.kept if turn == 0 else self.kept.with_name(f"{self.kept.name}-{turn + 1}")


def answer_benchmark(model: ClosedModel, benchmark: Benchmark, request: Request, *, name: str = "") -> str:
    """Writes request.out, and a record beside it; returns what came of it and the commands of the judge.

    `request.prompts` are the benchmark's questions; "" fetches the published ones. Without a goal the highest is asked for, of a
    model that asks for goals. Raises Interrupted with the answers so far kept beside OUT, and UserError.
    """
    asks = open_examination(model, benchmark, request, name=name)
    with ExitStack() as stack:  # the stores stay closed to other processes until the answers are written
        turns, rate = sampled_turns(asks, stack)
        on_first(lambda: write(asks, turns))
    said = [summary(asks, turns, rate), "  to have them judged:"]
    commands = benchmark.advice(Path(request.out), asks.name, asks.questions)
    return "\n".join([*said, *(f"    {command}" for command in commands)])


def open_examination(model: ClosedModel, benchmark: Benchmark, request: Request, *, name: str) -> Examination:
    """Reads the questions and the model's tokenizer. Raises UserError for whatever does not fit."""
    out, published = Path(request.out), benchmark.published
    name, kept = name_of(benchmark, out, name), out.with_name(out.name + ".partial")
    on_first(lambda: refuse_output(out, goes_on=kept.exists()))
    path = request.prompts or each_process(on_first(lambda: published_file(benchmark)))[0]
    questions = read_questions(path, benchmark)
    if len(questions) not in published.questions:
        known = " or ".join(map(str, published.questions))
        say(f"  note   {path} has {counted(len(questions), 'question')}; the published file has {known}")
    require_vocabulary(model.spec, path=model.name)
    day = day_to_write(kept)
    opened = open_to_answer(model, request, day=day)
    goal = goal_to_ask(opened.goal_prompt, request, model.name)
    most = request.max_new_tokens or benchmark.max_new_tokens
    request = replace(request, prompts=path, goal=goal, max_new_tokens=most)
    return Examination(model, opened, benchmark, questions, request, name, kept, day)


def name_of(benchmark: Benchmark, out: Path, name: str) -> str:
    """What the judge calls the model: `name`, or what the file is called, or the directory of one that is called model_outputs.

    Raises UserError for a file or a name that the benchmark would not find.
    """
    if out.suffix != benchmark.suffix:
        raise UserError(
            f"--out={out}: {benchmark.title} reads files that end in {benchmark.suffix}; give it that ending."
        )
    if benchmark.named_by_file and name not in ("", out.stem):
        raise UserError(
            f"--name={name}: {benchmark.title} calls a model as its file is called, {out.stem}; call the file "
            f"{name}{benchmark.suffix}, or leave --name out."
        )
    return name or (out.resolve().parent.name if out.stem == "model_outputs" else out.stem)


def published_file(benchmark: Benchmark) -> str:
    """The published questions, from the hub. Raises UserError that says what to fetch."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.logging import set_verbosity_error

    published = benchmark.published
    say(f"  note   fetching {published.place}; --input names a file in its place")
    set_verbosity_error()  # of what it tries again
    try:
        return hf_hub_download(published.repository, published.file, repo_type=published.kind)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"the questions of {benchmark.title} cannot be fetched from the hub ({type(error).__name__}: {first_line(error)}); "
            f"fetch {published.place} where you can, and give the file with --input FILE."
        ) from error


def goal_to_ask(prompt: GoalPrompt, request: Request, model: str) -> float | None:
    """The goal of the request, else the highest, of a model that asks for one by itself."""
    if request.goal is not None or request.no_goal:
        return request.goal
    if prompt.baked is None:
        say(f"  note   {model} asks for no goal by itself, and is asked for none; --goal G asks for one")
        return None
    return prompt.goal_max


def sampled_turns(asks: Examination, stack: ExitStack) -> tuple[list[list[Row]], str]:
    """The answers to each turn of all questions, and a line about the speed of the last. Stores are open as long as `stack` is."""
    engines: list[Engine] = []

    def engine(job) -> Engine:
        engines[:] = engines or [own_engine(job, asks.request)]  # weights are read once
        return engines[0]

    turns, rate = [], ""
    for turn in range(asks.num_turns):
        job = prepare(asks.model, asks.opened, prompts_of(asks, turns), asks.request)
        answers = stack.enter_context(drawn_into(asks.store(turn), job, asks.request, day=asks.day))
        on_first(lambda a=answers: refuse_output(Path(asks.request.out), goes_on=a.complete))
        if asks.num_turns > 1 and not answers.complete:
            say(f"turn {turn + 1} of {asks.num_turns}")
        answers.fill(lambda job=job: engine(job))
        rows = on_first(lambda a=answers: answer_rows(a.job, a.store, num_samples=1) if a.store else None)
        turns.append(each_process(rows)[0])
        rate = answers.progress.rate
    return turns, rate


def prompts_of(asks: Examination, turns: Sequence[Sequence[Row]]) -> list[Prompt]:
    """The prompts of the next turn: what was asked and answered in `turns`, and what is asked now."""
    prompts = []
    for number, question in enumerate(asks.questions):
        said = [Message("user", question.turns[0])]
        for rows, asked in zip(turns, question.turns[1:], strict=False):
            said += [Message("assistant", rows[number]["response"]), Message("user", asked)]
        row = FileRow(number + 1, f"question {number + 1}", {"temperature": asks.benchmark.temperature(question)})
        prompts.append(Prompt(row, {}, tuple(said)))
    return prompts


def write(asks: Examination, turns: Sequence[Sequence[Row]]) -> None:
    """The answer file, the record beside it; what was kept is removed."""
    out, told = Path(asks.request.out), zip(asks.questions, *turns, strict=True)
    answers = [BenchmarkAnswer(question, tuple(row["response"] for row in rows)) for question, *rows in told]
    write_json(out.with_suffix(RECORD), record(asks, turns))
    write_text(out, asks.benchmark.write(answers, asks.name, time.time()))
    for turn in range(asks.num_turns):
        asks.store(turn).unlink()


def record(asks: Examination, turns: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """How the answers were drawn, and how long they are, for JSON."""
    request, every = asks.request, [row for rows in turns for row in rows]
    settings = [{name: row[name] for name in (*LIMITS, "stop") if name in row} for row in every]
    return {
        "made_by": f"rapo_jax {__version__}",
        "benchmark": asks.benchmark.title,
        "name": asks.name,
        "model": asks.model.name,
        "questions": {"path": request.prompts, "number": len(asks.questions), "sha256": digest(asks.questions)},
        "goal": request.goal,
        "goal_sentence": asks.opened.goal_prompt.sentence(request.goal),
        "max_new_tokens": request.max_new_tokens,
        "sampling": list({json_line(each): each for each in settings}.values()),  # of any of the questions
        "turns": [lengths(rows) for rows in turns],
    }


def digest(questions: Sequence[BenchmarkQuestion]) -> str:
    """Of ids and texts, in their order."""
    return hashlib.sha256(repr([(each.id, each.turns) for each in questions]).encode()).hexdigest()


def lengths(rows: Sequence[Row]) -> dict[str, float | int]:
    return {
        "mean_characters": statistics.fmean(len(row["response"]) for row in rows),
        "mean_tokens": statistics.fmean(row["num_tokens"] for row in rows),
        "cut_at_max_new_tokens": sum(row["finish_reason"] == "length" for row in rows),
        "empty": sum(not row["response"].strip() for row in rows),
    }


def summary(asks: Examination, turns: Sequence[Sequence[Row]], rate: str) -> str:
    """What was written, how long the answers are, and what may be wrong with them."""
    every = lengths([row for rows in turns for row in rows])
    goal = "no goal" if asks.request.goal is None else f"goal {format_score(asks.request.goal)}"
    of_turns = f" of {asks.num_turns} turns" if asks.num_turns > 1 else ""
    lines = [
        f"{asks.request.out}: {counted(len(asks.questions), 'answer')}{of_turns} of {asks.name}, {goal}, {rate}",
        f"  an answer has {every['mean_characters']:,.0f} characters, {every['mean_tokens']:,.0f} tokens in the mean",
    ]
    if every["cut_at_max_new_tokens"]:
        most = asks.request.max_new_tokens
        lines.append(f"  note   {every['cut_at_max_new_tokens']:,} were cut at --max-new-tokens={most}")
    if every["empty"]:
        lines.append(f"  note   {every['empty']:,} are empty")
    return "\n".join(lines)
