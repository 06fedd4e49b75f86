"""The product of activations and a weight, with a gradient for the weight that is summed and kept in float32."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: Array, weight: Array, equation: str) -> Array:
    """einsum(equation, x, weight) in x's dtype, with a gradient for the weight that is summed and kept in float32.

    The weight's gradient has the narrower factor on the left, the side that a processor may have to transpose first.
    """
    return jnp.einsum(equation, x, weight.astype(x.dtype))


def _contract(x: Array, weight: Array, equation: str) -> tuple[Array, tuple[Array, Array]]:
    return contract(x, weight, equation), (x, weight)


def _contract_backward(equation: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = saved
    (x_letters, weight_letters), out_letters = equation.split("->")[0].split(","), equation.split("->")[1]
    d_x = jnp.einsum(f"{out_letters},{weight_letters}->{x_letters}", cotangent, weight.astype(x.dtype))
    tokens = lambda y: y.reshape(y.shape[0] * y.shape[1], -1)  # noqa: E731
    d_weight = jax.lax.dot_general(
        tokens(x), tokens(cotangent), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return d_x, d_weight.reshape(weight.shape).astype(weight.dtype)


contract.defvjp(_contract, _contract_backward)
