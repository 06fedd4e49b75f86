"""Model families: what sets the checkpoints of one `model_type` apart from those of another.

A family is one frozen entry of FAMILIES. Reading a config.json, naming tensors and writing a reward model's config.json go
through it. To support a new family, add an entry; no other code refers to a family by name. What a family computes is
expressed by fields of `Spec` (rapo_jax/models/spec.py), never by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rapo_jax.errors import UserError
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


def every_nth_is_global(n: int, *, key: str = "") -> Callable[[Json, int], list[bool]]:
    """n - 1 local layers, a global one, and so on; a config.json may give another n under `key`."""

    def slides(config: Json, num_layers: int) -> list[bool]:
        every = config.get(key) or n
        return [(layer + 1) % every != 0 for layer in range(num_layers)]

    return slides


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
    layer_types: whether transformers reads that key in models of this family.
    window_switch: the key that must be true for any layer to have a window; "" if there is none.
    local_theta: the key with the rope_theta of layers that attend within a window, where these have a rotary embedding of
        their own; "" if all layers have the same.
    activations: names of activations that this family's configs use in another sense than others.
    classifier: whether transformers has a sequence classifier of the family, whose form a reward model is saved in.
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
    layer_types: bool = False
    window_switch: str = ""
    activation_key: str = "hidden_act"
    activation: str = "silu"  # where the key is absent
    activations: Mapping[str, str] = field(default_factory=dict)
    local_theta: str = ""
    classifier: bool = True
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


def gemma_fields(config: Json) -> dict[str, Any]:
    """hidden_activation is what some configs repeat hidden_act under; "gelu" meant the tanh approximation in both."""
    repeated = config.get("hidden_activation")
    if repeated not in (None, "gelu", "gelu_pytorch_tanh"):
        raise UserError(
            f"config.json: hidden_activation={repeated!r} is not what a gemma model computes, the tanh "
            "approximation of gelu; remove it if it is not meant."
        )
    return attention_bias(config)


def attention_bias(config: Json) -> dict[str, Any]:
    has_bias = bool(config.get("attention_bias"))
    return {"qkv_bias": has_bias, "out_bias": has_bias}


def gemma3_fields(config: Json) -> dict[str, Any]:
    return attention_bias(config) | {
        "query_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "final_softcap": config["final_logit_softcapping"],
    }


def olmo3_fields(config: Json) -> dict[str, Any]:
    if not config.get("rope_parameters") and config["rope_theta"] != OLMO3_THETA:
        raise UserError(
            f"config.json: of rope_theta={config['rope_theta']} transformers 4 and 5 make different rotary embeddings of layers "
            "with a window; give rope_parameters with full_attention and sliding_attention in its place."
        )
    return attention_bias(config)


def granite_fields(config: Json) -> dict[str, Any]:
    return llama_fields(config) | {
        "query_scale": float(config["attention_multiplier"]),
        "embedding_multiplier": float(config["embedding_multiplier"]),
        "residual_multiplier": float(config["residual_multiplier"]),
        "logits_divisor": float(config["logits_scaling"]),
    }


def granite4_fields(config: Json) -> dict[str, Any]:
    """Granite 4's dense models: the files call the MLP a shared expert, beside experts and Mamba layers that they have not."""
    problems = []
    if config["num_local_experts"]:
        problems.append(f"num_local_experts={config['num_local_experts']} (only 0, a dense model, is supported)")
    if not config.get("layer_types"):
        problems.append("no layer_types, so that every layer would be a Mamba layer")
    if config.get("position_embedding_type") not in (None, "rope"):
        problems.append(f"position_embedding_type={config['position_embedding_type']!r} (rope or null)")
    if config.get("normalization_function") not in (None, "rmsnorm"):
        problems.append(f"normalization_function={config['normalization_function']!r} (only rmsnorm)")
    if problems:
        raise UserError(
            f"config.json (granitemoehybrid) asks for what this decoder does not compute: {'; '.join(problems)}."
        )
    turns = config.get("position_embedding_type") == "rope"
    return granite_fields(config) | {
        "F": config["shared_intermediate_size"],
        "mlp_bias": False,
        "unturned": () if turns else tuple(range(config["num_hidden_layers"])),
    }


def smollm3_turned(config: Json, num_layers: int) -> list[bool]:
    """Which layers have a rotary embedding."""
    flags = config.get("no_rope_layers")  # despite its name, 1 where a layer has one
    if flags is None:
        return every_nth_is_global(4, key="no_rope_layer_interval")(config, num_layers)
    if len(flags) < num_layers:
        raise UserError(f"config.json: no_rope_layers has {len(flags)} entries for {num_layers} layers.")
    return [bool(flag) for flag in flags[:num_layers]]


def smollm3_fields(config: Json) -> dict[str, Any]:
    turned = smollm3_turned(config, config["num_hidden_layers"])
    return llama_fields(config) | {"unturned": tuple(layer for layer, turns in enumerate(turned) if not turns)}


def unturned_layers(config: Json, num_layers: int) -> list[bool]:
    return [not turns for turns in smollm3_turned(config, num_layers)]


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
    layer_types=True,
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
    layer_types=True,
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
QWEN3 = Family(
    "qwen3",
    "Qwen3",
    keys=frozenset({"attention_bias", "use_sliding_window", "max_window_layers"}),
    defaults={"head_dim": 128, "max_window_layers": 28},
    switches={"qk_norm": "head"},
    fields=attention_bias,
    layer_types=True,
    slides=layers_from_max_window_layers,
    window_switch="use_sliding_window",
)
OLMO2 = Family(
    "olmo2",
    "Olmo2",
    keys=frozenset({"attention_bias"}),
    defaults={"rms_norm_eps": 1e-5},
    switches={"norms": "after", "qk_norm": "projection"},
    fields=attention_bias,
)
OLMO3_THETA = 500000.0
OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    class_prefix="Olmo3",
    defaults={"rms_norm_eps": 1e-5, "rope_theta": OLMO3_THETA},
    fields=olmo3_fields,
    layer_types=True,
    slides=every_nth_is_global(4),
    local_theta="rope_theta",
)
GEMMA = Family(
    "gemma",
    "Gemma",
    keys=frozenset({"attention_bias", "hidden_activation"}),
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    switches={"zero_centered_norms": True, "scaled_embeddings": True},
    fields=gemma_fields,
    activation="gelu_pytorch_tanh",
    activations={"gelu": "gelu_pytorch_tanh"},
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3Text",
    keys=frozenset(
        "attention_bias query_pre_attn_scalar final_logit_softcapping rope_local_base_freq sliding_window_pattern".split()
    ),
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "final_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
    },
    switches={"norms": "around", "qk_norm": "head", "zero_centered_norms": True, "scaled_embeddings": True},
    fields=gemma3_fields,
    layer_types=True,
    slides=every_nth_is_global(6, key="sliding_window_pattern"),
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    local_theta="rope_local_base_freq",
)
GRANITE = Family(
    "granite",
    "Granite",
    # Published configs ask for attention_dropout in training, which nothing here applies; a run says so.
    keys=frozenset(
        "attention_bias mlp_bias attention_dropout attention_multiplier embedding_multiplier residual_multiplier "
        "logits_scaling".split()
    ),
    defaults=dict.fromkeys(
        ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0
    ),
    fields=granite_fields,
    classifier=False,
)
GRANITE4 = Family(
    "granitemoehybrid",
    "GraniteMoeHybrid",
    # Of experts and Mamba layers, which a dense model has not, and what initial weights and a router's loss would depend on.
    keys=GRANITE.keys
    | frozenset(
        "init_method mamba_chunk_size mamba_conv_bias mamba_d_conv mamba_d_head mamba_d_state mamba_expand "
        "mamba_n_groups mamba_n_heads mamba_proj_bias normalization_function num_experts_per_tok num_local_experts "
        "output_router_logits position_embedding_type router_aux_loss_coef shared_intermediate_size time_step_limit".split()
    )
    - {"mlp_bias"},
    defaults=dict(GRANITE.defaults)
    | {"num_local_experts": 8, "shared_intermediate_size": 1024, "sliding_window": None},
    fields=granite4_fields,
    layer_types=True,
    classifier=False,
    tensors={
        **dict.fromkeys(("gate", "up"), "shared_mlp.input_linear.weight"),
        "down": "shared_mlp.output_linear.weight",
    },
)
SMOLLM3 = Family(
    "smollm3",
    "SmolLM3",
    # pretraining_tp is 2 in published configs and read by nothing.
    keys=frozenset(
        "attention_bias mlp_bias pretraining_tp use_sliding_window max_window_layers no_rope_layers "
        "no_rope_layer_interval".split()
    ),
    defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True, "sliding_window": None},
    fields=smollm3_fields,
    layer_types=True,
    slides=unturned_layers,
    window_switch="use_sliding_window",
)
MINISTRAL = replace(MISTRAL, model_type="ministral", class_prefix="Ministral", layer_types=True)
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        MINISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        OLMO2,
        OLMO3,
        PHI3,
        GRANITE,
        GRANITE4,
        SMOLLM3,
    )
}
