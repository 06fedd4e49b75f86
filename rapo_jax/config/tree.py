"""The typed tree of a run: every key and its default, which is the paper's.

Files and command lines become it in rapo_jax/config/files.py; what no type expresses is in rapo_jax/config/constraints.py.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from rapo_jax.objectives import OBJECTIVES
from rapo_jax.relabel import SIDES, Side

Remat = Literal["none", "mlp", "attention", "full"]
Schema = Literal[
    "auto", "pairs", "single", "labels", "lists", "numbered", "ultrafeedback", "sampled", "nectar", "helpsteer"
]
Pairs = Literal["auto", "best_random", "best_worst", "all", "each"]
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Model:
    path: str = ""  # a Hugging Face model directory, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; master weights are always float32
    remat: Remat = "full"  # products computed again for gradients: none, all but the mlp's, all but attention's, all
    scan_layers: bool = True  # one compiled layer for all; false: each its own, longer to compile, faster on a GPU
    attention: Literal["auto", "einsum", "tiles", "splash", "triton"] = "auto"  # the kernel
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

    @property
    def has_highest_goal(self) -> bool:
        """Whether one sentence asks for the best: not where goals are directions, or where it names the row's source."""
        return bool(self.goals) and self.goal_kind == "levels" and "{source}" not in self.template


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
        """Whether any term needs `what`: "reference", "rewards", "prompt", "divergence" or "weight".

        Weights multiply the loss of whatever objective; only one that needs them asks that there be some.
        """
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
