"""The typed tree of a run's configuration: every key with its default (the paper's), meaning and effect.

files.py reads it from YAML and the command line, constraints.py checks what types and ranges do not express, keys.py
lists it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from rapo_jax.config.fields import about, key, section
from rapo_jax.config.objective import Objective
from rapo_jax.config.rounds import Rounds
from rapo_jax.intervals import NOT_NEGATIVE, POSITIVE, UNIT, Interval
from rapo_jax.matrices import MATRICES
from rapo_jax.relabel import SIDES, Side

Remat = Literal["none", "mlp", "attention", "full"]
Split = Literal["auto", "never", "always"]
Pairs = Literal["auto", "best_random", "best_worst", "all", "each"]
LORA_TARGETS = tuple(MATRICES)
AUTO_CACHE = "auto"
# Beyond them lie slips of the keyboard, for which arrays without end would be filled.
MOST_TOKENS = Interval(0, 2**24, low_open=True)
MOST_ROWS = Interval(0, 2**16, low_open=True)


@dataclass(frozen=True)
class Model:
    path: str = key(
        "", "a Hugging Face model directory or a hub id, with the same weights on resume", affects="nothing"
    )
    dtype: Literal["float32", "bfloat16"] = key(
        "bfloat16", "dtype of the computation; master weights are always float32", affects="arithmetic"
    )
    remat: Remat = key(
        "full",
        "what the backward pass recomputes: none, all but the MLP, all but attention, everything",
        affects="nothing",
    )
    scan_layers: bool = key(
        True, "one compiled layer for all; false unrolls them: slower to compile, faster on a GPU", affects="nothing"
    )
    attention: str = key(
        "auto", "attention kernel: auto, einsum, tiles (CPU), splash (TPU) or triton (GPU)", affects="nothing"
    )
    random_init: bool = key(
        False, "start from random weights; model.path then needs no safetensors", affects="arithmetic"
    )


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters over frozen weights. The frozen weights are the reference."""

    rank: int | None = key(
        None, "rank of the adapters; null trains the weights themselves", affects="arithmetic", allowed=POSITIVE
    )
    alpha: float | None = key(
        None, "adapters are scaled by alpha / rank; null is 2 * rank", affects="arithmetic", allowed=POSITIVE
    )
    targets: tuple[str, ...] = key(LORA_TARGETS, "matrices that get an adapter", affects="arithmetic")
    rslora: bool = key(False, "scale by alpha / sqrt(rank) instead (rsLoRA)", affects="arithmetic")


@dataclass(frozen=True)
class Columns:
    """Names of columns; "" detects the usual ones."""

    prompt: str = key("", "the prompt", affects="tokens")
    chosen: str = key("", "the chosen response", affects="tokens")
    rejected: str = key("", "the rejected response", affects="tokens")
    score_chosen: str = key("", "score of the chosen response", affects="tokens")
    score_rejected: str = key("", "score of the rejected response", affects="tokens")
    responses: str = key("", "a list of responses", affects="tokens")
    rewards: str = key("", "a list of their scores", affects="tokens")
    attributes: str = key("", "a list with the named scores of each response", affects="tokens")
    response: str = key("", "a single response", affects="tokens")
    label: str = key("", "whether the single response is desirable: true or false", affects="tokens")
    source: str = key("", "where the row comes from, or its class", affects="tokens")
    weight: str = key("", "weight of the row in the loss", affects="tokens")
    system: str = key("", "a system turn to put before the prompt; no column is taken by default", affects="tokens")
    input: str = key("", "a text to put after the prompt, as in Alpaca's rows; none by default", affects="tokens")


@dataclass(frozen=True)
class SourceOptions:
    """One of several data sources."""

    path: str = key(
        "", ".jsonl, .parquet, .csv, a datasets directory, or a hub id", affects="nothing"
    )  # rows are hashed
    split: str = key("train", "which split, where the source has splits", affects="nothing")
    revision: str = key("", "branch, tag or commit of a hub id", affects="nothing")
    name: str = key("", 'name of the source; "" takes it from the column `source`', affects="tokens")
    weight: float | None = key(
        None, "share of the mixture relative to the others; null takes all rows", affects="tokens", allowed=POSITIVE
    )
    max_rows: int | None = key(
        None, "at most this many rows, chosen by a hash of their prompts", affects="tokens", allowed=POSITIVE
    )
    schema: str = key("auto", "as data.schema", affects="tokens")
    rewards: str = key("", "as data.rewards", affects="tokens")
    columns: Columns = section(Columns, "as data.columns")


@dataclass(frozen=True)
class Data:
    path: str = key(
        "", ".jsonl, .parquet, .csv, a datasets directory, or a hub id, with the same rows on resume", affects="nothing"
    )
    sources: tuple[SourceOptions, ...] = key((), "several sources in place of data.path", affects="tokens")
    eval_path: str = key(
        "", 'a source to evaluate on; "" evaluates nothing unless data.eval_fraction is set', affects="nothing"
    )
    split: str = key("train", "which split of data.path, where it has splits", affects="nothing")
    revision: str = key("", "branch, tag or commit of data.path, where that is a hub id", affects="nothing")
    eval_split: str = key("test", "which split of data.eval_path", affects="nothing")
    eval_fraction: float = key(
        0.0,
        "share of the prompts, by a hash, held out to evaluate on",
        affects="tokens",
        allowed=Interval(0, 1, high_open=True),
    )
    max_length: int = key(1024, "most tokens of a prompt and one response", affects="tokens", allowed=MOST_TOKENS)
    max_prompt_length: int = key(
        512,
        "longer prompts are truncated to this many tokens; by default half of a data.max_length of 512 or less",
        affects="tokens",
        allowed=MOST_TOKENS,
    )
    chat_template: str | None = key(
        None, "null uses the tokenizer's own; or plain, chatml, zephyr, deepseek-r1, or a .jinja file", affects="tokens"
    )
    template_options: dict[str, Any] = field(
        default_factory=dict,
        hash=False,
        metadata=about("variables of the chat template, such as {enable_thinking: false}", affects="tokens"),
    )
    date: str | None = key(
        None, "the day, YYYY-MM-DD, that chat templates write as today; null is the run's first", affects="tokens"
    )
    bad_rows: Literal["error", "drop"] = key("error", "whether unreadable rows stop the run", affects="tokens")
    schema: str = key("auto", "shape of a row; auto detects it from the columns", affects="tokens")
    columns: Columns = section(Columns, "column names, where they are not the usual ones")
    pairs: Pairs = key(
        "auto", "which pairs to form from more than two responses; auto is best_random", affects="tokens"
    )
    rewards: str = key("", '"" reads the source\'s own; constant; or a .jsonl file of scores', affects="tokens")
    eval_rewards: str = key(
        "", 'scores of data.eval_path: "" reads its own (or constant, as data.rewards); or a file', affects="nothing"
    )
    constant_rewards: tuple[float, ...] = key(
        (10.0, 1.0), "scores of chosen and rejected responses for data.rewards=constant", affects="tokens"
    )
    source_weights: dict[str, float] = field(
        default_factory=dict,
        hash=False,
        metadata=about("loss weight by source name; others have 1", affects="tokens", allowed=NOT_NEGATIVE),
    )
    drop_sources: tuple[str, ...] = key(("truthful_qa",), "rows from these sources are dropped", affects="tokens")
    drop_prompts: str = key(
        "", "a file of questions, one a line or JSON lines; rows that ask one are dropped", affects="tokens"
    )
    score_defect: Literal["repair", "drop", "keep"] = key(
        "repair", "UltraFeedback's scores of 10 that should be 1", affects="tokens"
    )
    fine_grained_agree: bool = key(
        False, "drop pairs whose rejected response has the higher mean of attributes", affects="tokens"
    )
    cache: str = key(
        AUTO_CACHE,
        'a directory that keeps tokens for later starts; auto is run_dir/tokens, from 16 MiB of data on; "" keeps none',
        affects="nothing",
        read_by=("train", "plan"),
    )


@dataclass(frozen=True)
class Limits:
    min: float | None = key(None, "no goals below it", affects="tokens")
    max: float | None = key(None, "no goals above it", affects="tokens")


@dataclass(frozen=True)
class ScaleFit:
    """The linear map from rewards to scores between relabel.goal_min and relabel.goal_max."""

    fit: Literal["none", "range", "minmax", "quantile", "zscore"] = key(
        "none", "how the ends of the scale are found", affects="tokens"
    )
    by: Literal["all", "source"] = key(
        "all", "source: one map per source, where their scores have different ranges", affects="tokens"
    )
    source_min: float | None = key(None, "lower end for fit=range", affects="tokens")
    source_max: float | None = key(None, "upper end for fit=range", affects="tokens")
    quantile: float = key(
        0.01,
        "for fit=quantile: this and 1 - this are the ends",
        affects="tokens",
        allowed=Interval(0, 0.5, high_open=True),
    )
    deviations: float = key(
        2.0, "for fit=zscore: standard deviations from the mean to either end", affects="tokens", allowed=POSITIVE
    )
    clip: bool = key(True, "clip scores to the ends", affects="tokens")
    file: str = key(
        "", "a scale.json written by an earlier run or by `rapo relabel`, in place of fit", affects="tokens"
    )


@dataclass(frozen=True)
class Relabel:
    goals: tuple[Side, ...] = key(SIDES, "whose reward becomes a goal; [] is the plain baseline", affects="tokens")
    goal_min: float = key(1.0, "lowest goal", affects="tokens")
    goal_max: float = key(10.0, "highest goal", affects="tokens", allowed=POSITIVE)
    template: str = key(
        "paper",
        "the goal prompt: paper, released_code, or a text with {goal} ({goals} for attributes; {source})",
        affects="tokens",
    )
    placement: Literal["auto", "system", "user"] = key("auto", "the turn that holds the goal prompt", affects="tokens")
    ties: Literal["drop", "keep"] = key("drop", "what happens to pairs with equal rewards", affects="tokens")
    fraction: float = key(
        1.0,
        "share of the prompts kept, by a hash (0.5 is the paper's half)",
        affects="tokens",
        allowed=Interval(0, 1, low_open=True),
    )
    rejected_goals: Limits = section(Limits, "which rewards of rejected responses become goals")
    attributes: tuple[str, ...] = key((), "named rewards; a goal then has one number for each", affects="tokens")
    goal_kind: Literal["levels", "directions"] = key(
        "levels", "directions: of two attributes, one direction drawn per prompt", affects="tokens"
    )
    scale: ScaleFit = section(ScaleFit, "how rewards become scores on the goal scale")
    decimals: int | None = key(
        None,
        "decimals of a score; null is 1 where relabel.scale maps them, else unrounded",
        affects="tokens",
        allowed=Interval(0, 15),
    )

    @property
    def has_highest_goal(self) -> bool:
        """Whether one goal prompt asks for the best: not for directions, nor where the prompt names the row's source."""
        return bool(self.goals) and self.goal_kind == "levels" and "{source}" not in self.template


@dataclass(frozen=True)
class Reference:
    cache: str = key(
        "",
        'a directory that keeps the reference\'s log-probabilities; "" recomputes them in every step',
        affects="nothing",
    )


@dataclass(frozen=True)
class Optimizer:
    """AdamW."""

    learning_rate: float = key(5e-7, "peak learning rate", affects="arithmetic", allowed=NOT_NEGATIVE)
    warmup_ratio: float = key(0.1, "share of the steps with linear warmup", affects="arithmetic", allowed=UNIT)
    schedule: Literal["cosine", "linear", "constant"] = key("cosine", "decay after the warmup", affects="arithmetic")
    max_grad_norm: float | None = key(
        None, "gradients are clipped to this norm; null clips nothing", affects="arithmetic", allowed=POSITIVE
    )  # the paper's released runs had no clipping in effect
    weight_decay: float = key(0.0, "decoupled weight decay", affects="arithmetic", allowed=NOT_NEGATIVE)
    b1: float = key(0.9, "decay of the first moment", affects="arithmetic", allowed=Interval(0, 1, high_open=True))
    b2: float = key(0.999, "decay of the second moment", affects="arithmetic", allowed=Interval(0, 1, high_open=True))
    eps: float = key(1e-8, "added to the root of the second moment", affects="arithmetic", allowed=POSITIVE)
    mu_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "dtype of the first moment; the second is always float32", affects="arithmetic"
    )


@dataclass(frozen=True)
class Train:
    batch_size: int = key(
        128,
        "groups (pairs after relabelling) per optimizer step, exactly",
        affects="order",
        allowed=POSITIVE,
        read_by=("train", "plan"),
    )
    num_epochs: float = key(1.0, "passes over the data", affects="order", allowed=POSITIVE)
    max_steps: int | None = key(None, "number of steps; overrides train.num_epochs", affects="order", allowed=POSITIVE)
    log_every: int = key(1, "steps between lines of metrics.jsonl", affects="nothing", allowed=POSITIVE)
    eval_every: int | None = key(
        None, "steps between evaluations; null evaluates at the end only", affects="nothing", allowed=POSITIVE
    )
    save_every: int | None = key(
        None, "steps between checkpoints; null saves at the end only", affects="nothing", allowed=POSITIVE
    )
    checkpoints: str | None = key(
        None,
        "directory of the checkpoints, or gs://BUCKET/PATH; one for each run; null: run_dir/checkpoints",
        affects="nothing",
    )
    keep_last: int = key(2, "newest checkpoints to keep", affects="nothing", allowed=POSITIVE)
    keep_best: int = key(
        1,
        "best checkpoints to keep, of those that are saved with an evaluation",
        affects="nothing",
        allowed=NOT_NEGATIVE,
    )
    keep_best_by: str = key(
        "eval_loss",
        "metric of evaluations that says which is best, such as eval_rewards/accuracies; lowest NAME or highest NAME says how "
        "(default: the lowest of a loss or kl, else the highest)",
        affects="nothing",
    )
    stop_on: str = key(
        "",
        'as train.keep_best_by; the run ends train.patience evaluations after the best, and saves each better one; "": never',
        affects="nothing",
    )
    patience: int = key(3, "of train.stop_on, in evaluations", affects="nothing", allowed=POSITIVE)
    sample_every: int | None = key(
        None,
        "steps between answers to held-out prompts at the lowest, middle and highest goal (samples.jsonl); null: never",
        affects="nothing",
        allowed=POSITIVE,
    )
    sample_prompts: int = key(4, "how many prompts that are", affects="nothing", allowed=POSITIVE)
    sample_tokens: int = key(128, "longest answer of train.sample_every", affects="nothing", allowed=POSITIVE)
    sample_scorer: str = key(
        "", "python:MODULE:FUNCTION or command:PROGRAM, which scores them on the scale of the goals", affects="nothing"
    )
    max_skipped_steps: int = key(
        5, "consecutive steps with a non-finite gradient before the run stops", affects="nothing", allowed=POSITIVE
    )
    hang_factor: float | None = key(
        20.0,
        "a step of so many times the median, and over 5 minutes, is a hang: the run ends with 76; other work has longer bounds; null: never",
        affects="nothing",
        allowed=Interval(1),
    )
    profile_steps: int | None = key(
        None, "steps to trace into run_dir/profile, after the first two", affects="nothing", allowed=POSITIVE
    )
    wandb_project: str | None = key(None, "Weights & Biases project; null logs locally only", affects="nothing")


@dataclass(frozen=True)
class MeshSizes:
    data: int = key(1, "replicas of the parameters; -1 takes all remaining devices", affects="nothing")
    fsdp: int = key(-1, "shards of the parameters; -1 takes all remaining devices", affects="nothing")
    tensor: int = key(1, "shards of heads, feed-forward and vocabulary", affects="nothing")
    context: int = key(1, "shards of the tokens of a row, for long rows, and of the parameters", affects="nothing")


@dataclass(frozen=True)
class Rows:
    length: int | None = key(
        None, "tokens in a row; null picks the length with the least padding", affects="nothing", allowed=MOST_TOKENS
    )
    per_shard: int | None = key(
        None,
        "rows per microbatch on each row shard; null takes up to 4096 tokens",
        affects="nothing",
        allowed=MOST_ROWS,
    )
    twins: Literal["apart", "together"] = key(
        "apart",
        "together: both goals of a pair in one step; apart: each in a step of its own, as in the paper",
        affects="order",
    )
    split: Split | None = key(
        None,
        "whether responses to one prompt may stand in several rows, each after a copy of the prompt; auto: where over a "
        "tenth of the positions would be padding and that saves a twentieth; null: auto, and in an existing run what it began with",
        affects="nothing",
    )


@dataclass(frozen=True)
class Config:
    run_dir: str = key("", "directory of the run: checkpoints, metrics, records", affects="nothing", read_by=("train",))
    seed: int = key(
        0,
        "of shuffling, hashes and random weights",
        affects="order",
        allowed=NOT_NEGATIVE,
        read_by=("relabel", "train", "plan", "evaluate"),
    )
    model: Model = section(Model, "the model to start from", read_by=("train", "plan", "score", "evaluate", "export"))
    lora: LoraOptions = section(LoraOptions, "low-rank adapters", read_by=("train", "plan", "export"))
    data: Data = section(Data, "where preferences come from", read_by=("relabel", "train", "score", "evaluate", "plan"))
    relabel: Relabel = section(Relabel, "rewards and goals", read_by=("relabel", "train", "plan", "evaluate", "export"))
    objective: Objective = section(Objective, "the loss", read_by=("relabel", "train", "plan", "score", "evaluate"))
    reference: Reference = section(Reference, "the frozen reference model", read_by=("train", "plan"))
    optimizer: Optimizer = section(Optimizer, "AdamW and its schedule", read_by=("train", "plan"))
    train: Train = section(Train, "batches, checkpoints, logs", read_by=("train",))
    mesh: MeshSizes = section(
        MeshSizes, "how devices are arranged", read_by=("train", "plan", "score", "evaluate", "export")
    )
    rows: Rows = section(Rows, "fixed shapes of a batch", read_by=("train", "plan", "score", "evaluate"))
    rounds: Rounds = section(Rounds, "training on the model's own responses", read_by=("round",))
