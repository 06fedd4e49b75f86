"""What a checkpoint computes: every number of its config.json that matters, frozen in a `Spec`.

Every key of config.json is read, known not to change the computation, or refused by name. A value that we would have to
ignore (a rope type, an expert count, a quantization) is an error, never a warning. What differs between families is in
rapo_jax/models/families.py, the rotary embedding in rapo_jax/models/rope_config.py; weights are not read here.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rapo_jax.borders import read_object
from rapo_jax.errors import UserError, shown
from rapo_jax.models.adapted import is_scored_adapter, read_adapter_config
from rapo_jax.models.config_types import REQUIRED, check_types, listed
from rapo_jax.models.directory import base_directory, is_adapter
from rapo_jax.models.families import FAMILIES, Family
from rapo_jax.models.rope_config import Rope, require_fit, ropes_from_config
from rapo_jax.models.text_part import text_config

FULL_ATTENTION = 2**30  # a window wider than any sequence

NormPlacement = Literal["before", "around", "after"]
QkNorm = Literal["none", "head", "projection"]


@dataclass(frozen=True)
class LoraSpec:
    """Trainable low-rank adapters over frozen weights; see rapo_jax/models/lora.py."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Spec:
    """A decoder-only transformer, in the shape letters of `rapo_jax/__init__.py`. `windows` has one entry per layer.

    norms: where the RMS norms of a residual branch are: "before" it (Llama), "around" it, that is before and after
        (Gemma 2), or "after" it alone (OLMo 2). Norms after a branch come before its output is added to the residual.
    zero_centered_norms: norm weights are stored minus one, so the norm multiplies by 1 + weight.
    scaled_embeddings: embeddings are multiplied by sqrt(D).
    qk_norm: RMS norms of queries and keys before they turn: over each "head" (Qwen 3), or over all heads of a token, the
        whole "projection" (OLMo 2).
    local_rope: the rotary embedding of layers that attend within a window, where it is another than `rope` (Gemma 3).
    unturned: the layers without rotary embedding (SmolLM 3).
    embedding_multiplier, residual_multiplier, logits_divisor: of embeddings, of what a branch adds to the residual stream,
        and of logits (Granite 3).
    """

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
    norms: NormPlacement = "before"
    zero_centered_norms: bool = False
    scaled_embeddings: bool = False
    qk_norm: QkNorm = "none"
    local_rope: Rope | None = None
    unturned: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    initial_sigma: float = 0.02  # standard deviation of random initial weights; no trained model depends on it
    scored: bool = False  # a reward model: one score per position in place of vocabulary logits
    lora: LoraSpec | None = None  # adapters that are trained in place of the weights; never part of a config.json

    @property
    def R(self) -> int:
        assert self.lora is not None
        return self.lora.rank

    @property
    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """The rotary embedding of each layer; None where nothing turns."""
        local = self.local_rope or self.rope
        by_window = [self.rope if window == FULL_ATTENTION else local for window in self.windows]
        return tuple(None if layer in self.unturned else rope for layer, rope in enumerate(by_window))

    @property
    def base(self) -> "Spec":
        """The model without its adapters."""
        return replace(self, lora=None)


GEMMA2_SWITCHES: dict[str, Any] = {"norms": "around", "zero_centered_norms": True, "scaled_embeddings": True}


def identity_fields(spec: Spec) -> dict[str, str]:
    """The fields of a spec that are not at their defaults, as the strings that a run's identity hashes.

    These strings are on disk in every run directory, as part of a hash: names, values and order must never change for a
    model that an earlier version could train. A new field with a default changes nothing. One flag, `gemma`, once stood
    for the three fields of GEMMA2_SWITCHES; a spec with all three still gives it, in its old place.
    """
    fields = {f.name: (getattr(spec, f.name), f.default) for f in dataclasses.fields(spec)}
    distinct = {name: repr(value) for name, (value, default) in fields.items() if value != default}
    if any(getattr(spec, name) != value for name, value in GEMMA2_SWITCHES.items()):
        return distinct
    historic = {}
    for name, value in distinct.items():
        if name == "norms":
            historic["gemma"] = "True"
        elif name not in GEMMA2_SWITCHES:
            historic[name] = value
    return historic


# Keys that do not affect the forward pass.
INERT = frozenset(
    "architectures attn_implementation auto_map bos_token_id cache_implementation chunk_size_feed_forward dtype "
    "eos_token_id finetuning_task id2label is_decoder is_encoder_decoder is_llama_config label2id max_position_embeddings "
    "max_sequence_length model_max_length model_type name_or_path num_labels output_attentions output_hidden_states "
    "pad_token_id prefix problem_type return_dict sep_token_id task_specific_params tf_legacy_loss tokenizer_class "
    "torch_dtype torchscript transformers.js_config transformers_version unk_token_id unsloth_fixed unsloth_version "
    "use_bfloat16 use_cache use_return_dict".split()
)
# Settings of generation, which transformers 4 kept here and published configs still hold; none is a part of the model.
GENERATION = frozenset(
    "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens "
    "min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values "
    "repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p".split()
)
# Second names under which published configs repeat a key; they must agree with it.
REPEATED = {"sliding_window_size": "sliding_window"}
# Keys that affect it unless they have one of these values.
MUST_BE = {
    "attention_dropout": (0, 0.0, None),
    "embd_pdrop": (0, 0.0, None),
    "resid_pdrop": (0, 0.0, None),
    "full_attn_mod": (1, None),
    "interpolate_factor": (1, None),
    "hidden_dropout": (0, 0.0, None),
    "pretraining_tp": (1, None),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "cross_attention_hidden_size": (None,),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
}
# Keys that are read for every family.
READ = frozenset(
    "head_dim hidden_size initializer_range intermediate_size layer_types num_attention_heads num_hidden_layers "
    "num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings "
    "vocab_size".split()
)
DEFAULTS = {"rms_norm_eps": 1e-6, "sliding_window": 4096, "initializer_range": 0.02, "tie_word_embeddings": False}
ACTIVATION_NAMES: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SCORED = "ForSequenceClassification"


def read_config(model_dir: Path) -> dict[str, Any]:
    """config.json of a model directory as a plain dict; no code of the checkpoint is ever executed.

    Of a multimodal model it is that of its text part. For LoRA adapters it is that of their base model or, where they make a
    reward model of it, of that.
    """
    path = base_directory(model_dir) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; model.path must be a Hugging Face model directory or hub id.")
    config = text_config(read_object(path, remedy="it must be a model's config.json"))
    if is_adapter(Path(model_dir)) and is_scored_adapter(read_adapter_config(model_dir)) and not is_scored(config):
        return score_config(config, pad_token=config.get("pad_token_id"))
    return config


def spec_from_config(config: Mapping[str, Any]) -> Spec:
    """The spec of a config.json. Raises a UserError that names every key that cannot be honoured."""
    check_types(config)
    family = family_of(config)
    refuse_unsupported(config, family)
    missing = [key for key in REQUIRED if key not in config and key not in family.defaults]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}.")
    config = DEFAULTS | dict(family.defaults) | dict(config)
    check_types(config)  # also of what the defaults add: heads must divide what they share
    D, N = config["hidden_size"], config["num_attention_heads"]
    H = config.get("head_dim") or family.defaults.get("head_dim") or D // N
    partial = "partial_rotary_factor" in family.keys
    ropes = ropes_from_config(config, names=family.rope_names, partial=partial, local_theta=family.local_theta)
    rope, local_rope = (require_fit(each, H) for each in ropes)
    common = Spec(
        family=family.model_type,
        V=config["vocab_size"],
        D=D,
        L=config["num_hidden_layers"],
        N=N,
        K=config.get("num_key_value_heads") or N,
        H=H,
        F=config["intermediate_size"],
        norm_eps=config["rms_norm_eps"],
        rope=rope,
        local_rope=None if local_rope == rope else local_rope,
        windows=windows_from_config(config, family),
        tied=bool(config["tie_word_embeddings"]),
        activation=ACTIVATION_NAMES[activation_name(config, family)],
        query_scale=float(H) ** -0.5,
        initial_sigma=config["initializer_range"],
        scored=is_scored(config),
    )
    return replace(common, **family.switches, **family.fields(config))


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises UserError, listing the supported families, for any other."""
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UserError(f"config.json: model_type={name!r} is not supported; supported: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def is_scored(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a reward model."""
    return any(str(name).endswith(SCORED) for name in config.get("architectures") or ())


def require_vocabulary(spec: Spec, *, path: object) -> None:
    """Raises UserError for a reward model where a language model is needed."""
    if spec.scored:
        raise UserError(
            f"{path} is a reward model (its config.json says {FAMILIES[spec.family].class_prefix}{SCORED}): it scores "
            f"answers and gives none; a language model (...ForCausalLM) is needed here."
        )


def spec_to_train(config: Mapping[str, Any], *, scored: bool, path: object) -> Spec:
    """The spec of the model to train: a language model or, with `scored`, a reward model, which may start from either."""
    spec = spec_from_config(config)
    if scored and not FAMILIES[spec.family].classifier:
        raise UserError(
            f"{path} is a {spec.family} model, of which transformers has no {SCORED[3:]}, the form in which reward models are "
            "saved; start from another family."
        )
    if scored:
        return replace(spec, scored=True)
    require_vocabulary(spec, path=path)
    return spec


def num_labels(config: Mapping[str, Any]) -> int | None:
    """How many scores a classifier gives, or None if its config.json does not say."""
    labels = config.get("id2label")
    return len(labels) if labels else config.get("num_labels")


def score_config(config: Mapping[str, Any], *, pad_token: int | None) -> dict[str, Any]:
    """The config.json of a reward model that started from this one, in the form of transformers' sequence classifiers.

    transformers reads the score at the last token that is not `pad_token`, so no text may end with that token.
    """
    return dict(config) | {
        "architectures": [family_of(config).class_prefix + SCORED],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": None,
        "pad_token_id": pad_token,
    }


def refuse_unsupported(config: Mapping[str, Any], family: Family) -> None:
    """Raises one UserError that lists all keys which are neither read nor known to be inert."""
    problems = []
    known = READ | INERT | GENERATION | family.keys | {family.activation_key}
    for key, value in config.items():
        if key in REPEATED:
            if value not in (None, config.get(REPEATED[key])):
                problems.append(f"{key}={shown(value)} beside {REPEATED[key]}={shown(config.get(REPEATED[key]))}")
        elif key in MUST_BE and key not in family.keys:
            if value not in MUST_BE[key]:
                problems.append(f"{key}={shown(value)} (only {MUST_BE[key][0]!r} is supported)")
        elif key not in known and not key.startswith("_") and value not in (None, False, [], {}):
            problems.append(f"{key}={shown(value)}")
    if is_scored(config) and not family.classifier:
        problems.append(
            f"architectures={shown(config['architectures'])} (transformers has no classifier of this family)"
        )
    if is_scored(config) and num_labels(config) not in (1, None):
        problems.append(f"num_labels={num_labels(config)} (only 1, a reward model's, is supported)")
    if activation_name(config, family) not in ACTIVATION_NAMES:
        problems.append(f"hidden_act={activation_name(config, family)!r} (supported: {', '.join(ACTIVATION_NAMES)})")
    if problems:
        raise UserError(
            f"config.json ({family.model_type}) asks for what this decoder does not compute: {'; '.join(problems)}."
        )


def activation_name(config: Mapping[str, Any], family: Family) -> str:
    name = config.get(family.activation_key) or family.activation
    return family.activations.get(name, name)


def windows_from_config(config: Mapping[str, Any], family: Family) -> tuple[int, ...]:
    """The attention window of each layer in positions, the query's own included; FULL_ATTENTION if it has none."""
    num_layers, window, types = config["num_hidden_layers"], config["sliding_window"], config.get("layer_types")
    if types:
        types = ["full_attention" if kind == "attention" else kind for kind in types]  # as Granite 4's files say it
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or len(types) != num_layers:
            raise UserError(
                f"config.json: layer_types has {len(types)} entries for {num_layers} layers, unknown {listed(unknown)}."
            )
        slides = [kind == "sliding_attention" for kind in types]
        if not family.layer_types and window and slides != family.slides(config, num_layers):
            raise UserError(
                f"config.json: layer_types asks for other windows than a {family.model_type} model has, and transformers does not "
                "read it there; remove it if it is not meant."
            )
    else:
        slides = family.slides(config, num_layers)
    if family.local_theta and any(slides) and not window:
        raise UserError("config.json lacks the sliding_window of its layers with sliding_attention.")
    if family.window_switch and not config.get(family.window_switch):
        slides = [False] * num_layers
    return tuple(window if slide and window else FULL_ATTENTION for slide in slides)
