"""The frozen policy that the trained one is compared with.

Today one way: resident weights, in the dtype of the computation, sharded like the policy's.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rapo_jax.config import Config
from rapo_jax.models.spec import Spec
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.train.state import parameter_shardings


def resident_reference(parameters: dict, config: Config, spec: Spec, mesh: Mesh) -> dict:
    """A copy of the starting weights as a reference, or {} where the objective needs none."""
    if not OBJECTIVES[config.objective.name].needs_reference:
        return {}
    dtype = jnp.dtype(config.model.dtype)
    cast = jax.jit(
        lambda p: jax.tree.map(lambda x: jnp.copy(x).astype(dtype), p), out_shardings=parameter_shardings(spec, mesh)
    )
    return cast(parameters)
