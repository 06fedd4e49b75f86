"""Batched decoding with a key/value cache: one prefill, then one token per row and step until every row has stopped.

An answer depends on the seed and on the prompt's index in the list, never on which prompts share its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Int32, Key
from tqdm import tqdm

from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Cache, Decoder, ForwardOptions, abstract_decoder
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel, require_ids_fit
from rapo_jax.parallel import global_array, host_slice, my_rows, num_row_shards

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 is greedy decoding. `top_p` keeps the smallest set of tokens whose probability reaches it (nucleus
    sampling). `max_new_tokens` limits the length of an answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """The new tokens without the stop token, and what ended them: a stop token or max_new_tokens."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


def answer_tokens(
    model: OpenedModel, prompts: Sequence[Int[np.ndarray, " _"]], *, sampling: Sampling, batch_size: int = 16
) -> list[Continuation]:
    """The continuations of all prompts (token ids), in their order. Shows progress on the first process.

    Raises UserError for token ids beyond the model's vocabulary.
    """
    require_ids_fit(prompts, model.tokenizer, model.spec, said=model.name)
    answers = decode(
        model.parameters,
        model.spec,
        prompts,
        sampling=sampling,
        stop_tokens=model.stop_tokens,
        mesh=model.mesh,
        dtype=model.dtype,
        batch_size=batch_size,
    )
    hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal only
    found = dict(tqdm(answers, total=len(prompts), desc="generate", disable=hidden))
    return [found[index] for index in range(len(prompts))]


def decode(
    parameters: dict[str, Any],
    spec: Spec,
    prompts: Sequence[Int[np.ndarray, " _"]],
    *,
    sampling: Sampling,
    stop_tokens: Sequence[int],
    mesh: Mesh,
    dtype: jnp.dtype | str = "float32",
    batch_size: int = 16,
) -> Iterator[tuple[int, Continuation]]:
    """Yields (index of the prompt, its continuation), batch by batch, longest prompts first.

    `parameters` may include the adapters that `spec` describes. `batch_size` is rounded up to a multiple of the mesh's
    row shards. With several processes, every process passes the same prompts and gets all continuations.
    """
    graph, _ = abstract_decoder(spec)
    shards = num_row_shards(mesh)
    batch_size = -(-min(batch_size, len(prompts)) // shards) * shards
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    stops = np.asarray(sorted(set(stop_tokens)), np.int32)
    run = jax.jit(partial(_decode_batch, graph, sampling=sampling, dtype=jnp.dtype(dtype)))
    mine = my_rows(mesh, batch_size)
    with jax.set_mesh(mesh):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            tokens_BT, length_B, index_B = (
                global_array(mesh, "BT"[: x.ndim], x[mine], num_rows=batch_size)
                for x in padded(prompts, members, batch_size)
            )
            batch = {"tokens_BT": tokens_BT, "length_B": length_B, "index_B": index_B}
            new_BX = host_slice(run(parameters, stops, **batch))
            for row, member in enumerate(members):
                yield member, cut_at_stop(new_BX[row], stops)


def padded(
    prompts: Sequence[Int[np.ndarray, " _"]], members: Sequence[int], batch_size: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"], Int32[np.ndarray, " B"]]:
    """Tokens, lengths and prompt indices of a batch; a short batch is filled up by repeating its last prompt."""
    filled = [*members, *[members[-1]] * (batch_size - len(members))]
    longest = max(len(prompts[i]) for i in filled)
    tokens = np.zeros((batch_size, -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE), np.int32)
    for row, i in enumerate(filled):
        tokens[row, : len(prompts[i])] = prompts[i]
    return tokens, np.array([len(prompts[i]) for i in filled], np.int32), np.array(filled, np.int32)


def cut_at_stop(tokens: Int32[np.ndarray, " X"], stops: Int32[np.ndarray, " _"]) -> Continuation:
    """The tokens before the first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    if len(ends):
        return Continuation(tokens[: ends[0]].tolist(), "stop")
    return Continuation(tokens.tolist(), "length")


def _decode_batch(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    stops: Int32[Array, " _"],
    *,
    tokens_BT: Int32[Array, "B T"],
    length_B: Int32[Array, " B"],
    index_B: Int32[Array, " B"],
    sampling: Sampling,
    dtype: jnp.dtype,
) -> Int32[Array, "B X"]:
    """New tokens, X = max_new_tokens per row. Tokens after a row's first stop token are meaningless."""
    decoder = nnx.merge(graph, parameters)
    B, T = tokens_BT.shape
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))(index_B)
    cache = Cache.empty(decoder.spec, num_rows=B, num_slots=T + sampling.max_new_tokens, dtype=dtype)
    options = ForwardOptions(dtype=dtype)
    every_position = _at(jnp.broadcast_to(jnp.arange(T), (B, T)))
    hidden_BTD, cache = decoder.decoding(tokens_BT, every_position, cache=cache, options=options)
    last_B1D = jnp.take_along_axis(hidden_BTD, (length_B - 1)[:, None, None], axis=1)
    first_B = _sample(decoder, last_B1D, keys_B, 0, sampling)
    new_BX = jnp.zeros((B, sampling.max_new_tokens), jnp.int32).at[:, 0].set(first_B)

    def unfinished(carry) -> Array:
        step, _, _, _, stopped_B = carry
        return (step < sampling.max_new_tokens) & ~stopped_B.all()

    def next_token(carry):
        step, token_B, new_BX, cache, stopped_B = carry
        position_B1 = (length_B + step - 1)[:, None]
        hidden_B1D, cache = decoder.decoding(token_B[:, None], _at(position_B1), cache=cache, options=options)
        token_B = _sample(decoder, hidden_B1D, keys_B, step, sampling)
        new_BX = new_BX.at[:, step].set(token_B)
        return step + 1, token_B, new_BX, cache, stopped_B | jnp.isin(token_B, stops)

    start = (jnp.int32(1), first_B, new_BX, cache, jnp.isin(first_B, stops))
    return jax.lax.while_loop(unfinished, next_token, start)[2]


def _at(position_BT: Int32[Array, "B T"]) -> Layout:
    """The layout of one sequence per row. A cache slot with padding is overwritten before any token attends to it."""
    return Layout(position_BT, position_BT, jnp.ones_like(position_BT), jnp.zeros_like(position_BT))


def _sample(
    decoder: Decoder,
    hidden_B1D: Float[Array, "B 1 D"],
    keys_B: Key[Array, " B"],
    step: Int32[Array, ""] | int,
    sampling: Sampling,
) -> Int32[Array, " B"]:
    logits_BV = decoder.logits(hidden_B1D)[:, 0]
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_p < 1:
        logits_BV = jnp.where(_in_nucleus(logits_BV, sampling.top_p), logits_BV, -jnp.inf)
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def _in_nucleus(logits_BV: Float[Array, "B V"], top_p: float) -> Bool[Array, "B V"]:
    """The most probable tokens until `top_p` is reached (Holtzman et al., 2020, section 3.1)."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    lowest_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
    return logits_BV >= lowest_B1
