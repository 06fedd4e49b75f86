"""The forward pass over packed rows: tokens -> the summed log-probability of every branch."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from rapo_jax.batch import Batch
from rapo_jax.config.tree import Config
from rapo_jax.logprobs import CHUNK, CHUNK_IN_CACHE, token_logps
from rapo_jax.models.accumulate import summed
from rapo_jax.models.attention.dispatch import kernel_for
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Decoder, ForwardOptions, logits_are_kept
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import CONTEXT, ROW_AXES, num_row_shards


@dataclass(frozen=True)
class Forward:
    """How a forward pass computes: options that follow from the configuration and the machine."""

    dtype: jnp.dtype
    num_vocabulary_shards: int = 1
    num_row_shards: int = 1
    context: int = 1  # shards of a row's tokens
    kernel: str | None = None  # None: the one for the current platform
    chunk: int = CHUNK  # vocabulary entries whose logits exist at a time
    unrolled: bool = False


def forward_of(config: Config, spec: Spec, mesh: Mesh) -> Forward:
    """The options of a run on a mesh, whose devices need not be present."""
    return Forward(
        dtype=jnp.dtype(config.model.dtype),
        num_vocabulary_shards=mesh.shape["tensor"] if spec.V % mesh.shape["tensor"] == 0 else 1,
        num_row_shards=num_row_shards(mesh),
        context=mesh.shape[CONTEXT],
        kernel=attention_kernel(config, mesh),
        chunk=CHUNK_IN_CACHE if mesh.devices.flat[0].platform == "cpu" else CHUNK,
        unrolled=not config.model.scan_layers,
    )


def attention_kernel(config: Config, mesh: Mesh) -> str:
    """The name of the kernel that a step on this mesh uses."""
    return kernel_for(mesh.devices.flat[0].platform, asked=config.model.attention)


def response_logps(
    graph: nnx.GraphDef,
    parameters: dict,
    rows: Batch[Array],
    *,
    forward: Forward,
    remat: str,
    totals: dict | None = None,
) -> tuple[Float[Array, "B P A"], Float[Array, "B P A"]]:
    """Summed log-probability and number of scored tokens of every branch of one microbatch, float32.

    Both are zero for unscored branches; for a reward model, scores take the place of log-probabilities. `totals` are
    running sums of gradients: the gradient with respect to them is the sums with this microbatch's gradients added; see
    rapo_jax/models/accumulate.py.
    """
    layer_totals = None
    if totals is not None:
        layer_totals = nnx.State(totals["blocks"])
        joined = {name: summed(parameters[name], totals[name]) for name in parameters.keys() - {"blocks"}}
        parameters = joined | {"blocks": parameters["blocks"]}
    decoder = nnx.merge(graph, parameters)
    layout = layout_of(rows, forward)
    options = ForwardOptions(forward.dtype, remat, forward.kernel, forward.unrolled)
    if layer_totals is None:
        hidden_BTD = decoder(rows.tokens, layout, options=options)
    else:
        hidden_BTD = decoder.accumulating(rows.tokens, layout, totals=layer_totals, options=options)
    hidden_BSD = states_at(hidden_BTD, rows.source, forward)
    sums_BPA, numbers_BPA = sums_by_branch(scored_values(decoder, hidden_BSD, rows, forward=forward, remat=remat), rows)
    return at_home(sums_BPA, rows), at_home(numbers_BPA, rows)


def layout_of(rows: Batch[Array], forward: Forward) -> Layout:
    """Which tokens see which. Dealt tokens are in no order, but within a prompt and a response the position is one; padding
    comes after all tokens, each by itself."""
    index_BT = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
    if forward.context > 1:
        index_BT = jnp.where(rows.group > 0, rows.position, rows.tokens.shape[1] + index_BT)
    return Layout(index=index_BT, position=rows.position, group=rows.group, branch=rows.branch)


def states_at(
    hidden_BTD: Float[Array, "B T D"], source_BS: Int[Array, "B S"], forward: Forward
) -> Float[Array, "B S D"]:
    """The hidden states at the scored positions. Devices that share a row gather its states, and each takes its part of the
    scored positions, so that none has more of them than others."""

    def taken(hidden_BTD: Array, source_BS: Array) -> Array:
        return jnp.take_along_axis(hidden_BTD, source_BS[..., None], axis=1)

    if forward.context == 1:
        return taken(hidden_BTD, source_BS)

    def gathered(hidden_BTD: Array, source_BS: Array) -> Array:
        return taken(jax.lax.all_gather(hidden_BTD, CONTEXT, axis=1, tiled=True), source_BS)

    by_token = PartitionSpec(ROW_AXES, CONTEXT)
    return jax.shard_map(gathered, in_specs=(by_token, by_token), out_specs=by_token)(hidden_BTD, source_BS)


def scored_values(
    decoder: Decoder, hidden_BSD: Float[Array, "B S D"], rows: Batch[Array], *, forward: Forward, remat: str
) -> Float[Array, "B S"]:
    """The log-probability of every target, or the scalar head's score."""
    if decoder.spec.scored:
        return decoder.score(hidden_BSD)
    by_shard, by_row = reorderings(rows.target.shape, forward)
    logps = token_logps(
        by_shard(hidden_BSD),
        decoder.vocabulary_VD,
        by_shard(rows.target),
        softcap=decoder.spec.final_softcap,
        num_shards=forward.num_vocabulary_shards,
        chunk=forward.chunk,
        keep=logits_are_kept(remat, decoder.spec),
    )
    return by_row(logps)


Reordering = Callable[[Shaped[Array, "..."]], Shaped[Array, "..."]]


def reorderings(shape: tuple[int, ...], forward: Forward) -> tuple[Reordering, Reordering]:
    """[B, S, ...] -> [shards, positions of a shard, ...], and back: what a device has then is in one piece, and stays on it
    when the first two dimensions are joined."""
    if forward.context == 1:
        return lambda x: x, lambda x: x
    B, S = shape
    rows, parts = forward.num_row_shards, forward.context
    split, joined = (rows, B // rows, parts, S // parts), (rows * parts, B // rows * (S // parts))

    def by_shard(x: Array) -> Array:
        return x.reshape(*split, *x.shape[2:]).swapaxes(1, 2).reshape(*joined, *x.shape[2:])

    def by_row(x: Array) -> Array:
        return x.reshape(rows, parts, B // rows, S // parts).swapaxes(1, 2).reshape(B, S)

    return by_shard, by_row


def sums_by_branch(
    values_BS: Float[Array, "B S"], rows: Batch[Array]
) -> tuple[Float[Array, "B P A"], Float[Array, "B P A"]]:
    """The sum and the number of the values of every branch."""
    in_slot_BSZ = rows.slot[..., None] == jnp.arange(rows.num_groups * rows.num_branches)
    shape = (*rows.side.shape, rows.num_branches)
    sums_BPA = jnp.where(in_slot_BSZ, values_BS[..., None], 0.0).sum(1).reshape(shape)
    return sums_BPA, in_slot_BSZ.sum(1).astype(jnp.float32).reshape(shape)


def at_home(sums_BPA: Float[Array, "B P A"], rows: Batch[Array]) -> Float[Array, "B P A"]:
    """The sums of each group's branches at its own place, from whichever rows of the microbatch hold them; 0 elsewhere."""
    if not rows.is_split:
        return sums_BPA
    A = rows.num_branches
    sums_ZA, places_ZA = sums_BPA.reshape(-1, A), rows.summed_at.reshape(-1, A)
    return jnp.take_along_axis(sums_ZA, places_ZA, axis=0, mode="fill", fill_value=0.0).reshape(sums_BPA.shape)
