"""In-place gradient accumulation: each layer's gradient is added to a running total during the backward pass, so a second
gradient tree never exists.

Summing the gradients of several microbatches by plain differentiation needs the total and one complete set of new gradients
beside it. Here the total is an argument whose cotangent is defined as total + gradient: differentiating with respect to the
total gives the new total, and layers are added one at a time, in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, Shaped

Layer = Callable[[Array, Any, Any, Any], Array]


@jax.custom_vjp
def summed(weight: Shaped[Array, "..."], total: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The weight itself. The cotangent of `total` is total + the weight's gradient; the weight itself gets none."""
    return weight


def _summed_backward(total: Array, gradient: Array) -> tuple[None, Array]:
    return None, total + gradient.astype(total.dtype)


summed.defvjp(lambda weight, total: (weight, total), _summed_backward)


def accumulate_over_layers(
    layer: Layer,
    x: Float[Array, "..."],
    parameters: Any,
    totals: Any,
    scanned: Any,
    shared: Any,
    *,
    unrolled: bool = False,
) -> Float[Array, "..."]:
    """Calls x = layer(x, parameters, scanned, shared) for every layer in turn, like jax.lax.scan.

    All leaves of `parameters`, `totals` and `scanned` have a leading dimension L. The cotangent of `totals` is totals +
    the gradients of `parameters`; `parameters` and `shared` themselves get none. A jax.checkpoint around `layer`
    decides what a layer keeps for its backward pass besides its inputs. These residuals are stacked over the layers;
    with `unrolled` they stay where they were computed, which saves copies into and out of the stacks but costs compile
    time.
    """

    def one(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, None]:
        return layer(x, *inputs, shared), None

    def pull(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, Callable]:
        return jax.vjp(lambda x, weights: layer(x, weights, inputs[1], shared), x, inputs[0])

    @jax.custom_vjp
    def run(x: Array, totals: Any) -> Array:
        return over_layers(one, x, (parameters, scanned), unrolled=unrolled)[0]

    def forward(x: Array, totals: Any) -> tuple[Array, tuple]:
        def one_layer(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, tuple[Array, list[Array]]]:
            y, pull_back = pull(x, inputs)
            return y, (x, kept(pull_back, (x, inputs, shared)))

        x, saved = over_layers(one_layer, x, (parameters, scanned), unrolled=unrolled)
        return x, (saved, totals)

    def backward(residuals: tuple, d_x: Array) -> tuple[Array, Any]:
        saved, totals = residuals

        def one_layer(at: Array | int, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            d_x, totals = carry
            if unrolled:  # keeps XLA from merging rematerialization with the forward pass (CSE) or starting it early
                x, was_kept, d_x = jax.lax.optimization_barrier((*saved[at], d_x))
            else:
                x, was_kept = of_layer(saved, at)
            inputs = of_layer((parameters, scanned), at)
            _, pull_back = pull(x, inputs)
            d_x, d_weights = with_kept(pull_back, (x, inputs, shared), was_kept)(d_x)
            return d_x, jax.tree.map(partial(add_to_layer, at), totals, d_weights)

        num_layers = num_of_layers(parameters)
        if not unrolled:
            return jax.lax.fori_loop(0, num_layers, partial(backwards, one_layer, num_layers), (d_x, totals))
        for at in reversed(range(num_layers)):
            d_x, totals = one_layer(at, (d_x, totals))
        return d_x, totals

    run.defvjp(forward, backward)
    return run(x, totals)


def over_layers(one: Callable, carry: Any, trees: Any, *, unrolled: bool) -> tuple[Any, Any]:
    """jax.lax.scan of `one` over trees with a leading L. With `unrolled`, the outputs are a list instead of a stack."""
    if not unrolled:
        return jax.lax.scan(one, carry, trees)
    outputs = []
    for at in range(num_of_layers(trees)):
        carry, output = one(carry, of_layer(trees, at))
        outputs.append(output)
    return carry, outputs


def of_layer(trees: Any, at: Int[Array, ""] | int) -> Any:
    return jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, at, keepdims=False), trees)


def backwards(one_layer: Callable, num_layers: int, number: Int[Array, ""] | int, carry: Any) -> Any:
    """A loop body that visits the layers from the last to the first."""
    return one_layer(num_layers - 1 - number, carry)


def add_to_layer(
    at: Int[Array, ""] | int, total: Float[Array, "L *shape"], part: Float[Array, "*shape"] | nnx.Variable
) -> Float[Array, "L *shape"]:
    """total with total[at] += part, in place inside a compiled loop."""
    return jax.lax.dynamic_update_index_in_dim(total, of_layer(total, at) + part.astype(total.dtype), at, 0)


def num_of_layers(trees: Any) -> int:
    return jax.tree.leaves(trees)[0].shape[0]


def kept(pull_back: Any, inputs: Any) -> list[Shaped[Array, "..."]]:
    """The residuals of a vjp function that are not among its `inputs`."""
    given = {id(leaf) for leaf in jax.tree.leaves(inputs)}
    return [leaf for leaf in jax.tree.leaves(pull_back) if id(leaf) not in given]


def with_kept(pull_back: Any, inputs: Any, was_kept: list[Shaped[Array, "..."]]) -> Any:
    """A vjp function with its residuals replaced by those of an earlier one, so that its own are never computed."""
    given, old = {id(leaf) for leaf in jax.tree.leaves(inputs)}, iter(was_kept)
    return jax.tree.map(lambda leaf: leaf if id(leaf) in given else next(old), pull_back)
