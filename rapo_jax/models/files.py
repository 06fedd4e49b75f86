"""Model directories, read slice by slice, so that no host ever holds a complete model. writing.py writes them."""

import functools
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rapo_jax.borders import read_object
from rapo_jax.errors import UserError, counted
from rapo_jax.models.adapted import AdaptedTensors, Tensors, read_adapters
from rapo_jax.models.directory import base_directory, is_adapter
from rapo_jax.models.parameters import Location, parameter_letters, place, shape_of
from rapo_jax.models.spec import Spec, is_scored, read_config
from rapo_jax.models.table import TensorRow, table, top_tensor
from rapo_jax.models.text_part import TextTensors, is_multimodal, text_adapters
from rapo_jax.parallel import from_slices

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


class FileWeights:
    """The weights of a model directory in `dtype`, read in parts, of which only one tensor's is held beside what is returned.

    A reward model may start from a language model's directory: its score head is then drawn from `seed`, normal like any
    matrix of an untrained model. Raises UserError for tensors that are not those of config.json, for values that are not
    finite in `dtype`, and where a head that config.json ties to the embedding is another matrix.
    """

    def __init__(self, directory: Path, spec: Spec, *, dtype: jnp.dtype = jnp.float32, seed: int = 0):
        self.spec, self.dtype, self.seed = spec, np.dtype(dtype), seed
        self.tensors = open_tensors(directory)
        self.new_head = spec.scored and not is_scored(read_config(directory))
        check(self.tensors, spec, new_head=self.new_head)
        tied = spec.tied and top_tensor(spec, "head") in self.tensors.files
        self.tied_to = top_tensor(spec, "embed") if tied else None
        self.rows: dict[Location, list[TensorRow]] = {}
        for row in table(spec):
            self.rows.setdefault(row.path, []).append(row)

    def read(self, path: Location, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        """Part `index` of the parameter at `path`."""
        if self.new_head and path == ("score_head",):
            head_D = np.random.default_rng(self.seed).standard_normal(self.spec.D, np.float32)
            return (self.spec.initial_sigma * head_D).astype(self.dtype)[tuple(index)]
        part, rows = np.empty([each.stop - each.start for each in index], self.dtype), self.rows[path]
        if rows[0].layer is None:
            self._fill(part, rows[0], tuple(index))
        else:
            for layer, row in zip(part, rows[index[0]], strict=True):
                self._fill(layer, row, tuple(index[1:]))
        return part

    def _fill(self, part: Shaped[np.ndarray, "..."], row: TensorRow, index: tuple[slice, ...]) -> None:
        slices = row.file_slices(index, self.spec)
        tensor = self.tensors.read(row.name, slices)
        if row.name == self.tied_to:
            refuse_other_head(self.tensors, self.spec, tensor, slices)
        with np.errstate(over="ignore"):  # named below
            part[...] = row.from_file(tensor, index)
        require_finite(part, row.name, self.tensors.directory)


def load_parameters(directory: Path, spec: Spec, *, mesh: Mesh, dtype: jnp.dtype = jnp.float32, seed: int = 0) -> dict:
    """The parameters of a model directory, sharded over the mesh, in `dtype`. Raises UserError as FileWeights does."""
    weights = FileWeights(directory, spec, dtype=dtype, seed=seed)
    parameters: dict = {}
    for path, letters in parameter_letters(spec).items():
        read = functools.partial(weights.read, path)
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


def write_tensors(path: Path, tensors: dict[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes a safetensors file that whoever may read the other files of its directory may read, too."""
    path.touch()
    mode = path.stat().st_mode  # of any new file
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors leaves its temporary file's 0600
