"""A directory of LoRA adapters as the weights of a model: those of its base model with the adapters added.

W + scale * B A is formed in float32, slice by slice, in the layout of the files, so that what loads a model loads this too.
Adapters that are trained are in lora.py; the format of the files is described in peft.py.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rapo_jax.borders import read_object
from rapo_jax.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}  # NumPy's name -> safetensors'
READ = frozenset("peft_type base_model_name_or_path revision r lora_alpha alpha_pattern use_rslora task_type".split())
# What a file of tensors says by itself, and what has no effect once adapters are trained.
INERT = frozenset(
    "auto_mapping corda_config ensure_weight_tying eva_config exclude_modules inference_mode init_lora_weights "
    "layers_pattern layers_to_transform loftq_config lora_dropout megatron_config megatron_core modules_to_save "
    "peft_version qalora_group_size rank_pattern runtime_config target_modules".split()
)
MUST_BE = {"peft_type": ("LORA",), "bias": ("none",)}
# Ways to begin that also change the base model, which then is not the one in base_model_name_or_path.
CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga")


@runtime_checkable
class Tensors(Protocol):
    """The tensors of a model directory, read in slices."""

    directory: Path

    @property
    def files(self) -> Mapping[str, str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str, slices: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]: ...


@dataclass(frozen=True)
class Adapters:
    """Adapters by the name of the tensor that they are added to, and tensors that replace those of the base model."""

    directory: Path
    factors: dict[str, dict[str, Shaped[np.ndarray, "_ _"]]]  # name -> side, "A" or "B" -> factor
    whole: dict[str, Shaped[np.ndarray, "..."]]
    scale_of: dict[str, float]
    scored: bool


class AdaptedTensors:
    """The tensors of a base model with adapters added. Raises UserError for adapters that do not fit it."""

    def __init__(self, base: Tensors, adapters: Adapters):
        self.base, self.adapters, self.directory = base, adapters, adapters.directory
        problems = [f"{name}: the base model has none" for name in sorted(adapters.factors) if name not in base.files]
        for name, factor in sorted(adapters.factors.items()):
            shape = (factor["B"].shape[0], factor["A"].shape[1])
            if name in base.files and base.shape(name) != shape:
                problems.append(f"{name}: the adapters' is {shape}, the base model's {base.shape(name)}")
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise UserError(
                f"{self.directory} does not fit its base model {base.directory}: {'; '.join(problems[:5])}{more}."
            )

    @property
    def files(self) -> Mapping[str, str]:
        """Tensor name -> file name. A reward model has no use for the head of the language model that it began as."""
        left_out = {"lm_head.weight"} if self.adapters.scored else set()
        kept = {name: file for name, file in self.base.files.items() if name not in left_out}
        return kept | dict.fromkeys(self.adapters.whole, WEIGHTS)

    def shape(self, name: str) -> tuple[int, ...]:
        whole = self.adapters.whole
        return whole[name].shape if name in whole else self.base.shape(name)

    def dtype(self, name: str) -> str:
        whole = self.adapters.whole
        return DTYPES.get(whole[name].dtype.name, whole[name].dtype.name) if name in whole else self.base.dtype(name)

    def read(self, name: str, slices: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        if name in self.adapters.whole:
            return self.adapters.whole[name][slices]
        tensor = self.base.read(name, slices)
        if name not in self.adapters.factors:
            return tensor
        rows, columns = slices
        factor = self.adapters.factors[name]
        added = factor["B"][rows].astype(np.float32) @ factor["A"][:, columns].astype(np.float32)
        return tensor.astype(np.float32) + np.float32(self.adapters.scale_of[name]) * added


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError for what these adapters would do that is not computed here."""
    path = Path(directory) / CONFIG
    config = read_object(path, remedy="it must be what peft wrote")
    problems = [f"{key}={config.get(key)!r}" for key, values in MUST_BE.items() if config.get(key) not in values]
    known = READ | INERT | MUST_BE.keys()
    problems += [
        f"{key}={value!r:.60}"
        for key, value in config.items()
        if key not in known and value not in (None, False, [], {})
    ]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and CHANGES_BASE.fullmatch(start.lower()):
        problems.append(f"init_lora_weights={start!r}, which changes the base model")
    if not is_alpha(config.get("lora_alpha")):
        problems.append(f"lora_alpha={config.get('lora_alpha')!r}")
    if not are_patterns(config.get("alpha_pattern")):
        problems.append(f"alpha_pattern={config['alpha_pattern']!r:.60}")
    if problems:
        raise UserError(
            f"{path} asks for what is not computed here: {'; '.join(problems)}. Give the merged model: merge_and_unload() of "
            "peft, or `rapo export RUN_DIR OUT_DIR` without --adapter."
        )
    return config


def is_alpha(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def are_patterns(value: Any) -> bool:
    """Whether a value is an object of regular expressions and their alphas, or nothing."""
    if not isinstance(value, dict):
        return value is None
    try:
        return all(re.compile(pattern) and is_alpha(alpha) for pattern, alpha in value.items())
    except re.error:
        return False


def read_adapters(directory: Path) -> Adapters:
    """The adapters of a directory. Raises UserError where they are not plain LoRA in safetensors."""
    config = read_adapter_config(directory)
    factors: dict[str, dict[str, np.ndarray]] = {}
    whole = {}
    for name, tensor in adapter_tensors_of(directory).items():
        inner = name.removeprefix(PREFIX)
        if found := FACTOR.fullmatch(inner):
            factors.setdefault(f"{found['module']}.weight", {})[found["side"]] = tensor
        elif name.startswith(PREFIX) and "lora_" not in inner:
            whole[inner] = tensor
        else:
            raise UserError(f"{directory / WEIGHTS} holds {name}, which is not of plain LoRA; give the merged model.")
    for name, sides in factors.items():
        if sides.keys() != {"A", "B"} or not all(side.ndim == 2 for side in sides.values()):
            raise UserError(f"{directory / WEIGHTS} does not hold both factors of {name}; export the adapters again.")
        if sides["A"].shape[0] != sides["B"].shape[1]:
            ranks = f"{sides['A'].shape[0]} and {sides['B'].shape[1]}"
            raise UserError(
                f"{directory / WEIGHTS}: the factors of {name} have ranks {ranks}; export the adapters again."
            )
    root = 0.5 if config.get("use_rslora") else 1.0
    scale_of = {name: alpha_of(name, config) / sides["A"].shape[0] ** root for name, sides in factors.items()}
    return Adapters(directory, factors, whole, scale_of, scored=is_scored_adapter(config))


def alpha_of(name: str, config: Mapping[str, Any]) -> float:
    """The alpha of a tensor's adapters: that of the first pattern (a regular expression) that its module's name ends with,
    or lora_alpha, as in peft."""
    module = name.removesuffix(".weight")
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return alpha
    return config["lora_alpha"]


def adapter_tensors_of(directory: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    path = directory / WEIGHTS
    if not path.is_file():
        raise UserError(f"{directory} has no {WEIGHTS}; adapters are read from safetensors only.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again.") from error


def is_scored_adapter(config: Mapping[str, Any]) -> bool:
    """Whether adapters make a reward model of their base."""
    return config.get("task_type") == "SEQ_CLS"
