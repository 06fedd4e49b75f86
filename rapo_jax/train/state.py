"""The training state (step, parameters, optimizer moments): shapes, shardings and starting values."""

from dataclasses import dataclass
from typing import Generic

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from rapo_jax.batch import Leaf
from rapo_jax.models.decoder import Decoder
from rapo_jax.models.parameters import Location, parameter_letters, pick, place, shape_of, trained_letters
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import replicated, sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State(Generic[Leaf]):
    """`step` counts completed optimizer steps and is the position in the data. Parameters and moments are float32.

    `parameters` are the trained ones: all weights of the model or, with LoRA, only the adapters. State[Array] on devices;
    State[NamedSharding] and State[jax.ShapeDtypeStruct] describe one.
    """

    step: Leaf
    parameters: dict
    optimizer: optax.OptState


def shardings(spec: Spec, mesh: Mesh, letters: dict[Location, str]) -> dict:
    tree: dict = {}
    for path, dims in letters.items():
        place(tree, path, sharding(mesh, dims, shape_of(spec, dims)))
    return tree


def parameter_shardings(spec: Spec, mesh: Mesh) -> dict:
    """Shardings of the model's weights, trained or frozen."""
    return shardings(spec, mesh, parameter_letters(spec))


def trained_shardings(spec: Spec, mesh: Mesh) -> dict:
    """Shardings of the parameters of a State."""
    return shardings(spec, mesh, trained_letters(spec))


def state_shardings(spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State[NamedSharding]:
    """A State of NamedShardings: moments are sharded like their parameters, counters are replicated."""
    parameters = trained_shardings(spec, mesh)
    moments = jax.eval_shape(transform.init, abstract_trained(spec, mesh))
    optimizer = optax.tree.map_params(
        transform, lambda _, where: where, moments, parameters, transform_non_params=lambda _: replicated(mesh)
    )
    return State(step=replicated(mesh), parameters=parameters, optimizer=optimizer)


def abstract_parameters(spec: Spec, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> dict:
    """Shapes and shardings of the model's weights."""
    return abstract(spec, mesh, parameter_letters(spec), dtype)


def abstract_trained(spec: Spec, mesh: Mesh) -> dict:
    """Shapes and shardings of the parameters of a State."""
    return abstract(spec, mesh, trained_letters(spec), jnp.float32)


def abstract(spec: Spec, mesh: Mesh, letters: dict[Location, str], dtype: jnp.dtype) -> dict:
    tree: dict = {}
    for path, dims in letters.items():
        shape = shape_of(spec, dims)
        place(tree, path, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, dims, shape)))
    return tree


def abstract_state(spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State[jax.ShapeDtypeStruct]:
    """Shapes and shardings of a State, to restore one or to compile without one."""
    shapes = jax.eval_shape(lambda p: fresh(p, transform), abstract_trained(spec, mesh))
    where = state_shardings(spec, mesh, transform)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def fresh(parameters: dict, transform: optax.GradientTransformation) -> State[Array]:
    return State(step=jnp.int32(0), parameters=parameters, optimizer=transform.init(parameters))


def first_state(parameters: dict, spec: Spec, mesh: Mesh, transform: optax.GradientTransformation) -> State[Array]:
    """The state before the first step. Donates `parameters`, which are those of `trainable`, float32."""
    where = state_shardings(spec, mesh, transform)
    return jax.jit(lambda p: fresh(p, transform), donate_argnums=0, out_shardings=where)(parameters)


def random_parameters(spec: Spec, mesh: Mesh, *, seed: int) -> dict:
    """Random float32 weights of a model without adapters, created on the mesh."""
    return initialised(spec.base, mesh, parameter_letters(spec), seed=seed)


def trainable(parameters: dict, spec: Spec, mesh: Mesh, *, seed: int) -> dict:
    """The initial parameters that a run trains, float32: the weights or, with LoRA, adapters without effect yet."""
    if spec.lora is None:
        return parameters
    adapters = {path: letters for path, letters in trained_letters(spec).items() if path[0] == "blocks"}
    trained = initialised(spec, mesh, adapters, seed=seed)
    if spec.scored:
        trained["score_head"] = jnp.copy(parameters["score_head"]).astype(jnp.float32)
    return trained


def initialised(spec: Spec, mesh: Mesh, letters: dict[Location, str], *, seed: int) -> dict:
    """Starting values of some of a decoder's parameters, created on the mesh; they do not depend on the mesh."""

    def init() -> dict:
        state = nnx.to_pure_dict(nnx.state(Decoder(spec, rngs=nnx.Rngs(seed))))
        tree: dict = {}
        for path in letters:
            place(tree, path, pick(state, path))
        return tree

    return jax.jit(init, out_shardings=shardings(spec, mesh, letters))()
