"""A tokenized data set as a directory: arrays that are mapped into memory, and record.json, which is written last.

    texts.npy      int32, all different prompts and responses, one after another
    ends.npy       int64, where each of them ends
    branches.npy   int64 [G, A], the number of the text of each branch of each group
    rewards.npy    float64 [G, C], and side, row, weight, pair: one number a group
    scores_*, lengths_*, margins: what the report's figure draws
    record.json    what the data set belongs to, the size and SHA-256 of every array, the report, the fingerprints

The record has a checksum of itself. A directory without one was never whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.dataset import Dataset
from rapo_jax.borders import read_object, shaped, whole_file, write_json
from rapo_jax.data.report import Distributions
from rapo_jax.data.scaling import REWARD, Scales
from rapo_jax.errors import UserError
from rapo_jax.relabel import SIDES, Scale

RECORD = "record.json"
FORMAT = 1
NO_PAIR = -1

Origin = dict[str, Any]  # everything that decides the content of a data set, as JSON


class Damaged(Exception):
    """A stored data set is not what was written; the message says which part."""


@dataclass(frozen=True)
class Stored:
    """record.json: `arrays` are bytes and SHA-256 by name; `is_unrelated` tells whether the last branch is an unrelated
    response. `sha256` is that of all other fields."""

    format: int
    origin: Origin
    arrays: dict[str, tuple[str, ...]]
    report: dict[str, Any]
    source_fingerprint: str
    fingerprint: str
    scales: dict[str, Any]
    is_unrelated: bool
    largest_id: int
    sha256: str = ""


def arrays_of(data: Dataset) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a data set. A text that several groups share, such as a response under both of its goals, is kept once."""
    numbers: dict[bytes, int] = {}
    branches = [
        [
            numbers.setdefault(np.asarray(text, np.int32).tobytes(), len(numbers))
            for text in (g.prompt, *g.continuations)
        ]
        for g in data.groups
    ]
    groups = data.groups
    arrays = {
        "texts": np.frombuffer(b"".join(numbers), np.int32),
        "ends": np.cumsum([len(text) // 4 for text in numbers], dtype=np.int64),
        "branches": np.array(branches, np.int64),
        "rewards": np.array([g.rewards for g in groups], np.float64),
        "side": np.array([g.side for g in groups], np.int64),
        "row": np.array([g.row for g in groups], np.int64),
        "weight": np.array([g.weight for g in groups], np.float64),
        "pair": np.array([NO_PAIR if g.pair is None else g.pair for g in groups], np.int64),
    }
    if data.distributions:
        drawn = data.distributions
        arrays |= {f"scores_{side}": values for side, values in drawn.scores.items()}
        arrays |= {f"lengths_{side}": values for side, values in drawn.lengths.items()}
        arrays["margins"] = drawn.margins
    return arrays


def write_dataset(directory: Path, data: Dataset, arrays: Mapping[str, np.ndarray], *, origin: Origin) -> None:
    """Writes a data set with its `arrays_of` into an existing directory, the record last."""
    for name, array in arrays.items():
        with whole_file(directory / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, array)
    files = {name: directory / f"{name}.npy" for name in arrays}
    content = {
        "format": FORMAT,
        "origin": origin,
        "arrays": {name: [str(path.stat().st_size), sha256_of(path)] for name, path in files.items()},
        "report": data.report,
        "source_fingerprint": data.source_fingerprint,
        "fingerprint": data.fingerprint,
        "scales": data.scales.tree(),
        "is_unrelated": data.groups[0].unrelated is not None,
        "largest_id": int(arrays["texts"].max(initial=0)),
    }
    write_json(directory / RECORD, content | {"sha256": checksum(content)})


def read_dataset(directory: Path, origin: Origin) -> Dataset | None:
    """The data set in a directory; None where none was written. Raises Damaged where it is not what was written."""
    if not (directory / RECORD).exists():
        return None
    record = read_record(directory / RECORD)
    if record.origin != origin:
        raise Damaged(f"{RECORD} is of other data")
    for name, (size, digest) in record.arrays.items():
        if not is_sound(directory / f"{name}.npy", int(size), digest):
            raise Damaged(f"{name}.npy is not what was written")
    arrays = {name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r")) for name in record.arrays}
    return Dataset(
        groups=groups_of(arrays, is_unrelated=record.is_unrelated),
        report=record.report,
        source_fingerprint=record.source_fingerprint,
        fingerprint=record.fingerprint,
        scales=scales_of(record.scales),
        distributions=drawn_of(arrays),
        largest_id=record.largest_id,
    )


def read_record(path: Path) -> Stored:
    try:
        tree = read_object(path)
        record = shaped(tree, Stored, said=path.name)
    except UserError as error:
        raise Damaged(f"{path.name} is not what was written") from error
    if record.format != FORMAT or record.sha256 != checksum({k: v for k, v in tree.items() if k != "sha256"}):
        raise Damaged(f"{path.name} is not what was written")
    return record


def groups_of(arrays: Mapping[str, np.ndarray], *, is_unrelated: bool) -> list[Group]:
    """Groups whose tokens are views of the texts: nothing of them is read before it is used."""
    flat, ends = arrays["texts"], arrays["ends"].tolist()
    texts = [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    columns = (arrays[name].tolist() for name in ("branches", "rewards", "side", "row", "weight", "pair"))
    return [
        Group(
            prompt=texts[prompt],
            responses=tuple(texts[n] for n in (others[:-1] if is_unrelated else others)),
            rewards=tuple(rewards),
            side=side,
            row=row,
            weight=weight,
            unrelated=texts[others[-1]] if is_unrelated else None,
            pair=None if pair == NO_PAIR else pair,
        )
        for (prompt, *others), rewards, side, row, weight, pair in zip(*columns, strict=True)
    ]


def scales_of(tree: Mapping[str, Any]) -> Scales:
    """The maps of scores that gave a `tree`, with integers where they had integers: what is written of them is the same."""
    return Scales(
        reward=Scale(**tree[REWARD]) if REWARD in tree else None,
        attributes={name: Scale(**one) for name, one in tree.get("attributes", {}).items()},
        sources={name: scales_of(one) for name, one in tree.get("sources", {}).items()},
    )


def drawn_of(arrays: Mapping[str, np.ndarray]) -> Distributions | None:
    if "margins" not in arrays:
        return None
    return Distributions(
        scores={side: arrays[f"scores_{side}"] for side in SIDES if f"scores_{side}" in arrays},
        margins=arrays["margins"],
        lengths={side: arrays[f"lengths_{side}"] for side in SIDES if f"lengths_{side}" in arrays},
    )


def is_sound(path: Path, size: int, digest: str) -> bool:
    """Whether a file has this size and this SHA-256. It is read, and not mapped, so that it takes no memory."""
    try:
        return path.stat().st_size == size and sha256_of(path) == digest
    except FileNotFoundError:
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, as it is read again."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
