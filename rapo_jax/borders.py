"""Files in and out: parse this file into this type or explain why not; write this file atomically.

Every reader raises UserError with one sentence (the file, what is wrong with it, what to do) for anything that can be wrong
with a file written by a person, another program or an earlier run. Every writer writes under a temporary name and renames,
so no reader and no later run ever sees half a file. What the values mean is not decided here.
"""

import bz2
import codecs
import dataclasses
import gzip
import io
import json
import lzma
import os
import re
import shutil
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from rapo_jax.errors import UserError, first_line, nearest
from rapo_jax.intervals import is_finite
from rapo_jax.space import on_disk

Typed = TypeVar("Typed")
KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text (in quotes, if it looks like something else)",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}
SPACE = re.compile(r"[ \t\r\n]*")


def open_zstd(path: Path, _: str) -> BinaryIO:
    """The bytes of a file that zstd compressed; of Python's own library only from 3.14 on."""
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # pyright: ignore[reportArgumentType]


DECOMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": open_zstd}  # by suffix


# Reading.


def path_of(text: str | Path, *, said: str) -> Path:
    """The path that a user wrote, with the home directory for ~; nothing need exist there. `said` is what the user calls it.

    Raises UserError for what is not a usable path: a name too long, a link that leads to itself, a home that does not exist.
    """
    path = Path(text)
    try:
        path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{said} is not a usable path ({reason}); correct it.") from error
    return path


@contextmanager
def read_by_library(fact: str, *, remedy: str = "") -> Iterator[None]:
    """Whatever a library raises in the block about what it reads becomes a UserError that begins with `fact`.

    For readers of formats that document no list of errors; a panic of one written in Rust is not even an Exception.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(_sentence(f"{fact} ({first_line(error)})", remedy)) from error


def read_text(path: Path, *, remedy: str = "") -> str:
    """The text of a UTF-8 file, without its byte-order mark. `remedy` ends the message of the UserError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(_sentence(f"{path} is not text in UTF-8 ({error})", remedy)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error, remedy) from error


def parse_json(text: str | bytes, *, said: str, remedy: str = "") -> Any:
    """The value of a JSON text. `said` is what the UserError calls the text."""
    with _json_or_sentence(said, remedy):
        return json.loads(text)


def parse_json_values(text: bytes, *, said: str) -> Iterator[Any]:
    """The values of JSON texts that stand one after another, with white space between them."""
    decoder, at = json.JSONDecoder(), 0
    with _json_or_sentence(said, ""):
        whole = text.decode()
        while rest := SPACE.match(whole, at):
            at = rest.end()
            if at == len(whole):
                return
            value, at = decoder.raw_decode(whole, at)
            yield value


@contextmanager
def _json_or_sentence(said: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.pos + 1}"
        raise UserError(_sentence(f"{said} is not JSON: {error.msg} at {where}", remedy)) from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # not Unicode, an integer of thousands of digits, nested too deep
        fact = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(_sentence(f"{said} is not JSON that can be read: {fact}", remedy)) from error


def read_json(path: Path, *, remedy: str = "") -> Any:
    """The value of a JSON file."""
    return parse_json(read_text(path, remedy=remedy), said=str(path), remedy=remedy)


def read_object(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file."""
    return _object(read_json(path, remedy=remedy), said=str(path), remedy=remedy)


def read_json_lines(
    path: Path, *, drop_torn_line: bool = False, remedy: str = "one JSON object per line is needed"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line number from 1, object) from a JSON Lines file; blank lines are skipped.

    With `drop_torn_line`, a last line that has no line feed and is not a JSON object is skipped: the writer was killed
    while writing it.
    """
    for number, line in enumerate(_byte_lines(path, remedy=remedy), 1):
        if not line.strip():
            continue
        said = f"{path} line {number}"
        try:
            value = _object(parse_json(line.rstrip(b"\r\n"), said=said, remedy=remedy), said=said, remedy=remedy)
        except UserError:
            if drop_torn_line and not line.endswith(b"\n"):
                return
            raise
        yield number, value


def _byte_lines(path: Path, *, remedy: str) -> Iterator[bytes]:
    """Bytes, because only b"\\n" ends a line; str.splitlines would also split at other Unicode separators."""
    with opened_bytes(path, remedy=remedy) as file:
        yield from file


@contextmanager
def opened_bytes(path: Path, *, remedy: str = "") -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where its name ends in .gz, .bz2, .xz or .zst; text in UTF-16 as UTF-8.

    Raises UserError for what cannot be read, also while the block reads.
    """
    opener = DECOMPRESSED.get(Path(path).suffix, open)
    try:
        with opener(path, "rb") as file:
            is_utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            yield io.BytesIO(file.read().decode("utf-16").encode()) if is_utf16 else file
    except UserError:  # which is a ValueError too
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(_sentence(f"{path} is not a whole {Path(path).suffix} file ({error})", remedy)) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, remedy) from error


def shaped(value: Any, shape: type[Typed], *, said: str, remedy: str = "", path: str = "") -> Typed:
    """A parsed JSON value as an instance of the dataclass `shape`; nested dataclasses, tuples and mappings included.

    `said` is what the UserError calls the value; `path` is the dotted path to a nested value. The error names the
    field, its value and what was expected. Unknown fields are refused; absent ones take their default. A ValueError
    that `shape` itself raises becomes a UserError too.

    >>> @dataclasses.dataclass
    ... class Point:
    ...     x: float
    ...     name: str = ""
    >>> shaped({"x": 1}, Point, said="point.json")
    Point(x=1.0, name='')
    """
    if not isinstance(value, Mapping):
        what = f"{said}: {path.rstrip('.')} is" if path else f"{said} is"
        raise UserError(_sentence(f"{what} {_kind(value)} where an object is expected", remedy))
    hints = typing.get_type_hints(shape)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, shape)) if field.init}
    unknown = [str(key) for key in value if key not in fields]
    if unknown:
        hint = nearest(unknown[0], list(fields))
        raise UserError(_sentence(f"{said}: unknown field {path}{unknown[0]}; {hint}", remedy))
    absent = [name for name, field in fields.items() if _is_required(field) and name not in value]
    if absent:
        raise UserError(_sentence(f"{said} lacks {', '.join(path + name for name in absent)}", remedy))
    read = {key: _as_hint(item, hints[key], said=said, remedy=remedy, path=path + key) for key, item in value.items()}
    try:
        return shape(**read)
    except ValueError as error:
        raise UserError(_sentence(f"{said}: {error}", remedy)) from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
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
        if is_finite(value):
            return float(value)
    elif type(value) is hint:
        return value
    expected = " or ".join(map(repr, options)) if origin is Literal else KINDS.get(origin or hint, str(hint))
    if type(value) is float:
        expected = expected.replace("a number", "a finite number")
    raise UserError(_sentence(f"{said}: {path} is {value!r:.60}, expected {expected}", remedy))


def _object(value: Any, *, said: str, remedy: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(_sentence(f"{said} holds {_kind(value)} where a JSON object is expected", remedy))
    return value


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")


def _unreadable(path: Path, error: Exception, remedy: str) -> UserError:
    return UserError(_sentence(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})", remedy))


def _sentence(fact: str, remedy: str) -> str:
    return f"{fact}; {remedy}." if remedy else f"{fact}."


# Writing.


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` when the block ends without an error.

    After an error `path` is as it was, and the temporary file is gone.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with on_disk(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(path: Path, *, writes: bool = True) -> Iterator[Path]:
    """A temporary directory, PATH.partial, which becomes `path` when the block ends without an error.

    `path` must be absent or empty. What a killed attempt left in PATH.partial is removed first, and after an error nothing
    is left. Processes with writes=False get the name and touch nothing.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    if not writes:
        yield temporary
        return
    shutil.rmtree(temporary, ignore_errors=True)
    with on_disk(path):
        temporary.mkdir(parents=True)
    try:
        with on_disk(path):
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a small UTF-8 file atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically. Raises ValueError as `json_text` does."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """A value as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: Any) -> str:
    """A value as one line of JSON, non-ASCII characters as they are unless one is half of a surrogate pair."""
    line = json.dumps(value, ensure_ascii=False)
    return line if is_unicode(line) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text, which it cannot where JSON's escapes left half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_json_lines(path: Path, rows: Iterable[Any], *, encode: Callable[[Any], str] = json_line) -> None:
    """Writes one JSON value per line, atomically; `rows` may be a generator."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(encode(row) + "\n" for row in rows)
