"""What a checkpoint is: the numbers of its config.json that change the computation, frozen.

Every key of config.json is either read here, known not to change the computation, or refused by name. A value that we
would have to ignore (a rope type, an expert count, a quantization) is an error, never a warning.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rapo_jax.errors import UserError

FULL_ATTENTION = 2**30  # a window wider than any sequence


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `llama3` rescales frequencies by wavelength (Llama 3.1, 2024); `linear` divides all."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class Lora:
    """Trained adapters over frozen weights; see rapo_jax/models/lora.py."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Spec:
    """A decoder-only transformer, in the shape letters of `rapo_jax/__init__.py`. `windows` has one entry per layer."""

    family: str
    V: int
    D: int
    L: int
    N: int
    K: int
    H: int
    F: int
    norm_eps: float
    rope: Rope
    windows: tuple[int, ...]
    tied: bool
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    query_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    gemma: bool = (
        False  # norms scale by 1 + weight, embeddings by sqrt(D), and branches are normed on their way out too
    )
    initial_sigma: float = 0.02  # of random start weights; no trained model depends on it
    scored: bool = False  # a reward model: one score a position in place of the vocabulary
    lora: Lora | None = None  # what is trained in place of the weights; never part of a config.json

    @property
    def R(self) -> int:
        return self.lora.rank

    @property
    def base(self) -> "Spec":
        """The model without its adapters."""
        return replace(self, lora=None)


# Keys that no forward pass depends on. `attention_dropout` and the like are checked below: they must be zero.
INERT = frozenset(
    "architectures auto_map bos_token_id cache_implementation chunk_size_feed_forward dtype eos_token_id finetuning_task "
    "id2label is_decoder is_encoder_decoder label2id max_position_embeddings model_type name_or_path "
    "num_labels num_return_sequences output_attentions output_hidden_states pad_token_id problem_type return_dict sep_token_id "
    "task_specific_params tokenizer_class torch_dtype torchscript transformers_version unk_token_id unsloth_fixed "
    "unsloth_version use_cache use_return_dict".split()
)
MUST_BE = {
    "attention_dropout": (0, 0.0, None),
    "hidden_dropout": (0, 0.0, None),
    "pretraining_tp": (1, None),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "cross_attention_hidden_size": (None,),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
}
READ = frozenset(
    "head_dim hidden_size initializer_range intermediate_size layer_types num_attention_heads num_hidden_layers "
    "num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings "
    "vocab_size".split()
)
FAMILY_KEYS = {
    "llama": {"hidden_act", "attention_bias", "mlp_bias"},
    "mistral": {"hidden_act"},
    "qwen2": {"hidden_act", "use_sliding_window", "max_window_layers"},
    "gemma2": {"hidden_act", "hidden_activation", "attention_bias", "query_pre_attn_scalar", "attn_logit_softcapping"}
    | {"final_logit_softcapping"},
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
TIED_BY_DEFAULT = {"gemma2"}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma2": "Gemma2"}  # of transformers
SCORED = "ForSequenceClassification"


def read_config(model_dir: Path) -> dict[str, Any]:
    """config.json of a model directory as a plain dict; no code of the checkpoint is ever executed."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; model.path must be a Hugging Face model directory or hub id.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no object, but a {type(config).__name__}; it must be a model's config.json.")
    return config


def spec_from_config(config: dict[str, Any]) -> Spec:
    """The spec of a config.json. Raises UserError that names every key which would change the computation unsupported."""
    family = config.get("model_type")
    if family not in FAMILY_KEYS:
        raise UserError(f"config.json: model_type={family!r} is not supported; supported: {', '.join(FAMILY_KEYS)}.")
    refuse_unsupported(config, family)
    missing = [
        key
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if key not in config
    ]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}.")
    D, N = config["hidden_size"], config["num_attention_heads"]
    H = config.get("head_dim") or (256 if family == "gemma2" else D // N)
    gemma = family == "gemma2"
    return Spec(
        family=family,
        V=config["vocab_size"],
        D=D,
        L=config["num_hidden_layers"],
        N=N,
        K=config.get("num_key_value_heads") or N,
        H=H,
        F=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=rope_from_config(config),
        windows=windows_from_config(config, family),
        tied=bool(config.get("tie_word_embeddings", family in TIED_BY_DEFAULT)),
        activation=ACTIVATIONS[activation_name(config, family)],
        qkv_bias=family == "qwen2" or bool(config.get("attention_bias")),
        out_bias=family != "qwen2" and bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        query_scale=float(config.get("query_pre_attn_scalar", 256) if gemma else H) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping", 50.0) if gemma else None,
        final_softcap=config.get("final_logit_softcapping", 30.0) if gemma else None,
        initial_sigma=config.get("initializer_range", 0.02),
        gemma=gemma,
        scored=is_scored(config),
    )


def is_scored(config: dict[str, Any]) -> bool:
    """Whether a config.json is a reward model's."""
    return any(str(name).endswith(SCORED) for name in config.get("architectures") or ())


def require_vocabulary(spec: Spec, *, path: object) -> None:
    """Raises UserError for a reward model where a language model is needed."""
    if spec.scored:
        raise UserError(
            f"{path} is a reward model (its config.json says {CLASSES[spec.family]}{SCORED}): it scores answers and gives "
            f"none; a language model (...ForCausalLM) is needed here."
        )


def spec_to_train(config: dict[str, Any], *, scored: bool, path: object) -> Spec:
    """The spec of what is trained from this config.json: a language model, or with `scored` a reward model, which may start
    from either."""
    spec = spec_from_config(config)
    if scored:
        return replace(spec, scored=True)
    require_vocabulary(spec, path=path)
    return spec


def num_labels(config: dict[str, Any]) -> int | None:
    """How many scores a classifier gives, or None where its config.json does not say."""
    labels = config.get("id2label")
    return len(labels) if labels else config.get("num_labels")


def score_config(config: dict[str, Any], *, pad_token: int) -> dict[str, Any]:
    """The config.json of a reward model that started from this one, as transformers' sequence classifiers have it.

    transformers reads the score at the last token that is not `pad_token`, so that no text may end with this one.
    """
    return config | {
        "architectures": [CLASSES[config["model_type"]] + SCORED],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": None,
        "pad_token_id": pad_token,
    }


def refuse_unsupported(config: dict[str, Any], family: str) -> None:
    """Raises UserError listing all keys that are neither read nor known to be inert."""
    problems = []
    known = READ | INERT | FAMILY_KEYS[family]
    for key, value in config.items():
        if key in MUST_BE:
            if value not in MUST_BE[key]:
                problems.append(f"{key}={value!r} (only {MUST_BE[key][0]!r} is supported)")
        elif key not in known and not key.startswith("_") and value not in (None, False, [], {}):
            problems.append(f"{key}={value!r}")
    if is_scored(config) and num_labels(config) not in (1, None):
        problems.append(f"num_labels={num_labels(config)} (only 1, a reward model's, is supported)")
    if activation_name(config, family) not in ACTIVATIONS:
        problems.append(f"hidden_act={activation_name(config, family)!r} (supported: {', '.join(ACTIVATIONS)})")
    if problems:
        raise UserError(f"config.json ({family}) asks for what this decoder does not compute: {'; '.join(problems)}.")


def activation_name(config: dict[str, Any], family: str) -> str:
    # Gemma's early configs say hidden_act="gelu" and compute hidden_activation, the tanh approximation.
    if family == "gemma2":
        return config.get("hidden_activation") or "gelu_pytorch_tanh"
    return config.get("hidden_act", "silu")


def rope_from_config(config: dict[str, Any]) -> Rope:
    """Reads both spellings: rope_theta with rope_scaling (transformers 4) and rope_parameters (transformers 5)."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    fields = {
        "default": {},
        "linear": {"factor": "factor"},
        "llama3": {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_position_embeddings": "original_max_positions",
        },
    }
    if kind not in fields:
        raise UserError(f"config.json: rope_type={kind!r} is not supported; supported: {', '.join(fields)}.")
    unknown, missing = set(scaling) - set(fields[kind]), set(fields[kind]) - set(scaling)
    if unknown or missing:
        raise UserError(f"config.json: rope_type={kind!r} has unknown keys {listed(unknown)}, lacks {listed(missing)}.")
    return Rope(theta=theta, kind=kind, **{ours: scaling[theirs] for theirs, ours in fields[kind].items()})


def listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def windows_from_config(config: dict[str, Any], family: str) -> tuple[int, ...]:
    """The attention window of each layer in positions, itself included; FULL_ATTENTION where there is none."""
    num_layers = config["num_hidden_layers"]
    window = config.get("sliding_window", 4096)  # absent means 4096 in all three families that have windows
    types = config.get("layer_types")
    if types:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or len(types) != num_layers:
            raise UserError(
                f"config.json: layer_types has {len(types)} entries for {num_layers} layers, unknown {listed(unknown)}."
            )
        slides = [kind == "sliding_attention" for kind in types]
    elif family == "gemma2":
        slides = [layer % 2 == 0 for layer in range(num_layers)]
    elif family == "qwen2":
        first = config.get("max_window_layers", 28)
        slides = [bool(config.get("use_sliding_window")) and layer >= first for layer in range(num_layers)]
    else:
        slides = [family == "mistral"] * num_layers
    if family == "qwen2" and not config.get("use_sliding_window"):
        slides = [False] * num_layers
    return tuple(window if slide and window else FULL_ATTENTION for slide in slides)
