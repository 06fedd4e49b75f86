"""A model's weights as drawing one token at a time reads them: each layer's by themselves, matrices with their outputs first.

Slices of stacked layers would be copied in every step, which costs more than the products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rapo_jax.matrices import MATRICES
from rapo_jax.models.parameters import adapter_letters, block_letters
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import sharding

Weights = tuple[dict[str, Any], list[dict[str, Any]]]  # for Decoder.stepping: the decoder's, and those of its layers


def unstacked(parameters: dict[str, Any], spec: Spec, *, mesh: Mesh, dtype: jnp.dtype) -> Weights:
    """The weights of stacked parameters; matrices in `dtype`, sharded as they were."""
    letters = block_letters(spec) | adapter_letters(spec)
    turned = {name: matrix.outputs + matrix.inputs for name, matrix in MATRICES.items()}

    def layer(blocks: dict[str, Array], at: Array) -> dict[str, Array]:
        own = {name: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False) for name, leaf in blocks.items()}
        for name, matrix in MATRICES.items():
            order = [matrix.letters.index(letter) for letter in turned[name]]
            own[name] = own[name].transpose(order).astype(dtype)
        return own

    arrays = dict(parameters["blocks"])
    shapes = jax.eval_shape(layer, arrays, 0)
    placed = {name: sharding(mesh, (letters | turned)[name], shape.shape) for name, shape in shapes.items()}
    split = jax.jit(layer, out_shardings=placed)
    layers = [split(arrays, at) for at in range(spec.L)]
    whole = {
        name: leaf.astype(dtype) if leaf.ndim > 1 else leaf for name, leaf in parameters.items() if name != "blocks"
    }
    return whole | {"blocks": layers[0]}, layers
