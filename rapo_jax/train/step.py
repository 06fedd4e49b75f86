"""The step: (state, reference, batch) -> (state, metrics). Pure, compiled once, its state donated.

The policy and the reference compute the log-probability of every response of a microbatch (forward.py), the objective
turns them into a loss per group (losses.py), gradients are accumulated over the microbatches, and AdamW updates the
parameters. The loss is divided by the number of groups in the optimizer batch, so that packing, microbatches and the mesh
do not change it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from rapo_jax.batch import LETTERS, Batch, Shape
from rapo_jax.config.tree import Config
from rapo_jax.models.decoder import abstract_decoder
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import compiler_options, replicated, sharding
from rapo_jax.train.forward import Forward, response_logps
from rapo_jax.train.losses import make_divergence, make_losses
from rapo_jax.train.metrics import GroupSums, sums_of_no_groups
from rapo_jax.train.microbatches import microbatch, over_microbatches, sum_over_microbatches
from rapo_jax.train.optim import adamw, clip, learning_rate
from rapo_jax.train.reference import weights_are_resident
from rapo_jax.train.state import State, parameter_shardings, state_shardings, trained_shardings

TrainStep = Callable[[State[Array], dict, Batch[Array]], tuple[State[Array], dict[str, Array]]]
EvaluateStep = Callable[[dict, dict, Batch[Array], Array], GroupSums]
LogpsStep = Callable[[dict, Batch[Array]], Float[Array, "B P A"]]
Gradients = Callable[[State[Array], dict, Batch[Array]], tuple[dict, GroupSums]]
Update = Callable[[State[Array], dict, GroupSums], tuple[State[Array], dict[str, Array]]]


def make_train_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape, *, num_steps: int) -> TrainStep:
    """The optimizer step of a run, jitted with explicit shardings; it consumes its state.

    `num_steps` is the length of the learning rate schedule. `reference` is {} for objectives that need none; with LoRA it
    holds the frozen weights under the adapters, whatever the objective. A step whose loss or gradient is not finite
    leaves parameters and moments unchanged and reports skipped = 1.
    """
    gradients_of = make_gradients(config, spec, mesh, shape, num_steps=num_steps)
    update = make_update(config, spec, num_steps=num_steps)

    def train(state: State[Array], reference: dict, batch: Batch[Array]) -> tuple[State[Array], dict[str, Array]]:
        gradients, sums = gradients_of(state, reference, batch)
        return update(state, gradients, sums)

    where = state_shardings(spec, mesh, adamw(config.optimizer, spec))
    return jax.jit(
        train,
        donate_argnums=0,
        in_shardings=(where, reference_shardings(config, spec, mesh), batch_shardings(mesh, shape)),
        out_shardings=(where, replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


def make_gradients(config: Config, spec: Spec, mesh: Mesh, shape: Shape, *, num_steps: int) -> Gradients:
    """(state, reference, batch) -> the gradient of the batch's mean loss, and its metrics, over all microbatches."""
    losses, divergence_of = make_losses(config, spec, mesh), make_divergence(config, spec, mesh, shape)

    def gradients_of(state: State[Array], reference: dict, batch: Batch[Array]) -> tuple[dict, GroupSums]:
        num_groups = (batch.side >= 0).sum().astype(jnp.float32)
        divergence, progress = divergence_of(state.parameters, reference, batch), state.step / num_steps

        def loss(parameters: dict, totals: dict | None, rows: Batch[Array]) -> tuple[Array, GroupSums]:
            options = {"remat": config.model.remat, "divergence": divergence, "progress": progress}
            total, sums = losses(parameters, reference, rows, totals=totals, **options)
            return total / num_groups, sums

        def add_gradients(totals: tuple[dict, GroupSums], rows: Batch[Array]) -> tuple[dict, GroupSums]:
            gradients, sums = totals
            if spec.lora is None:  # each layer's gradient is added to the total within the backward pass
                gradients, new_sums = jax.grad(loss, argnums=1, has_aux=True)(state.parameters, gradients, rows)
            else:
                new, new_sums = jax.grad(loss, has_aux=True)(state.parameters, None, rows)
                gradients = jax.tree.map(jnp.add, gradients, new)
            return gradients, jax.tree.map(jnp.add, sums, new_sums)

        start = jax.tree.map(jnp.zeros_like, state.parameters), sums_of_no_groups(config.objective)
        return over_microbatches(add_gradients, start, batch, shape)

    return gradients_of


def make_update(config: Config, spec: Spec, *, num_steps: int) -> Update:
    """(state, gradients, sums) -> the state after clipping, AdamW and the learning rate, and the step's metrics."""
    transform = adamw(config.optimizer, spec)
    rate = learning_rate(config.optimizer, num_steps=num_steps)

    def update(state: State[Array], gradients: dict, sums: GroupSums) -> tuple[State[Array], dict[str, Array]]:
        norm = optax.tree.norm(gradients)
        gradients = clip(gradients, norm, config.optimizer.max_grad_norm)
        updates, optimizer = transform.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, optax.tree.scale(-rate(state.step), updates))
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.total("loss"))
        old, new = (state.parameters, state.optimizer), (parameters, optimizer)
        parameters, optimizer = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        metrics = sums.means() | {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - finite}
        return State(state.step + 1, parameters, optimizer), metrics

    return update


def make_evaluate_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> EvaluateStep:
    """The metrics of a batch as sums over its groups, so that batches with different numbers of groups add up exactly.

    The last argument is the share of training steps done, which losses that change over the training read.
    """
    losses, divergence_of = make_losses(config, spec, mesh), make_divergence(config, spec, mesh, shape)

    def evaluate(parameters: dict, reference: dict, batch: Batch[Array], progress: Array) -> GroupSums:
        scalars = {"divergence": divergence_of(parameters, reference, batch), "progress": progress}

        def sums_of(rows: Batch[Array]) -> GroupSums:
            return losses(parameters, reference, rows, remat="none", **scalars)[1]

        return sum_over_microbatches(sums_of, sums_of_no_groups(config.objective), batch, shape)

    weights, reference = trained_shardings(spec, mesh), reference_shardings(config, spec, mesh)
    shardings = (weights, reference, batch_shardings(mesh, shape), replicated(mesh))
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=replicated(mesh))


def make_logps_step(forward: Forward, spec: Spec, mesh: Mesh, shape: Shape) -> LogpsStep:
    """(weights, batch of one microbatch) -> the summed log-probability of every branch, without adapters, float32."""
    graph, _ = abstract_decoder(spec.base)

    def logps(parameters: dict, batch: Batch[Array]) -> Array:
        return response_logps(graph, parameters, microbatch(batch, 0), forward=forward, remat="none")[0]

    shardings = (parameter_shardings(spec, mesh), batch_shardings(mesh, shape))
    return jax.jit(logps, in_shardings=shardings, out_shardings=replicated(mesh))


def reference_shardings(config: Config, spec: Spec, mesh: Mesh) -> dict:
    """Shardings of the frozen weights that a step takes; {} where it takes none."""
    return parameter_shardings(spec, mesh) if weights_are_resident(config) else {}


def batch_shardings(mesh: Mesh, shape: Shape) -> Batch[NamedSharding]:
    """Shardings of a batch: rows over (data, fsdp), their tokens and scored positions over context, all else replicated."""
    sizes = {letter: getattr(shape, letter) for letter in "MBTSPCAE"}
    return Batch(
        **{name: sharding(mesh, letters, tuple(sizes[c] for c in letters)) for name, letters in LETTERS.items()}
    )
