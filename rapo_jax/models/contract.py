"""The product of activations and a weight, with a gradient for the weight that is summed and kept in float32."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: Array, weight: Array, equation: str) -> Array:
    """einsum(equation, x, weight) in x's dtype, with a gradient for the weight that is summed and kept in float32."""
    return jnp.einsum(equation, x, weight.astype(x.dtype))


def _contract(x: Array, weight: Array, equation: str) -> tuple[Array, tuple[Array, Array]]:
    return contract(x, weight, equation), (x, weight)


def _contract_backward(equation: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = saved
    (x_letters, weight_letters), out_letters = equation.split("->")[0].split(","), equation.split("->")[1]
    d_x = jnp.einsum(f"{out_letters},{weight_letters}->{x_letters}", cotangent, weight.astype(x.dtype))
    tokens = lambda y: y.reshape(y.shape[0] * y.shape[1], -1)  # noqa: E731
    d_weight = jax.lax.platform_dependent(tokens(x), tokens(cotangent), cpu=_narrower_first, default=_summed_products)
    return d_x, d_weight.reshape(weight.shape).astype(weight.dtype)


def _summed_products(a_XM: Array, b_XN: Array) -> Array:
    """The sum of the rows' outer products, float32 [M, N]."""
    return jax.lax.dot_general(a_XM, b_XN, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _narrower_first(a_XM: Array, b_XN: Array) -> Array:
    """The same with the narrower factor on the left, which a processor has to transpose: a third faster at 1024 by 384.

    The barrier keeps the compiler from exchanging the factors again.
    """
    if a_XM.shape[1] <= b_XN.shape[1]:
        return _summed_products(a_XM, b_XN)
    return jax.lax.optimization_barrier(_summed_products(b_XN, a_XM)).T


contract.defvjp(_contract, _contract_backward)
