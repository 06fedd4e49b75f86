"""The settings of a run by dotted key, and how two runs' settings differ.

An absent setting means its default, so that a run resumes under a later version that has more keys. Where values come
from is rapo_jax/config/; what changing a key affects is declared with its field.
"""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rapo_jax.config.files import as_dict
from rapo_jax.config.keys import affects
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config, SourceOptions
from rapo_jax.objectives import OBJECTIVES

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A setting that differs between two runs."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.before!r} -> {self.now!r})"


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that affect what is trained. LoRA's count only if adapters are trained.

    Entries of lists of sections have numbered keys, such as data.sources[0].schema.
    """
    leaves = dict(dotted(as_dict(config)))
    if config.lora.rank is None:
        leaves = {key: value for key, value in leaves.items() if not key.startswith("lora.")}
    return {key: value for key, value in leaves.items() if matters(key)}


def changes(before: Settings, now: Settings, *, given: Collection[str] | None) -> list[Change]:
    """Every setting whose value differs, by key. None and absent mean the default.

    `before` may come from another version: what this one does not know counts only if it was not at its default. `given`
    names the settings of `before` that were not at their defaults; None where nobody recorded it.
    """
    before, now = dict(dotted(before)), dict(dotted(now))
    found = []
    for key in sorted(before.keys() | now.keys()):
        unknown = key not in now and not is_known(key)
        if (unknown and given is not None and key not in given) or not matters(key):
            continue
        old, new = (value_of(key, settings) for settings in (before, now))
        if key == "data.date" and old is None:  # an earlier version wrote the day down nowhere; the tokens tell
            continue
        if old != new:
            found.append(Change(key, old, new))
    return found


def not_default(settings: Settings) -> list[str]:
    """The keys of the settings that are not at their defaults."""
    return [key for key, value in dotted(settings) if value is not None and value != default_of(key, settings)]


def value_of(key: str, settings: Settings) -> Any:
    value = settings.get(key)
    return default_of(key, settings) if value is None else value


def dotted(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf. Lists of mappings are numbered; other lists are leaves.

    >>> dict(dotted({"a": {"b": [1, 2]}, "c": [{"d": 3}]}))
    {'a.b': [1, 2], 'c[0].d': 3}
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from dotted(value, f"{where}.{key}" if where else key)
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        for index, item in enumerate(tree):
            yield from dotted(item, f"{where}[{index}]")
    else:
        yield where, list(tree) if isinstance(tree, tuple) else tree


def matters(key: str) -> bool:
    """Whether a change of the setting changes the trained model; assumed for unknown settings."""
    try:
        return affects(key) != "nothing"
    except KeyError:
        return True


def default_of(key: str, settings: Settings) -> Any:
    """The default of a key; for a loss's option, that of the loss named in the settings. None for unknown keys."""
    if source := re.fullmatch(r"data\.sources\[\d+\]\.(.*)", key):
        return defaults(SourceOptions).get(source[1])
    if option := re.fullmatch(r"(objective(?:\.plus\[\d+\])?)\.(\w+)", key):
        section, name = option.groups()
        if name in defaults(Objective):
            return defaults(Objective)[name]
        loss = OBJECTIVES.get(settings.get(f"{section}.name") or Objective.name)
        return loss.options[name].default if loss and name in loss.options else None
    return defaults(Config).get(key)


def is_known(key: str) -> bool:
    """Whether this version has such a setting."""
    if option := re.fullmatch(r"(objective(?:\.plus\[\d+\])?)\.(\w+)", key):
        return option[2] in defaults(Objective) or any(option[2] in loss.options for loss in OBJECTIVES.values())
    try:
        return bool(affects(key))
    except KeyError:
        return False


@functools.cache
def defaults(section: type) -> dict[str, Any]:
    """Dotted key -> default of a configuration or one of its sections."""
    tree = as_dict(Config()) if section is Config else asdict(section())
    return dict(dotted(tree))
