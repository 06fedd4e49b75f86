"""The stages that the start of a round and its judging share: ask for responses, gather them by prompt, have them scored."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapo_jax.borders import read_json_lines, write_json_lines
from rapo_jax.config.tree import Columns, Config, Data, Relabel
from rapo_jax.data.values import messages
from rapo_jax.distributed import each_process, on_first
from rapo_jax.generate.answers import Request, answer_file
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel
from rapo_jax.parallel import mesh_of_replicas
from rapo_jax.rounds.places import Sampled
from rapo_jax.runs.trained import find_model
from rapo_jax.score.responses import score_records, score_source
from rapo_jax.score.scorer import ScoreRequest


@dataclass(frozen=True)
class Asking:
    """What a model is asked: every prompt of a file once for each of `goals`, a goal or None for none, `num_samples` times.

    model: a directory or hub id. `own_template` says that it was exported by us, and brings its chat template.
    """

    model: str
    own_template: bool
    prompts: Path
    goals: tuple[float | None, ...]
    num_samples: int
    seed: int

    @property
    def num_responses(self) -> int:
        """To each prompt."""
        return len(self.goals) * self.num_samples


def spread(relabel: Relabel, number: int) -> tuple[float, ...]:
    """So many goals at equal distances, the highest last; one alone is the highest.

    >>> spread(Relabel(), 4)
    (1.0, 4.0, 7.0, 10.0)
    """
    low, high = relabel.goal_min, relabel.goal_max
    return tuple(high - (high - low) * left / max(1, number - 1) for left in reversed(range(number)))


def sample(config: Config, asking: Asking, at: Sampled) -> None:
    """Writes `at.responses`, one row a prompt. Goes on where an earlier call stopped. Raises Interrupted and UserError."""
    if each_process(on_first(at.responses.exists))[0]:
        return
    rounds = config.rounds
    if not each_process(on_first(lambda: is_whole(at.samples, ".partial")))[0]:
        on_first(lambda: write_asked(at.asked, asking))
        request = Request(
            prompts=str(at.asked),
            out=str(at.samples),
            no_goal=asking.goals == (None,),
            max_new_tokens=rounds.max_new_tokens,
            max_prompt_length=rounds.max_prompt_length,
            temperature=rounds.temperature,
            top_p=rounds.top_p,
            top_k=rounds.top_k,
            min_p=rounds.min_p,
            repetition_penalty=rounds.repetition_penalty,
            stop=rounds.stop,
            seed=asking.seed,
            num_samples=asking.num_samples,
            batch_size=rounds.batch_size,
            dtype=config.model.dtype,
            chat_template=None if asking.own_template else config.data.chat_template,
            template_options={} if asking.own_template else config.data.template_options,
        )
        answer_file(model_of(asking.model), request)
    on_first(lambda: write_json_lines(at.responses, by_prompt(at.samples, asking.num_responses)))


def model_of(path: str) -> ClosedModel:
    """The model of a directory or hub id, on all devices."""
    return find_model(path, mesh=mesh_of_replicas, option="model.path")


def is_whole(file: Path, unfinished: str) -> bool:
    """Whether a file is there and nothing of what it was made from is left."""
    return file.exists() and not file.with_name(file.name + unfinished).exists()


def write_asked(path: Path, asking: Asking) -> None:
    """Every prompt once for each goal, side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    goals: list[dict[str, Any]] = [{} if goal is None else {"goal": goal} for goal in asking.goals]
    rows = (row for _, row in read_json_lines(asking.prompts))
    write_json_lines(path, (row | goal for row in rows for goal in goals))


def by_prompt(samples: Path, num_responses: int) -> Iterator[dict[str, Any]]:
    """A row a prompt, with its responses in the order of their goals and samples."""
    rows = [row for _, row in read_json_lines(samples)]
    for first in range(0, len(rows), num_responses):
        answers = rows[first : first + num_responses]
        asked = {name: answers[0][name] for name in ("prompt", "tools") if name in answers[0]}
        yield asked | {"responses": [answer["response"] for answer in answers]}


def score(config: Config, at: Sampled, *, every: bool = False) -> list[tuple[float, ...]]:
    """The rewards of `at.responses`, row by row, also written as `at.scores`. Goes on where an earlier call stopped.

    Of those that training reads, or of `every` response, also where it is empty or repeats another one.
    """
    if not each_process(on_first(lambda: is_whole(at.scores, ".unfinished")))[0]:
        told = scored_config(config, at.responses)
        if every:
            score_records(told, request_of(config), at.scores, read=lambda: records_of(at.responses))
        else:
            score_source(told, request_of(config), at.scores)
    return read_scores(at.scores)


def request_of(config: Config) -> ScoreRequest:
    return ScoreRequest(scorer=config.rounds.scorer, model=config.rounds.scorer_model)


def records_of(responses: Path) -> list[Record]:
    """Rows that `by_prompt` wrote, with all their responses."""
    return [
        Record(number, messages(row["prompt"], "prompt"), tuple(row["responses"]), None, tools=row.get("tools", ""))
        for number, row in read_json_lines(responses)
    ]


def scored_config(config: Config, path: Path) -> Config:
    """The configuration with these responses as its data, which are read without the settings of other data."""
    data = dataclasses.replace(
        config.data,
        path=str(path),
        sources=(),
        schema="lists",
        bad_rows="drop",  # of a prompt whose responses are all empty; counted and said
        columns=Columns(),
        rewards="",
        eval_path="",
        eval_rewards="",
        split=Data().split,
        revision="",
    )
    return dataclasses.replace(config, data=data)


def read_scores(path: Path) -> list[tuple[float, ...]]:
    return [tuple(map(float, row["rewards"])) for _, row in read_json_lines(path)]
