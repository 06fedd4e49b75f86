"""Configuration fields that describe themselves: default, meaning, allowed values, what they affect, and who reads them."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from rapo_jax.intervals import Interval

Value = TypeVar("Value")

# What changing a field affects in a run: the groups it trains on (tokens, rewards, weights), the numbers it computes,
# the order and number of its steps, or none of these. A run resumes only if no field has changed except "nothing" ones.
Affects = Literal["tokens", "arithmetic", "order", "nothing"]


@dataclass(frozen=True)
class Description:
    """What a field says about itself. `read_by` names verbs; empty means those of its section."""

    meaning: str
    affects: Affects | None = None  # None for a section, whose fields say it themselves
    allowed: Interval | None = None
    read_by: tuple[str, ...] = ()


def about(
    meaning: str,
    *,
    affects: Affects | None = None,
    allowed: Interval | None = None,
    read_by: tuple[str, ...] = (),
) -> dict[str, Description]:
    """The metadata of a described field, for `dataclasses.field`."""
    return {"description": Description(meaning, affects, allowed, read_by)}


def key(
    default: Value,
    meaning: str,
    *,
    affects: Affects,
    allowed: Interval | None = None,
    read_by: tuple[str, ...] = (),
) -> Value:
    """A described field with a default; its type for a type checker is that of the default, as in a plain dataclass."""
    metadata = about(meaning, affects=affects, allowed=allowed, read_by=read_by)
    return cast(Value, field(default=default, metadata=metadata))


def section(cls: type[Value], meaning: str, *, read_by: tuple[str, ...] = ()) -> Value:
    """A field that holds another dataclass of described fields, all at their defaults."""
    return cast(Value, field(default_factory=cls, metadata=about(meaning, read_by=read_by)))


def description(described: Any) -> Description:
    """What a field of `dataclasses.fields` says about itself."""
    return described.metadata["description"]
