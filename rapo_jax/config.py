"""The typed tree of a run: YAML, then key=value overrides; every key checked, every default the paper's.

An unknown key is answered with the nearest known one, a wrong type with what was expected.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rapo_jax.errors import UserError, nearest
from rapo_jax.objectives import AMBIGUOUS, OBJECTIVES
from rapo_jax.relabel import SIDES, TEMPLATES, Side

Remat = Literal["none", "attention", "full"]


@dataclass(frozen=True)
class Model:
    path: str = ""  # a Hugging Face model directory, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; master weights are always float32
    remat: Remat = "full"  # what of a layer the backward pass recomputes: none, all but attention, or full
    attention: Literal["auto", "einsum", "tiles", "splash", "tokamax", "cudnn"] = "auto"  # the kernel
    random_init: bool = False  # start from random weights: model.path then needs no safetensors


@dataclass(frozen=True)
class Columns:
    """Names of the columns, where they are not the usual ones ("" = detect)."""

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    score_chosen: str = ""
    score_rejected: str = ""


@dataclass(frozen=True)
class Data:
    path: str = ""  # .jsonl, .parquet, a datasets directory, or a hub id
    eval_path: str = ""  # the same; "" = no evaluation
    split: str = "train"  # where the source has splits
    eval_split: str = "test"
    max_length: int = 1024  # tokens of prompt and one response
    max_prompt_length: int = 512  # what a prompt is shortened to, if it must be
    chat_template: str | None = None  # None = the tokenizer's own; plain, chatml, zephyr; or a .jinja file
    bad_rows: Literal["error", "drop"] = "error"
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True)
class Relabel:
    goals: tuple[Side, ...] = SIDES  # whose reward becomes a goal; [] = the plain baseline
    goal_max: float = 10.0
    template: str = "paper"  # paper, released_code, or a text with {goal}
    placement: Literal["auto", "system", "user"] = "auto"
    ties: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True)
class Objective:
    """A loss of rapo_jax/objectives.py. Options are the keyword arguments of its function; what is not given is the
    function's default, what the function does not read is refused."""

    name: str = "dpo"
    weight: float = 1.0
    plus: tuple["Objective", ...] = ()  # further losses, each with its weight, added to this one
    best_goal_weight: float = 0.0  # eta of the paper's algorithm 1: of -beta log pi(chosen | prompt, highest goal)
    beta: float | None = None
    label_smoothing: float | None = None  # dpo, robust_dpo, exo_pair, simpo
    average: bool | None = None  # ipo, cpo: per token, as TRL has them
    gamma: float | None = None  # simpo's margin
    delta: float | None = None  # slic_hf's margin
    sft_weight: float | None = None  # cpo, slic_hf, rrhf: of the chosen response's negative log-likelihood
    odds_weight: float | None = None  # orpo's lambda
    length_weight: float | None = None  # r_dpo's alpha
    penalty: float | None = None  # dpop's lambda
    shift: float | None = None  # dpo_shift's factor
    shift_end: float | None = None  # dpo_shift's factor at the last step
    temperature: float | None = None  # discopop's tau, alpha of nca and infonca
    calibration: float | None = None  # cal_dpo: 1 in the paper, 0.5 in its code
    eta: float | None = None  # rpo_*, soft_label_dpo: of the difference of rewards
    log_z0: float | None = None  # dro_pointwise
    joint: bool | None = None  # dro_pointwise: eq. 8 in place of algorithm 1
    reward_scale: float | None = None  # dro_pointwise
    reward_shift: float | None = None  # dro_pointwise
    desirable_weight: float | None = None  # kto
    undesirable_weight: float | None = None  # kto
    margin_weight: float | None = None  # bradley_terry: of the difference of rewards
    centre_weight: float | None = None  # bradley_terry

    @property
    def terms(self) -> tuple["Objective", ...]:
        """This loss and those added to it."""
        return (self, *self.plus)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss function."""
        defaults = OBJECTIVES[self.name].options
        return {key: default if getattr(self, key) is None else getattr(self, key) for key, default in defaults.items()}

    def needs(self, what: str) -> bool:
        """Whether any term needs `what`: "reference", "rewards", "prompt", "divergence" or "weight"."""
        return any(needed_by(term, what) for term in self.terms)

    @property
    def responses(self) -> str:
        """What the data has to supply for a prompt: "one" response, a "pair", "labelled" ones or "all" of them."""
        asked = {OBJECTIVES[term.name].responses for term in self.terms}
        return next(kind for kind in ("all", "labelled", "pair", "one") if kind in asked)


def needed_by(term: Objective, what: str) -> bool:
    need = getattr(OBJECTIVES[term.name], f"needs_{what}")
    return bool(getattr(term, need)) if isinstance(need, str) else need


@dataclass(frozen=True)
class Reference:
    cache: str = ""  # a directory that keeps the reference's log-probabilities; "" = they are computed in every step


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 5e-7
    warmup_ratio: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float | None = None  # the released runs had no clipping in effect
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment; the second is always float32


@dataclass(frozen=True)
class Train:
    batch_size: int = 128  # pairs (after relabelling) per optimizer step, exactly
    num_epochs: float = 1.0
    max_steps: int | None = None  # overrides num_epochs
    log_every: int = 1
    eval_every: int | None = None  # steps; None = at the end only
    save_every: int | None = None  # steps; None = at the end only
    keep_last: int = 2  # checkpoints
    keep_best: int = 1  # checkpoints by eval_loss, where there is an evaluation
    max_skipped_steps: int = 5  # consecutive steps with a non-finite gradient before the run stops
    profile_steps: int | None = None  # so many steps, once the first two are over, are traced into run_dir/profile
    wandb_project: str | None = None


@dataclass(frozen=True)
class MeshSizes:
    data: int = 1
    fsdp: int = -1  # -1 = all remaining devices
    tensor: int = 1


@dataclass(frozen=True)
class Rows:
    length: int | None = None  # tokens in a row; None = what leaves the least padding
    per_shard: int | None = None  # rows per microbatch on each row shard; None = up to 4096 tokens


@dataclass(frozen=True)
class Config:
    run_dir: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    relabel: Relabel = field(default_factory=Relabel)
    objective: Objective = field(default_factory=Objective)
    reference: Reference = field(default_factory=Reference)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    mesh: MeshSizes = field(default_factory=MeshSizes)
    rows: Rows = field(default_factory=Rows)


class StrictLoader(yaml.SafeLoader):
    """YAML without code, without duplicate keys."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = [key for key, _ in node.value if keys.count(key.value) > 1]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"{twice[-1].value} is given twice", problem_mark=twice[-1].start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """The config of a YAML file with `key.sub=value` overrides. Raises UserError naming the key, and what is expected."""
    path = Path(path)
    if not path.is_file():
        fact = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {fact}; CONFIG must be a YAML file (examples: configs/).")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8 ({error}); CONFIG must be a YAML file.") from error
    tree = parse_yaml(text, where=str(path))
    if not isinstance(tree or {}, dict):
        raise UserError(f"{path} must hold keys and values, such as `run_dir: runs/mine`; found {tree!r:.40}.")
    tree = tree or {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not an override; write key=value, such as optimizer.learning_rate=1e-6.")
        insert(tree, key.strip().split("."), parse_yaml(text, where=override))
    return validate(build(Config, tree, where=""))


def parse_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where} cannot be read as YAML: {line}{problem or str(error).splitlines()[0]}.") from error


def insert(tree: dict, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"{'.'.join(keys[: depth + 1])} is a value, it has no {keys[depth + 1]!r}.")
    tree[keys[-1]] = value


def build(cls: type, tree: Any, *, where: str) -> Any:
    """An instance of the dataclass `cls` from a dict; nested dataclasses, every leaf converted or refused."""
    if not isinstance(tree, dict):
        raise UserError(f"{where.rstrip('.')} must hold keys and values, found {tree!r}.")
    hints, leaves = typing.get_type_hints(cls), {}
    for key, value in tree.items():
        if key not in hints:
            raise UserError(f"unknown key {where}{key}; {nearest(str(key), list(hints))}")
        if dataclasses.is_dataclass(hints[key]):
            leaves[key] = build(hints[key], {} if value is None else value, where=f"{where}{key}.")
        else:
            leaves[key] = convert(value, hints[key], name=f"{where}{key}")
    return cls(**leaves)


def convert(value: Any, hint: Any, *, name: str) -> Any:
    """`value` as `hint`. YAML 1.1 reads 5e-7 as a string, so strings that spell numbers are accepted as numbers."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(value, next(o for o in options if o is not type(None)), name=name)
    if origin is Literal:
        if value not in options:
            raise UserError(f"{name}={value!r}: expected one of {', '.join(options)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            example = "{...}" if dataclasses.is_dataclass(options[0]) else ", ".join(typing.get_args(options[0]))
            raise UserError(f"{name}={value!r}: expected a list, such as [{example}].")
        if dataclasses.is_dataclass(options[0]):
            return tuple(build(options[0], item, where=f"{name}[{n}].") for n, item in enumerate(value))
        return tuple(convert(item, options[0], name=name) for item in value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise UserError(f"{name}={value!r}: expected {EXPECTED[hint]}.")


EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text (in quotes, if it looks like something else)",
}


def validate(config: Config) -> Config:
    """The constraints that no type expresses, each with the knob that resolves it."""
    config = dataclasses.replace(config, objective=resolve(config.objective, where="objective"))
    objective, data, train, optimizer = config.objective, config.data, config.train, config.optimizer
    if config.reference.cache and not objective.needs("reference"):
        raise UserError(f"objective.name={objective.name} has no reference; remove reference.cache.")
    if objective.best_goal_weight and not config.relabel.goals:
        raise UserError(
            f"objective.best_goal_weight={objective.best_goal_weight} asks for the highest goal, but relabel.goals=[]; "
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
    template = config.relabel.template
    if template not in TEMPLATES and "{goal}" not in template:
        raise UserError(
            f"relabel.template={template!r} has no {{goal}}; write one with {{goal}} or name one of: "
            f"{', '.join(TEMPLATES)}."
        )
    return config


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


def as_dict(config: Any) -> dict:
    """The resolved tree as plain dicts and lists, ready for YAML and JSON; an objective without what it does not read."""
    tree = _lists(dataclasses.asdict(config))
    if "objective" in tree:
        tree["objective"] = _read_options(tree["objective"])
    return tree


def _read_options(objective: dict) -> dict:
    plus = [_read_options(term) for term in objective["plus"]]
    objective = objective | {"plus": plus} if plus else {k: v for k, v in objective.items() if k != "plus"}
    return {key: value for key, value in objective.items() if value is not None}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def from_dict(tree: dict) -> Config:
    """The inverse of `as_dict`, for the config.yaml of a run directory."""
    return validate(build(Config, tree, where=""))
