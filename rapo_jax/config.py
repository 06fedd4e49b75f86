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
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.relabel import SIDES, TEMPLATES, Side

Remat = Literal["none", "attention", "full"]
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Model:
    path: str = ""  # a Hugging Face model directory, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; master weights are always float32
    remat: Remat = "full"  # what of a layer the backward pass recomputes: none, all but attention, or full
    attention: Literal["auto", "einsum", "tiles", "splash", "tokamax", "cudnn"] = "auto"  # the kernel
    random_init: bool = False  # start from random weights: model.path then needs no safetensors


@dataclass(frozen=True)
class Lora:
    """Train low-rank adapters of frozen weights in place of the weights; the reference is what lies under them."""

    rank: int | None = None  # None = train the weights
    alpha: float | None = None  # what adapters add is scaled by alpha / rank; None = 2 * rank
    targets: tuple[str, ...] = LORA_TARGETS  # the matrices that have one
    rslora: bool = False  # scaled by alpha / sqrt(rank) instead


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
    name: str = "dpo"
    beta: float = 0.01
    label_smoothing: float = 0.0
    sft_weight: float = 0.0  # of the chosen response's negative log-likelihood per token, added to dpo


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
    lora: Lora = field(default_factory=Lora)
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
            example = ", ".join(typing.get_args(options[0])) or "a, b"
            raise UserError(f"{name}={value!r}: expected a list, such as [{example}].")
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
    objective, data, train, optimizer = config.objective, config.data, config.train, config.optimizer
    if objective.name not in OBJECTIVES:
        raise UserError(f"objective.name={objective.name!r} is unknown; {nearest(objective.name, list(OBJECTIVES))}")
    unread = [
        f"objective.{option.name}={getattr(objective, option.name)}"
        for option in dataclasses.fields(objective)[1:]
        if option.name not in OBJECTIVES[objective.name].options and getattr(objective, option.name) != option.default
    ]
    if unread:
        raise UserError(f"objective.name={objective.name} does not read {', '.join(unread)}; remove it.")
    if config.reference.cache and not OBJECTIVES[objective.name].needs_reference:
        raise UserError(f"objective.name={objective.name} has no reference; remove reference.cache.")
    goals = f"relabel.goals=[{', '.join(config.relabel.goals)}]"
    if len(set(config.relabel.goals)) < len(config.relabel.goals):
        raise UserError(f"{goals} names a side twice; name each once.")
    if OBJECTIVES[objective.name].num_responses == 1 and "rejected" in config.relabel.goals:
        raise UserError(
            f"objective.name={objective.name} trains on one response and has no rejected one to take a goal from, but "
            f"{goals}; set relabel.goals=[chosen] (each response at its own score) or relabel.goals=[] (no goals)."
        )
    positive = {
        "objective.beta": objective.beta,
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
        "objective.sft_weight": objective.sft_weight,
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
    if not 0 <= objective.label_smoothing < 0.5:
        raise UserError(f"objective.label_smoothing={objective.label_smoothing} must lie in [0, 0.5).")
    if data.max_length <= data.max_prompt_length:
        raise UserError(
            f"data.max_length={data.max_length} must exceed data.max_prompt_length={data.max_prompt_length}; "
            f"raise the first or lower the second."
        )
    validate_lora(config.lora)
    template = config.relabel.template
    if template not in TEMPLATES and "{goal}" not in template:
        raise UserError(
            f"relabel.template={template!r} has no {{goal}}; write one with {{goal}} or name one of: "
            f"{', '.join(TEMPLATES)}."
        )
    return config


def validate_lora(lora: Lora) -> None:
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


def as_dict(config: Any) -> dict:
    """The resolved tree as plain dicts and lists, ready for YAML and JSON."""
    return _lists(dataclasses.asdict(config))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def from_dict(tree: dict) -> Config:
    """The inverse of `as_dict`, for the config.yaml of a run directory."""
    return validate(build(Config, tree, where=""))
