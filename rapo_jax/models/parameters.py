"""The parameters of a decoder by path: what their dimensions count, their sizes, and their start values.

Sharding, the weight table, the optimizer and the checkpoint all start from `parameter_letters`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rapo_jax.models.lora import adapter_letters
from rapo_jax.models.spec import Spec

Location = tuple[str, ...]  # ("blocks", "q")


def block_letters(spec: Spec) -> dict[str, str]:
    """The parameters of one block and what their dimensions count."""
    letters = {"attention_norm": "D", "q": "DNH", "k": "DKH", "v": "DKH", "o": "NHD"}
    letters |= {"mlp_norm": "D", "gate": "DF", "up": "DF", "down": "FD"}
    if spec.qkv_bias:
        letters |= {"q_bias": "NH", "k_bias": "KH", "v_bias": "KH"}
    if spec.out_bias:
        letters |= {"o_bias": "D"}
    if spec.mlp_bias:
        letters |= {"gate_bias": "F", "up_bias": "F", "down_bias": "D"}
    if spec.gemma:
        letters |= {"attention_out_norm": "D", "mlp_out_norm": "D"}
    return letters


def parameter_letters(spec: Spec) -> dict[tuple[str, ...], str]:
    """Every weight of a decoder by path: ("blocks", "q") -> "LDNH". Sharding and the weight table start from it.

    Adapters are not among them: no model's file has any.
    """
    letters = {("embed",): "VD", ("norm",): "D"}
    if spec.scored:
        letters[("score_head",)] = "D"
    elif not spec.tied:
        letters[("head",)] = "VD"
    return letters | {("blocks", name): "L" + dims for name, dims in block_letters(spec).items()}


def trained_letters(spec: Spec) -> dict[tuple[str, ...], str]:
    """What training changes: every weight, or the adapters where there are any, and with them a score head."""
    letters = parameter_letters(spec)
    if spec.lora is None:
        return letters
    score = {path: dims for path, dims in letters.items() if path == ("score_head",)}
    return score | {("blocks", name): "L" + dims for name, dims in adapter_letters(spec).items()}


def shape_of(spec: Spec, letters: str) -> tuple[int, ...]:
    """The sizes behind shape letters: "DNH" -> (4096, 32, 128)."""
    return tuple(getattr(spec, letter) for letter in letters)


def initial(spec: Spec, name: str, letters: str, rngs: nnx.Rngs) -> Array:
    """float32 start values of a model trained from nothing: norms neutral, biases 0, matrices normal.

    Of an adapter, B is 0 and A uniform within 1 / sqrt(its inputs), as peft has it (He et al., 2015, eq. 14, with a slope
    of sqrt(5)).
    """
    shape = shape_of(spec, letters)
    if name.endswith("lora_a"):
        bound = math.prod(shape[1:-1]) ** -0.5
        return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
    if name.endswith("lora_b"):
        return jnp.zeros(shape)
    if name.endswith("norm"):
        return jnp.zeros(shape) if spec.gemma else jnp.ones(shape)
    if name.endswith("bias"):
        return jnp.zeros(shape)
    return spec.initial_sigma * jax.random.normal(rngs.params(), shape)


def place(tree: dict, path: Location, leaf: Array) -> None:
    """tree[path[0]][path[1]]... = leaf, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def pick(tree: dict, path: Location) -> Array:
    for key in path:
        tree = tree[key]
    return tree
