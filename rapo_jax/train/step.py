"""The step: (state, reference, batch) -> (state, metrics). Pure, compiled once, donated.

One row passes the policy and the reference; both give the summed log-probability of every response in it; the objective
turns those into a loss per group; groups are summed and divided by the number of groups in the whole optimizer batch, so
that neither packing, nor microbatches, nor the mesh changes the result.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from rapo_jax.batch import BEST_SIDE, LETTERS, Batch, Shape
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config
from rapo_jax.logprobs import CHUNK, CHUNK_IN_CACHE, token_logps
from rapo_jax.models.accumulate import summed
from rapo_jax.models.attention.dispatch import Layout, kernel_for
from rapo_jax.models.decoder import abstract_decoder, logits_are_kept
from rapo_jax.models.lora import with_adapters
from rapo_jax.models.spec import Spec
from rapo_jax.objectives import Logps
from rapo_jax.parallel import compiler_options, replicated, sharding
from rapo_jax.train.metrics import GroupSums, group_sums
from rapo_jax.train.optim import adamw, clip, learning_rate
from rapo_jax.train.reference import weights_are_resident
from rapo_jax.train.state import State, parameter_shardings, state_shardings, trained_shardings

TrainStep = Callable[[State, dict, Batch], tuple[State, dict[str, Array]]]
EvaluateStep = Callable[[dict, dict, Batch, Array], GroupSums]
Losses = Callable[..., tuple[Array, GroupSums]]


def response_logps(
    graph: nnx.GraphDef,
    parameters: dict,
    rows: Batch,
    *,
    dtype: jnp.dtype,
    remat: str,
    num_vocabulary_shards: int,
    kernel: str | None = None,
    chunk: int = CHUNK,
    totals: dict | None = None,
    unrolled: bool = False,
) -> tuple[Array, Array]:
    """Summed log-probability and number of scored tokens of every branch of one microbatch, float32 [B, P, A].

    What is not scored has 0 of both; a reward model's log-probabilities are its scores. `totals` are sums of gradients, of which the new ones are the cotangent; see
    rapo_jax/models/accumulate.py.
    """
    layer_totals = None
    if totals is not None:
        layer_totals = nnx.State(totals["blocks"])
        joined = {name: summed(parameters[name], totals[name]) for name in parameters.keys() - {"blocks"}}
        parameters = joined | {"blocks": parameters["blocks"]}
    decoder = nnx.merge(graph, parameters)
    index_BT = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
    layout = Layout(index=index_BT, position=rows.position, group=rows.group, branch=rows.branch)
    options = {"dtype": dtype, "remat": remat, "kernel": kernel, "unrolled": unrolled}
    hidden_BTD, _ = decoder(rows.tokens, layout, totals=layer_totals, **options)
    hidden_BSD = jnp.take_along_axis(hidden_BTD, rows.source[..., None], axis=1)
    values_BS = (
        decoder.score(hidden_BSD)
        if decoder.spec.scored
        else token_logps(
            hidden_BSD,
            decoder.vocabulary_VD,
            rows.target,
            softcap=decoder.spec.final_softcap,
            num_shards=num_vocabulary_shards,
            chunk=chunk,
            keep=logits_are_kept(remat, decoder.spec),
        )
    )
    branches = rows.num_responses + 1
    in_slot_BSZ = rows.slot[..., None] == jnp.arange(rows.num_groups * branches)
    shape = (*rows.side.shape, branches)
    sums_BPc = jnp.where(in_slot_BSZ, values_BS[..., None], 0.0).sum(1).reshape(shape)
    return sums_BPc, in_slot_BSZ.sum(1).astype(jnp.float32).reshape(shape)


def attention_kernel(config: Config, mesh: Mesh) -> str:
    """The kernel that a step on this mesh attends with; the mesh may be of machines that are not here."""
    return kernel_for(mesh.devices.flat[0].platform, asked=config.model.attention)


def forward_pass(config: Config, spec: Spec, mesh: Mesh) -> tuple[nnx.GraphDef, dict]:
    """The decoder's structure, and the options of `response_logps` that follow from configuration and machine."""
    graph, _ = abstract_decoder(spec)
    return graph, {
        "dtype": jnp.dtype(config.model.dtype),
        "num_vocabulary_shards": mesh.shape["tensor"] if spec.V % mesh.shape["tensor"] == 0 else 1,
        "kernel": attention_kernel(config, mesh),
        "unrolled": not config.model.scan_layers,
        "chunk": CHUNK_IN_CACHE if mesh.devices.flat[0].platform == "cpu" else CHUNK,
    }


def make_logps(config: Config, spec: Spec, mesh: Mesh) -> Callable[..., Logps]:
    """(parameters, reference, rows) -> what the objective reads of one microbatch, `divergence` and `progress` still 0.

    With LoRA the parameters are adapters over the reference, which is the policy without them.
    """
    graph, forward = forward_pass(config, spec, mesh)
    reference_graph, _ = abstract_decoder(spec.base)

    def logps(parameters: dict, reference: dict, rows: Batch, *, remat: str, totals: dict | None = None) -> Logps:
        if spec.lora is not None:
            parameters = with_adapters(reference, parameters)
        policy_BPA, num_tokens_BPA = response_logps(graph, parameters, rows, remat=remat, totals=totals, **forward)
        reference_BPA = jnp.zeros_like(policy_BPA)
        if config.reference.cache:
            reference_BPA = jnp.where(rows.side[..., None] >= 0, rows.reference, 0.0)
        elif config.objective.needs("reference"):
            reference_BPA, _ = response_logps(reference_graph, reference, rows, remat="none", **forward)
        return as_logps(rows, policy_BPA, jax.lax.stop_gradient(reference_BPA), num_tokens_BPA)

    return logps


def make_losses(config: Config, spec: Spec, mesh: Mesh) -> Losses:
    """(parameters, reference, rows) -> the loss summed over the groups of one microbatch, and its metrics.

    `divergence` and `progress` are those of `Logps`; without a divergence, that of these rows is taken.
    """
    logps_of, objective = make_logps(config, spec, mesh), config.objective

    def losses(
        parameters: dict,
        reference: dict,
        rows: Batch,
        *,
        remat: str,
        totals: dict | None = None,
        divergence: Array | None = None,
        progress: Array | float = 0.0,
    ) -> tuple[Array, GroupSums]:
        logps = logps_of(parameters, reference, rows, remat=remat, totals=totals)
        if objective.needs("divergence"):
            divergence = mean_divergence(*divergence_sums(logps)) if divergence is None else divergence
            logps = replace(logps, divergence=jax.lax.stop_gradient(divergence))
        logps = replace(logps, progress=jnp.asarray(progress, jnp.float32))
        is_best_BP = rows.side == BEST_SIDE
        loss_BP = jnp.where(is_best_BP, best_goal_loss(objective, logps), total_loss(objective, logps)) * rows.weight
        return jnp.where(rows.side >= 0, loss_BP, 0.0).sum(), group_sums(loss_BP, logps, rows.side, objective)

    return losses


def total_loss(objective: Objective, logps: Logps) -> Array:
    """The weighted sum of an objective's terms, group by group."""
    return sum(term.weight * term.spec.loss(logps, **term.options) for term in objective.terms)


def best_goal_loss(objective: Objective, logps: Logps) -> Array:
    """-eta beta log pi(y | x, g*): what groups at the highest goal add to the loss of the preferences.

    Zhang et al., 2024, algorithm 1 (eq. A.9); the groups' weights make of a batch's mean the sum of two means.
    """
    if not objective.best_goal_weight:
        return jnp.zeros_like(logps.prompt)
    return -objective.best_goal_weight * objective.options["beta"] * logps.policy[..., 0]


def divergence_sums(logps: Logps) -> tuple[Array, Array]:
    """The sum of the log-ratios of the groups' last responses, and their number."""
    last = logps.present[..., -1]
    return jnp.where(last, logps.ratios[..., -1], 0.0).sum(), last.sum().astype(jnp.float32)


def mean_divergence(total: Array, number: Array) -> Array:
    """max(0, mean log-ratio): KTO's estimate of the KL divergence, from responses to other prompts."""
    return jnp.maximum(total / jnp.maximum(number, 1.0), 0.0)


def make_divergence(
    config: Config, spec: Spec, mesh: Mesh, shape: Shape
) -> Callable[[dict, dict, Batch], Array | None]:
    """(parameters, reference, batch) -> the divergence over a batch's microbatches, from a forward pass of its own.

    None where no objective asks for it, and where there is one microbatch, whose own it then is.
    """
    if not config.objective.needs("divergence") or shape.M == 1:
        return lambda *_: None
    logps_of = make_logps(config, spec, mesh)

    def divergence(parameters: dict, reference: dict, batch: Batch) -> Array:
        def sums_of(rows: Batch) -> tuple[Array, Array]:
            return divergence_sums(logps_of(parameters, reference, rows, remat="none"))

        add = lambda total, rows: jax.tree.map(jnp.add, total, sums_of(rows))  # noqa: E731
        return mean_divergence(*over_microbatches(add, (jnp.float32(0), jnp.float32(0)), batch, shape))

    return divergence


def make_train_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape, *, num_steps: int) -> TrainStep:
    """The optimizer step of a run, jitted with explicit shardings; it consumes its state.

    `num_steps` is the length of the learning rate schedule. `reference` is {} for objectives that need none; with LoRA it
    is what lies under the adapters, whatever the objective. A step whose loss or gradient is not finite leaves parameters
    and moments as they were and reports skipped = 1.
    """
    losses = make_losses(config, spec, mesh)
    divergence_of = make_divergence(config, spec, mesh, shape)
    transform = adamw(config.optimizer, spec)
    rate = learning_rate(config.optimizer, num_steps=num_steps)

    def train(state: State, reference: dict, batch: Batch) -> tuple[State, dict[str, Array]]:
        num_groups = (batch.side >= 0).sum().astype(jnp.float32)
        whole = {"divergence": divergence_of(state.parameters, reference, batch), "progress": state.step / num_steps}

        def loss(parameters: dict, totals: dict | None, rows: Batch) -> tuple[Array, GroupSums]:
            total, sums = losses(parameters, reference, rows, remat=config.model.remat, totals=totals, **whole)
            return total / num_groups, sums

        def add_gradients(totals: tuple[dict, GroupSums], rows: Batch) -> tuple[dict, GroupSums]:
            gradients, sums = totals
            if spec.lora is None:  # layers are differentiated one by one, and join so
                gradients, new_sums = jax.grad(loss, argnums=1, has_aux=True)(state.parameters, gradients, rows)
            else:
                new, new_sums = jax.grad(loss, has_aux=True)(state.parameters, None, rows)
                gradients = jax.tree.map(jnp.add, gradients, new)
            return gradients, jax.tree.map(jnp.add, sums, new_sums)

        nothing = zeros_of(lambda: loss(state.parameters, None, microbatch(batch, 0))[1])
        start = jax.tree.map(jnp.zeros_like, state.parameters), nothing
        gradients, sums = over_microbatches(add_gradients, start, batch, shape)
        norm = optax.tree.norm(gradients)
        gradients = clip(gradients, norm, config.optimizer.max_grad_norm)
        updates, optimizer = transform.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, optax.tree.scale(-rate(state.step), updates))
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.total("loss"))
        old, new = (state.parameters, state.optimizer), (parameters, optimizer)
        parameters, optimizer = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        metrics = sums.means() | {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - finite}
        return State(state.step + 1, parameters, optimizer), metrics

    where = state_shardings(spec, mesh, transform)
    return jax.jit(
        train,
        donate_argnums=0,
        in_shardings=(where, reference_shardings(config, spec, mesh), batch_shardings(mesh, shape)),
        out_shardings=(where, replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


def make_evaluate_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> EvaluateStep:
    """The metrics of a batch as sums over its groups, so that batches of any number of groups add up exactly.

    The last argument is the progress of the training, as a step has it: losses that change with it are those of this moment.
    """
    losses = make_losses(config, spec, mesh)
    divergence_of = make_divergence(config, spec, mesh, shape)

    def evaluate(parameters: dict, reference: dict, batch: Batch, progress: Array) -> GroupSums:
        whole = {"divergence": divergence_of(parameters, reference, batch), "progress": progress}

        def sums_of(rows: Batch) -> GroupSums:
            return losses(parameters, reference, rows, remat="none", **whole)[1]

        add = lambda total, rows: jax.tree.map(jnp.add, total, sums_of(rows))  # noqa: E731
        return over_microbatches(add, zeros_of(lambda: sums_of(microbatch(batch, 0))), batch, shape)

    weights, reference = trained_shardings(spec, mesh), reference_shardings(config, spec, mesh)
    shardings = (weights, reference, batch_shardings(mesh, shape), replicated(mesh))
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=replicated(mesh))


def reference_shardings(config: Config, spec: Spec, mesh: Mesh) -> dict:
    return parameter_shardings(spec, mesh) if weights_are_resident(config) else {}


def make_logps_step(config: Config, spec: Spec, mesh: Mesh, shape: Shape) -> Callable[[dict, Batch], Array]:
    """(weights, batch of one microbatch) -> summed log-probability of every response without adapters, float32 [B, P, C]."""
    graph, forward = forward_pass(config, spec.base, mesh)

    def logps(parameters: dict, batch: Batch) -> Array:
        return response_logps(graph, parameters, microbatch(batch, 0), remat="none", **forward)[0]

    shardings = (parameter_shardings(spec, mesh), batch_shardings(mesh, shape))
    return jax.jit(logps, in_shardings=shardings, out_shardings=replicated(mesh))


def as_logps(rows: Batch, policy_BPA: Array, reference_BPA: Array, num_tokens_BPA: Array) -> Logps:
    """What objectives read; rewards of responses that a group does not have are 0, which no gradient can turn into NaN."""
    present_BPC = num_tokens_BPA[..., 1:] > 0
    return Logps(
        policy=policy_BPA[..., 1:],
        reference=reference_BPA[..., 1:],
        num_tokens=num_tokens_BPA[..., 1:],
        rewards=jnp.where(present_BPC, rows.reward, 0.0),
        prompt=policy_BPA[..., 0] - reference_BPA[..., 0],
        divergence=jnp.float32(0),
        progress=jnp.float32(0),
    )


def over_microbatches(add: Callable[[Any, Batch], Any], total: Any, batch: Batch, shape: Shape) -> Any:
    """add(add(total, microbatch 0), microbatch 1) ..., over the microbatches in use, as a loop that is compiled once."""
    if shape.M == 1:
        return add(total, microbatch(batch, 0))
    return jax.lax.fori_loop(0, batch.num_microbatches, lambda m, total: add(total, microbatch(batch, m)), total)


def zeros_of(function: Callable[[], Any]) -> Any:
    """Zeros in the shapes of what a function would return."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))


def microbatch(batch: Batch, m: Array | int) -> Batch:
    """The arrays of microbatch m, [B, ...]."""
    return replace(batch, **{name: getattr(batch, name)[m] for name in ROW_ARRAYS})


ROW_ARRAYS = [field.name for field in fields(Batch) if field.name != "num_microbatches"]


def batch_shardings(mesh: Mesh, shape: Shape) -> Batch:
    """A Batch of NamedShardings: rows over (data, fsdp), all else whole."""
    sizes = {letter: getattr(shape, letter) for letter in "MBTSPCA"}
    return Batch(
        **{name: sharding(mesh, letters, tuple(sizes[c] for c in letters)) for name, letters in LETTERS.items()}
    )
