"""Every configuration key by its dotted name: what `rapo keys` prints, and what changing the key affects."""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from rapo_jax.config.fields import Affects, description
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, nearest
from rapo_jax.intervals import Interval
from rapo_jax.objectives import OBJECTIVES, Option
from rapo_jax.objectives.options import papers_of, title_of

WIDTH = 80
TYPE_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any value"}


def affects(dotted_key: str) -> Affects:
    """What changing a key of `as_dict` affects in a run: "tokens", "arithmetic", "order" or "nothing".

    A key within a mapping (data.source_weights.NAME) counts as its field, an option of a loss (objective.beta) as
    arithmetic; data.sources[0].path is a key of the first entry. Whether `lora.*` is in use (lora.rank is set) is for
    the caller to check. Raises KeyError for anything that is not a key.

    >>> affects("optimizer.learning_rate"), affects("train.log_every")
    ('arithmetic', 'nothing')
    """
    cls: Any = Config
    for part in dotted_key.split("."):
        part, bracket, _ = part.partition("[")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if cls is Objective and part not in fields:
            return "arithmetic"
        if part not in fields:
            raise KeyError(f"{dotted_key} is no configuration key")
        hint = typing.get_type_hints(cls)[part]
        hint = typing.get_args(hint)[0] if bracket and typing.get_args(hint) else hint
        if not dataclasses.is_dataclass(hint):
            return cast(Affects, description(fields[part]).affects)
        cls = hint
    raise KeyError(f"{dotted_key} is a section, not a key")


@dataclass(frozen=True)
class Key:
    """One configuration key: its dotted name, and descriptions of its type, default and meaning."""

    name: str
    kind: str
    default: str
    meaning: str
    notes: tuple[str, ...] = ()

    def lines(self, indent: str = "") -> str:
        """At most WIDTH columns: name, default and kind, and below them the meaning."""
        head = f"{self.name} = {self.default}  ({'; '.join((self.kind, *self.notes))})"
        return f"{filled(head, indent, indent + '    ')}\n{filled(self.meaning, indent + '    ')}"


def filled(text: str, indent: str = "", more: str | None = None) -> str:
    """The text in lines of at most WIDTH columns, those after the first indented by `more`."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if more is None else more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def keys_of(cls: Any = Config, before: str = "", read_by: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys of a section, those of its sections included; `read_by` are the verbs that read it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        said, hint, name = description(field), hints[field.name], f"{before}{field.name}"
        readers = said.read_by or read_by
        if dataclasses.is_dataclass(hint):
            yield from keys_of(hint, f"{name}.", readers)
        elif (cls, field.name) != (Objective, "given"):
            effect = "may change on resume" if said.affects == "nothing" else f"affects {said.affects}"
            notes = (effect, f"read by {', '.join(readers)}")
            yield Key(name, words_for_type(hint, said.allowed), words_for_default(field), said.meaning, notes)
            item = next(iter(typing.get_args(hint)), None)
            if dataclasses.is_dataclass(item) and item is not Objective:
                yield from keys_of(item, f"{name}[N].", readers)


def words_for_type(hint: Any, allowed: Interval | None = None) -> str:
    """Describes a type and the numbers that it allows: `number > 0`, `one of a, b`, `list of texts`, `... or null`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{words_for_type(next(option for option in options if option is not type(None)), allowed)} or null"
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is tuple:
        item = options[0]
        return "list of sections" if dataclasses.is_dataclass(item) else f"list, each {words_for_type(item)}"
    if origin is dict:
        return f"name: {words_for_type(options[1], allowed)}"
    return f"{TYPE_WORDS.get(hint, str(hint))} {allowed or ''}".rstrip()


def words_for_default(field: Any) -> str:
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    return words_for_value(default)


def words_for_value(value: Any) -> str:
    """A value as one writes it in YAML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(words_for_value, value))}]"
    words = {None: "null", "": '""'}
    if isinstance(value, bool | dict):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else words.get(value, str(value))


def key_of(option: Option) -> Key:
    return Key(
        f"objective.{option.name}",
        words_for_type(option.type, option.allowed),
        words_for_value(option.default),
        option.meaning,
    )


# Printing.


def listing(prefix: str = "") -> str:
    """The keys whose names begin with `prefix`, and losses with their options: for objective.LOSS that loss, for
    objective.OPTION every loss that reads the option. Raises UserError if nothing matches."""
    every = list(keys_of())
    chosen = [key.lines() for key in every if key.name.startswith(prefix)]
    if "objective.name".startswith(prefix):
        chosen += [loss_lines(name) for name in OBJECTIVES]
    elif prefix.startswith("objective."):
        chosen += losses_under(prefix.removeprefix("objective."))
    if not chosen:
        names = [key.name for key in every] + [f"objective.{name}" for name in OBJECTIVES]
        raise UserError(f"no configuration key begins with {prefix!r}; {nearest(prefix, sections_first(names))}")
    return "\n\n".join(chosen)


def sections_first(names: list[str]) -> list[str]:
    """The sections of these keys, then the keys themselves."""
    return [*dict.fromkeys(name.partition(".")[0] for name in names), *names]


def losses_under(start: str) -> list[str]:
    """The loss with this id, else the losses that read an option of this name, else those whose ids begin with it."""
    if start in OBJECTIVES:
        return [loss_lines(start)]
    reading = [loss_lines(name, only=start) for name, spec in OBJECTIVES.items() if start in spec.options]
    return reading or [loss_lines(name) for name in OBJECTIVES if name.startswith(start)]


def loss_lines(name: str, *, only: str = "") -> str:
    """A loss with its title, its paper, what it learns from, and its options."""
    spec = OBJECTIVES[name]
    responses = {"one": "one response", "pair": "pairs", "labelled": "labelled responses", "all": "all responses"}
    needs = [responses[spec.responses]]
    needs += ["rewards"] if spec.needs_rewards is True else []
    needs += ["a reference"] if spec.needs_reference else []
    lines = [
        f"objective.name={name}",
        filled(title_of(spec.loss), "    "),
        filled(f"Needs {' and '.join(needs)}. {papers_of(spec.loss)}", "    "),
    ]
    options = [option for option in spec.options.values() if only in ("", option.name)]
    return "\n".join([*lines, *(key_of(option).lines("    ") for option in options)])
