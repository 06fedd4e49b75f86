"""Adapters as peft writes and reads them: adapter_config.json and adapter_model.safetensors beside nothing else.

The names are those of the adapted model's tensors with `base_model.model.` before them, and A and B stand for their
weights: [rank, inputs] and [outputs, rank]. peft itself is not needed.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from rapo_jax.borders import write_text
from rapo_jax.models.lora import TARGETS
from rapo_jax.models.parameters import pick, place, shape_of, trained_letters
from rapo_jax.models.spec import Spec
from rapo_jax.models.table import BLOCK, SCORE, Row, file_groups
from rapo_jax.parallel import from_slices, host_slice

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def adapter_table(spec: Spec) -> list[Row]:
    """Every tensor of an adapter directory of this spec."""
    rows = []
    for path, letters in trained_letters(spec).items():
        if path == ("score_head",):
            rows.append(Row(PREFIX + SCORE, path, file_groups("1 D"), None, letters))
            continue
        name, side = path[1].split("_lora_")
        into, out = TARGETS[name]
        groups = {"a": ("R", into), "b": (out, "R")}[side]
        module = BLOCK[name][0].removesuffix(".weight")
        for layer in range(spec.L):
            where = f"{PREFIX}model.layers.{layer}.{module}.lora_{side.upper()}.weight"
            rows.append(Row(where, path, groups, layer, letters[1:]))
    return rows


def adapter_config(spec: Spec, *, base: str) -> dict:
    """adapter_config.json; `base` is the directory or hub id of the model under the adapters."""
    modules = [BLOCK[name][0].split(".")[1] for name in spec.lora.targets]
    scored = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    return {
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
    } | (scored if spec.scored else {"task_type": "CAUSAL_LM", "modules_to_save": None})


def adapter_tensors(trained: dict, spec: Spec) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 tensor) as peft has them. In a multi-process run every process must walk it to the end."""
    for row in adapter_table(spec):
        array = pick(trained, row.path)
        array = host_slice(array if row.layer is None else array[row.layer])
        yield row.name, row.to_file(array.astype(np.float32), spec)


def save_adapters(trained: dict, spec: Spec, directory: Path, *, base: str) -> None:
    """Writes both files into a directory that exists."""
    tensors = dict(adapter_tensors(trained, spec))
    if jax.process_index() == 0:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        write_text(directory / CONFIG, json.dumps(adapter_config(spec, base=base), indent=2) + "\n")


def load_adapters(directory: Path, spec: Spec, *, mesh: Mesh) -> dict:
    """What `save_adapters` wrote, float32, sharded over the mesh. KeyError for a tensor that is not there."""
    tensors, trained = load_file(directory / WEIGHTS), {}
    for path, letters in trained_letters(spec).items():
        rows, shape = [row for row in adapter_table(spec) if row.path == path], shape_of(spec, letters)
        parts = [row.from_file(tensors[row.name], whole(spec, row.letters)) for row in rows]
        array = (parts[0] if rows[0].layer is None else np.stack(parts)).astype(np.float32)
        place(trained, path, from_slices(mesh, letters, shape, array.__getitem__))
    return trained


def whole(spec: Spec, letters: str) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape_of(spec, letters))
