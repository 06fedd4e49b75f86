"""The two-way table between our parameters and the tensors of Hugging Face files.

A row names the file's tensor and gives the order of its dimensions, merged dimensions written together: "NH D" is a matrix
of N * H rows and D columns, "1 D" one of a single row. Reading and writing both follow the row, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Shaped

from rapo_jax.models.families import FAMILIES
from rapo_jax.models.parameters import Location, layer_parameters, parameter_letters, shape_of
from rapo_jax.models.spec import Spec

TOP = {
    "embed": ("model.embed_tokens.weight", "V D"),
    "norm": ("model.norm.weight", "D"),
    "head": ("lm_head.weight", "V D"),
    "score_head": ("score.weight", "1 D"),
}


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a file: its name, the letters of its dimensions, and the slice of our array that it holds."""

    name: str
    path: Location
    groups: tuple[str, ...]  # letters per dimension of the file's tensor
    layer: int | None
    letters: str  # of our array without L

    def file_shape(self, spec: Spec) -> tuple[int, ...]:
        return tuple(prod(shape_of(spec, group)) for group in self.groups)

    def file_slices(self, index: Sequence[slice], spec: Spec) -> tuple[slice, ...]:
        """The slices of the file's tensor for part `index` of our array; only a group's first letter may be sliced."""
        part = dict(zip(self.letters, index, strict=True))
        slices = []
        for group in self.groups:
            if not group:
                slices.append(slice(0, 1))
                continue
            inner = prod(shape_of(spec, group[1:]))
            slices.append(slice(part[group[0]].start * inner, part[group[0]].stop * inner))
        return tuple(slices)

    def from_file(self, tensor: Shaped[np.ndarray, "..."], index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        """The part `index` of our array, from the slices `file_slices(index)` of the file's tensor."""
        size = {letter: part.stop - part.start for letter, part in zip(self.letters, index, strict=True)}
        order = "".join(self.groups)
        return tensor.reshape([size[letter] for letter in order]).transpose([order.index(c) for c in self.letters])

    def to_file(self, array: Shaped[np.ndarray, "..."], spec: Spec) -> Shaped[np.ndarray, "..."]:
        """Our array in the layout of the file's tensor."""
        order = "".join(self.groups)
        tensor = array.transpose([self.letters.index(c) for c in order]).reshape(self.file_shape(spec))
        return np.ascontiguousarray(tensor)


def table(spec: Spec) -> list[TensorRow]:
    """Every tensor of a checkpoint of this spec."""
    rows, layer = [], layer_parameters(spec)
    for path, letters in parameter_letters(spec).items():
        if path[0] == "blocks":
            name, groups = layer[path[1]].tensor, file_groups(layer[path[1]].file_letters)
            rows += [TensorRow(f"model.layers.{at}.{name}", path, groups, at, letters[1:]) for at in range(spec.L)]
        else:
            groups = file_groups(TOP[path[0]][1])
            rows.append(TensorRow(top_tensor(spec, path[0]), path, groups, None, letters))
    return rows


def top_tensor(spec: Spec, name: str) -> str:
    """The file's name of a parameter outside the layers: "head" -> "lm_head.weight"."""
    return FAMILIES[spec.family].tensors.get(name, TOP[name][0])


def file_groups(text: str) -> tuple[str, ...]:
    """The letters of each dimension of a file's tensor: "NH D" -> ("NH", "D"), "1 D" -> ("", "D")."""
    return tuple("" if group == "1" else group for group in text.split())
