"""The two-way table between our parameters and the tensors of Hugging Face files.

A row names the file's tensor and gives the order of its dimensions, merged dimensions written together: "NH D" is a matrix
of N * H rows and D columns, "1 D" one of a single row. Reading and writing both follow the row, so they cannot disagree.
Several of our parameters may be stacked in one tensor (Phi-3's qkv_proj); each has a row of its own, which says where it begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    """One tensor of a file, or a part of one: its name, the letters of its dimensions, the slice of our array that it holds.

    starts, whole: of a part, where in the tensor it begins, and the shape of the whole tensor; None for a whole tensor.
    """

    name: str
    path: Location
    groups: tuple[str, ...]  # letters per dimension of the file's tensor
    layer: int | None
    letters: str  # of our array without L
    starts: tuple[int, ...] | None = None
    whole: tuple[int, ...] | None = None

    def file_shape(self, spec: Spec) -> tuple[int, ...]:
        """The shape of the file's tensor, whole."""
        return self.whole or self.part_shape(spec)

    def part_shape(self, spec: Spec) -> tuple[int, ...]:
        """The shape of this row's part of the file's tensor."""
        return tuple(prod(shape_of(spec, group)) for group in self.groups)

    def part(self, spec: Spec) -> tuple[slice, ...]:
        """Where in the file's tensor this row's part is."""
        shape = self.part_shape(spec)
        starts = self.starts or (0,) * len(shape)
        return tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))

    def file_slices(self, index: Sequence[slice], spec: Spec) -> tuple[slice, ...]:
        """The slices of the file's tensor for part `index` of our array; only a group's first letter may be sliced."""
        part = dict(zip(self.letters, index, strict=True))
        slices = []
        for group, begins in zip(self.groups, self.part(spec), strict=True):
            if not group:
                slices.append(begins)
                continue
            inner = prod(shape_of(spec, group[1:]))
            first, last = (begins.start + at * inner for at in (part[group[0]].start, part[group[0]].stop))
            slices.append(slice(first, last))
        return tuple(slices)

    def from_file(self, tensor: Shaped[np.ndarray, "..."], index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        """The part `index` of our array, from the slices `file_slices(index)` of the file's tensor."""
        size = {letter: part.stop - part.start for letter, part in zip(self.letters, index, strict=True)}
        order = "".join(self.groups)
        return tensor.reshape([size[letter] for letter in order]).transpose([order.index(c) for c in self.letters])

    def to_file(self, array: Shaped[np.ndarray, "..."], spec: Spec) -> Shaped[np.ndarray, "..."]:
        """Our array, or the part of it that makes some rows of a tensor, in the layout of its part of the file's tensor."""
        order = "".join(self.groups)
        rows = array.transpose([self.letters.index(c) for c in order])
        return np.ascontiguousarray(rows.reshape(-1, *self.part_shape(spec)[1:]))


def table(spec: Spec) -> list[TensorRow]:
    """Every tensor of a checkpoint of this spec, or part of one, of which several make the whole."""
    rows, layer = [], layer_parameters(spec)
    for path, letters in parameter_letters(spec).items():
        if path[0] != "blocks":
            rows.append(TensorRow(top_tensor(spec, path[0]), path, file_groups(TOP[path[0]][1]), None, letters))
            continue
        parameter = layer[path[1]]
        row = TensorRow(parameter.tensor, path, file_groups(parameter.file_letters), None, letters[1:])
        if len(stack_of(spec, path[1])) > 1:
            start, total = rows_in_stack(spec, path[1])
            _, *others = row.part_shape(spec)
            row = replace(row, starts=(start, *[0] * len(others)), whole=(total, *others))
        rows += [replace(row, name=f"model.layers.{at}.{row.name}", layer=at) for at in range(spec.L)]
    return rows


def stack_of(spec: Spec, name: str) -> tuple[str, ...]:
    """The parameters of a layer that one tensor of files holds, in their order: for "k" of Phi-3, ("q", "k", "v")."""
    layer = layer_parameters(spec)
    return tuple(other for other, parameter in layer.items() if parameter.tensor == layer[name].tensor)


def rows_in_stack(spec: Spec, name: str) -> tuple[int, int]:
    """The first row of a layer's parameter in the tensor that holds it, and how many rows that tensor has."""
    layer, stack = layer_parameters(spec), stack_of(spec, name)
    sizes = [prod(shape_of(spec, file_groups(layer[each].file_letters)[0])) for each in stack]
    return sum(sizes[: stack.index(name)]), sum(sizes)


def by_tensor(rows: Iterable[TensorRow]) -> dict[str, list[TensorRow]]:
    """The rows by the tensor that they are, or are parts of."""
    found: dict[str, list[TensorRow]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return found


def joined(parts: Sequence[tuple[TensorRow, Shaped[np.ndarray, "..."]]], spec: Spec) -> Shaped[np.ndarray, "..."]:
    """One tensor of a file from its parts, in the layout of `to_file`; 0 where there is none."""
    row, tensor = parts[0]
    if row.whole is None:
        return tensor
    whole = np.zeros(row.whole, tensor.dtype)
    for row, tensor in parts:
        whole[row.part(spec)] = tensor
    return whole


def top_tensor(spec: Spec, name: str) -> str:
    """The file's name of a parameter outside the layers: "head" -> "lm_head.weight"."""
    return FAMILIES[spec.family].tensors.get(name, TOP[name][0])


def file_groups(text: str) -> tuple[str, ...]:
    """The letters of each dimension of a file's tensor: "NH D" -> ("NH", "D"), "1 D" -> ("", "D")."""
    return tuple("" if group == "1" else group for group in text.split())
