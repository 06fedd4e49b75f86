"""Gradients that join a running total on their way out, so that a second set of gradients is never held.

The sum of several microbatches' gradients needs the total and, with plain differentiation, one whole set of new gradients
beside it. Here the total is an argument whose cotangent is defined as the total plus the weight's gradient: whoever
differentiates with respect to the total gets the new total, and layers are added to it one at a time, in place.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

Layer = Callable[[Array, Any, Any, Any], Array]


@jax.custom_vjp
def summed(weight: Array, total: Array) -> Array:
    """The weight; the cotangent of `total` is total + the weight's gradient, and the weight itself gets none."""
    return weight


def _summed_backward(total: Array, gradient: Array) -> tuple[None, Array]:
    return None, total + gradient.astype(total.dtype)


summed.defvjp(lambda weight, total: (weight, total), _summed_backward)


def scan_layers(layer: Layer, x: Array, parameters: Any, totals: Any, scanned: Any, shared: Any) -> Array:
    """layer(x, parameters, scanned, shared) for every layer in turn; all trees but `shared` lead with the layers.

    The cotangent of `totals` is totals + the gradients of `parameters`; these themselves get none, nor does `shared`. The
    result is that of jax.lax.scan. What a layer keeps for its backward pass is stacked, but for its inputs, which are
    there already; so what is kept, and what is computed again, is the business of a jax.checkpoint around the layer.
    """

    @jax.custom_vjp
    def run(x: Array, totals: Any) -> Array:
        return jax.lax.scan(lambda x, inputs: (layer(x, *inputs, shared), None), x, (parameters, scanned))[0]

    def forward(x: Array, totals: Any) -> tuple[Array, tuple]:
        def one_layer(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, tuple[Array, list[Array]]]:
            y, pull_back = jax.vjp(lambda x, weights: layer(x, weights, inputs[1], shared), x, inputs[0])
            return y, (x, kept(pull_back, (x, inputs, shared)))

        x, saved = jax.lax.scan(one_layer, x, (parameters, scanned))
        return x, (saved, totals)

    def backward(residuals: tuple, d_x: Array) -> tuple[Array, Any]:
        saved, totals = residuals
        num_layers = saved[0].shape[0]

        def one_layer(number: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            d_x, totals = carry
            at = num_layers - 1 - number
            of_layer = lambda tree: jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, at, keepdims=False), tree)  # noqa: E731
            x, was_kept = of_layer(saved)
            inputs = of_layer((parameters, scanned))
            _, pull_back = jax.vjp(lambda x, weights: layer(x, weights, inputs[1], shared), x, inputs[0])
            d_x, d_weights = with_kept(pull_back, (x, inputs, shared), was_kept)(d_x)
            add = lambda total, part: jax.lax.dynamic_update_index_in_dim(  # noqa: E731
                total, of_layer(total) + part.astype(total.dtype), at, 0
            )
            return d_x, jax.tree.map(add, totals, d_weights)

        return jax.lax.fori_loop(0, num_layers, one_layer, (d_x, totals))

    run.defvjp(forward, backward)
    return run(x, totals)


def kept(pull_back: Any, inputs: Any) -> list[Array]:
    """What a function's backward pass holds that is none of its `inputs`."""
    given = {id(leaf) for leaf in jax.tree.leaves(inputs)}
    return [leaf for leaf in jax.tree.leaves(pull_back) if id(leaf) not in given]


def with_kept(pull_back: Any, inputs: Any, was_kept: list[Array]) -> Any:
    """A backward pass with what an earlier one kept in place of its own, of which then nothing has to be computed."""
    given, old = {id(leaf) for leaf in jax.tree.leaves(inputs)}, iter(was_kept)
    return jax.tree.map(lambda leaf: leaf if id(leaf) in given else next(old), pull_back)
