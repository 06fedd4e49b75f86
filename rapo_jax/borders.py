"""Where files enter and leave: read this file as this shape or say why not; write this file whole or not at all.

Every reader raises UserError with one sentence (the file, the fact, the remedy) for whatever can be wrong with a file that
a person, another program or an earlier run wrote. Every writer goes through a temporary name and an atomic rename, so that
a reader, or the next run, never meets half a file.
"""

import dataclasses
import json
import os
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from rapo_jax.errors import UserError, nearest

T = TypeVar("T")
EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text (in quotes, if it looks like something else)",
}


# Reading.


def read_text(path: Path, *, remedy: str = "") -> str:
    """The text of a UTF-8 file (a byte-order mark is skipped). Raises UserError; `remedy` ends its message."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(_sentence(f"{path} is not text in UTF-8 ({error})", remedy)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(
            _sentence(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})", remedy)
        ) from error


def parse_json(text: str | bytes, *, said: str, remedy: str = "") -> Any:
    """The value of a JSON text; `said` names it in the message of the UserError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.pos + 1}"
        raise UserError(_sentence(f"{said} is not JSON: {error.msg} at {where}", remedy)) from error
    except (ValueError, RecursionError) as error:  # not Unicode, an integer of thousands of digits, nested too deep
        fact = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(_sentence(f"{said} is not JSON that can be read: {fact}", remedy)) from error


def read_json(path: Path, *, remedy: str = "") -> Any:
    """The value of a JSON file."""
    return parse_json(read_text(path, remedy=remedy), said=str(path), remedy=remedy)


def read_object(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The object that a JSON file holds."""
    value = read_json(path, remedy=remedy)
    if not isinstance(value, dict):
        raise UserError(_sentence(f"{path} holds {_kind(value)} where a JSON object is expected", remedy))
    return value


def shaped(value: Any, shape: type[T], *, said: str, remedy: str = "", path: str = "") -> T:
    """`value`, as JSON has it, as an instance of the dataclass `shape`; nested dataclasses, tuples and mappings included.

    Raises UserError that names the field, what it holds and what it should hold; `said` is what holds the value.
    Unknown fields are refused, absent ones take their default.

    >>> @dataclasses.dataclass
    ... class Point:
    ...     x: float
    ...     name: str = ""
    >>> shaped({"x": 1}, Point, said="point.json")
    Point(x=1.0, name='')
    """
    if not isinstance(value, Mapping):
        what = f"{said}: {path} is" if path else f"{said} is"
        raise UserError(_sentence(f"{what} {_kind(value)} where an object is expected", remedy))
    hints = typing.get_type_hints(shape)
    fields = {field.name: field for field in dataclasses.fields(shape) if field.init}  # pyright: ignore
    unknown = [str(key) for key in value if key not in fields]
    if unknown:
        raise UserError(
            _sentence(f"{said}: unknown field {path}{unknown[0]}; {nearest(unknown[0], list(fields))}", remedy)
        )
    required = [name for name, field in fields.items() if _is_required(field) and name not in value]
    if required:
        raise UserError(_sentence(f"{said} lacks {', '.join(path + name for name in required)}", remedy))
    read = {
        str(key): _as_hint(item, hints[key], said=said, remedy=remedy, path=path + key) for key, item in value.items()
    }
    return shape(**read)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_hint(value: Any, hint: Any, *, said: str, remedy: str, path: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    inside = {"said": said, "remedy": remedy}
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _as_hint(value, next(o for o in options if o is not type(None)), path=path, **inside)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return shaped(value, hint, path=f"{path}.", **inside)
    if origin is Literal and value in options:
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_as_hint(item, options[0], path=f"{path}[{index}]", **inside) for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _as_hint(item, options[1], path=f"{path}.{key}", **inside) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint:
        return value
    expected = (
        " or ".join(map(repr, options)) if origin is Literal else EXPECTED.get(hint, getattr(hint, "__name__", hint))
    )
    raise UserError(_sentence(f"{said}: {path} is {value!r:.60}, expected {expected}", remedy))


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")


def _sentence(fact: str, remedy: str) -> str:
    return f"{fact}; {remedy}." if remedy else f"{fact}."


# Writing.


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Where the block raises, nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(path: Path, *, writes: bool = True) -> Iterator[Path]:
    """The same of a directory, PATH.partial until it is whole. `path` must be empty or absent; a partial one that an
    earlier attempt left is removed. Processes other than the writer get the name and touch nothing."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    yield temporary
    if writes:
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all. Raises ValueError for numbers that JSON cannot hold."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: typing.Iterable[Any], *, encode: Callable[[Any], str] | None = None) -> None:
    """Writes one JSON value a line, whole or not at all."""
    encode = encode or (lambda row: json.dumps(row, ensure_ascii=False))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(encode(row) + "\n" for row in rows)
