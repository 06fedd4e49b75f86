"""The constraints on a run's configuration that no type expresses, each with the knob that resolves it."""

import dataclasses
from collections.abc import Iterator
from datetime import date
from typing import Any

from rapo_jax.borders import path_of
from rapo_jax.config.fields import description
from rapo_jax.config.objective import Objective, resolve
from rapo_jax.config.tree import LORA_TARGETS, Config, Data, LoraOptions, Relabel, ScaleFit
from rapo_jax.errors import UserError, nearest, shown
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.relabel import TEMPLATES, template_complaint


def validate(config: Config) -> Config:
    """The configuration with its objective's options filled in. Raises UserError for the first violated constraint."""
    config = dataclasses.replace(config, objective=resolved_objective(config))
    config = with_paths(config)
    check_intervals(config)
    check_objective(config)
    check_data(config.data)
    check_pairs(config)
    check_relabel(config.relabel)
    check_scale(config.relabel.scale)
    check_lora(config.lora)
    check_twins(config)
    check_stop(config)
    check_samples(config)
    return config


def check_stop(config: Config) -> None:
    train = config.train
    if train.stop_on.strip() and not train.eval_every:
        raise UserError(
            f"train.stop_on={train.stop_on} looks at evaluations, and train.eval_every is not set, so that there is one at the end only; "
            "set it."
        )
    if not train.keep_best_by.strip():
        raise UserError("train.keep_best_by is empty; name a metric, such as eval_loss, or set train.keep_best=0.")


def check_samples(config: Config) -> None:
    train = config.train
    if not train.sample_every:
        if train.sample_scorer:
            raise UserError(
                f"train.sample_scorer={train.sample_scorer} scores the answers of train.sample_every, which is not set; set it, or leave "
                "the scorer out."
            )
        return
    if config.objective.is_reward_model:
        raise UserError("train.sample_every asks for answers, and a reward model gives none; leave it out.")
    if config.mesh.context > 1:
        raise UserError(
            f"train.sample_every samples on the mesh of the run, and not on one with mesh.context={config.mesh.context}; leave it out."
        )


def resolved_objective(config: Config) -> Objective:
    """The objective with its options. A UserError also has what its loss refuses of the goals, so that both are mended in one
    go: SFT, started from a file for pairs, reads neither beta nor rejected goals."""
    try:
        return resolve(config.objective, where="objective")
    except UserError as error:
        known = all(term.name in OBJECTIVES for term in config.objective.terms)
        also = goals_complaint(config) if known else None
        if also is None:
            raise
        raise UserError(f"{error} Besides: {also}") from error


def goals_complaint(config: Config) -> str | None:
    """Why a loss on one response cannot be asked for these goals; None where it can."""
    if config.objective.responses != "one" or "rejected" not in config.relabel.goals:
        return None
    return (
        f"objective.name={config.objective.name} trains on one response and has no rejected one to take a goal from, but "
        f"relabel.goals=[{', '.join(config.relabel.goals)}]; set relabel.goals=[chosen] (each response at its own score) or "
        "relabel.goals=[] (no goals)."
    )


def with_paths(config: Config) -> Config:
    """The configuration with ~ replaced in the directories that are written to. Raises UserError for unusable paths."""

    def usable(key: str, path: str) -> str:
        found = path_of(path, said=f"{key}={shown(path)}")
        return str(found) if path.startswith("~") else path

    cache = usable("reference.cache", config.reference.cache)
    reference = dataclasses.replace(config.reference, cache=cache)
    data = dataclasses.replace(config.data, cache=usable("data.cache", config.data.cache))
    train = config.train
    if train.checkpoints and "://" not in train.checkpoints:
        train = dataclasses.replace(train, checkpoints=usable("train.checkpoints", train.checkpoints))
    run_dir = usable("run_dir", config.run_dir)
    return dataclasses.replace(config, run_dir=run_dir, reference=reference, data=data, train=train)


def check_intervals(config: Config) -> None:
    """Raises UserError for a number outside the interval that its field declares."""
    for name, value, interval in bounded(config, ""):
        if value not in interval:
            raise UserError(f"{name}={value} {interval.constraint}.")


def bounded(section: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """The dotted name, value and interval of every number of a section, except an objective's (see `resolve`)."""
    for field in dataclasses.fields(section):
        name, value, allowed = f"{where}{field.name}", getattr(section, field.name), description(field).allowed
        if isinstance(value, Objective):
            continue
        if dataclasses.is_dataclass(value):
            yield from bounded(value, f"{name}.")
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from bounded(item, f"{name}[{index}].")
        elif allowed and isinstance(value, dict):
            yield from ((f"{name}.{key}", item, allowed) for key, item in value.items())
        elif allowed and value is not None:
            yield name, value, allowed


def check_objective(config: Config) -> None:
    """Checks what an objective requires of the reference and of the goals."""
    objective, relabel = config.objective, config.relabel
    if config.reference.cache and not objective.needs("reference"):
        raise UserError(f"objective.name={objective.name} has no reference; remove reference.cache.")
    if objective.best_goal_weight and not relabel.has_highest_goal:
        raise UserError(
            f"objective.best_goal_weight={objective.best_goal_weight} asks for the highest goal, but "
            f"{no_highest_goal(relabel)}; name the goals or remove the weight."
        )
    goals = f"relabel.goals=[{', '.join(relabel.goals)}]"
    if len(set(relabel.goals)) < len(relabel.goals):
        raise UserError(f"{goals} names a side twice; name each once.")
    complaint = goals_complaint(config)
    if complaint:
        raise UserError(complaint)


def no_highest_goal(relabel: Relabel) -> str:
    """Why no single goal prompt asks for the best."""
    if not relabel.goals:
        return "relabel.goals=[]"
    return "relabel.goal_kind=directions" if relabel.goal_kind == "directions" else "relabel.template names {source}"


def check_data(data: Data) -> None:
    if data.max_length <= data.max_prompt_length:
        raise UserError(
            f"data.max_length={data.max_length} must exceed data.max_prompt_length={data.max_prompt_length}; "
            f"raise the first or lower the second."
        )
    if data.path and data.sources:
        raise UserError(f"data.path={data.path} and data.sources are both set; remove one of them.")
    if data.eval_path and data.eval_fraction:
        raise UserError(f"data.eval_path and data.eval_fraction={data.eval_fraction} are both set; remove one of them.")
    if data.date is not None and not is_day(data.date):
        raise UserError(f"data.date={data.date!r} is not a day; write it as YYYY-MM-DD, such as 2026-11-27.")
    if len(data.constant_rewards) != 2:
        raise UserError(f"data.constant_rewards={list(data.constant_rewards)} must be two: of chosen and of rejected.")
    for index, source in enumerate(data.sources):
        if not source.path:
            raise UserError(f"data.sources[{index}] has no path; add path: FILE_OR_HUB_ID.")


def is_day(text: str) -> bool:
    """Whether a text is a day as YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


# The values of data.pairs that an objective can use, by how many responses it compares; the first is the default.
PAIRS_FOR = {
    "one": ("auto", "each"),
    "pair": ("auto", "best_random", "best_worst", "all"),
    "labelled": ("auto", "best_random", "best_worst", "all", "each"),
    "all": ("auto",),
}


def check_pairs(config: Config) -> None:
    wanted, pairs = config.objective.responses, config.data.pairs
    compared = {"one": "learns from one response", "pair": "compares two", "all": "compares all responses of a row"}
    if pairs not in PAIRS_FOR[wanted]:
        raise UserError(
            f"objective.name={config.objective.name} {compared[wanted]} and has no use for data.pairs={pairs}; choose one "
            f"of {', '.join(PAIRS_FOR[wanted])}."
        )


def check_relabel(relabel: Relabel) -> None:
    limits, complaint = relabel.rejected_goals, template_complaint(relabel.template, relabel.attributes)
    if complaint:
        raise UserError(complaint)
    says_goal = relabel.attributes or relabel.template in TEMPLATES or "{goal}" in relabel.template
    if relabel.goals and not says_goal:
        raise UserError(
            f"relabel.template={relabel.template!r} has no {{goal}}, but relabel.goals=[{', '.join(relabel.goals)}]; "
            "write one with {goal} or set relabel.goals=[]."
        )
    if not relabel.goal_min < relabel.goal_max:
        raise UserError(
            f"relabel.goal_min={relabel.goal_min} must be less than relabel.goal_max={relabel.goal_max}; change one."
        )
    if limits.min is not None and limits.max is not None and limits.min > limits.max:
        raise UserError(
            f"relabel.rejected_goals.min={limits.min} exceeds relabel.rejected_goals.max={limits.max}; exchange them."
        )
    if relabel.goal_kind == "directions" and len(relabel.attributes) != 2:
        raise UserError(
            f"relabel.goal_kind=directions needs two attributes, relabel.attributes=[{', '.join(relabel.attributes)}] "
            f"has {len(relabel.attributes)}; name two."
        )


def check_scale(scale: ScaleFit) -> None:
    low, high = scale.source_min, scale.source_max
    if scale.fit == "range" and (low is None or high is None or not low < high):
        raise UserError(
            f"relabel.scale.fit=range maps from relabel.scale.source_min={low} to relabel.scale.source_max={high}; set "
            "both, the first less than the second."
        )
    for name, value in {"source_min": low, "source_max": high}.items():
        if scale.fit != "range" and value is not None:
            raise UserError(f"relabel.scale.{name}={value} is read by relabel.scale.fit=range only, not {scale.fit}.")
    if scale.file and scale.fit != "none":
        raise UserError(
            f"relabel.scale.file={scale.file} and relabel.scale.fit={scale.fit} are both set; remove one of them."
        )


def check_lora(lora: LoraOptions) -> None:
    unread = [
        f"lora.{option.name}={getattr(lora, option.name)}"
        for option in dataclasses.fields(lora)[1:]
        if lora.rank is None and getattr(lora, option.name) != option.default
    ]
    if unread:
        raise UserError(f"{', '.join(unread)} without lora.rank does nothing; set lora.rank, such as 16, or remove it.")
    for target in lora.targets:
        if target not in LORA_TARGETS:
            raise UserError(
                f"lora.targets: {target!r} is not one of {', '.join(LORA_TARGETS)}; "
                f"{nearest(target.removesuffix('_proj'), list(LORA_TARGETS))}"
            )
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        raise UserError(f"lora.targets=[{', '.join(lora.targets)}] must name at least one matrix, and each once.")


def check_twins(config: Config) -> None:
    """Raises UserError where a step cannot be filled with both goals of each of its pairs."""
    batch_size = config.train.batch_size
    if config.rows.twins == "together" and len(config.relabel.goals) > 1 and batch_size % 2:
        raise UserError(
            f"rows.twins=together fills a step two by two, but train.batch_size={batch_size} is odd; make it even, or set "
            "rows.twins=apart."
        )
