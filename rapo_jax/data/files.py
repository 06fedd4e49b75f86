"""Paths -> numbered rows: JSON lines, parquet, directories of these, saved data sets, hub ids, whatever the columns."""

import codecs
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rapo_jax.borders import read_json, read_json_lines
from rapo_jax.errors import UserError, nearest

SUFFIXES = (".jsonl", ".json", ".parquet")


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
    said, of_split = f"{option}={path}", f"{option.replace('path', 'split') if 'path' in option else 'split'}={split}"
    local = Path(path).expanduser()
    if local.is_file():
        return _read_files([local])
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _numbered(path, _from_disk(said, of_split, local, split))
    if local.is_dir():
        return _read_files(_files_of_split(said, of_split, local, split))
    return _numbered(path, _from_hub(said, of_split, path, split=split, revision=revision))


def _numbered(place: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[FileRow]:
    return (FileRow(number, f"{place} row {number}", row) for number, row in enumerate(rows, 1))


def _read_files(files: list[Path]) -> Iterator[FileRow]:
    """Rows of all files in turn; numbers continue from file to file, places give the row within its file."""
    offset = 0
    for file in files:
        last = 0
        for row in _read_parquet(file) if file.suffix == ".parquet" else _read_json(file):
            last = row.number
            yield row._replace(number=offset + last)
        offset += last


def _read_parquet(file: Path) -> Iterator[FileRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield FileRow(number, f"{file} row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        after = f" after row {number}" if number else ""
        raise UserError(f"{file} is not a parquet file that can be read{after}: {error}.") from error


def _read_json(file: Path) -> Iterator[FileRow]:
    """One object per line; a .json file may also hold one array of objects."""
    if file.suffix != ".json" or not _begins_an_array(file):
        yield from (FileRow(number, f"{file} line {number}", values) for number, values in read_json_lines(file))
        return
    for row in _numbered(str(file), read_json(file)):
        if not isinstance(row.values, dict):
            raise UserError(f"{row.place} is {row.values!r:.40}; an array of objects is needed.")
        yield row


def _begins_an_array(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _files_of_split(said: str, of_split: str, directory: Path, split: str) -> list[Path]:
    """The files of a split: "train" is in train.jsonl or data/train-00000-of-00002.parquet, not in train_sft.jsonl.

    If no file is named after a split, all files are read. Raises UserError where the split has no file.
    """
    places = (directory, directory / "data")
    files = [file for place in places for file in sorted(place.glob("*")) if file.suffix in (".jsonl", ".parquet")]
    named = [file for file in files if re.match(re.escape(split) + r"[-.]", file.name)]
    if named:
        return named
    names = ", ".join(file.name for file in files) or "none"
    if not files or any(re.match(r"(train|test|val|dev|eval)", file.name) for file in files):
        raise UserError(
            f"{said} has no .jsonl or .parquet file of {of_split} (found: {names}); a split's files "
            f"are called {split}.jsonl or {split}-*.parquet."
        )
    return files


def _from_disk(said: str, of_split: str, directory: Path, split: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{said} is not a data set that can be read: {error}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UserError(f"{said} has no {of_split}; {nearest(split, list(map(str, data)))}")
    return data[split]


def _from_hub(said: str, of_split: str, path: str, *, split: str, revision: str) -> Any:
    missing = (
        f"{said}: no such file or directory, and no data set that can be loaded from the hub with "
        f"{of_split}; give a .jsonl, .json or .parquet file, a directory of them, one written by save_to_disk, "
        "or the id of a data set."
    )
    if path.startswith((".", "/", "~")) or path.endswith(SUFFIXES) or path.count("/") > 1:
        raise UserError(missing)
    import datasets
    from datasets.exceptions import DatasetsError

    load = functools.partial(datasets.load_dataset, revision=revision) if revision else datasets.load_dataset
    try:
        return load(path, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{missing} The hub said: {error}") from error
