"""YAML files and key=value overrides -> the typed tree of rapo_jax/config/tree.py, every key checked; and back.

The error for an unknown key names the nearest known one; the error for a wrong type says what is expected.
"""

import dataclasses
import datetime
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rapo_jax.borders import KINDS, is_unicode, path_of, read_text
from rapo_jax.config.constraints import validate
from rapo_jax.config.keys import keys_of
from rapo_jax.config.objective import Objective, flattened, option_types
from rapo_jax.config.tree import Config, Data, SourceOptions
from rapo_jax.config.yaml_text import parse_yaml, yaml_text
from rapo_jax.errors import UserError, near, shown


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides. Raises UserError for the first faulty key."""
    return with_overrides(read_tree(Path(path)), overrides)


def with_overrides(tree: dict, overrides: Sequence[str]) -> Config:
    """The configuration of these keys and values, those of the overrides in place of them; {} gives the defaults."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"{shown(override)} is not an override; write key=value, such as optimizer.learning_rate=1e-6."
            )
        insert(tree, key.strip().split("."), parse_yaml(text, said=override))
    return from_dict(tree)


def read_tree(path: Path, *, chain: tuple[Path, ...] = ()) -> dict:
    """The keys and values of a YAML file, merged over those of the file that it `extends` (relative to it), if any.

    `chain` lists the files that led to it, so that a cycle can be refused.
    """
    path = path_of(path, said=f"{chain[-1]} extends {shown(str(path))}, which" if chain else shown(str(path)))
    chain = (*chain, path)
    if path.resolve() in {before.resolve() for before in chain[:-1]}:
        raise UserError(f"{' extends '.join(map(str, chain))}: a circle; remove one `extends`.")
    said = f"{chain[-2]} extends {path}, which" if len(chain) > 1 else f"{path}"
    if not path.is_file():
        fact = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{said} {fact}; CONFIG must be a YAML file (examples: configs/).")
    text = read_text(path, remedy="CONFIG must be a YAML file")
    tree = parse_yaml(text, said=str(path)) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, such as `run_dir: runs/mine`; found {shown(tree, 40)}.")
    if "extends" not in tree:
        return tree
    below = tree.pop("extends")
    if not isinstance(below, str):
        raise UserError(f"{path}: extends={shown(below)}: expected the name of a YAML file.")
    return merge(read_tree(path.parent / below, chain=chain), tree)


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`, key by key. Lists are replaced, not merged.

    >>> merge({"a": 1, "b": {"c": 2, "d": [3, 4]}}, {"b": {"d": [5]}})
    {'a': 1, 'b': {'c': 2, 'd': [5]}}
    """
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def insert(tree: dict, keys: list[str], value: Any) -> None:
    """Sets tree[keys[0]][keys[1]]... to `value`, in place. Raises UserError where a key on the way holds a value."""
    for depth, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"{'.'.join(keys[: depth + 1])} is a value, it has no {keys[depth + 1]!r}.")
    tree[keys[-1]] = value


def build(cls: type, tree: Any, *, where: str) -> Any:
    """The dataclass `cls` from a dict, sections included; every value is converted to its field's type or refused."""
    if not isinstance(tree, dict):
        raise UserError(f"{where.rstrip('.')} must hold keys and values, found {shown(tree)}.")
    if cls is Objective:
        return build_objective(tree, where=where)
    return cls(**build_fields(typing.get_type_hints(cls), tree, where=where))


def build_fields(hints: dict[str, Any], tree: dict, *, where: str) -> dict[str, Any]:
    """The values of a dict, each as its hint. Raises UserError for a key without a hint."""
    leaves = {}
    for key, value in tree.items():
        if key not in hints:
            raise UserError(f"unknown key {where}{key!s:.60}; {meant(str(key), list(hints), where=where)}")
        if dataclasses.is_dataclass(hints[key]):
            leaves[key] = build(hints[key], {} if value is None else value, where=f"{where}{key}.")
        else:
            leaves[key] = convert(value, hints[key], name=f"{where}{key}")
    return leaves


def meant(key: str, known: list[str], *, where: str) -> str:
    """A hint for an unknown key of a section: the same key of other sections, else the nearest of this one or of others."""
    everywhere: dict[str, list[str]] = {}
    for each in keys_of():
        everywhere.setdefault(each.name.rpartition(".")[2], []).append(each.name)
    close = near(key, known)
    elsewhere = key if key in everywhere else near(key, list(everywhere))
    if key not in everywhere and close:
        names = [f"{where}{close}"]
    elif elsewhere:
        names = [name for name in everywhere[elsewhere] if "[N]" not in name][:3]
    else:
        names = []
    return f"did you mean {' or '.join(names)}?" if names else f"known: {', '.join(sorted(known))}"


def build_objective(tree: dict, *, where: str) -> Objective:
    """An objective from a dict in which its loss's options stand beside its own keys. Null options count as absent.

    Options of other losses are read as well, so that `resolve` can refuse them by name.
    """
    name = convert(tree.get("name", Objective.name), str, name=f"{where}name")
    own = {key: hint for key, hint in typing.get_type_hints(Objective).items() if key != "given"}
    options = option_types(name)
    set_keys = {key: value for key, value in tree.items() if value is not None or key not in options}
    leaves = build_fields(own | options, set_keys, where=where)
    given = {key: leaves.pop(key) for key in options if key in leaves}
    return Objective(**leaves, given=given)


def convert(value: Any, hint: Any, *, name: str) -> Any:
    """`value` as the type `hint`. YAML 1.1 reads 5e-7 as a string, so strings that spell numbers count as numbers."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(value, next(o for o in options if o is not type(None)), name=name)
    if origin is Literal:
        if value not in options:
            raise UserError(f"{name}={shown(value)}: expected one of {', '.join(options)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            such_as = EXAMPLES.get(options[0]) or f"[{', '.join(typing.get_args(options[0]))}]"
            raise UserError(f"{name}={shown(value)}: expected a list, such as {such_as}.")
        numbered = dataclasses.is_dataclass(options[0])
        names = [f"{name}[{index}]" if numbered else name for index in range(len(value))]
        return tuple(convert(item, options[0], name=name) for item, name in zip(value, names, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            such_as = "{name: true}" if options[1] is Any else "{name: 0.5}"
            raise UserError(f"{name}={shown(value)}: expected keys and values, such as {such_as}.")
        return {str(key): convert(item, options[1], name=f"{name}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where=f"{name}.")
    if hint is Any:
        return plain(value, name=name)
    if hint is str and value is None:  # `data.eval_path=` on a command line
        return ""
    if isinstance(value, str) and not is_unicode(value):
        raise UserError(f"{name}={shown(value)} holds half of a surrogate pair, which is not Unicode; correct it.")
    if hint is str and isinstance(value, datetime.date):  # YAML reads 2026-11-27 as a date
        return value.isoformat()
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):  # an integer above 1e308
            pass
    elif type(value) is hint:
        return value
    raise UserError(f"{name}={shown(value)}: expected {KINDS[hint]}.")


def read_mapping(text: str, *, option: str) -> dict[str, Any]:
    """The keys and values of a YAML text that is given as a command line's `option`."""
    return convert(parse_yaml(text, said=f"{option} {text}"), dict[str, Any], name=option)


def plain(value: Any, *, name: str) -> Any:
    """A value that JSON can hold: texts, finite numbers, booleans, null, lists, and mappings by text."""
    if isinstance(value, dict):
        return {convert(str(key), str, name=name): plain(item, name=f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return convert(value, str, name=name)


EXAMPLES = {
    str: "[one, another]",
    float: "[10, 1]",
    Objective: "[{name: sft, weight: 0.5}]",
    SourceOptions: "[{path: pairs.jsonl}, {path: more.jsonl, weight: 0.5}]",
}


def as_dict(config: Config) -> dict:
    """The resolved tree as plain dicts and lists, ready for YAML and JSON; an objective with the options of its loss."""
    tree = dataclasses.asdict(config)
    return _lists({key: flattened(config.objective) if key == "objective" else value for key, value in tree.items()})


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def to_yaml(config: Config) -> str:
    """The text of a run directory's config.yaml."""
    return yaml_text(as_dict(config))


def from_dict(tree: dict) -> Config:
    """The inverse of `as_dict`; what `tree` lacks is at its default. Raises UserError as `load_config` does."""
    config = build(Config, tree, where="")
    data = tree.get("data")
    if not isinstance(data, dict) or data.get("max_prompt_length") is None:
        config = dataclasses.replace(config, data=with_prompt_length(config.data))
    return validate(config)


def with_prompt_length(data: Data) -> Data:
    """The default of data.max_prompt_length where data.max_length leaves no room for it: half of that."""
    if data.max_length > data.max_prompt_length:
        return data
    return dataclasses.replace(data, max_prompt_length=max(1, data.max_length // 2))
