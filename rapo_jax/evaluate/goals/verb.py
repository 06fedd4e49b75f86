"""The suites `goals` and `frontier`, from models and prompts to a result: checked, then sampled, then scored, then measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rapo_jax.borders import write_json_lines
from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT
from rapo_jax.config.tree import Config
from rapo_jax.distributed import on_first, require_same, say
from rapo_jax.errors import UserError, counted
from rapo_jax.evaluate.goals.asking import Asked, GoalRequest, Prompted, ask_all, prompts_of
from rapo_jax.evaluate.goals.frontier import frontier
from rapo_jax.evaluate.goals.ratios import ratios_of
from rapo_jax.evaluate.goals.sampling import Answers, answers_of, key_of, row_of
from rapo_jax.evaluate.goals.scoring import Judge, Score, open_judges, scores_of
from rapo_jax.evaluate.goals.suite import Plain, Scored, Verdict, goals
from rapo_jax.evaluate.result import Result
from rapo_jax.opened import ClosedModel

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class GoalSuite:
    """Everything but the answers: who is asked, in the order of the table, what, and who scores."""

    request: GoalRequest
    asked: tuple[Asked, ...]
    num_knowing: int
    prompts: tuple[Prompted, ...]
    judges: tuple[Judge, ...]


def open_suite(
    models: Sequence[ClosedModel],
    labels: Sequence[str],
    request: GoalRequest,
    config: Config,
    *,
    reference: str | None,
    most: int | None,
    mesh: Callable[[], Mesh],
) -> GoalSuite:
    """Raises UserError for whatever the suite lacks, before anything is computed. `labels` are of the models, then of the
    bases."""
    knowing, compared = ask_all(models, labels, request, config)
    judges = open_judges(request, config, reference=reference, mesh=mesh)
    for judge in judges:
        for asked in knowing:
            _ = judge.scale and judge.scale(*asked.scale)  # raises for a map onto another scale
    prompts = prompts_of(request, config, most=most)
    refuse_goals(prompts)
    require_same({"the prompts of the suite goals": key_of(prompts[0], str([row_of(each) for each in prompts]))})
    return GoalSuite(request, (*knowing, *compared), len(knowing), tuple(prompts), tuple(judges))


def refuse_goals(prompts: Sequence[Prompted]) -> None:
    """Raises UserError for prompts that ask for a goal already, to which no other can be written."""
    found = [each for each in PAPER_GOAL_PROMPT.recognise(prompt.messages for prompt in prompts) if each]
    if found:
        raise UserError(
            f"{counted(len(found), 'prompt asks', 'prompts ask')} for a goal already (...{found[0][-40:]!r}), and the suite goals writes its "
            "own; give the prompts without goals."
        )


def run_suite(
    suite: GoalSuite, config: Config, *, suites: Sequence[str], reference: ClosedModel | None, out: Path
) -> list[Result]:
    """Samples, scores and measures what is not there yet. Raises Interrupted or KeyboardInterrupt with what was made in `out`."""
    number = counted(len(suite.prompts), "prompt")
    say(
        f"  data   {number}, {counted(len(suite.asked), 'model')}, scored by {' and '.join(j.name for j in suite.judges)}"
    )
    answers = [answers_of(each, suite.prompts, suite.request.drawing, config, out=out) for each in suite.asked]
    verdicts = verdicts_of(suite, answers, out=out)
    results = [goals(verdicts)] if "goals" in suites else []
    if "frontier" in suites:
        assert reference is not None  # it was refused
        told = {}
        for asked, each in zip(suite.asked, answers, strict=True):
            if asked.model is not reference or asked.words is not None:
                told[asked.label] = ratios_of(asked, each, suite.prompts, reference, config, out=out)
        (start,) = (each.label for each in suite.asked if each.model is reference and each.words is None)
        results.append(frontier(verdicts[0].models, told, reference=start))
    return results


def verdicts_of(suite: GoalSuite, answers: Sequence[Answers], *, out: Path) -> list[Verdict]:
    """What every scorer says; also writes the answers with their scores."""
    said = list(every_answer(suite.prompts, answers))
    verdicts, main = [], {}
    for judge in suite.judges:
        scores = scores_of(judge, said, out=out)
        main = main or scores
        models = [
            scored(asked, each, suite.prompts, judge, scores) for asked, each in zip(suite.asked, answers, strict=True)
        ]
        verdicts.append(Verdict(judge.name, judge.scale is not None, tuple(models), suite.num_knowing))
    on_first(lambda: write_json_lines(out / ANSWERS, answer_rows(suite, answers, main)))
    return verdicts


def every_answer(prompts: Sequence[Prompted], answers: Sequence[Answers]) -> Iterator[tuple[Prompted, str]]:
    for each in answers:
        for by_prompt in each.values():
            for prompt, samples in zip(prompts, by_prompt, strict=True):
                yield from ((prompt, sample.text) for sample in samples)


Scores = dict[tuple[Prompted, str], Score]


def scored(asked: Asked, answers: Answers, prompts: Sequence[Prompted], judge: Judge, scores: Scores) -> Scored:
    """The answers of one model as arrays."""
    scale = judge.scale(*asked.scale) if judge.scale else None

    def rows(goal: float | None, value: Callable[[Prompted, Any], float]) -> list[list[float]]:
        return [[value(p, sample) for sample in each] for p, each in zip(prompts, answers[goal], strict=True)]

    def cube(value: Callable[[Prompted, Any], float]) -> np.ndarray:
        if not asked.goals:
            return np.empty((len(prompts), 0, 1))
        return np.array([rows(goal, value) for goal in asked.goals], float).transpose(1, 0, 2)

    def score(prompt: Prompted, sample: Any) -> float:
        reward = scores[prompt, sample.text].reward
        return scale(reward) if scale else reward

    names = [each.attributes for each in scores.values()]
    common = [name for name in names[0] if all(name in each for each in names)] if asked.goals else []
    plain = None
    if asked.plain:
        plain = Plain(np.array(rows(None, score)), np.array(rows(None, lambda _, sample: float(sample.tokens))))
    return Scored(
        asked.label,
        asked.goals,
        asked.scale,
        cube(score),
        cube(lambda _, sample: sample.tokens),
        cube(lambda _, sample: sample.cut).astype(bool),
        {name: cube(lambda p, sample, name=name: scores[p, sample.text].attributes[name]) for name in common},
        plain,
    )


def answer_rows(suite: GoalSuite, answers: Sequence[Answers], scores: Scores) -> Iterator[dict[str, Any]]:
    """Every answer with its model, goal and score, as `rapo report` reads them for its slider; of those without a goal the
    first."""
    judge = suite.judges[0]
    for asked, each in zip(suite.asked, answers, strict=True):
        scale = judge.scale(*asked.scale) if judge.scale else None
        for goal, by_prompt in each.items():
            for prompt, samples in zip(suite.prompts, by_prompt, strict=True):
                for number, sample in enumerate(samples[:1] if goal is None else samples):
                    found = scores[prompt, sample.text]
                    row = {"model": asked.label, **row_of(prompt), "goal": goal, "sample": number}
                    row |= {"response": sample.text, "num_tokens": sample.tokens}
                    row |= {"score": scale(found.reward) if scale else found.reward}
                    yield row | ({"attributes": found.attributes} if found.attributes else {})
