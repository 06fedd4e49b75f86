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
from rapo_jax.relabel import SIDES, TEMPLATES, Side, template_complaint

Remat = Literal["none", "attention", "full"]
Schema = Literal[
    "auto", "pairs", "single", "labels", "lists", "numbered", "ultrafeedback", "sampled", "nectar", "helpsteer"
]
Pairs = Literal["auto", "best_random", "best_worst", "all", "each"]
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
    responses: str = ""  # a list of responses
    rewards: str = ""  # a list of their scores
    attributes: str = ""  # a list with, for each response, its named scores
    response: str = ""  # a single response
    label: str = ""  # whether it is desirable: true or false
    source: str = ""  # where the row is from, or its class
    weight: str = ""  # of the row in the loss


@dataclass(frozen=True)
class Source:
    """One of several sources of data."""

    path: str = ""  # .jsonl, .parquet, a datasets directory, or a hub id
    split: str = "train"  # where the source has splits
    revision: str = ""  # of a hub id: a branch, tag or commit
    name: str = ""  # "" = what the column `source` says
    weight: float | None = None  # its share of the mixture, relative to the others'; null = all of its rows
    max_rows: int | None = None  # at most so many, chosen by a hash of their prompts
    schema: Schema = "auto"
    rewards: str = ""  # as data.rewards
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True)
class Data:
    path: str = ""  # .jsonl, .parquet, a datasets directory, or a hub id
    sources: tuple[Source, ...] = ()  # several of them, in place of data.path
    eval_path: str = ""  # one more, to evaluate on; "" = no evaluation, unless data.eval_fraction is set
    split: str = "train"  # where the source has splits
    revision: str = ""  # of data.path, where that is a hub id: a branch, tag or commit
    eval_split: str = "test"
    eval_fraction: float = 0.0  # of the prompts, by a hash, held out of the training data to evaluate on
    max_length: int = 1024  # tokens of prompt and one response
    max_prompt_length: int = 512  # what a prompt is shortened to, if it must be
    chat_template: str | None = None  # None = the tokenizer's own; plain, chatml, zephyr; or a .jinja file
    bad_rows: Literal["error", "drop"] = "error"
    schema: Schema = "auto"  # the shape of a row; auto = by its columns
    columns: Columns = field(default_factory=Columns)
    pairs: Pairs = "auto"  # what is compared of more than two responses; auto = best_random
    rewards: str = ""  # "" = the source's own; constant; or a file of scores, .jsonl
    eval_rewards: str = ""  # of data.eval_path: "" = its own (or constant, as data.rewards); or a file of scores
    constant_rewards: tuple[float, ...] = (10.0, 1.0)  # of chosen and of rejected ones, for data.rewards=constant
    source_weights: dict[str, float] = field(default_factory=dict, hash=False)  # in the loss; other sources have 1
    drop_sources: tuple[str, ...] = ("truthful_qa",)  # rows that say they are from there are dropped
    drop_prompts: str = ""  # a file of questions, one a line or JSON lines; rows that ask one of them are dropped
    score_defect: Literal["repair", "drop", "keep"] = "repair"  # UltraFeedback's 10 that should be 1
    fine_grained_agree: bool = False  # drop pairs whose rejected response has the higher mean of attributes


@dataclass(frozen=True)
class Limits:
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class ScaleFit:
    """How rewards become scores from relabel.goal_min to relabel.goal_max; a linear map."""

    fit: Literal["none", "range", "minmax", "quantile", "zscore"] = "none"  # what the ends of the scale are
    by: Literal["all", "source"] = "all"  # source: a map for each, where their scores are of different ranges
    source_min: float | None = None  # for fit: range
    source_max: float | None = None
    quantile: float = 0.01  # this and 1 - this are the ends
    deviations: float = 2.0  # standard deviations from the mean to either end
    clip: bool = True  # what lies beyond an end becomes that end
    file: str = ""  # a map that an earlier run or `rapo relabel` wrote (scale.json), in place of fit


@dataclass(frozen=True)
class Relabel:
    goals: tuple[Side, ...] = SIDES  # whose reward becomes a goal; [] = the plain baseline
    goal_min: float = 1.0
    goal_max: float = 10.0
    template: str = "paper"  # paper, released_code, or a text with {goal}; {goals} for attributes; {source}
    placement: Literal["auto", "system", "user"] = "auto"
    ties: Literal["drop", "keep"] = "drop"
    fraction: float = 1.0  # of the prompts, by a hash; the others are dropped (0.5 = the paper's half)
    rejected_goals: Limits = field(default_factory=Limits)  # which rewards of rejected responses become goals
    attributes: tuple[str, ...] = ()  # named rewards, of which a goal then has one each
    goal_kind: Literal["levels", "directions"] = "levels"  # directions: of two attributes, one drawn for each prompt
    scale: ScaleFit = field(default_factory=ScaleFit)
    decimals: int | None = None  # scores are rounded to; null = 1 where relabel.scale maps them, else as they are


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
    def is_reward_model(self) -> bool:
        """Whether a scalar head is trained in place of a language model."""
        return OBJECTIVES[self.name].is_reward_model

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
    tree = read_tree(Path(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not an override; write key=value, such as optimizer.learning_rate=1e-6.")
        insert(tree, key.strip().split("."), parse_yaml(text, where=override))
    return validate(build(Config, tree, where=""))


def read_tree(path: Path, *, chain: tuple[Path, ...] = ()) -> dict:
    """The keys and values of a YAML file, over those of the file that its `extends` names (relative to it), if any."""
    chain = (*chain, path)
    if path.resolve() in {before.resolve() for before in chain[:-1]}:
        raise UserError(f"{' extends '.join(map(str, chain))}: a circle; remove one `extends`.")
    said = f"{chain[-2]} extends {path}, which" if len(chain) > 1 else f"{path}"
    if not path.is_file():
        fact = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{said} {fact}; CONFIG must be a YAML file (examples: configs/).")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{said} is not a text file in UTF-8 ({error}); CONFIG must be a YAML file.") from error
    tree = parse_yaml(text, where=str(path)) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, such as `run_dir: runs/mine`; found {tree!r:.40}.")
    if "extends" not in tree:
        return tree
    below = tree.pop("extends")
    if not isinstance(below, str):
        raise UserError(f"{path}: extends={below!r}: expected the name of a YAML file.")
    return merge(read_tree(path.parent / below, chain=chain), tree)


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`, key by key; lists are replaced whole.

    >>> merge({"a": 1, "b": {"c": 2, "d": [3, 4]}}, {"b": {"d": [5]}})
    {'a': 1, 'b': {'c': 2, 'd': [5]}}
    """
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


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
            such_as = EXAMPLES.get(options[0]) or f"[{', '.join(typing.get_args(options[0]))}]"
            raise UserError(f"{name}={value!r}: expected a list, such as {such_as}.")
        numbered = dataclasses.is_dataclass(options[0])
        names = [f"{name}[{index}]" if numbered else name for index in range(len(value))]
        return tuple(convert(item, options[0], name=name) for item, name in zip(value, names, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name}={value!r}: expected keys and values, such as {{name: 0.5}}.")
        return {str(key): convert(item, options[1], name=f"{name}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where=f"{name}.")
    if hint is str and value is None:  # `data.eval_path=` on a command line
        return ""
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise UserError(f"{name}={value!r}: expected {EXPECTED[hint]}.")


EXAMPLES = {
    str: "[one, another]",
    float: "[10, 1]",
    Objective: "[{name: sft, weight: 0.5}]",
    Source: "[{path: pairs.jsonl}, {path: more.jsonl, weight: 0.5}]",
}
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
