"""A loss's options, read from its signature: every keyword-only argument with its type, range, default and meaning.

    beta: Annotated[float, POSITIVE, "strength of the pull towards the reference"] = 0.1

Configuration, its checks, `rapo keys` and the documentation all read them from here.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from rapo_jax.intervals import NOT_NEGATIVE, POSITIVE, Interval

# Options that several losses share.
Beta = Annotated[float, POSITIVE, "strength of the pull towards the reference"]
Smoothing = Annotated[float, Interval(0, 0.5, high_open=True), "share of preferences assumed to be flipped"]
PerToken = Annotated[bool, "use log-probabilities per token, as TRL does"]
SftWeight = Annotated[float, NOT_NEGATIVE, "factor of the chosen response's negative log-likelihood"]
Eta = Annotated[float, POSITIVE, "factor of the reward gap r_w - r_l"]


@dataclass(frozen=True)
class Option:
    """A keyword-only argument of a loss. `type` is its annotation without the range and the meaning."""

    name: str
    type: Any
    default: Any
    meaning: str
    allowed: Interval | None = None


@functools.cache
def options_of(loss: Callable[..., Any]) -> Mapping[str, Option]:
    """The options of a loss by name. Raises ValueError where one lacks a default or an annotated meaning."""
    hints = typing.get_type_hints(loss, include_extras=True)
    parameters = inspect.signature(loss).parameters.values()
    options = [option_of(loss, p, hints.get(p.name)) for p in parameters if p.kind is p.KEYWORD_ONLY]
    return MappingProxyType({option.name: option for option in options})


def option_of(loss: Callable[..., Any], parameter: inspect.Parameter, hint: Any) -> Option:
    notes = getattr(hint, "__metadata__", ())
    meanings = [note for note in notes if isinstance(note, str)]
    ranges = [note for note in notes if isinstance(note, Interval)]
    kind = hint.__origin__ if notes else hint
    is_number = float in (kind, *typing.get_args(kind)) or int in (kind, *typing.get_args(kind))
    if parameter.default is parameter.empty or len(meanings) != 1 or len(ranges) != is_number:
        raise ValueError(
            f'{loss.__name__}: {parameter.name} must be annotated as Annotated[type, "meaning"], a number as '
            f'Annotated[float, Interval, "meaning"], and have a default; found {parameter}'
        )
    return Option(parameter.name, kind, parameter.default, meanings[0], ranges[0] if ranges else None)


def title_of(loss: Callable[..., Any]) -> str:
    """The first line of a loss's docstring."""
    return (inspect.getdoc(loss) or "").partition("\n")[0]


def papers_of(loss: Callable[..., Any]) -> str:
    """The References of a loss's docstring, as one line; "" without any."""
    _, _, references = (inspect.getdoc(loss) or "").partition("References:\n")
    return " ".join(references.split())
