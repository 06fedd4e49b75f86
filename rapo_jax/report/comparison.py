"""How runs differ: the keys of their configurations, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "\u2014"  # a dash, where a configuration has no such key
NOT_COMPARED = ("run_dir",)


@dataclass(frozen=True)
class Differences:
    """`rows` are (key, value of each run) where values differ; `unrecorded` are keys that runs of other versions do not have."""

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    unrecorded: tuple[str, ...]


def differences(configs: Sequence[Mapping[str, Any]]) -> Differences:
    """What differs between configurations by dotted key, in the order of the first one.

    A key that only some have, all with one value, came with a version; but objectives have keys of their own.

    >>> differences([{"seed": 0, "objective.beta": 0.1, "rows.split": "auto"}, {"seed": 1}])
    Differences(rows=(('seed', ('0', '1')), ('objective.beta', ('0.1', '\u2014'))), unrecorded=('rows.split',))
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    rows, unrecorded = [], []
    for key in keys:
        if key in NOT_COMPARED:
            continue
        values = tuple(setting(config[key]) if key in config else ABSENT for config in configs)
        known = {value for value, config in zip(values, configs, strict=True) if key in config}
        if len(known) > 1 or (ABSENT in values and key.startswith("objective.")):
            rows.append((key, values))
        elif ABSENT in values:
            unrecorded.append(key)
    return Differences(tuple(rows), tuple(unrecorded))


def setting(value: Any) -> str:
    """A value as YAML writes it on one line.

    >>> [setting(each) for each in (None, True, 1e-06, ["chosen"], {"a": 1}, "")]
    ['null', 'true', '1e-06', '[chosen]', '{a: 1}', "''"]
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case list():
            return f"[{', '.join(map(setting, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}: {setting(each)}" for key, each in value.items()) + "}"
        case "":
            return "''"
    return str(value)
