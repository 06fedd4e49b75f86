"""The numbers of a rotary embedding, read from both spellings of config.json; rapo_jax/models/rope.py computes with them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rapo_jax.errors import UserError
from rapo_jax.models.config_types import listed

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope", "dynamic"]
Json = Mapping[str, Any]
ORIGINAL = "original_max_position_embeddings"
BY_LENGTH = ("longrope", "dynamic")  # their frequencies depend on the length of the whole sequence


@dataclass(frozen=True, repr=False)
class Rope:
    """Rotary position embedding; the kinds are described in rapo_jax/models/rope.py.

    original_max_positions: of the training that came before the context was extended; for `dynamic`, the length up to
        which nothing changes.
    attention_factor: of cos and sin, which scales the scores of attention by its square.
    turning: the share of each head, from its first dimension, that turns; the rest has no position.
    short_factors, long_factors: of the wavelengths in sequences up to and beyond `original_max_positions`.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    attention_factor: float = field(default=1.0, kw_only=True)
    beta_fast: float = field(default=32.0, kw_only=True)
    beta_slow: float = field(default=1.0, kw_only=True)
    truncate: bool = field(default=True, kw_only=True)
    turning: float = field(default=1.0, kw_only=True)
    short_factors: tuple[float, ...] = field(default=(), kw_only=True)
    long_factors: tuple[float, ...] = field(default=(), kw_only=True)

    def __repr__(self) -> str:
        """Part of a run's identity (`identity_fields` in rapo_jax/models/spec.py), so it never changes for an older rope: the
        first six fields always show, and any other only where it is not at its default."""
        shown = [f.name for f in fields(self) if not f.kw_only or getattr(self, f.name) != f.default]
        return f"Rope({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.kind in BY_LENGTH

    @property
    def turning_point(self) -> int | None:
        """The length beyond which all positions of a sequence turn otherwise, its first ones included; None if there is none."""
        return self.original_max_positions if self.kind == "longrope" else None

    def turning_dimensions(self, H: int) -> int:
        """How many of a head's H dimensions turn."""
        return int(H * self.turning)


@dataclass(frozen=True)
class RopeKeys:
    """What the spelling of one kind of rope must hold and may hold, and the fields of Rope that follow.

    `fields` is given the spelling and the whole config.json.
    """

    required: frozenset[str]
    optional: frozenset[str]
    fields: Callable[[Json, Json], dict[str, Any]]


def no_rope_fields(scaling: Json, config: Json) -> dict[str, Any]:
    return {}


def linear_fields(scaling: Json, config: Json) -> dict[str, Any]:
    return {"factor": scaling["factor"]}


def llama3_fields(scaling: Json, config: Json) -> dict[str, Any]:
    same = {name: scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
    return same | {"original_max_positions": scaling[ORIGINAL]}


def dynamic_fields(scaling: Json, config: Json) -> dict[str, Any]:
    return {"factor": scaling["factor"], "original_max_positions": required_positions(config)}


def yarn_fields(scaling: Json, config: Json) -> dict[str, Any]:
    """Peng et al., "YaRN", 2023, section 3.4; `mscale` and `mscale_all_dim` are DeepSeek's, a quotient of two such factors."""

    def attention(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    factor: float = scaling["factor"]
    mscale, all_mscale = scaling.get("mscale"), scaling.get("mscale_all_dim")
    derived = attention(mscale) / attention(all_mscale) if mscale and all_mscale else attention(1.0)
    same = {name: scaling[name] for name in ("beta_fast", "beta_slow", "truncate") if name in scaling}
    return same | {
        "factor": factor,
        "original_max_positions": scaling.get(ORIGINAL) or required_positions(config),
        "attention_factor": float(scaling.get("attention_factor", derived)),
    }


def longrope_fields(scaling: Json, config: Json) -> dict[str, Any]:
    """Ding et al., "LongRoPE", 2024. The attention factor is Phi-3's."""
    original = config.get(ORIGINAL) or scaling.get(ORIGINAL) or required_positions(config)
    factor = scaling.get("factor") or required_positions(config) / original
    if original < 2:
        raise UserError(f"config.json: rope_type='longrope' needs an {ORIGINAL} above 1.")
    derived = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "factor": factor,
        "original_max_positions": original,
        "attention_factor": float(scaling.get("attention_factor", derived)),
        "short_factors": tuple(map(float, scaling["short_factor"])),
        "long_factors": tuple(map(float, scaling["long_factor"])),
    }


def required_positions(config: Json) -> int:
    if not config.get("max_position_embeddings"):
        raise UserError("config.json lacks max_position_embeddings, from which its rotary embedding follows.")
    return config["max_position_embeddings"]


def rope_keys(required: str, optional: str, read: Callable[[Json, Json], dict[str, Any]]) -> RopeKeys:
    return RopeKeys(frozenset(required.split()), frozenset(optional.split()), read)


ROPE_KINDS: dict[RopeKind, RopeKeys] = {
    "default": rope_keys("", "", no_rope_fields),
    "linear": rope_keys("factor", "", linear_fields),
    "llama3": rope_keys(f"factor low_freq_factor high_freq_factor {ORIGINAL}", "", llama3_fields),
    "yarn": rope_keys(
        "factor",
        f"{ORIGINAL} attention_factor beta_fast beta_slow truncate mscale mscale_all_dim attn_factor",
        yarn_fields,  # attn_factor, which DeepSeek publishes, has no effect in transformers
    ),
    "longrope": rope_keys("short_factor long_factor", f"{ORIGINAL} attention_factor factor", longrope_fields),
    "dynamic": rope_keys("factor", "", dynamic_fields),
}
# rope_type -> kind, in families without other names
ROPE_NAMES: Mapping[str, RopeKind] = {kind: kind for kind in ROPE_KINDS}


GLOBAL, LOCAL = "full_attention", "sliding_attention"  # layers, as layer_types and rope_parameters name them


def ropes_from_config(
    config: Json, *, names: Mapping[str, RopeKind] = ROPE_NAMES, partial: bool = False, local_theta: str = ""
) -> tuple[Rope, Rope]:
    """The rotary embeddings of layers without and with a window.

    They are the same unless the family has a key `local_theta`, which holds the rope_theta of the latter; no rope_scaling is
    theirs. In transformers 5 rope_parameters then holds one object for each.
    """
    if not local_theta:
        rope = rope_from_config(config, names=names, partial=partial)
        return rope, rope
    given = config.get("rope_parameters") or {}
    strange = set(given) - {GLOBAL, LOCAL}
    if strange:
        raise UserError(
            f"config.json: rope_parameters has the keys {listed(strange)}; this model_type has one object for {GLOBAL} and one for "
            f"{LOCAL}."
        )
    of_global = dict(config) | {"rope_parameters": given.get(GLOBAL)}
    of_local = dict(config) | {
        "rope_parameters": given.get(LOCAL),
        "rope_scaling": None,
        "rope_theta": config.get(local_theta),
    }
    local = rope_from_config(of_local, names=names, partial=partial)
    if local.by_length:
        raise UserError(f"config.json: rope_type={local.kind!r} of {LOCAL} is not computed; only of {GLOBAL}.")
    return rope_from_config(of_global, names=names, partial=partial), local


def rope_from_config(config: Json, *, names: Mapping[str, RopeKind] = ROPE_NAMES, partial: bool = False) -> Rope:
    """Reads both spellings: rope_theta with rope_scaling (transformers 4) and rope_parameters (transformers 5).

    Where a file has both, they must agree. `names` are what the family calls its kinds of rope; `partial` says whether it
    knows partial_rotary_factor.
    """
    spellings = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name)] or [{}]
    first, *others = [rope_of(spelling, config, names=names, partial=partial) for spelling in spellings]
    if any(other != first for other in others):
        raise UserError(
            f"config.json: rope_parameters={config['rope_parameters']} and rope_scaling={config['rope_scaling']} ask for "
            "different rotary embeddings, and which one is read depends on the version of transformers; remove the one that "
            "is not meant."
        )
    return first


def rope_of(spelling: Json, config: Json, *, names: Mapping[str, RopeKind] = ROPE_NAMES, partial: bool = False) -> Rope:
    """One rope. rope_theta and partial_rotary_factor are those of `config` where the spelling has none of its own."""
    scaling = {name: value for name, value in spelling.items() if value is not None}
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    named = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    turning = float(scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0)
    if turning != 1 and not partial:
        raise UserError(f"config.json: partial_rotary_factor={turning} is not computed for this model_type.")
    if named not in names:
        raise UserError(f"config.json: rope_type={named!r} is not supported; supported: {', '.join(names)}.")
    kind = names[named]
    if kind == "default" and scaling.get("factor") == 1:
        del scaling["factor"]
    keys = ROPE_KINDS[kind]
    unknown, missing = set(scaling) - keys.required - keys.optional, keys.required - set(scaling)
    if unknown or missing:
        raise UserError(
            f"config.json: rope_type={named!r} has unknown keys {listed(unknown)}, lacks {listed(missing)}."
        )
    return Rope(theta=theta, kind=kind, turning=turning, **keys.fields(scaling, config))


def require_fit(rope: Rope, H: int) -> Rope:
    """The rope itself. Raises UserError where its numbers do not fit heads of H dimensions."""
    turning = rope.turning_dimensions(H)
    problems = []
    if turning % 2 or not 0 < turning <= H:
        problems.append(f"{turning} of a head's {H} dimensions turn, which must be an even number from 2 to {H}")
    if rope.kind == "dynamic" and turning == 2:
        problems.append("rope_type='dynamic' needs more than 2 dimensions that turn")
    if rope.kind == "yarn" and rope.theta <= 1:
        problems.append(f"rope_type='yarn' needs a rope_theta above 1, not {rope.theta}")
    for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if rope.kind == "longrope" and len(factors) != turning // 2:
            problems.append(f"{name} has {len(factors)} numbers for {turning // 2} pairs of dimensions that turn")
    if problems:
        raise UserError(f"config.json: {'; '.join(problems)}.")
    return rope
