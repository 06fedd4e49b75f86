"""What a step carries from one to the next, and where each part lives on the mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from rapo_jax.models.decoder import Decoder, parameter_letters, shape_of
from rapo_jax.models.hf import pick, place
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import replicated, sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """`step` counts optimizer steps done, and is the position in the data. `parameters` and moments are float32."""

    step: Array
    parameters: dict
    optimizer: optax.OptState


def parameter_shardings(spec: Spec, mesh: Mesh) -> dict:
    tree: dict = {}
    for path, letters in parameter_letters(spec).items():
        place(tree, path, sharding(mesh, letters, shape_of(spec, letters)))
    return tree


def state_shardings(spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State:
    """A State of NamedShardings: moments live where their parameters live, counters everywhere."""
    parameters = parameter_shardings(spec, mesh)
    abstract = jax.eval_shape(transform.init, abstract_parameters(spec, mesh))
    optimizer = optax.tree.map_params(
        transform, lambda _, where: where, abstract, parameters, transform_non_params=lambda _: replicated(mesh)
    )
    return State(step=replicated(mesh), parameters=parameters, optimizer=optimizer)


def abstract_parameters(spec: Spec, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> dict:
    """Shapes and shardings of the parameters, without the parameters."""
    tree: dict = {}
    for path, letters in parameter_letters(spec).items():
        shape = shape_of(spec, letters)
        place(tree, path, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, letters, shape)))
    return tree


def abstract_state(spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State:
    """Shapes and shardings of a State, for restoring one and for compiling without one."""
    shapes = jax.eval_shape(lambda p: fresh(p, transform), abstract_parameters(spec, mesh))
    where = state_shardings(spec, mesh, transform)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def fresh(parameters: dict, transform: optax.GradientTransformation) -> State:
    return State(step=jnp.int32(0), parameters=parameters, optimizer=transform.init(parameters))


def first_state(parameters: dict, spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State:
    """The state before step 0. Consumes `parameters`, which must be float32."""
    where = state_shardings(spec, mesh, transform)
    return jax.jit(lambda p: fresh(p, transform), donate_argnums=0, out_shardings=where)(parameters)


def random_parameters(spec: Spec, mesh: Mesh, *, seed: int) -> dict:
    """Float32 start values of a model trained from nothing, made in place on the mesh."""

    def init() -> dict:
        state = nnx.to_pure_dict(nnx.state(Decoder(spec, rngs=nnx.Rngs(seed))))
        tree: dict = {}
        for path in parameter_letters(spec):
            place(tree, path, pick(state, path))
        return tree

    return jax.jit(init, out_shardings=parameter_shardings(spec, mesh))()
