"""Paths -> numbered rows: JSON lines, parquet, directories of either, saved data sets, hub ids. Knows no columns."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rapo_jax.errors import UserError, nearest

SUFFIXES = (".jsonl", ".json", ".parquet")


class Row(NamedTuple):
    """`number` counts from 1 through the whole source; `place` says where a person finds the row."""

    number: int
    place: str
    values: dict[str, Any]


def read_rows(path: str, *, split: str, revision: str = "", option: str = "data.path") -> Iterator[Row]:
    """The rows of a file, of a directory, or, where neither exists, of a hub data set. `split` is not asked of a file,
    `revision` of nothing but a hub data set.

    `option` is what the user calls `path`, for messages. Raises UserError for what does not exist and what is not JSON,
    parquet or a data set.
    """
    said, of_split = f"{option}={path}", f"{option.replace('path', 'split') if 'path' in option else 'split'}={split}"
    local = Path(path).expanduser()
    if local.is_file():
        return _read_files([local])
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _number_rows(path, _from_disk(said, of_split, local, split))
    if local.is_dir():
        return _read_files(_files_of_split(said, of_split, local, split))
    return _number_rows(path, _from_hub(said, of_split, path, split=split, revision=revision))


def _number_rows(place: str, rows: Any) -> Iterator[Row]:
    return (Row(number, f"{place} row {number}", row) for number, row in enumerate(rows, 1))


def _read_files(files: list[Path]) -> Iterator[Row]:
    """Rows of all files in turn; numbers go on from file to file, places name the row within its file."""
    offset = 0
    for file in files:
        last = 0
        for row in _read_parquet(file) if file.suffix == ".parquet" else _read_json(file):
            last = row.number
            yield row._replace(number=offset + last)
        offset += last


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a parquet file: {error}") from error
    return _number_rows(str(file), (row for batch in table.iter_batches(1024) for row in batch.to_pylist()))


def _read_json(file: Path) -> Iterator[Row]:
    """One object per line, blank lines skipped; a .json file may also hold one array of objects."""
    with file.open("rb") as lines:  # bytes: only b"\n" ends a line, whatever Unicode separators a text contains
        if file.suffix == ".json" and lines.peek(64).lstrip()[:1] == b"[":
            yield from _number_rows(str(file), _parse(lines.read(), file, 1, list))
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Row(number, f"{file} line {number}", _parse(line, file, number, dict))


def _parse(text: bytes, file: Path, number: int, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        fact = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{file} is not JSON at line {number}: {fact}; one object per line is needed.") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise UserError(f"{file} is not JSON at line {number}: found a {found}; one object per line is needed.")
    return value


def _files_of_split(said: str, of_split: str, directory: Path, split: str) -> list[Path]:
    """`train` is in train.jsonl or data/train-00000-of-00002.parquet, not in train_sft.jsonl; names may say nothing."""
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

    data = datasets.load_from_disk(directory)
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UserError(f"{said} has no {of_split}; {nearest(split, list(data))}")
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

    try:
        return datasets.load_dataset(path, split=split, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{missing} The hub said: {error}") from error
