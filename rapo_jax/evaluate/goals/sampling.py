"""Answers by model and goal, sampled by the engines of `rapo generate`, each once.

OUT/answers/MODEL-HASH/part-*.jsonl are answer files; the hash is of the weights, the prompts and how answers are drawn. A command
samples what no part has: a further goal, or more samples, cost only themselves, and one that was stopped goes on in its part.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapo_jax.borders import json_line, read_json_lines, write_json_lines
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process, on_first, say
from rapo_jax.errors import counted
from rapo_jax.evaluate.goals.asking import Asked, Drawing, Prompted
from rapo_jax.generate.answers import Request, answer_file
from rapo_jax.space import on_disk

ASKED = "asked_goal"  # a column of the answer files, beside the goal that the engine asked for
WITHOUT_GOAL = 2**32  # added to the seed of answers that are asked for nothing
Condition = float | None  # a goal, or None for nothing


@dataclass(frozen=True)
class Answer:
    """One answer: its text, its length in tokens, and whether it was cut at the longest length."""

    text: str
    tokens: int
    cut: bool


Answers = dict[Condition, list[list[Answer]]]  # [condition][prompt][sample]


@dataclass(frozen=True)
class Part:
    """What one file holds: `count` samples more than the first `have`, of every prompt under each of these conditions."""

    conditions: tuple[Condition, ...]
    have: int
    count: int

    @property
    def name(self) -> str:
        told = json.dumps([self.conditions, self.have, self.count])
        return f"part-{self.have:04d}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def answers_of(asked: Asked, prompts: Sequence[Prompted], drawing: Drawing, config: Config, *, out: Path) -> Answers:
    """All that a model is asked for. Raises Interrupted, with what was sampled in `out`, and UserError."""
    directory = out / "answers" / directory_name(asked, prompts, drawing, config)
    with on_disk(directory):
        directory.mkdir(parents=True, exist_ok=True)
    wanted: dict[Condition, int] = dict.fromkeys(asked.goals, drawing.num_samples)
    wanted |= {None: asked.plain} if asked.plain else {}
    found = kept_answers(directory, num_prompts=len(prompts))
    for part in missing(wanted, {condition: len(each[0]) for condition, each in found.items()}):
        goals = ", ".join("none" if each is None else f"{each:g}" for each in part.conditions)
        number = counted(len(part.conditions) * part.count * len(prompts), "answer")
        say(f"{asked.label}: {number}, asked for {goals} ...")
        said = answer_file(asked.model, request_of(asked, prompts, part, drawing, config, at=directory))
        say(f"{asked.label}: {said}")
    found = kept_answers(directory, num_prompts=len(prompts))
    return {condition: [each[:number] for each in found[condition]] for condition, number in wanted.items()}


def directory_name(asked: Asked, prompts: Sequence[Prompted], drawing: Drawing, config: Config) -> str:
    """Readable, and of no other weights, prompts or way of drawing."""
    server = drawing.server
    model: dict[str, Any] = (
        {"model": asked.model.name, "engine": server.access.url, "sends": server.sends}
        if server
        else {**asked.model.identity(), "dtype": config.model.dtype}
    )
    own = {"words": vars(asked.words) if asked.words else None, "rendering": vars(asked.rendering)}
    drawn = {name: getattr(drawing, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    told = json.dumps([model, own, drawn, [row_of(each) for each in prompts]], sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", asked.label).strip("-.")[-40:]
    return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def row_of(prompt: Prompted) -> dict[str, Any]:
    """A prompt as a row of a file of prompts."""
    return {"prompt": [turn.as_dict() for turn in prompt.messages]} | ({"tools": prompt.tools} if prompt.tools else {})


def missing(wanted: dict[Condition, int], known: dict[Condition, int]) -> list[Part]:
    """What has to be sampled, in as few parts as there are numbers of samples; answers without a goal in parts of their own.

    >>> missing({1.0: 2, 9.0: 2, None: 8}, {1.0: 2, None: 5})
    [Part(conditions=(9.0,), have=0, count=2), Part(conditions=(None,), have=5, count=3)]
    """
    parts: dict[tuple[bool, int, int], list[Condition]] = defaultdict(list)
    for condition, number in wanted.items():
        have = known.get(condition, 0)
        if have < number:
            parts[condition is None, have, number - have].append(condition)
    return [Part(tuple(conditions), have, count) for (_, have, count), conditions in parts.items()]


def request_of(
    asked: Asked, prompts: Sequence[Prompted], part: Part, drawing: Drawing, config: Config, *, at: Path
) -> Request:
    """The request of one part, whose file of prompts is written: every prompt under the first condition, then the next."""
    without = None in part.conditions or asked.words is not None
    path = at / f"{part.name}.prompts.jsonl"
    on_first(lambda: write_json_lines(path, rows_of(asked, prompts, part.conditions)))
    return Request(
        prompts=str(path),
        out=str(at / f"{part.name}.jsonl"),
        no_goal=without,
        any_goal=True,
        max_new_tokens=drawing.max_new_tokens,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        seed=drawing.seed + part.have + (WITHOUT_GOAL if None in part.conditions else 0),
        num_samples=part.count,
        batch_size=drawing.batch_size,
        dtype=config.model.dtype,
        chat_template=asked.rendering.chat_template,
        template_options=dict(asked.rendering.template_options or {}),
        server=drawing.server,
    )


def rows_of(asked: Asked, prompts: Sequence[Prompted], conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    rows = []
    for goal in conditions:
        for prompt in prompts:
            row = row_of(prompt)
            if goal is not None and asked.words is not None:
                row = row_of(replace(prompt, messages=asked.words.write(prompt.messages, goal)))
            elif goal is not None:
                row["goal"] = goal
            rows.append(row | {ASKED: goal})
    return rows


def kept_answers(directory: Path, *, num_prompts: int) -> Answers:
    """The answers of all parts that are whole, by condition, in the order of their samples; the first process reads them."""
    parts = each_process(on_first(lambda: [read_part(path) for path in whole_parts(directory)]))[0]
    found: Answers = {}
    for part in parts:
        by_condition: dict[Condition, list[Answer]] = defaultdict(list)
        for condition, *answer in part:
            by_condition[condition].append(Answer(*answer))
        for condition, answers in by_condition.items():
            count = len(answers) // num_prompts
            for place, each in enumerate(found.setdefault(condition, [[] for _ in range(num_prompts)])):
                each += answers[place * count : (place + 1) * count]
    return found


def read_part(path: Path) -> list[tuple[Condition, str, int, bool]]:
    rows = (row for _, row in read_json_lines(path, remedy=f"remove {path}, to have it made again"))
    return [(row[ASKED], row["response"], int(row["num_tokens"]), row["finish_reason"] == "length") for row in rows]


def whole_parts(directory: Path) -> list[Path]:
    """Answer files that are whole, those of the first samples first."""
    parts = (path for path in sorted(directory.glob("part-*.jsonl")) if not path.name.endswith(".prompts.jsonl"))
    return [path for path in parts if not path.with_name(path.name + ".partial").exists()]


def key_of(prompt: Prompted, text: str) -> str:
    """The key of a prompt and an answer, which is scored once however often it was given."""
    return hashlib.sha256(json_line([row_of(prompt), text]).encode()).hexdigest()[:24]
