"""Model directories, written: a part of a tensor at a time, so that no host ever holds a complete model, or a complete file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from rapo_jax.borders import write_json
from rapo_jax.errors import UserError
from rapo_jax.models.adapted import DTYPES
from rapo_jax.models.files import require_finite
from rapo_jax.models.parameters import Location, shape_of
from rapo_jax.models.spec import Spec
from rapo_jax.models.table import TensorRow, by_tensor, table
from rapo_jax.models.weights import Weights
from rapo_jax.parts import Fingerprints, Sums

SHARD_BYTES = 5 * 10**9
PART = 2**26  # bytes in float32 that are rounded and laid out at a time


@dataclass
class Written:
    """The tensors that this process wrote, the fingerprints of our parameters, rounded, in them, and the complaint about values
    that are not finite."""

    names: list[str] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    refused: str | None = None


class TensorFile:
    """A safetensors file of tensors of one dtype, written in any order.

    The library writes whole files from memory. What is written here is the same, byte for byte.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype):
        self.shapes, self.dtype, self.begins = shapes, dtype, {}
        header: dict = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(shapes):
            self.begins[name], end = end, end + prod(shapes[name]) * dtype.itemsize
            place = [self.begins[name], end]
            header[name] = {"dtype": DTYPES[dtype.name], "shape": list(shapes[name]), "data_offsets": place}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.data = 8 + len(text)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, first: int, rows: Shaped[np.ndarray, "..."]) -> None:
        """Writes rows of a tensor, from its row `first` on."""
        assert rows.dtype == self.dtype and rows.shape[1:] == self.shapes[name][1:] and rows.flags.c_contiguous
        self.file.seek(self.data + self.begins[name] + first * prod(rows.shape[1:]) * self.dtype.itemsize)
        self.file.write(rows.reshape(-1).view(np.uint8).data)  # which knows no bfloat16

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.file.close()


def save_parameters(
    weights: Weights, spec: Spec, directory: Path, *, dtype: np.dtype, shard_bytes: int = 5 * 10**9
) -> Written:
    """Writes model.safetensors, or shards of at most `shard_bytes` with an index; of several shards each process of a pod
    writes its own. `weights` are read in the order of their parameters, then of their layers, each element once, to the end."""
    directory, dtype, rows = Path(directory), np.dtype(dtype), by_tensor(table(spec))
    shapes = {name: parts[0].file_shape(spec) for name, parts in rows.items()}
    sizes = tensor_sizes(spec, dtype)
    shard_of = assign_shards(sizes, shard_bytes)
    num_shards = max(shard_of.values()) + 1
    written = Written()
    with progress("write", sum(sizes.values())) as bar:
        for shard, names in my_shards(shard_of).items():
            with TensorFile(
                directory / shard_name(shard, num_shards), {name: shapes[name] for name in names}, dtype
            ) as file:
                for name in names:
                    for row in rows[name]:
                        write_row(file, row, weights, spec, written)
                    written.names.append(name)
                    bar.update(sizes[name])
    if jax.process_index() == 0 and num_shards > 1:
        weight_map = {name: shard_name(shard, num_shards) for name, shard in shard_of.items()}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)
    return written


def write_row(file: TensorFile, row: TensorRow, weights: Weights, spec: Spec, written: Written) -> None:
    """Writes one parameter of a layer, or one outside the layers, into its part of a tensor."""
    for index, inner in parts_of(row, spec):
        part = weights.read(row.path, index).astype(file.dtype, copy=False)
        try:
            require_finite(part, row.name, Path(file.file.name).parent)
        except UserError as error:
            written.refused = written.refused or str(error)
        written.sums.add(name_of(row.path), index, part)
        first = row.file_slices(inner, spec)[0].start
        file.write(row.name, first, row.to_file(part if row.layer is None else part[0], spec))


def summed(weights: Weights, spec: Spec, *, names: Sequence[str] | None = None, what: str) -> Fingerprints:
    """The fingerprints of weights by name, or of what of them is in the tensors `names`, read in parts; `what` is said while it
    takes long."""
    rows, sums = by_tensor(table(spec)), Sums()
    names = list(rows) if names is None else names
    with progress(what, len(names), unit=" tensors") as bar:
        for name in names:
            for row in rows[name]:
                for index, _ in parts_of(row, spec):
                    sums.add(name_of(row.path), index, weights.read(row.path, index))
            bar.update(1)
    return sums.found


def parts_of(row: TensorRow, spec: Spec) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """A row of the table in parts of at most PART bytes in float32, each some whole rows of its tensor: the part's index in our
    parameter, with the layer and without it."""
    sizes, first = shape_of(spec, row.letters), row.groups[0][:1]
    axis = row.letters.index(first) if first else 0
    step = max(1, PART * sizes[axis] // (4 * prod(sizes))) if first else sizes[axis]
    layer = () if row.layer is None else (slice(row.layer, row.layer + 1),)
    for start in range(0, sizes[axis], step):
        inner = tuple(
            slice(start, min(start + step, size)) if at == axis else slice(0, size) for at, size in enumerate(sizes)
        )
        yield (*layer, *inner), inner


def name_of(path: Location) -> str:
    """A parameter's name among fingerprints: "blocks.q"."""
    return ".".join(path)


def progress(what: str, total: int, *, unit: str = "B") -> tqdm:
    """A bar on process 0's terminal, for what takes more than some seconds."""
    hidden = None if jax.process_index() == 0 else True
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=hidden, delay=5)


def tensor_sizes(spec: Spec, dtype: np.dtype) -> dict[str, int]:
    """The bytes of each tensor of the files."""
    return {
        name: prod(parts[0].file_shape(spec)) * np.dtype(dtype).itemsize
        for name, parts in by_tensor(table(spec)).items()
    }


def my_shards(shard_of: dict[str, int]) -> dict[int, list[str]]:
    """The files that this process writes, and their tensors."""
    mine = range(jax.process_index(), max(shard_of.values()) + 1, jax.process_count())
    return {shard: [name for name, its in shard_of.items() if its == shard] for shard in mine}


def my_tensors(spec: Spec, dtype: np.dtype) -> list[str]:
    """The tensors that this process writes into files of the usual size."""
    shards = my_shards(assign_shards(tensor_sizes(spec, dtype), SHARD_BYTES))
    return [name for names in shards.values() for name in names]


def assign_shards(sizes: dict[str, int], shard_bytes: int) -> dict[str, int]:
    """Tensor -> index of its file, in order; a new file begins where the next tensor would exceed `shard_bytes`."""
    shards, shard, used = {}, 0, 0
    for name, size in sizes.items():
        if used and used + size > shard_bytes:
            shard, used = shard + 1, 0
        shards[name], used = shard, used + size
    return shards


def shard_name(shard: int, num_shards: int) -> str:
    return "model.safetensors" if num_shards == 1 else f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
