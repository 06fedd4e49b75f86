"""The constraints on a run's configuration that no type expresses, each with the knob that resolves it."""

import dataclasses
import math

from rapo_jax.config.tree import LORA_TARGETS, Config, Data, LoraOptions, Objective, Relabel
from rapo_jax.errors import UserError, nearest
from rapo_jax.objectives import AMBIGUOUS, OBJECTIVES
from rapo_jax.relabel import TEMPLATES, template_complaint


def validate(config: Config) -> Config:
    """The constraints that no type expresses, each with the knob that resolves it."""
    config = dataclasses.replace(config, objective=resolve(config.objective, where="objective"))
    objective, data, train, optimizer = config.objective, config.data, config.train, config.optimizer
    if config.reference.cache and not objective.needs("reference"):
        raise UserError(f"objective.name={objective.name} has no reference; remove reference.cache.")
    if objective.best_goal_weight and not config.relabel.has_highest_goal:
        raise UserError(
            f"objective.best_goal_weight={objective.best_goal_weight} asks for the highest goal, but {no_highest_goal(config.relabel)}; "
            "name the goals or remove the weight."
        )
    goals = f"relabel.goals=[{', '.join(config.relabel.goals)}]"
    if len(set(config.relabel.goals)) < len(config.relabel.goals):
        raise UserError(f"{goals} names a side twice; name each once.")
    if objective.responses == "one" and "rejected" in config.relabel.goals:
        raise UserError(
            f"objective.name={objective.name} trains on one response and has no rejected one to take a goal from, but "
            f"{goals}; set relabel.goals=[chosen] (each response at its own score) or relabel.goals=[] (no goals)."
        )
    positive = {
        "data.max_length": data.max_length,
        "data.max_prompt_length": data.max_prompt_length,
        "train.batch_size": train.batch_size,
        "train.num_epochs": train.num_epochs,
        "train.log_every": train.log_every,
        "train.keep_last": train.keep_last,
        "train.max_skipped_steps": train.max_skipped_steps,
        "optimizer.eps": optimizer.eps,
        "relabel.goal_max": config.relabel.goal_max,
    } | {
        name: value
        for name, value in {
            "train.max_steps": train.max_steps,
            "train.eval_every": train.eval_every,
            "train.save_every": train.save_every,
            "train.profile_steps": train.profile_steps,
            "rows.length": config.rows.length,
            "rows.per_shard": config.rows.per_shard,
            "optimizer.max_grad_norm": optimizer.max_grad_norm,
            "lora.rank": config.lora.rank,
            "lora.alpha": config.lora.alpha,
        }.items()
        if value is not None
    }
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name}={value} must be positive and finite.")
    not_negative = {
        "seed": config.seed,
        "train.keep_best": train.keep_best,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.weight_decay": optimizer.weight_decay,
    }
    for name, value in not_negative.items():
        if not (value >= 0 and math.isfinite(value)):
            raise UserError(f"{name}={value} must be a finite number, not negative.")
    for name, value in {"optimizer.b1": optimizer.b1, "optimizer.b2": optimizer.b2}.items():
        if not 0 <= value < 1:
            raise UserError(f"{name}={value} must lie in [0, 1).")
    if not 0 <= optimizer.warmup_ratio <= 1:
        raise UserError(f"optimizer.warmup_ratio={optimizer.warmup_ratio} must lie in [0, 1].")
    if data.max_length <= data.max_prompt_length:
        raise UserError(
            f"data.max_length={data.max_length} must exceed data.max_prompt_length={data.max_prompt_length}; "
            f"raise the first or lower the second."
        )
    validate_data(data)
    validate_pairs(config)
    validate_relabel(config.relabel)
    validate_lora(config.lora)
    return config


def no_highest_goal(relabel: Relabel) -> str:
    """Why no one sentence asks for the best."""
    if not relabel.goals:
        return "relabel.goals=[]"
    return "relabel.goal_kind=directions" if relabel.goal_kind == "directions" else "relabel.template names {source}"


POSITIVE = ("beta", "temperature", "eta", "calibration", "reward_scale")
ANY_NUMBER = ("gamma", "delta", "log_z0", "reward_shift", "length_weight")


def resolve(objective: Objective, *, where: str) -> Objective:
    """The objective with its defaults filled in. Raises UserError for options that it does not read or allow."""
    name, known = objective.name, list(OBJECTIVES)
    if name in AMBIGUOUS:
        meanings = "; ".join(f"{ids} ({meaning})" for ids, meaning in AMBIGUOUS[name].items())
        raise UserError(f"{where}.name={name!r} means different things to different people; choose {meanings}.")
    if name not in OBJECTIVES:
        raise UserError(f"{where}.name={name!r} is unknown; {nearest(name, known)}")
    options = objective.options
    given = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective) if f.name not in TERM}
    unread = [f"{where}.{key}={value}" for key, value in given.items() if value is not None and key not in options]
    if unread:
        reads = ", ".join(options) or "no options"
        raise UserError(
            f"{where}.name={name} does not read {', '.join(unread)}; remove it or set it to null (it reads {reads})."
        )
    plus = tuple(resolve(term, where=f"{where}.plus[{n}]") for n, term in enumerate(objective.plus))
    objective = dataclasses.replace(objective, plus=plus, **options)
    check_options(objective, where)
    if where != "objective" and (objective.plus or objective.best_goal_weight):
        raise UserError(f"{where} is itself an added loss; it has neither plus nor best_goal_weight.")
    mixed = [term.name for term in objective.terms if OBJECTIVES[term.name].is_reward_model]
    if mixed and len(objective.terms) > 1:
        raise UserError(
            f"{where}.name={mixed[0]} trains a scalar head and cannot be added to other losses; remove plus."
        )
    return objective


TERM = ("name", "weight", "plus", "best_goal_weight")


def check_options(objective: Objective, where: str) -> None:
    for key in ("weight", "best_goal_weight", *objective.options):
        value = getattr(objective, key)
        if value is None or isinstance(value, bool):
            continue
        said = f"{where}.{key}={value}"
        if key == "label_smoothing":
            if not 0 <= value < 0.5:
                raise UserError(f"{said} must lie in [0, 0.5).")
            if value == 0 and objective.name == "exo_pair":
                raise UserError(
                    f"{said} is the weight of the rejected response, whose logarithm exo_pair takes; raise it."
                )
        elif key in POSITIVE:
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{said} must be positive and finite.")
        elif not math.isfinite(value) or (value < 0 and key not in ANY_NUMBER):
            raise UserError(f"{said} must be a finite number{', not negative' * (key not in ANY_NUMBER)}.")
    if objective.name == "discopop" and objective.temperature >= 1:
        raise UserError(
            f"{where}.temperature={objective.temperature} must be below 1 for discopop, which else overflows."
        )
    if objective.best_goal_weight and "beta" not in objective.options:
        raise UserError(
            f"{where}.best_goal_weight={objective.best_goal_weight} multiplies beta, and {objective.name} has none; use "
            "dpo or another objective with beta."
        )


def validate_data(data: Data) -> None:
    if data.path and data.sources:
        raise UserError(f"data.path={data.path} and data.sources are both set; remove one of them.")
    if data.eval_path and data.eval_fraction:
        raise UserError(f"data.eval_path and data.eval_fraction={data.eval_fraction} are both set; remove one of them.")
    if not 0 <= data.eval_fraction < 1:
        raise UserError(f"data.eval_fraction={data.eval_fraction} must lie in [0, 1).")
    if len(data.constant_rewards) != 2:
        raise UserError(f"data.constant_rewards={list(data.constant_rewards)} must be two: of chosen and of rejected.")
    for index, source in enumerate(data.sources):
        where = f"data.sources[{index}]"
        if not source.path:
            raise UserError(f"{where} has no path; add path: FILE_OR_HUB_ID.")
        for name, value in {"weight": source.weight, "max_rows": source.max_rows}.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{where}.{name}={value} must be positive and finite.")
    for name, weight in data.source_weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"data.source_weights.{name}={weight} must be a finite number, not negative.")


# Which of data.pairs an objective can use, by how many responses it compares; the first is the default.
PAIRS_FOR = {
    "one": ("auto", "each"),
    "pair": ("auto", "best_random", "best_worst", "all"),
    "labelled": ("auto", "best_random", "best_worst", "all", "each"),
    "all": ("auto",),
}


def validate_pairs(config: Config) -> None:
    wanted, pairs = config.objective.responses, config.data.pairs
    compared = {"one": "learns from one response", "pair": "compares two", "all": "compares all responses of a row"}
    if pairs not in PAIRS_FOR[wanted]:
        raise UserError(
            f"objective.name={config.objective.name} {compared[wanted]} and has no use for data.pairs={pairs}; choose one "
            f"of {', '.join(PAIRS_FOR[wanted])}."
        )


def validate_relabel(relabel: Relabel) -> None:
    scale, limits = relabel.scale, relabel.rejected_goals
    complaint = template_complaint(relabel.template, relabel.attributes)
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
    if not 0 < relabel.fraction <= 1:
        raise UserError(f"relabel.fraction={relabel.fraction} must lie in (0, 1].")
    if relabel.decimals is not None and not 0 <= relabel.decimals <= 15:
        raise UserError(f"relabel.decimals={relabel.decimals} must lie in [0, 15].")
    if None not in (limits.min, limits.max) and limits.min > limits.max:
        raise UserError(
            f"relabel.rejected_goals.min={limits.min} exceeds relabel.rejected_goals.max={limits.max}; exchange them."
        )
    if relabel.goal_kind == "directions" and len(relabel.attributes) != 2:
        raise UserError(
            f"relabel.goal_kind=directions needs two attributes, relabel.attributes=[{', '.join(relabel.attributes)}] "
            f"has {len(relabel.attributes)}; name two."
        )
    ends = {"source_min": scale.source_min, "source_max": scale.source_max}
    if scale.fit == "range" and (None in ends.values() or not scale.source_min < scale.source_max):
        raise UserError(
            f"relabel.scale.fit=range maps from relabel.scale.source_min={scale.source_min} to "
            f"relabel.scale.source_max={scale.source_max}; set both, the first less than the second."
        )
    for name, value in ends.items():
        if scale.fit != "range" and value is not None:
            raise UserError(f"relabel.scale.{name}={value} is read by relabel.scale.fit=range only, not {scale.fit}.")
    if scale.file and scale.fit != "none":
        raise UserError(
            f"relabel.scale.file={scale.file} and relabel.scale.fit={scale.fit} are both set; remove one of them."
        )
    if not 0 <= scale.quantile < 0.5:
        raise UserError(f"relabel.scale.quantile={scale.quantile} must lie in [0, 0.5).")
    if not (scale.deviations > 0 and math.isfinite(scale.deviations)):
        raise UserError(f"relabel.scale.deviations={scale.deviations} must be positive and finite.")


def validate_lora(lora: LoraOptions) -> None:
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
