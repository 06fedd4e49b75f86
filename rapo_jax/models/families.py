"""Model families: what sets the checkpoints of one `model_type` apart from those of another.

A family is one frozen entry of FAMILIES. Reading a config.json, naming tensors and writing a reward model's config.json go
through it. To support a new family, add an entry; no other code refers to a family by name. What a family computes is
expressed by fields of `Spec` (rapo_jax/models/spec.py), never by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rapo_jax.models.rope_config import ROPE_NAMES, RopeKind

Json = Mapping[str, Any]  # a config.json, with the family's defaults filled in


def no_layers(config: Json, num_layers: int) -> list[bool]:
    return [False] * num_layers


def all_layers(config: Json, num_layers: int) -> list[bool]:
    return [True] * num_layers


def even_layers(config: Json, num_layers: int) -> list[bool]:
    """Gemma 2 (2024), section 2: layers alternate between local and global attention."""
    return [layer % 2 == 0 for layer in range(num_layers)]


def layers_from_max_window_layers(config: Json, num_layers: int) -> list[bool]:
    return [layer >= config["max_window_layers"] for layer in range(num_layers)]


def no_fields(config: Json) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    keys: keys of config.json that only this family reads or may ignore; any other unknown key is refused by name.
    defaults: the values that transformers assumes for absent keys.
    switches: fields of `Spec` that are the same for every model of the family.
    fields: fields of `Spec` that are read from `keys`.
    slides: which layers attend within `sliding_window`, where config.json has no `layer_types`.
    window_switch: the key that must be true for any layer to have a window; "" if there is none.
    rope_names: what the family calls the kinds of rope that it knows, and those kinds.
    tensors: parameter -> tensor name in files, where it differs from Llama's; for a layer's parameter without the
        prefix `model.layers.N.` ("mlp_norm": "pre_feedforward_layernorm.weight").
    """

    model_type: str
    class_prefix: str  # of transformers' classes: "Llama" in LlamaForCausalLM
    keys: frozenset[str] = frozenset()
    defaults: Json = field(default_factory=dict)
    switches: Json = field(default_factory=dict)
    fields: Callable[[Json], dict[str, Any]] = no_fields
    slides: Callable[[Json, int], list[bool]] = no_layers
    window_switch: str = ""
    activation_key: str = "hidden_act"
    activation: str = "silu"  # where the key is absent
    rope_names: Mapping[str, RopeKind] = field(default_factory=lambda: ROPE_NAMES)
    tensors: Mapping[str, str] = field(default_factory=dict)


def llama_fields(config: Json) -> dict[str, Any]:
    attention_bias = bool(config.get("attention_bias"))
    return {"qkv_bias": attention_bias, "out_bias": attention_bias, "mlp_bias": bool(config.get("mlp_bias"))}


def gemma2_fields(config: Json) -> dict[str, Any]:
    attention_bias = bool(config.get("attention_bias"))
    return {
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "query_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "attention_softcap": config["attn_logit_softcapping"],
        "final_softcap": config["final_logit_softcapping"],
    }


LLAMA = Family(
    "llama",
    "Llama",
    keys=frozenset({"attention_bias", "mlp_bias"}),
    fields=llama_fields,
)
MISTRAL = Family("mistral", "Mistral", slides=all_layers)
QWEN2 = Family(
    "qwen2",
    "Qwen2",
    keys=frozenset({"use_sliding_window", "max_window_layers"}),
    defaults={"max_window_layers": 28},
    switches={"qkv_bias": True},
    slides=layers_from_max_window_layers,
    window_switch="use_sliding_window",
)
GEMMA2 = Family(
    "gemma2",
    "Gemma2",
    # Early configs say hidden_act="gelu" while transformers computes hidden_activation, the tanh approximation.
    keys=frozenset(
        "hidden_act attention_bias query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping".split()
    ),
    defaults={
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    switches={"norms": "around", "zero_centered_norms": True, "scaled_embeddings": True},
    fields=gemma2_fields,
    slides=even_layers,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
)
PHI3 = Family(
    "phi3",
    "Phi3",
    keys=frozenset({"partial_rotary_factor", "original_max_position_embeddings"}),
    defaults={
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    slides=all_layers,
    rope_names={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    tensors={
        **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj.weight"),
        **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
    },
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, GEMMA2, PHI3)}
