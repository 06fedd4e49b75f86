"""Model directories: safetensors are read and written slice by slice, so no host ever holds a complete model."""

import re
from collections.abc import Iterator
from functools import cached_property
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rapo_jax.borders import read_object, write_json
from rapo_jax.errors import UserError, counted
from rapo_jax.models.adapted import AdaptedTensors, Tensors, read_adapters
from rapo_jax.models.directory import base_directory, is_adapter
from rapo_jax.models.parameters import parameter_letters, pick, place, shape_of
from rapo_jax.models.spec import Spec, is_scored, read_config
from rapo_jax.models.table import TensorRow, by_tensor, joined, table, top_tensor
from rapo_jax.models.text_part import TextTensors, is_multimodal, text_adapters
from rapo_jax.parallel import from_slices, host_slice

FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors headers name them
RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # saved by old Llama checkpoints


class Checkpoint:
    """The safetensors of a model directory: a single file, or shards with an index."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.files = self._files()

    def _files(self) -> dict[str, str]:
        """Tensor name -> file name. Only safetensors in the directory itself are opened, whatever the index says."""
        index, single = self.directory / "model.safetensors.index.json", self.directory / "model.safetensors"
        if index.is_file():
            files = self._weight_map(index)
            strange = sorted(
                {f for f in files.values() if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors", f)}
            )
            if strange:
                raise UserError(
                    f"{index} points at {', '.join(strange[:3])}; only safetensors files beside it are read."
                )
            lost = sorted(f for f in set(files.values()) if not (self.directory / f).is_file())
            if lost:
                raise UserError(f"{index} names files that do not exist: {', '.join(lost)}.")
            return files
        if single.is_file():
            return dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")
        raise UserError(
            f"{self.directory} has neither model.safetensors nor model.safetensors.index.json; weights are read from "
            f"safetensors only (pickled .bin files are refused: convert them first)."
        )

    def _weight_map(self, index: Path) -> dict[str, str]:
        files = read_object(index, remedy="download it again").get("weight_map")
        if not isinstance(files, dict):
            raise UserError(f"{index} has no weight_map of tensor names to files; download it again.")
        return {name: str(file) for name, file in files.items()}

    @cached_property
    def _handles(self) -> dict:
        return {}

    def _open(self, file: str):
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.directory / file, framework="numpy")
            except SafetensorError as error:
                raise UserError(
                    f"{self.directory / file} is not a whole safetensors file ({error}); download it again."
                ) from error
        return self._handles[file]

    def shape(self, name: str) -> tuple[int, ...]:
        file = self.files[name]
        try:
            return tuple(self._open(file).get_slice(name).get_shape())
        except SafetensorError as error:
            raise UserError(f"{self.directory / file} does not hold {name}, which the index promises.") from error

    def dtype(self, name: str) -> str:
        """As the file's header names it, such as "BF16"."""
        return self._open(self.files[name]).get_slice(name).get_dtype()

    def read(self, name: str, slices: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        return self._open(self.files[name]).get_slice(name)[slices]


def open_tensors(directory: Path) -> Tensors:
    """The tensors of a model directory: of a multimodal model those of its text part; those of LoRA adapters added to their
    base model's."""
    whole = Checkpoint(base_directory(directory, weights=True))
    sees = is_multimodal(whole.directory)
    base = TextTensors(whole) if sees else whole
    if not is_adapter(Path(directory)):
        return base
    adapters = read_adapters(Path(directory))
    return AdaptedTensors(base, text_adapters(adapters) if sees else adapters)


def check(checkpoint: Tensors, spec: Spec, *, new_head: bool = False) -> None:
    """Raises one UserError that lists every missing, unknown and misshapen tensor, and those that are not of floats.

    With `new_head` the directory is a language model's, from which a reward model takes everything but the head.
    """
    wanted = {row.name: row.file_shape(spec) for row in table(spec)}
    found = {name for name in checkpoint.files if not RECOMPUTED.fullmatch(name)}
    if new_head:
        wanted.pop(top_tensor(spec, "score_head"))
    if spec.tied or new_head:
        found.discard(top_tensor(spec, "head"))
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - found)]
    problems += [f"unknown: {name}" for name in sorted(found - wanted.keys())]
    for name in sorted(wanted.keys() & found):
        shape = checkpoint.shape(name)
        if shape != wanted[name]:
            problems.append(f"misshapen: {name} is {shape}, config.json implies {wanted[name]}")
        elif (dtype := checkpoint.dtype(name)) not in FLOATS:
            problems.append(f"quantized or not a weight: {name} is {dtype}, and only {', '.join(FLOATS)} are read")
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise UserError(f"{checkpoint.directory} does not match its config.json: {shown}.")


def load_parameters(directory: Path, spec: Spec, *, mesh: Mesh, dtype: jnp.dtype = jnp.float32, seed: int = 0) -> dict:
    """The parameters of a model directory, sharded over the mesh, in `dtype`.

    A reward model may start from a language model's directory: its score head is then drawn from `seed`, normal like any
    matrix of an untrained model. Raises UserError for tensors that are not those of config.json, for values that are not
    finite in `dtype`, and where a head that config.json ties to the embedding is another matrix.
    """
    checkpoint = open_tensors(directory)
    new_head = spec.scored and not is_scored(read_config(directory))
    check(checkpoint, spec, new_head=new_head)
    tied_to = top_tensor(spec, "embed") if spec.tied and top_tensor(spec, "head") in checkpoint.files else None
    parameters: dict = {"blocks": {}}
    for path, letters in parameter_letters(spec).items():
        if new_head and path == ("score_head",):
            head_D = spec.initial_sigma * np.random.default_rng(seed).standard_normal(spec.D, np.float32)
            parameters["score_head"] = from_slices(mesh, letters, (spec.D,), head_D.astype(dtype).__getitem__)
            continue
        rows = [row for row in table(spec) if row.path == path]

        def read(index: tuple[slice, ...], rows: list[TensorRow] = rows) -> np.ndarray:
            if rows[0].layer is None:
                return read_part(rows[0], index)
            return np.stack([read_part(row, index[1:]) for row in rows[index[0]]])

        def read_part(row: TensorRow, index: tuple[slice, ...]) -> np.ndarray:
            slices = row.file_slices(index, spec)
            tensor = checkpoint.read(row.name, slices)
            if row.name == tied_to:
                refuse_other_head(checkpoint, spec, tensor, slices)
            with np.errstate(over="ignore"):  # named below
                part = row.from_file(tensor, index).astype(dtype)
            require_finite(part, row.name, checkpoint.directory)
            return part

        place(parameters, path, from_slices(mesh, letters, shape_of(spec, letters), read))
    return parameters


def require_finite(array: Shaped[np.ndarray, "..."], name: str, place: Path) -> None:
    """Raises UserError for NaN and infinities."""
    number = int(array.size - np.count_nonzero(np.isfinite(array)))
    if number:
        raise UserError(
            f"{place}: {name} has {counted(number, 'value that is', 'values that are')} not finite in {array.dtype.name}, so nothing that is "
            f"computed from it would be; use weights from before they diverged, or download them again."
        )


def refuse_other_head(
    checkpoint: Tensors, spec: Spec, embedding: Shaped[np.ndarray, "..."], slices: tuple[slice, ...]
) -> None:
    """Raises UserError where the file's head is not the embedding (or these rows of it) that config.json ties it to."""
    head, tied_to = top_tensor(spec, "head"), top_tensor(spec, "embed")
    same_shape = checkpoint.shape(head) == checkpoint.shape(tied_to)
    if not same_shape or not np.array_equal(checkpoint.read(head, slices), embedding):
        raise UserError(
            f"{checkpoint.directory} holds {head}, which differs from the embedding that config.json ties it to; set "
            f"tie_word_embeddings to false in config.json, or remove the tensor."
        )


def file_tensors(parameters: dict, spec: Spec, *, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) in file layout, one at a time. In a multi-process run every process must iterate to the end."""
    for name, rows in by_tensor(table(spec)).items():
        parts = []
        for row in rows:
            array = pick(parameters, row.path)
            array = host_slice(array if row.layer is None else array[row.layer])
            parts.append((row, row.to_file(array.astype(dtype), spec)))
        yield name, joined(parts, spec)


def save_parameters(
    parameters: dict, spec: Spec, directory: Path, *, dtype: np.dtype, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes model.safetensors, or shards of at most `shard_bytes` with an index; at most one shard is in memory.

    Raises UserError for values that are not finite in `dtype`.
    """
    directory = Path(directory)
    sizes = {row.name: prod(row.file_shape(spec)) * np.dtype(dtype).itemsize for row in table(spec)}
    shard_of = assign_shards(sizes, shard_bytes)
    num_shards = max(shard_of.values()) + 1
    writes = jax.process_index() == 0
    pending: dict[str, np.ndarray] = {}
    weight_map = {}
    for name, tensor in file_tensors(parameters, spec, dtype=dtype):
        require_finite(tensor, name, directory)
        pending[name] = tensor
        last = all(other in pending for other, shard in shard_of.items() if shard == shard_of[name])
        weight_map[name] = shard_name(shard_of[name], num_shards)
        if last:
            if writes:
                write_tensors(directory / weight_map[name], pending)
            pending = {}
    if writes and num_shards > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_tensors(path: Path, tensors: dict[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes a safetensors file that whoever may read the other files of its directory may read, too."""
    path.touch()
    mode = path.stat().st_mode  # of any new file
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors leaves its temporary file's 0600


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
