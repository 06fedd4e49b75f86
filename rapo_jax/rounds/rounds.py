"""`rapo round`: the stages of every round in their order, each of which is left out where it is done."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rapo_jax.borders import write_text
from rapo_jax.chat.goal_prompt import read_goal_prompt
from rapo_jax.config.files import as_dict, load_config, to_yaml
from rapo_jax.config.rounds import Rounds
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process, on_first, say
from rapo_jax.errors import UserError
from rapo_jax.export.run import ExportOptions, export_run
from rapo_jax.locks import IN_USE
from rapo_jax.models.directory import model_directory
from rapo_jax.parallel import make_mesh
from rapo_jax.rounds.judging import Judged, judge
from rapo_jax.rounds.places import SETTINGS, Place
from rapo_jax.rounds.prompts import divide
from rapo_jax.rounds.sampling import Asking, request_of, sample, score, scored_config, spread
from rapo_jax.rounds.summary import Row, table, write_summary
from rapo_jax.runs.agreement import require_same_configuration
from rapo_jax.runs.settings import changes
from rapo_jax.runs.train import one_writer, train_or_resume
from rapo_jax.score.scorers import open_scorer
from rapo_jax.score.while_training import sample_scorer
from rapo_jax.train.journal import duration

JUDGING = 2**32  # added to the seed of answers that are judged, which are no sample that is trained on


@dataclass(frozen=True)
class Start:
    """The model that a round samples from: a directory or hub id; whether we exported it, and whether it knows goals."""

    model: str
    exported: bool
    knows_goals: bool


def run_rounds(config: Config) -> list[Row]:
    """Runs every round that is not done, and returns what each led to, the model at the start first.

    Raises UserError for what cannot be begun or gone on with, and Interrupted when a signal came and everything is saved.
    """
    require_same_configuration(config)
    refuse_what_rounds_make(config)
    run_dir = Path(config.run_dir)
    first_model(config)  # raises for what is none, as the next line for a scorer that cannot be had
    open_scorer(config, request_of(config), lambda: make_mesh(**vars(config.mesh)))
    with one_writer(run_dir):
        on_first(lambda: own(run_dir, config))
        train, held_out = run_dir / "prompts.jsonl", run_dir / "eval_prompts.jsonl"
        if not each_process(on_first(lambda: train.exists() and held_out.exists()))[0]:
            on_first(lambda: divide(config.rounds, seed=config.seed, train=train, judge=held_out))
        rows = [Row(0, judge_round(config, Place(run_dir, 0), first_model(config), prompts=held_out))]
        for number in range(1, config.rounds.num_rounds + 1):
            at = Place(run_dir, number)
            start = first_model(config) if number == 1 else trained_model(config, Place(run_dir, number - 1))
            ties = run_round(config, at, start, prompts=train)
            judged = judge_round(config, at, trained_model(config, at), prompts=held_out)
            rows.append(Row(number, judged, ties))
        on_first(lambda: write_summary(run_dir, rows))
    say(table(rows))
    return rows


def refuse_what_rounds_make(config: Config) -> None:
    """Raises UserError for settings that a round makes itself, and for those that it lacks."""
    rounds, data = config.rounds, config.data
    for key, value in {
        "run_dir": config.run_dir,
        "model.path": config.model.path,
        "rounds.prompts": rounds.prompts,
    }.items():
        if not value:
            raise UserError(f"{key} is not set; add it to CONFIG or to the command line: {key}=...")
    if not rounds.scorer:
        raise UserError(
            "rounds.scorer is not set; name what scores responses: reward_model (with rounds.scorer_model=DIR), "
            "python:MODULE:FUNCTION or command:PROGRAM."
        )
    if rounds.scorer in ("judge", "implicit"):
        raise UserError(
            f"rounds.scorer={rounds.scorer} is not one of reward_model, python:MODULE:FUNCTION and command:PROGRAM; run the stages by "
            "hand: rapo generate, rapo score, rapo train."
        )
    if (rounds.scorer == "reward_model") != bool(rounds.scorer_model):
        raise UserError("rounds.scorer=reward_model and rounds.scorer_model=DIR go together; give both, or neither.")
    if "" in rounds.stop:
        raise UserError("rounds.stop holds an empty text, which would end every response; leave it out.")
    made = {
        "data.path": data.path,
        "data.sources": data.sources,
        "data.rewards": data.rewards,
        "data.eval_path": data.eval_path,
    }
    for key, value in made.items():
        if value:
            raise UserError(
                f"{key}={value} is what a round makes itself; leave it out. rounds.prompts names the prompts."
            )
    if config.objective.is_reward_model or config.model.random_init:
        raise UserError(
            "rapo round trains models that answer; objective.name=reward_model and model.random_init=true do not lead to one."
        )
    if not config.relabel.has_highest_goal and config.relabel.goals:
        raise UserError(
            "rapo round judges models at the highest goal, and this relabel section has no single one; change it."
        )


def own(run_dir: Path, config: Config) -> None:
    """Writes the configuration into a new directory, or compares it with what is there. Raises UserError where rounds that
    are done were made with another one."""
    path = run_dir / SETTINGS
    if path.exists():
        before = load_config(path)
        if changed := changes(as_dict(before), as_dict(config), given=None):
            raise UserError(
                f"{run_dir} was begun with other settings: {', '.join(map(str, changed))}. Choose another run_dir, or give those again."
            )
    elif any(each.name != IN_USE and not each.name.startswith(".") for each in run_dir.iterdir()):
        raise UserError(
            f"run_dir={run_dir} is not empty and holds no rounds; nothing was changed. Choose another run_dir."
        )
    write_text(path, to_yaml(config))


def first_model(config: Config) -> Start:
    directory = model_directory(config.model.path, option="model.path")
    prompt = read_goal_prompt(directory)
    return Start(config.model.path, False, prompt is not None and prompt.baked is not None)


def trained_model(config: Config, at: Place) -> Start:
    return Start(str(at.model), True, bool(config.relabel.goals))


def run_round(config: Config, at: Place, start: Start, *, prompts: Path) -> float:
    """Samples, scores, trains and exports; returns the share of prompts whose responses all have one score."""
    asking = Asking(
        start.model, start.exported, prompts, **goals_of_samples(config, start), seed=config.seed + at.number
    )
    with stage(at, "sample", at.sampled.responses):
        sample(config, asking, at.sampled)
    with stage(at, "score", at.sampled.scores):
        rewards = score(config, at.sampled)
    with stage(at, "train", at.model):
        if not each_process(on_first(at.model.exists))[0]:
            train_or_resume(training(config, at, start), score=sample_scorer(config))
            export_run(at.run, at.model, options=ExportOptions())
    return sum(len(set(each)) == 1 for each in rewards) / len(rewards)


def goals_of_samples(config: Config, start: Start) -> dict:
    """The goals of a round's samples and how many there are of each."""
    rounds = config.rounds
    if rounds.goal == "none" or not start.knows_goals:
        return {"goals": (None,), "num_samples": rounds.num_samples}
    if rounds.goal == "highest":
        return {"goals": (config.relabel.goal_max,), "num_samples": rounds.num_samples}
    return {"goals": spread(config.relabel, rounds.num_samples), "num_samples": 1}


def training(config: Config, at: Place, start: Start) -> Config:
    """The configuration of a round's training run, which `rapo train` takes as well. What is kept for one run alone, if it is
    kept elsewhere, has a place for each round there."""
    told = scored_config(config, at.sampled.responses)
    cache, checkpoints = config.reference.cache, config.train.checkpoints
    return dataclasses.replace(
        told,
        run_dir=str(at.run),
        model=dataclasses.replace(
            config.model, path=start.model if config.rounds.start == "previous" else config.model.path
        ),
        data=dataclasses.replace(told.data, rewards=str(at.sampled.scores)),
        reference=dataclasses.replace(config.reference, cache=cache and f"{cache}/round-{at.number}"),
        train=dataclasses.replace(config.train, checkpoints=checkpoints and f"{checkpoints}/round-{at.number}"),
        rounds=Rounds(),
    )


def judge_round(config: Config, at: Place, model: Start, *, prompts: Path) -> Judged:
    """Judges a model at goals from the lowest to the highest, or asked for none where it knows none."""
    goals = spread(config.relabel, config.rounds.num_goals) if model.knows_goals else (None,)
    with stage(at, "judge", at.judged):
        return judge(config, at, Asking(model.model, model.exported, prompts, goals, 1, config.seed + JUDGING))


@contextmanager
def stage(at: Place, name: str, writes: Path) -> Iterator[None]:
    """Tells of a stage: that it begins and how long it took, or that what it writes is there."""
    of = f"round {at.number}: {name}" if at.number else f"start: {name}"
    if each_process(on_first(writes.exists))[0]:
        say(f"{of}: done before")
        yield
        return
    say(f"{of} ...")
    began = time.monotonic()
    yield
    say(f"{of}: {writes}, {duration(time.monotonic() - began)}")
