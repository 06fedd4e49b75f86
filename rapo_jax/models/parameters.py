"""The parameters of a decoder by path: shape letters, sizes, tensor names in files, and initial values.

Sharding, the weight table, the optimizer and the checkpoint all start from `parameter_letters`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from rapo_jax.matrices import MATRICES
from rapo_jax.models.families import FAMILIES
from rapo_jax.models.spec import Spec

Location = tuple[str, ...]  # ("blocks", "q")

# A layer's norms by placement, and their Hugging Face modules. OLMo 2 names those after a branch as Gemma 2 does.
NORM_MODULES = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "around": {
        "attention_norm": "input_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
    "after": {"attention_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"},
}


# Norms of queries and keys by what they are over, in shape letters; in files they have one dimension.
QK_NORMS = {
    "none": {},
    "head": {"q_norm": "H", "k_norm": "H"},
    "projection": {"q_norm": "NH", "k_norm": "KH"},
}


@dataclass(frozen=True)
class LayerParameter:
    """A parameter of one layer: our shape letters, its tensor's name within the layer, and the tensor's dimensions."""

    letters: str
    tensor: str
    file_letters: str


def layer_parameters(spec: Spec) -> dict[str, LayerParameter]:
    """Every parameter of a layer of this spec, adapters excepted: matrices, then biases, then norms."""
    renamed = FAMILIES[spec.family].tensors
    biased = {name: matrix for name, matrix in MATRICES.items() if getattr(spec, matrix.bias_flag)}
    found = {n: LayerParameter(m.letters, f"{m.module}.weight", m.file_letters) for n, m in MATRICES.items()}
    found |= {f"{n}_bias": LayerParameter(m.outputs, f"{m.module}.bias", m.outputs) for n, m in biased.items()}
    found |= {name: LayerParameter("D", f"{m}.weight", "D") for name, m in NORM_MODULES[spec.norms].items()}
    found |= {
        name: LayerParameter(over, f"self_attn.{name}.weight", over) for name, over in QK_NORMS[spec.qk_norm].items()
    }
    return {n: LayerParameter(p.letters, renamed.get(n, p.tensor), p.file_letters) for n, p in found.items()}


def block_letters(spec: Spec) -> dict[str, str]:
    """The parameters of one layer by name, with their shape letters: "q" -> "DNH"."""
    return {name: parameter.letters for name, parameter in layer_parameters(spec).items()}


def adapter_letters(spec: Spec) -> dict[str, str]:
    """The adapters of one layer by name, with their shape letters: "q_lora_a" -> "DR", "q_lora_b" -> "RNH"."""
    letters = {}
    for name in spec.lora.targets if spec.lora else ():
        letters |= {f"{name}_lora_a": MATRICES[name].inputs + "R", f"{name}_lora_b": "R" + MATRICES[name].outputs}
    return letters


def parameter_letters(spec: Spec) -> dict[Location, str]:
    """Every weight of a decoder by path: ("blocks", "q") -> "LDNH". Adapters are not among them: no model file has any."""
    letters: dict[Location, str] = {("embed",): "VD", ("norm",): "D"}
    if spec.scored:
        letters[("score_head",)] = "D"
    elif not spec.tied:
        letters[("head",)] = "VD"
    return letters | {("blocks", name): "L" + dims for name, dims in block_letters(spec).items()}


def trained_letters(spec: Spec) -> dict[Location, str]:
    """The parameters that training updates: every weight or, with LoRA, the adapters and a reward model's score head."""
    letters = parameter_letters(spec)
    if spec.lora is None:
        return letters
    score = {path: dims for path, dims in letters.items() if path == ("score_head",)}
    return score | {("blocks", name): "L" + dims for name, dims in adapter_letters(spec).items()}


def shape_of(spec: Spec, letters: str) -> tuple[int, ...]:
    """The sizes of shape letters: "DNH" -> (4096, 32, 128)."""
    return tuple(getattr(spec, letter) for letter in letters)


def initial(spec: Spec, name: str, *, letters: str, rngs: nnx.Rngs) -> Float[Array, "..."]:
    """float32 initial values of an untrained model: norms multiply by 1, biases are 0, matrices normal.

    LoRA's B is 0 and A uniform within 1 / sqrt(its inputs), as in peft (He et al., 2015, eq. 14, with a slope of sqrt(5)).
    """
    shape = shape_of(spec, letters)
    if name.endswith("lora_a"):
        bound = math.prod(shape[1:-1]) ** -0.5
        return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
    if name.endswith("lora_b"):
        return jnp.zeros(shape)
    if name.endswith("norm"):
        return jnp.zeros(shape) if spec.zero_centered_norms else jnp.ones(shape)
    if name.endswith("bias"):
        return jnp.zeros(shape)
    return spec.initial_sigma * jax.random.normal(rngs.params(), shape)


def place(tree: dict[str, Any], path: Location, leaf: Any) -> None:
    """tree[path[0]][path[1]]... = leaf; missing dicts on the way are created."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def pick(tree: Mapping[str, Any], path: Location) -> Any:
    """tree[path[0]][path[1]]..."""
    found: Any = tree
    for key in path:
        found = found[key]
    return found
