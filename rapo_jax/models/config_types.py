"""The types and ranges of the keys of a config.json that are read, checked in one place before anything is computed."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from types import NoneType
from typing import Any

from rapo_jax.errors import UserError, shown

MOST = 10**8  # no dimension of a model is larger
MOST_LAYERS = 10_000
ROPE_KIND = ("type", "rope_type")
ROPE_NUMBERS = tuple(
    "rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings attention_factor beta_fast "
    "beta_slow mscale mscale_all_dim partial_rotary_factor".split()
)
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
ROPE_LISTS = ("short_factor", "long_factor")


def whole(most: int, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def positive(value: Any) -> bool:
    return number(value) and value > 0


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int) and each in (0, 1) for each in value)


def rope(value: Any) -> bool:
    """An object in which what is read is a number, the kind a text, and `truncate` a flag."""
    if not isinstance(value, dict):
        return False
    numbers = [value[name] for name in ROPE_NUMBERS if value.get(name) is not None]
    kinds = [value[name] for name in ROPE_KIND if value.get(name) is not None]
    lists = [value[name] for name in ROPE_LISTS if value.get(name) is not None]
    if not all(isinstance(each, list) for each in lists) or not isinstance(value.get("truncate"), (bool, NoneType)):
        return False
    numbers += [number for each in lists for number in each]
    if any(not isinstance(value.get(kind), (dict, NoneType)) for kind in ("full_attention", "sliding_attention")):
        return False
    nested = [each for each in value.values() if isinstance(each, dict)]  # one rope for each kind of layer
    return all(map(positive, numbers)) and all(isinstance(kind, str) for kind in kinds) and all(map(rope, nested))


Kind = tuple[str, Callable[[Any], bool]]  # in words, and the check
SIZE: Kind = (f"a whole number from 1 to {MOST:,}", lambda value: whole(MOST, value))
POSITIVE: Kind = ("a positive number", positive)
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
TEXTS: Kind = ("a list of texts", texts)
ROPE: Kind = ("an object whose rope_type is a text and whose factors are positive", rope)
REQUIRED: dict[str, Kind] = {
    "model_type": TEXT,
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_attention_heads": SIZE,
    "num_hidden_layers": (
        f"a whole number from 1 to {MOST_LAYERS:,}",
        lambda value: whole(MOST_LAYERS, value),
    ),
}
OPTIONAL: dict[str, Kind] = {
    **dict.fromkeys(("num_key_value_heads", "head_dim", "max_position_embeddings", "num_labels"), SIZE),
    "sliding_window": SIZE,
    "max_window_layers": ("a whole number", lambda value: isinstance(value, int) and 0 <= value <= MOST),
    **dict.fromkeys(("rope_theta", "initializer_range", "query_pre_attn_scalar"), POSITIVE),
    "partial_rotary_factor": POSITIVE,
    "rope_local_base_freq": POSITIVE,
    **dict.fromkeys(("sliding_window_pattern", "no_rope_layer_interval"), SIZE),
    "no_rope_layers": ("a list of 0 and 1", flags),
    **dict.fromkeys(MULTIPLIERS, POSITIVE),
    **dict.fromkeys(("original_max_position_embeddings", "shared_intermediate_size"), SIZE),
    "num_local_experts": ("a whole number", lambda value: isinstance(value, int) and 0 <= value <= MOST),
    "rms_norm_eps": ("a number from 0 to 1", lambda value: number(value) and 0 <= value <= 1),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), FLAG),
    **dict.fromkeys(("hidden_act", "hidden_activation"), TEXT),
    **dict.fromkeys(("layer_types", "architectures"), TEXTS),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), ROPE),
    "id2label": ("an object", lambda value: isinstance(value, dict)),
}


# Where null says "none" or "as transformers derives it", or is refused later; elsewhere it would be computed with.
NULLABLE = {"model_type", *OPTIONAL} - {
    "rms_norm_eps",
    "query_pre_attn_scalar",
    *MULTIPLIERS,
    "max_window_layers",
    "shared_intermediate_size",
    "num_local_experts",
    "initializer_range",
}


def check_types(config: Mapping[str, Any]) -> None:
    """Raises one UserError that lists every key whose value is of another type or beyond its range."""
    problems = []
    for key, (words, fits) in (REQUIRED | OPTIONAL).items():
        if key not in config or (config[key] is None and key in NULLABLE):
            continue
        value = config[key]
        if not fits(value):
            problems.append(f"{key}={shown(value)} must be {words}")
    if not problems:
        problems = misfits(config)
    if problems:
        raise UserError(f"config.json: {'; '.join(problems)}.")


def misfits(config: Mapping[str, Any]) -> list[str]:
    """Heads that do not divide what they share."""
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    found = []
    if heads and groups and heads % groups:
        found.append(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
    size = config.get("hidden_size")
    if heads and size and not config.get("head_dim") and size < heads:
        found.append(f"hidden_size={size} is less than num_attention_heads={heads}, so heads would have no dimension")
    return found


def listed(names: AbstractSet[str]) -> str:
    return ", ".join(sorted(names)) or "none"
