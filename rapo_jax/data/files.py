"""Paths -> numbered rows: JSON lines, JSON arrays, parquet, CSV, directories of these, saved data sets, hub ids.

Files of text may be compressed. Columns are not looked at.
"""

import codecs
import csv
import functools
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rapo_jax.borders import (
    DECOMPRESSED,
    opened_bytes,
    parse_json,
    parse_json_values,
    path_of,
    read_by_library,
    read_json_lines,
)
from rapo_jax.errors import UserError, nearest, shown

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# A cell of CSV that is a number, and no id that looks like one: no zeros before it, no more digits than a float64 keeps, and
# after a plus fewer than a telephone number has.
NUMBER = re.compile(
    r"""\s* (?=[+-]?\.?\d)                          # a digit somewhere before the exponent
        (-? (0 | [1-9]\d{0,14})? | \+ (0 | [1-9]\d{0,5})?)
        (\.\d*)? ([eE][+-]?\d{1,3})? \s*""",
    re.VERBOSE,
)
SUFFIXES = (".jsonl", ".json", ".parquet", *SEPARATORS)


class NoSuchSource(UserError):
    """Neither a file or directory nor a data set of the hub that can be reached from here."""


class FileRow(NamedTuple):
    """`number` counts from 1 through the whole source; `place` says where a person finds the row."""

    number: int
    place: str
    values: Mapping[str, Any]


def read_rows(path: str, *, split: str, revision: str = "", option: str = "data.path") -> Iterator[FileRow]:
    """The rows of a file, of a directory, or, where neither exists, of a data set on the hub.

    A file has no `split`, and only a hub data set has a `revision`. `option` is what the user calls `path`. Raises
    UserError for a path that does not exist and for content that is not JSON, parquet or a data set.
    """
    said, of_split = f"{option}={path}", _of_split(option, split)
    local = path_of(path, said=said)
    if local.is_file():
        return _read_files([local])
    if _is_saved(local):
        return _numbered(path, _from_disk(said, of_split, local, split))
    if local.is_dir():
        return _read_files(_files_of_split(said, of_split, local, split))
    return _numbered(path, _from_hub(said, of_split, path, split=split, revision=revision))


def files_of(path: str, *, split: str, revision: str = "", option: str = "data.path") -> list[Path] | None:
    """The files whose content decides what `read_rows` gives; None for rows of the hub that are in memory alone."""
    said, of_split = f"{option}={path}", _of_split(option, split)
    local = path_of(path, said=said)
    if local.is_file():
        return [local]
    if _is_saved(local):
        return sorted(file for file in local.rglob("*") if file.is_file())
    if local.is_dir():
        return _files_of_split(said, of_split, local, split)
    cached = _from_hub(said, of_split, path, split=split, revision=revision).cache_files
    return [Path(file["filename"]) for file in cached] or None


def _of_split(option: str, split: str) -> str:
    return f"{option.replace('path', 'split') if 'path' in option else 'split'}={split}"


def _is_saved(local: Path) -> bool:
    return (local / "dataset_dict.json").is_file() or (local / "state.json").is_file()


def _numbered(place: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[FileRow]:
    return (FileRow(number, f"{place} row {number}", row) for number, row in enumerate(rows, 1))


def _read_files(files: list[Path]) -> Iterator[FileRow]:
    """Rows of all files in turn; numbers continue from file to file, places give the row within its file."""
    offset = 0
    for file in files:
        last = 0
        for row in _read_file(file):
            last = row.number
            yield row._replace(number=offset + last)
        offset += last


def kind_of(file: Path) -> str:
    """The suffix that tells how a file is read, without that of its compression: ".jsonl" of rows.jsonl.gz."""
    return Path(file.stem).suffix if file.suffix in DECOMPRESSED else file.suffix


def _read_file(file: Path) -> Iterator[FileRow]:
    kind = kind_of(file)
    if kind == ".parquet":
        return _read_parquet(file)
    if kind in SEPARATORS:
        return _numbered(str(file), _from_csv(file, SEPARATORS[kind]))
    return _read_json(file)


def _from_csv(file: Path, separator: str) -> Iterator[dict[str, Any]]:
    """Rows by the names in the first line. A column whose every text is a number is one of floats, as runs have hashed it
    from the first; an empty text is null."""
    csv.field_size_limit(2**31 - 1)
    with opened_bytes(file) as opened:
        text = io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")
        try:
            reader = csv.DictReader(text, delimiter=separator, strict=True)
            names, rows = reader.fieldnames or (), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not CSV that can be read: {error}.") from error
        finally:
            text.detach()
    if any(None in row for row in rows):
        line = next(number for number, row in enumerate(rows, 1) if None in row)
        raise UserError(f"{file} is not CSV that can be read: row {line} has more cells than the first line has names.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"{file} is not CSV that can be read: its first line names {twice[0]!r} twice; rename one column."
        )
    numbers = {name for name in names if all(NUMBER.fullmatch(row[name]) for row in rows if row[name])}
    for row in rows:
        yield {name: float(cell) if cell and name in numbers else cell or None for name, cell in row.items()}


def _read_parquet(file: Path) -> Iterator[FileRow]:
    import pyarrow.parquet

    number = 0
    with read_by_library(f"{file} is not a parquet file that can be read"):
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield FileRow(number, f"{file} row {number}", values)


def _read_json(file: Path) -> Iterator[FileRow]:
    """One object per line, an array of objects, as in most .json files, or objects that are spread over lines."""
    with opened_bytes(file) as opened:
        begins = opened.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    spread = begins.startswith(b"{") and begins[1:].lstrip(b" \t\r").startswith(b"\n")
    if not begins.startswith(b"[") and not spread:
        yield from (FileRow(number, f"{file} line {number}", values) for number, values in read_json_lines(file))
        return
    with opened_bytes(file) as opened:
        whole = opened.read().removeprefix(codecs.BOM_UTF8)
    rows = parse_json_values(whole, said=str(file)) if spread else parse_json(whole, said=str(file))
    for row in _numbered(str(file), rows):
        if not isinstance(row.values, dict):
            raise UserError(f"{row.place} is {shown(row.values, 40)}; objects are needed, one for each row.")
        yield row


def _files_of_split(said: str, of_split: str, directory: Path, split: str) -> list[Path]:
    """The files of a split: "train" is in train.jsonl or data/train-00000-of-00002.parquet, not in train_sft.jsonl.

    If no file is named after a split, all files are read. Raises UserError where the split has no file.
    """
    places = (directory, directory / "data")
    found = [file for place in places for file in sorted(place.glob("*")) if file.is_file()]
    files = [file for file in found if kind_of(file) in (".jsonl", ".parquet")]
    files = files or [file for file in found if kind_of(file) in SUFFIXES]  # .json beside them is about the data
    present = {file.name for file in files}
    files = [file for file in files if file.suffix not in DECOMPRESSED or file.stem not in present]
    named = [file for file in files if re.match(re.escape(split) + r"[-.]", file.name)]
    if named:
        return named
    names = ", ".join(file.name for file in files) or "none"
    if not files or any(re.match(r"(train|test|val|dev|eval)", file.name) for file in files):
        raise UserError(
            f"{said} has no file of {of_split} (found: {names}); a split's files are called {split}.jsonl or "
            f"{split}-*.parquet, and may also end in {', '.join(SUFFIXES)}, text with {', '.join(DECOMPRESSED)} behind it."
        )
    return files


def _from_disk(said: str, of_split: str, directory: Path, split: str) -> Any:
    import datasets

    with read_by_library(f"{said} is not a data set that can be read"):
        data = datasets.load_from_disk(directory)
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UserError(f"{said} has no {of_split}; {nearest(split, list(map(str, data)))}")
    return data[split]


def _from_hub(said: str, of_split: str, path: str, *, split: str, revision: str) -> Any:
    missing = (
        f"{said}: no such file or directory, and no data set that can be loaded from the hub with "
        f"{of_split}; give a .jsonl, .json, .parquet or .csv file, a directory of them, one written by save_to_disk, "
        "or the id of a data set."
    )
    if path.startswith((".", "/", "~")) or kind_of(Path(path)) in SUFFIXES or path.count("/") > 1:
        raise NoSuchSource(missing)
    import datasets
    from datasets.exceptions import DatasetsError

    load = functools.partial(datasets.load_dataset, revision=revision) if revision else datasets.load_dataset
    try:
        return load(path, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise NoSuchSource(f"{missing} The hub said: {error}") from error
