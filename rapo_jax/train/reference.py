"""The frozen reference model, with its weights resident on the devices.

The weights have the compute dtype and are sharded like the policy's. With LoRA they are also the only copy of the weights
under the adapters, and therefore resident whatever the objective. Reference log-probabilities computed in advance:
rapo_jax/passes/.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rapo_jax.config.tree import Config
from rapo_jax.models.spec import Spec
from rapo_jax.train.state import parameter_shardings


def reference_is_resident(config: Config) -> bool:
    """Whether a step computes the reference's log-probabilities itself."""
    return config.objective.needs("reference") and not config.reference.cache


def weights_are_resident(config: Config) -> bool:
    """Whether a step takes frozen weights: the reference's, or those under the adapters, which are the same."""
    return reference_is_resident(config) or config.lora.rank is not None


def frozen_copy(parameters: dict, spec: Spec, mesh: Mesh, *, dtype: jnp.dtype) -> dict:
    """A copy of the weights in the compute dtype, which stays valid if the originals are donated.

    With LoRA the originals are never donated, so weights that already have that dtype are returned without a copy.
    """
    if spec.lora is not None:
        return jax.tree.map(lambda x: x.astype(dtype), parameters)
    cast = jax.jit(
        lambda p: jax.tree.map(lambda x: jnp.copy(x).astype(dtype), p), out_shardings=parameter_shardings(spec, mesh)
    )
    return cast(parameters)


def resident_reference(parameters: dict, config: Config, spec: Spec, mesh: Mesh) -> dict:
    """The frozen starting weights that a step takes; {} where it takes none."""
    if not weights_are_resident(config):
        return {}
    return frozen_copy(parameters, spec, mesh, dtype=jnp.dtype(config.model.dtype))
