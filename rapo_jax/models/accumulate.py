"""Gradients that join a running total on their way out, so that a second set of gradients is never held.

The sum of several microbatches' gradients needs the total and, with plain differentiation, one whole set of new gradients
beside it. Here the total is an argument whose cotangent is defined as the total plus the weight's gradient: whoever
differentiates with respect to the total gets the new total, and layers are added to it one at a time, in place.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


@jax.custom_vjp
def summed(weight: Array, total: Array) -> Array:
    """The weight; the cotangent of `total` is total + the weight's gradient, and the weight itself gets none."""
    return weight


def _summed_backward(total: Array, gradient: Array) -> tuple[None, Array]:
    return None, total + gradient.astype(total.dtype)


summed.defvjp(lambda weight, total: (weight, total), _summed_backward)


def scan_layers(layer: Callable[[Array, Any], Array], x: Array, parameters: Any, totals: Any, scanned: Any) -> Array:
    """layer(x, (parameters, scanned)) for every layer in turn, only its input kept; the rest is computed again.

    All trees lead with the layers. The cotangent of `totals` is totals + the gradients of `parameters`; these themselves
    get none. The result is that of jax.lax.scan over a jax.checkpoint of the layer.
    """

    @jax.custom_vjp
    def run(x: Array, totals: Any) -> Array:
        return jax.lax.scan(lambda x, inputs: (layer(x, inputs), None), x, (parameters, scanned))[0]

    def forward(x: Array, totals: Any) -> tuple[Array, tuple[Array, Any]]:
        x, inputs = jax.lax.scan(lambda x, inputs: (layer(x, inputs), x), x, (parameters, scanned))
        return x, (inputs, totals)

    def backward(saved: tuple[Array, Any], d_x: Array) -> tuple[Array, Any]:
        inputs, totals = saved
        num_layers = inputs.shape[0]

        def one_layer(number: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            d_x, totals = carry
            at = num_layers - 1 - number
            of_layer = lambda tree: jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, at, keepdims=False), tree)  # noqa: E731
            again = lambda x, weights: layer(x, (weights, of_layer(scanned)))  # noqa: E731
            _, pull_back = jax.vjp(again, of_layer(inputs), of_layer(parameters))
            d_x, d_weights = pull_back(d_x)
            add = lambda total, part: jax.lax.dynamic_update_index_in_dim(  # noqa: E731
                total, of_layer(total) + part.astype(total.dtype), at, 0
            )
            return d_x, jax.tree.map(add, totals, d_weights)

        return jax.lax.fori_loop(0, num_layers, one_layer, (d_x, totals))

    run.defvjp(forward, backward)
    return run(x, totals)
