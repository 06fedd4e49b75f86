"""LoRA adapters in peft's format: adapter_config.json and adapter_model.safetensors.

A tensor's name is that of the adapted weight with the prefix `base_model.model.`; A is [rank, inputs], B is [outputs, rank].
peft itself is not needed. Where one tensor of the model holds several of our matrices (Phi-3's qkv_proj), so does its adapter:
the A of those that are adapted are stacked and their B stand on a diagonal, so its rank is the sum of theirs.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file

from rapo_jax.borders import write_json
from rapo_jax.matrices import MATRICES
from rapo_jax.models.adapted import CONFIG, PREFIX, WEIGHTS
from rapo_jax.models.files import require_finite, write_tensors
from rapo_jax.models.parameters import layer_parameters, pick, place, shape_of, trained_letters
from rapo_jax.models.spec import Spec
from rapo_jax.models.table import TensorRow, by_tensor, file_groups, joined, rows_in_stack, stack_of, top_tensor
from rapo_jax.parallel import from_slices, host_slice


def adapter_table(spec: Spec) -> list[TensorRow]:
    """Every tensor of an adapter directory of this spec."""
    rows, layer = [], layer_parameters(spec)
    for path, letters in trained_letters(spec).items():
        if path == ("score_head",):
            rows.append(TensorRow(PREFIX + top_tensor(spec, "score_head"), path, file_groups("1 D"), None, letters))
            continue
        name, side = path[1].split("_lora_")
        groups = {"a": ("R", MATRICES[name].inputs), "b": (MATRICES[name].outputs, "R")}[side]
        module = layer[name].tensor.removesuffix(".weight")
        row = TensorRow("", path, groups, None, letters[1:])
        if len(stack_of(spec, name)) > 1:
            row = in_stack(row, spec, name=name, side=side)
        for at in range(spec.L):
            where = f"{PREFIX}model.layers.{at}.{module}.lora_{side.upper()}.weight"
            rows.append(replace(row, name=where, layer=at))
    return rows


def in_stack(row: TensorRow, spec: Spec, *, name: str, side: str) -> TensorRow:
    """The row of a matrix's A or B as a part of its module's, which adapts several matrices."""
    adapted = adapted_in_stack(spec, name)
    rank_start, rank = adapted.index(name) * spec.R, len(adapted) * spec.R
    if side == "a":
        return replace(row, starts=(rank_start, 0), whole=(rank, row.part_shape(spec)[1]))
    start, total = rows_in_stack(spec, name)
    return replace(row, starts=(start, rank_start), whole=(total, rank))


def adapted_in_stack(spec: Spec, name: str) -> list[str]:
    """The matrices with adapters that share their module with this one, itself included."""
    assert spec.lora is not None
    return [each for each in stack_of(spec, name) if each in spec.lora.targets]


def patterns(spec: Spec) -> dict[str, dict[str, float]]:
    """rank_pattern and alpha_pattern: rank and alpha of modules whose adapters hold several of ours, at the same scale."""
    assert spec.lora is not None
    ranks, alphas, layer = {}, {}, layer_parameters(spec)
    for name in spec.lora.targets:
        if (number := len(adapted_in_stack(spec, name))) > 1:
            module = module_name(layer[name].tensor)
            ranks[module] = number * spec.R
            alphas[module] = spec.lora.alpha * (math.sqrt(number) if spec.lora.rslora else number)
    return {"rank_pattern": ranks, "alpha_pattern": alphas} if ranks else {}


def module_name(tensor: str) -> str:
    """The name of a module in its parent: "self_attn.q_proj.weight" -> "q_proj"."""
    return tensor.removesuffix(".weight").split(".")[-1]


def adapter_config(spec: Spec, *, base: str) -> dict[str, Any]:
    """adapter_config.json; `base` is the directory or hub id of the base model."""
    assert spec.lora is not None
    layer = layer_parameters(spec)
    modules = list(dict.fromkeys(module_name(layer[name].tensor) for name in spec.lora.targets))
    scored = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    return (
        {
            "peft_type": "LORA",
            "base_model_name_or_path": base,
            "r": spec.lora.rank,
            "lora_alpha": spec.lora.alpha,
            "target_modules": modules,
            "use_rslora": spec.lora.rslora,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }
        | patterns(spec)
        | (scored if spec.scored else {"task_type": "CAUSAL_LM", "modules_to_save": None})
    )


def adapter_tensors(trained: dict, spec: Spec) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 tensor) in peft's layout. In a multi-process run every process must iterate to the end."""
    for name, rows in by_tensor(adapter_table(spec)).items():
        parts = []
        for row in rows:
            array = pick(trained, row.path)
            array = host_slice(array if row.layer is None else array[row.layer])
            parts.append((row, row.to_file(array.astype(np.float32), spec)))
        yield name, joined(parts, spec)


def save_adapters(trained: dict, spec: Spec, directory: Path, *, base: str) -> None:
    """Writes both files into a directory that exists. Raises UserError for values that are not finite."""
    tensors = dict(adapter_tensors(trained, spec))
    for name, tensor in tensors.items():
        require_finite(tensor, name, directory)
    if jax.process_index() == 0:
        write_tensors(directory / WEIGHTS, tensors)
        write_json(directory / CONFIG, adapter_config(spec, base=base))


def load_adapters(directory: Path, spec: Spec, *, mesh: Mesh) -> dict:
    """Adapters that `save_adapters` wrote, float32, sharded over the mesh. KeyError for a missing tensor."""
    tensors = load_file(directory / WEIGHTS)
    trained: dict = {}
    for path, letters in trained_letters(spec).items():
        rows, shape = [row for row in adapter_table(spec) if row.path == path], shape_of(spec, letters)
        parts = []
        for row in rows:
            index = full_slices(spec, row.letters)
            parts.append(row.from_file(tensors[row.name][row.file_slices(index, spec)], index))
        array = (parts[0] if rows[0].layer is None else np.stack(parts)).astype(np.float32)
        place(trained, path, from_slices(mesh, letters, shape, array.__getitem__))
    return trained


def full_slices(spec: Spec, letters: str) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape_of(spec, letters))
