"""The two-way table between our parameters and the tensors of Hugging Face files.

A row of the table names the file's tensor and the order in which its dimensions count, merged dimensions written
together: "NH D" is a matrix of N * H rows and D columns, "1 D" one of a single row. Both directions follow from the row,
so reading and writing cannot disagree.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from rapo_jax.models.parameters import Location, parameter_letters, shape_of
from rapo_jax.models.spec import Spec

TOP = {
    "embed": ("model.embed_tokens.weight", "V D"),
    "norm": ("model.norm.weight", "D"),
    "head": ("lm_head.weight", "V D"),
    "score_head": ("score.weight", "1 D"),
}
BLOCK = {
    "attention_norm": ("input_layernorm.weight", "D"),
    "q": ("self_attn.q_proj.weight", "NH D"),
    "k": ("self_attn.k_proj.weight", "KH D"),
    "v": ("self_attn.v_proj.weight", "KH D"),
    "o": ("self_attn.o_proj.weight", "D NH"),
    "q_bias": ("self_attn.q_proj.bias", "NH"),
    "k_bias": ("self_attn.k_proj.bias", "KH"),
    "v_bias": ("self_attn.v_proj.bias", "KH"),
    "o_bias": ("self_attn.o_proj.bias", "D"),
    "mlp_norm": ("post_attention_layernorm.weight", "D"),
    "gate": ("mlp.gate_proj.weight", "F D"),
    "up": ("mlp.up_proj.weight", "F D"),
    "down": ("mlp.down_proj.weight", "D F"),
    "gate_bias": ("mlp.gate_proj.bias", "F"),
    "up_bias": ("mlp.up_proj.bias", "F"),
    "down_bias": ("mlp.down_proj.bias", "D"),
}
GEMMA_BLOCK = BLOCK | {
    "attention_out_norm": ("post_attention_layernorm.weight", "D"),
    "mlp_norm": ("pre_feedforward_layernorm.weight", "D"),
    "mlp_out_norm": ("post_feedforward_layernorm.weight", "D"),
}
SCORE = TOP["score_head"][0]


@dataclass(frozen=True)
class Row:
    """One tensor of a file: its name, its dimensions' letters (grouped), and the slice of ours that it is."""

    name: str
    path: Location
    groups: tuple[str, ...]
    layer: int | None
    letters: str  # of our array without L

    def file_shape(self, spec: Spec) -> tuple[int, ...]:
        return tuple(prod(shape_of(spec, group)) for group in self.groups)

    def file_slices(self, index: tuple[slice, ...], spec: Spec) -> tuple[slice, ...]:
        """Where in the file the part `index` of our array lies. Only the first letter of a group may be cut."""
        part = dict(zip(self.letters, index, strict=True))
        slices = []
        for group in self.groups:
            if not group:
                slices.append(slice(0, 1))
                continue
            inner = prod(shape_of(spec, group[1:]))
            slices.append(slice(part[group[0]].start * inner, part[group[0]].stop * inner))
        return tuple(slices)

    def from_file(self, tensor: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        size = {letter: part.stop - part.start for letter, part in zip(self.letters, index, strict=True)}
        order = "".join(self.groups)
        return tensor.reshape([size[letter] for letter in order]).transpose([order.index(c) for c in self.letters])

    def to_file(self, array: np.ndarray, spec: Spec) -> np.ndarray:
        order = "".join(self.groups)
        tensor = array.transpose([self.letters.index(c) for c in order]).reshape(self.file_shape(spec))
        return np.ascontiguousarray(tensor)


def table(spec: Spec) -> list[Row]:
    """Every tensor of a checkpoint of this spec."""
    rows = []
    block = GEMMA_BLOCK if spec.gemma else BLOCK
    for path, letters in parameter_letters(spec).items():
        if path[0] == "blocks":
            name, groups = block[path[1]]
            for layer in range(spec.L):
                rows.append(Row(f"model.layers.{layer}.{name}", path, file_groups(groups), layer, letters[1:]))
        else:
            name, groups = TOP[path[0]]
            rows.append(Row(name, path, file_groups(groups), None, letters))
    return rows


def file_groups(text: str) -> tuple[str, ...]:
    """The letters of each dimension of a file's tensor: "NH D" -> ("NH", "D"), "1 D" -> ("", "D")."""
    return tuple("" if group == "1" else group for group in text.split())
