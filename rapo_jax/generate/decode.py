"""Batched decoding with a key/value cache: the prompts in chunks, then one token per row and step until every row has stopped.

An answer depends on the seed and on the prompt's index in the list, never on which prompts share its batch. Which do is
decided in batches.py, how a token is drawn in sampling.py.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int, Int32
from tqdm import tqdm

from rapo_jax.generate.batches import PREFILL_CHUNK, BatchLimits, DecodeBatch, padded, plan_batches
from rapo_jax.generate.sampling import Method, RowSampling, Sampling, draw, method_of, row_sampling
from rapo_jax.generate.store import Key
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Cache, Decoder, ForwardOptions, abstract_decoder
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel, require_ids_fit
from rapo_jax.parallel import global_array, host_slice, my_rows, num_row_shards, replicated, sharding
from rapo_jax.peers import at

SEGMENT = 32  # tokens per row that are decoded before finished answers are fetched and a signal is noticed


@dataclass(frozen=True)
class Continuation:
    """The new tokens without the stop token, and what ended them: a stop token or max_new_tokens."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Segment:
    """What a few steps of one batch gave: answers by the index of their prompt, as they end.

    `num_tokens` counts the new tokens of all rows. `compiling` are the seconds that went into compiling. `batch` counts from
    1 to `num_batches`, and `ends` says that it is the batch's last segment.
    """

    finished: list[tuple[int, Continuation]]
    num_tokens: int
    compiling: float
    batch: int
    num_batches: int
    ends: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """A batch that is being decoded: the number of tokens drawn per row, the last of each [B], all of them [B, X], the cache,
    and which rows have stopped [B]. Tokens after a row's first stop token are meaningless."""

    step: Array
    token_B: Array
    new_BX: Array
    cache: Cache
    stopped_B: Array


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
    """Yields (index of the prompt, its continuation), as they end, longest prompts first.

    `parameters` may include the adapters that `spec` describes. `batch_size` is rounded up to a multiple of the mesh's
    row shards. With several processes, every process passes the same prompts and gets all continuations.
    """
    segments = decode_segments(
        parameters,
        spec,
        [(prompt, sampling, (index, 0)) for index, prompt in enumerate(prompts)],
        stop_tokens=stop_tokens,
        mesh=mesh,
        dtype=dtype,
        limits=BatchLimits(batch_size),
    )
    for segment in segments:
        yield from segment.finished


def decode_segments(
    parameters: dict[str, Any],
    spec: Spec,
    asked: Sequence[tuple[Int[np.ndarray, " _"], Sampling, Key]],
    *,
    stop_tokens: Sequence[int],
    mesh: Mesh,
    dtype: jnp.dtype | str,
    limits: BatchLimits,
    known: Collection[int] = (),
) -> Iterator[Segment]:
    """Decodes all prompts that are `asked`, each with its own settings and as the sample of this key, and yields after
    every few steps.

    Prompts whose indices are `known` are not yielded. The batches are those of all prompts all the same, so that what is
    left of an interrupted list is computed as it would have been; a batch that is wholly known is left out.
    """
    prompts, samplings, keys = [list(each) for each in zip(*asked, strict=True)]
    stops = np.asarray(sorted(set(stop_tokens)), np.int32)
    num_new = max(sampling.max_new_tokens for sampling in samplings)
    shards = num_row_shards(mesh)
    lengths = [len(prompt) for prompt in prompts]
    batches = plan_batches(lengths, max_new_tokens=num_new, limits=limits, row_shards=shards)
    batches = [batch for batch in batches if not set(batch.members) <= set(known)]
    programs = Programs(spec, mesh, stops, drawing=Drawing(num_new, method_of(samplings), jnp.dtype(dtype)))
    programs.keys = keys
    with jax.set_mesh(mesh):
        for number, batch in enumerate(batches, 1):
            at(f"batch {number} of {len(batches)}")
            for segment in run_batch(programs, parameters, prompts, batch, samplings=samplings, limits=limits):
                new = [(index, answer) for index, answer in segment.finished if index not in known]
                yield replace(segment, finished=new, batch=number, num_batches=len(batches))


def cut_at_stop(tokens: Int32[np.ndarray, " X"], stops: Int32[np.ndarray, " _"]) -> Continuation:
    """The tokens before the first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    if len(ends):
        return Continuation(tokens[: ends[0]].tolist(), "stop")
    return Continuation(tokens.tolist(), "length")


@dataclass(frozen=True)
class Drawing:
    """What a compiled program is made for: the number of new tokens, how they are drawn, and the dtype of computation."""

    num_new: int
    method: Method
    dtype: jnp.dtype


class Programs:
    """The two compiled programs, prefill and steps, for every shape of a batch that comes up; compiling is timed."""

    def __init__(self, spec: Spec, mesh: Mesh, stops: Int32[np.ndarray, " _"], *, drawing: Drawing):
        graph, _ = abstract_decoder(spec)
        self.mesh, self.stops, self.num_new = mesh, stops, drawing.num_new
        self.turning_point = spec.rope.turning_point
        self.prefill = partial(_prefill, graph, drawing=drawing)
        self.steps = partial(_steps, graph, drawing=drawing)
        self.keys: Sequence[Key] = ()  # of all prompts
        self.compiled: dict[tuple, Callable[..., Decoding]] = {}
        self.compiling = 0.0  # seconds since they were last reported

    def run(
        self,
        parameters: dict[str, Any],
        prompts: Sequence[Int[np.ndarray, " _"]],
        batch: DecodeBatch,
        *,
        samplings: Sequence[Sampling],
        earlier: Mapping[int, int] | None = None,
    ) -> Iterator[Segment]:
        """Decodes one batch. Its number is filled in by the caller. `earlier`: by index, as for
        `row_sampling`."""
        tokens_BT, length_B, filled = padded(prompts, batch)
        samplings = [samplings[index] for index in filled]
        keys, before = [self.keys[index] for index in filled], None
        if earlier is not None:
            before = [earlier.get(index, 0) for index in filled]
        rows = row_sampling(samplings, keys, earlier=before)
        tokens_BT, length_B, rows = self.on_device((tokens_BT, length_B, rows))
        state = self.call(self.prefill, (parameters, self.stops, tokens_BT, length_B, rows), batch)
        rows_left, drawn = dict(enumerate(batch.members)), 0
        while rows_left:
            until = np.int32(min(drawn + SEGMENT, self.num_new))
            state = self.call(self.steps, (parameters, self.stops, state, until, length_B, rows), batch)
            stopped_B, new_BX, before, drawn = host_slice(state.stopped_B), host_slice(state.new_BX), drawn, int(until)
            limits = [sampling.max_new_tokens for sampling in samplings]
            ended = [row for row in rows_left if stopped_B[row] or limits[row] <= drawn]
            answers = {row: cut_at_stop(new_BX[row, : limits[row]], self.stops) for row in ended}
            num_tokens = sum(len(answers[row].tokens) if row in answers else drawn for row in rows_left)
            num_tokens -= before * len(rows_left)
            finished = [(rows_left.pop(row), answer) for row, answer in answers.items()]
            compiling, self.compiling = self.compiling, 0.0
            yield Segment(finished, num_tokens, compiling, batch=0, num_batches=0, ends=not rows_left)

    def on_device(self, arrays: Any) -> Any:
        """numpy arrays of all rows as global arrays, split by rows."""

        def put(x: np.ndarray) -> Array:
            return global_array(self.mesh, "BX"[: x.ndim], x[my_rows(self.mesh, len(x))], num_rows=len(x))

        return jax.tree.map(put, arrays)

    def call(self, program: Callable[..., Decoding], arguments: tuple, batch: DecodeBatch) -> Decoding:
        key = (program.func.__name__, batch.num_rows, batch.prompt_length)  # pyright: ignore[reportFunctionMemberAccess]
        if key not in self.compiled:
            started = time.monotonic()
            kept = jax.tree.map(self.place, jax.eval_shape(program, *arguments), self.letters())
            donated = (2,) if program is self.steps else ()
            jitted = jax.jit(program, out_shardings=kept, donate_argnums=donated)
            self.compiled[key] = jitted.lower(*arguments).compile()
            self.compiling += time.monotonic() - started
        return self.compiled[key](*arguments)

    def place(self, x: jax.ShapeDtypeStruct, letters: str) -> jax.sharding.NamedSharding:
        return sharding(self.mesh, letters, x.shape) if letters else replicated(self.mesh)

    @staticmethod
    def letters() -> Decoding:
        return Decoding("", "B", "BX", Cache("LBUKH", "LBUKH"), "B")  # pyright: ignore[reportArgumentType]


def run_batch(
    programs: Programs,
    parameters: dict[str, Any],
    prompts: Sequence[Int[np.ndarray, " _"]],
    batch: DecodeBatch,
    *,
    samplings: Sequence[Sampling],
    limits: BatchLimits,
) -> Iterator[Segment]:
    """Decodes one batch of a model whose frequencies may be others in sequences beyond a certain length (LongRoPE).

    What the cache holds is then of no use beyond it: rows that get there end, and begin again with their tokens as prompts.
    """
    point = programs.turning_point
    if point is None:
        yield from programs.run(parameters, prompts, batch, samplings=samplings)
        return
    room = {index: point + 1 - len(prompts[index]) for index in batch.members if len(prompts[index]) <= point}
    crossing = {index: room[index] for index in room if room[index] < samplings[index].max_new_tokens}
    first = list(samplings)
    for index, number in crossing.items():
        first[index] = replace(first[index], max_new_tokens=number)
    begun: dict[int, list[int]] = {}
    for segment in programs.run(parameters, prompts, batch, samplings=first, earlier={}):
        ended = dict(segment.finished)
        begun |= {n: answer.tokens for n, answer in ended.items() if n in crossing and answer.finish_reason == "length"}
        finished = [(index, answer) for index, answer in ended.items() if index not in begun]
        yield replace(segment, finished=finished, ends=segment.ends and not begun)
    members, shards = list(begun), num_row_shards(programs.mesh)
    plan = plan_batches([point + 1] * len(members), max_new_tokens=programs.num_new, limits=limits, row_shards=shards)
    longer, earlier = list(prompts), {index: len(tokens) for index, tokens in begun.items()}
    rest = list(samplings)
    for index, tokens in begun.items():
        longer[index] = np.append(prompts[index], np.asarray(tokens, np.int32))
        rest[index] = replace(rest[index], max_new_tokens=rest[index].max_new_tokens - len(tokens))
    parts = [replace(part, members=tuple(members[at] for at in part.members)) for part in plan]
    for part in parts:
        for segment in programs.run(parameters, longer, part, samplings=rest, earlier=earlier):
            finished = [
                (n, Continuation(begun[n] + answer.tokens, answer.finish_reason)) for n, answer in segment.finished
            ]
            yield replace(segment, finished=finished, ends=segment.ends and part is parts[-1])


def _prefill(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    stops: Int32[Array, " _"],
    tokens_BT: Int32[Array, "B T"],
    length_B: Int32[Array, " B"],
    rows: RowSampling,
    *,
    drawing: Drawing,
) -> Decoding:
    """Fills the cache with the prompts, a chunk of tokens at a time so that no [T, T] scores exist, and draws first tokens.

    A prompt of one chunk is computed at once.
    """
    decoder = nnx.merge(graph, parameters)
    B, T = tokens_BT.shape
    chunk = min(T, PREFILL_CHUNK)
    cache = Cache.empty(decoder.spec, num_rows=B, num_slots=T + drawing.num_new, dtype=drawing.dtype)
    options = ForwardOptions(dtype=drawing.dtype)

    def one_chunk(carry: tuple[Array, Cache], start: Array) -> tuple[tuple[Array, Cache], None]:
        last_BD, cache = carry
        tokens = jax.lax.dynamic_slice_in_dim(tokens_BT, start, chunk, axis=1)
        at = _at(start + jnp.broadcast_to(jnp.arange(chunk), (B, chunk)))
        hidden_BCD, cache = decoder.decoding(tokens, at, cache=cache, options=options, prompt_B=length_B)
        last_B = length_B - 1 - start
        found_BD = jnp.take_along_axis(hidden_BCD, last_B.clip(0, chunk - 1)[:, None, None], axis=1)[:, 0]
        is_here_B1 = ((last_B >= 0) & (last_B < chunk))[:, None]
        return (jnp.where(is_here_B1, found_BD, last_BD), cache), None

    carry = (jnp.zeros((B, decoder.spec.D), drawing.dtype), cache)
    if chunk == T:
        (last_BD, cache), _ = one_chunk(carry, jnp.int32(0))
    else:
        (last_BD, cache), _ = jax.lax.scan(one_chunk, carry, jnp.arange(0, T, chunk, dtype=jnp.int32))
    first_B = draw(decoder.logits(last_BD[:, None])[:, 0], rows, step=0, method=drawing.method)
    new_BX = jnp.zeros((B, drawing.num_new), jnp.int32).at[:, 0].set(first_B)
    stopped_B = jnp.isin(first_B, stops) | (rows.limit_B <= 1)
    return Decoding(jnp.int32(1), first_B, new_BX, cache, stopped_B)


def _steps(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    stops: Int32[Array, " _"],
    state: Decoding,
    until: Int32[Array, ""],
    length_B: Int32[Array, " B"],
    rows: RowSampling,
    *,
    drawing: Drawing,
) -> Decoding:
    """Draws tokens until there are `until` per row, or every row has stopped."""
    decoder = nnx.merge(graph, parameters)
    options = ForwardOptions(dtype=drawing.dtype)

    def unfinished(state: Decoding) -> Array:
        return (state.step < until) & ~state.stopped_B.all()

    def next_token(state: Decoding) -> Decoding:
        step = state.step
        position_B1 = (length_B + step - 1)[:, None]
        hidden_B1D, cache = decoder.decoding(
            state.token_B[:, None], _at(position_B1), cache=state.cache, options=options, prompt_B=length_B
        )
        token_B = draw(decoder.logits(hidden_B1D)[:, 0], rows, step=step, method=drawing.method)
        stopped_B = state.stopped_B | jnp.isin(token_B, stops) | (rows.limit_B <= step + 1)
        return Decoding(step + 1, token_B, state.new_BX.at[:, step].set(token_B), cache, stopped_B)

    return jax.lax.while_loop(unfinished, next_token, state)


def _at(position_BT: Int32[Array, "B T"]) -> Layout:
    """The layout of one sequence per row. A cache slot with padding is overwritten before any token attends to it."""
    return Layout(position_BT, position_BT, jnp.ones_like(position_BT), jnp.zeros_like(position_BT))
