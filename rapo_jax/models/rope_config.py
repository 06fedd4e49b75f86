"""The numbers of a rotary embedding, read from both spellings of config.json; rapo_jax/models/rope.py computes with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rapo_jax.errors import UserError
from rapo_jax.models.config_types import listed


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `llama3` rescales frequencies by wavelength (Llama 3.1, 2024); `linear` divides all."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


ROPE_FIELDS = {  # by rope_type: their name -> ours
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    },
}


def rope_from_config(config: Mapping[str, Any]) -> Rope:
    """Reads both spellings: rope_theta with rope_scaling (transformers 4) and rope_parameters (transformers 5).

    Where a file has both, they must agree.
    """
    spellings = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name)] or [{}]
    first, *others = [rope_of(dict(spelling), config.get("rope_theta")) for spelling in spellings]
    if any(other != first for other in others):
        raise UserError(
            f"config.json: rope_parameters={config['rope_parameters']} and rope_scaling={config['rope_scaling']} ask for "
            "different rotary embeddings, and which one is read depends on the version of transformers; remove the one that "
            "is not meant."
        )
    return first


def rope_of(scaling: dict[str, Any], theta: float | None) -> Rope:
    """`theta` stands where the scaling has no rope_theta of its own."""
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = float(scaling.pop("rope_theta", None) or theta or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind == "default" and scaling.get("factor") == 1:
        del scaling["factor"]
    if kind not in ROPE_FIELDS:
        raise UserError(f"config.json: rope_type={kind!r} is not supported; supported: {', '.join(ROPE_FIELDS)}.")
    names = ROPE_FIELDS[kind]
    unknown, missing = set(scaling) - set(names), set(names) - set(scaling)
    if unknown or missing:
        raise UserError(f"config.json: rope_type={kind!r} has unknown keys {listed(unknown)}, lacks {listed(missing)}.")
    return Rope(theta=theta, kind=kind, **{ours: scaling[theirs] for theirs, ours in names.items()})
