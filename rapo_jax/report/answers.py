"""Answer files, as `rapo generate` writes them, turned round: every prompt with its answers from the lowest goal to the highest."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from rapo_jax.borders import read_json_lines
from rapo_jax.errors import UserError
from rapo_jax.intervals import is_finite

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "question")
MOST_PROMPTS, MOST_CHARACTERS = 40, 1_500_000  # of a page
REMEDY = "an answer file has one JSON object per line, as rapo generate writes it"

Goal = tuple[float, ...]  # one number, or one for each attribute; () is no goal


@dataclass(frozen=True)
class Answer:
    """One response of a model to a prompt that asked for a goal, and its score, if a judge gave one."""

    model: str
    prompt: str
    goal: Goal
    text: str
    score: float | None = None


@dataclass(frozen=True)
class AnswerFile:
    """The answers of one file. `given` is the NAME that the user gave it, or ""; `name`, what it is called."""

    given: str
    name: str
    answers: list[Answer]


@dataclass(frozen=True)
class Spectrum:
    """A prompt and what models answer from the lowest goal to the highest: answers[goal][model] are all that there are."""

    prompt: str
    goals: tuple[Goal, ...]
    answers: tuple[tuple[tuple[Answer, ...], ...], ...]


@dataclass(frozen=True)
class Gallery:
    """What a page shows of answers: the models, in order, the prompts, and how many prompts there were."""

    models: tuple[str, ...]
    spectra: tuple[Spectrum, ...]
    num_prompts: int


def read_answers(path: Path, name: str) -> list[Answer]:
    """The answers of a file; `name` is the model of rows without a column `model`. Raises UserError for other rows."""
    answers = [
        answer_of(row, name, said=f"{path} line {number}") for number, row in read_json_lines(path, remedy=REMEDY)
    ]
    if not answers:
        raise UserError(f"{path} holds no answers.")
    return answers


def by_model(files: Sequence[AnswerFile]) -> list[Answer]:
    """The answers of all files, those of different models apart: only files of one NAME are one model's.

    A NAME stands for the model in its file, or before those that its rows name where they are several. Rows of two files
    without a NAME that name one model are told apart by what the files are called. Raises UserError where that fails.
    """
    told = [(place, file, name_in(file)) for place, file in enumerate(files)]
    owners: dict[str, set[str]] = {}
    for place, file, name in told:
        for model in {name(answer.model) for answer in file.answers}:
            owners.setdefault(model, set()).add(f"NAME {file.given}" if file.given else f"file {place}")
    shared = {model for model, files_of in owners.items() if len(files_of) > 1}
    found, whose = [], {}
    for place, file, name in told:
        for answer in file.answers:
            model = name(answer.model)
            if model in shared and not file.given and model != file.name:
                model = f"{file.name}: {model}"
            owner = file.given or place
            if whose.setdefault(model, owner) != owner:
                raise UserError(f"2 answer files are of a model {model}; give each its own NAME=FILE.")
            found.append(replace(answer, model=model))
    return found


def name_in(file: AnswerFile) -> Callable[[str], str]:
    """What a model is called that rows of the file name."""
    several = len({answer.model for answer in file.answers}) > 1

    def name(model: str) -> str:
        if not file.given or model == file.given:
            return model
        return f"{file.given}: {model}" if several else file.given

    return name


def answer_of(row: dict[str, Any], name: str, *, said: str) -> Answer:
    prompt = next((row[column] for column in PROMPT_COLUMNS if column in row), None)
    if prompt is None or not isinstance(row.get("response"), str):
        raise UserError(f"{said} has no {'prompt' if prompt is None else 'text response'}; {REMEDY}.")
    goal, score, model = row.get("goal"), row.get("score"), row.get("model")
    numbers = goal if isinstance(goal, list) else [] if goal is None else [goal]
    if not all(is_finite_number(each) for each in numbers):
        raise UserError(f"{said}: goal={json.dumps(goal)[:60]} must be a number, a list of numbers, or null.")
    return Answer(
        model=model if isinstance(model, str) and model else name,
        prompt=text_of_prompt(prompt),
        goal=tuple(float(each) for each in numbers),
        text=row["response"],
        score=float(score) if score is not None and is_finite_number(score) else None,
    )


def is_finite_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def text_of_prompt(prompt: Any) -> str:
    """A prompt as a reader sees it; of several turns each with its role.

    >>> text_of_prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    'system: Be brief.\\n\\nuser: Hi'
    """
    if isinstance(prompt, str):
        return prompt
    turns = [each for each in prompt if isinstance(each, dict)] if isinstance(prompt, list) else []
    texts = [(str(turn.get("role", "")), content_of(turn.get("content"))) for turn in turns]
    if len(texts) == 1:
        return texts[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in texts) or json.dumps(prompt, ensure_ascii=False)


def content_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(each.get("text", "")) if isinstance(each, dict) else str(each) for each in content)
    return "" if content is None else str(content)


def gallery_of(answers: Sequence[Answer]) -> Gallery:
    """Prompts with the most goals first, in the order of the files; at most 40, and as many as keep a page light."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    models = tuple(dict.fromkeys(answer.model for answer in answers))
    ranked = sorted(by_prompt.values(), key=lambda found: -len({answer.goal for answer in found}))
    spectra, size = [], 0
    for found in ranked[:MOST_PROMPTS]:
        size += sum(len(answer.text) for answer in found) + len(found[0].prompt)
        if spectra and size > MOST_CHARACTERS:
            break
        spectra.append(spectrum_of(found, models))
    return Gallery(models, tuple(spectra), len(by_prompt))


def spectrum_of(answers: Sequence[Answer], models: Sequence[str]) -> Spectrum:
    """The answers to one prompt."""
    goals = sorted({answer.goal for answer in answers}, key=rank)
    at = [[tuple(a for a in answers if (a.goal, a.model) == (goal, model)) for model in models] for goal in goals]
    return Spectrum(answers[0].prompt, tuple(goals), tuple(tuple(each) for each in at))


def rank(goal: Goal) -> tuple[float, Goal]:
    """Goals from low to high: by their mean over attributes, no goal before all of them."""
    return (sum(goal) / len(goal) if goal else -math.inf), goal


def goal_label(goal: Goal) -> str:
    """
    >>> goal_label((7.0,)), goal_label((9.0, 2.5)), goal_label(())
    ('7', '9, 2.5', 'no goal')
    """
    return ", ".join(f"{each:g}" for each in goal) or "no goal"


def tree_of(gallery: Gallery) -> dict[str, Any]:
    """For the page's script: texts and scores by prompt, goal and model."""
    return {
        "models": list(gallery.models),
        "prompts": [
            {
                "text": spectrum.prompt,
                "goals": [goal_label(goal) for goal in spectrum.goals],
                "answers": [
                    [[{"text": a.text, "score": a.score} for a in by_model] for by_model in by_goal]
                    for by_goal in spectrum.answers
                ],
            }
            for spectrum in gallery.spectra
        ],
    }


def json_for_page(text: str) -> str:
    """A JSON text that may stand inside a script element: what could end the element, or begin a comment, is escaped."""
    return re.sub(r"[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def mean_scores(answers: Iterable[Answer]) -> dict[str, dict[Goal, list[float]]]:
    """The scores by model and goal."""
    found: dict[str, dict[Goal, list[float]]] = {}
    for answer in answers:
        if answer.score is not None:
            found.setdefault(answer.model, {}).setdefault(answer.goal, []).append(answer.score)
    return found
