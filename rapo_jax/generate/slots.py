"""The programs of our engine, on the devices: prompts are computed, put into slots, and continued a few tokens at a time.

Which prompt goes where is decided in own.py, how a token is drawn in sampling.py. Every program is compiled once for every
shape of its arguments.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int32

from rapo_jax.generate import batches
from rapo_jax.generate.sampling import Method, RowSampling, draw, logps_of
from rapo_jax.generate.weights import Weights
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.cache import Cache, SlotCache, merged
from rapo_jax.models.decoder import Decoder, ForwardOptions, abstract_decoder
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import global_array, my_rows, replicated, sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefilled:
    """Prompts that were computed: their cache, the hidden states of their last tokens [B, D], and which tokens they hold, bool
    [B, V], or [B, 0] where nobody asks."""

    cache: Cache
    last_BD: Array
    held_BV: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Samples that are being drawn, one in each slot. Keys [B, K, H, U] and values [B, K, U, H] of every layer, of the tokens
    before the last one drawn, of which there are `length_B`; the last one drawn; how many were drawn; who has stopped; and
    which tokens prompt and answer hold, as in `Prefilled`. A free slot has stopped."""

    k: list[Array]
    v: list[Array]
    length_B: Array
    token_B: Array
    count_B: Array
    stopped_B: Array
    held_BV: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NewTokens:
    """Tokens that were drawn, one or some in a row, and their log-probabilities, or none where nobody asks."""

    tokens: Array
    logps: Array | None


class Begun(NamedTuple):
    """Which slots begin a sample: those that `is_new_B`, with the prompt in row `source_B`, of `length_B` tokens."""

    is_new_B: Array | np.ndarray
    source_B: Array | np.ndarray
    length_B: Array | np.ndarray


@dataclass(frozen=True)
class Drawing:
    """What programs are made for: how tokens are drawn, the dtype of computation, and the tokens that end an answer."""

    method: Method
    dtype: jnp.dtype
    stops: Int32[np.ndarray, " _"]


class Programs:
    """The three programs for one model; compiling is timed."""

    def __init__(self, parameters: dict[str, Any], weights: Weights, spec: Spec, mesh: Mesh, *, drawing: Drawing):
        self.parameters, self.weights, self.spec, self.mesh, self.drawing = parameters, weights, spec, mesh, drawing
        self.compiled: dict[tuple, Callable[..., Any]] = {}
        self.compiling = 0.0  # seconds since they were last reported
        stepping, _ = abstract_decoder(spec, outputs_first=True)
        self.num_held = spec.V if drawing.method.penalizes else 0
        self._prefill = partial(prefill, abstract_decoder(spec)[0], dtype=drawing.dtype, num_held=self.num_held)
        self._insert = partial(insert, stepping, drawing=drawing)
        self._segment = partial(segment, stepping, drawing=drawing)

    def empty(self, num_slots: int, room: int) -> Slots:
        """Free slots, each with room for so many tokens."""
        spec, num_layers, dtype = self.spec, self.spec.L, self.drawing.dtype
        heads = num_slots, spec.K

        def make() -> Slots:
            k = [jnp.zeros((*heads, spec.H, room), dtype) for _ in range(num_layers)]
            v = [jnp.zeros((*heads, room, spec.H), dtype) for _ in range(num_layers)]
            count = jnp.zeros(num_slots, jnp.int32)
            held = jnp.zeros((num_slots, self.num_held), bool)
            return Slots(k, v, count, count, count, jnp.ones(num_slots, bool), held)

        return self.call(make, (), key=("empty", num_slots, room), letters=self.letters())

    def prefilled(self, tokens_BT: Int32[np.ndarray, "B T"], length_B: Int32[np.ndarray, " B"]) -> Prefilled:
        arguments = (self.parameters, *self.on_device((tokens_BT, length_B)))
        letters = Prefilled(Cache("LBUKH", "LBUKH"), "BX", "BX")  # pyright: ignore[reportArgumentType]
        return self.call(self._prefill, arguments, key=("prefill", *tokens_BT.shape), letters=letters)

    def inserted(self, slots: Slots, prompts: Prefilled, rows: RowSampling, begun: Begun) -> tuple[Slots, NewTokens]:
        """As `insert`."""
        arguments = (self.weights[0], self.drawing.stops, slots, prompts, *self.on_device((rows, begun)))
        key = ("insert", slots.k[0].shape, prompts.cache.k.shape)
        return self.call(self._insert, arguments, key=key, letters=(self.letters(), self.new("B")), donated=2)

    def continued(
        self, slots: Slots, rows: RowSampling, prompt_B: Int32[np.ndarray, " B"], *, longest: int
    ) -> tuple[Slots, NewTokens, Int32[Array, ""]]:
        """As `segment`, with room for the `longest` of the samples."""
        view = min(batches.room_of(longest), slots.k[0].shape[-1])
        arguments = (self.weights, self.drawing.stops, slots, *self.on_device((rows, prompt_B)))
        program, key = partial(self._segment, view=view), ("segment", slots.k[0].shape, view)
        return self.call(program, arguments, key=key, letters=(self.letters(), self.new("BX"), ""), donated=2)

    def on_device(self, arrays: Any) -> Any:
        """numpy arrays of all rows as global arrays, split by rows."""

        def put(x: np.ndarray) -> Array:
            return global_array(self.mesh, "BX"[: x.ndim], x[my_rows(self.mesh, len(x))], num_rows=len(x))

        return jax.tree.map(put, arrays)

    def call(
        self, program: Callable[..., Any], arguments: tuple, *, key: tuple, letters: Any, donated: int | None = None
    ) -> Any:
        """Runs a program, whose results are sharded by their letters."""
        if key not in self.compiled:
            started = time.monotonic()
            kept = jax.tree.map(self.place, jax.eval_shape(program, *arguments), letters)
            given = () if donated is None else (donated,)
            jitted = jax.jit(program, out_shardings=kept, donate_argnums=given)
            self.compiled[key] = jitted.lower(*arguments).compile()
            self.compiling += time.monotonic() - started
        return self.compiled[key](*arguments)

    def place(self, x: jax.ShapeDtypeStruct, letters: str) -> NamedSharding:
        return sharding(self.mesh, letters, x.shape) if letters else replicated(self.mesh)

    def letters(self) -> Slots:
        keys, values = (["BKHU"] * self.spec.L, ["BKUH"] * self.spec.L)
        return Slots(keys, values, "B", "B", "B", "B", "BX")  # pyright: ignore[reportArgumentType]

    def new(self, letters: str) -> NewTokens:
        return NewTokens(letters, letters if self.drawing.method.logps else None)  # pyright: ignore[reportArgumentType]


def prefill(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    tokens_BT: Int32[Array, "B T"],
    length_B: Int32[Array, " B"],
    *,
    dtype: jnp.dtype,
    num_held: int = 0,
) -> Prefilled:
    """Computes prompts, a chunk of tokens at a time so that no [T, T] scores exist. A prompt of one chunk is computed at once.

    num_held: the size of the vocabulary where it is asked which tokens a prompt holds.
    """
    decoder = nnx.merge(graph, parameters)
    B, T = tokens_BT.shape
    chunk = min(T, batches.PREFILL_CHUNK)
    cache = Cache.empty(decoder.spec, num_rows=B, num_slots=T, dtype=dtype)
    options = ForwardOptions(dtype=dtype)

    def one_chunk(carry: tuple[Array, Cache], start: Array) -> tuple[tuple[Array, Cache], None]:
        last_BD, cache = carry
        tokens = jax.lax.dynamic_slice_in_dim(tokens_BT, start, chunk, axis=1)
        at = _at(start + jnp.broadcast_to(jnp.arange(chunk), (B, chunk)))
        hidden_BCD, cache = decoder.decoding(tokens, at, cache=cache, options=options, prompt_B=length_B)
        last_B = length_B - 1 - start
        found_BD = jnp.take_along_axis(hidden_BCD, last_B.clip(0, chunk - 1)[:, None, None], axis=1)[:, 0]
        is_here_B1 = ((last_B >= 0) & (last_B < chunk))[:, None]
        return (jnp.where(is_here_B1, found_BD, last_BD), cache), None

    carry = (jnp.zeros((B, decoder.spec.D), dtype), cache)
    if chunk == T:
        (last_BD, cache), _ = one_chunk(carry, jnp.int32(0))
    else:
        (last_BD, cache), _ = jax.lax.scan(one_chunk, carry, jnp.arange(0, T, chunk, dtype=jnp.int32))
    is_real_BT = jnp.arange(T) < length_B[:, None]
    held_BV = jnp.zeros((B, num_held), bool)
    if num_held:
        held_BV = held_BV.at[jnp.arange(B)[:, None], tokens_BT].max(is_real_BT)
    return Prefilled(cache, last_BD, held_BV)


def insert(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    stops: Int32[Array, " _"],
    slots: Slots,
    prompts: Prefilled,
    rows: RowSampling,
    begun: Begun,
    *,
    drawing: Drawing,
) -> tuple[Slots, NewTokens]:
    """Begins samples in some slots. Returns the first tokens, too, which are drawn here."""
    decoder, is_new_B, source_B = nnx.merge(graph, parameters), begun.is_new_B, begun.source_B
    T, is_new_B111 = prompts.cache.k.shape[2], is_new_B[:, None, None, None]

    def over(before: Array, prompt: Array, *, axis: int) -> Array:
        """The slots of a layer, with the prompts at the beginning of those that are new."""
        begin = jnp.where(is_new_B111, prompt[source_B], jax.lax.slice_in_dim(before, 0, T, axis=axis))
        return jax.lax.dynamic_update_slice_in_dim(before, begin, 0, axis)

    k = [over(each, prompts.cache.k[at].transpose(0, 2, 3, 1), axis=3) for at, each in enumerate(slots.k)]
    v = [over(each, prompts.cache.v[at].transpose(0, 2, 1, 3), axis=2) for at, each in enumerate(slots.v)]
    logits_BV = decoder.logits(prompts.last_BD[source_B][:, None])[:, 0]
    held_BV = jnp.where(is_new_B[:, None], prompts.held_BV[source_B], slots.held_BV)
    token_B, logp_B = drawn(logits_BV, rows, held_BV, method=drawing.method)
    token_B = jnp.where(is_new_B, token_B, slots.token_B)
    stopped_B = jnp.where(is_new_B, jnp.isin(token_B, stops) | (rows.limit_B <= 1), slots.stopped_B)
    length_B, count_B = jnp.where(is_new_B, begun.length_B, slots.length_B), jnp.where(is_new_B, 1, slots.count_B)
    slots = Slots(k, v, length_B, token_B, count_B, stopped_B, holding(held_BV, token_B))
    return slots, NewTokens(token_B, logp_B)


def segment(
    graph: nnx.GraphDef[Decoder],
    weights: Weights,
    stops: Int32[Array, " _"],
    slots: Slots,
    rows: RowSampling,
    prompt_B: Int32[Array, " B"],
    *,
    view: int,
    drawing: Drawing,
) -> tuple[Slots, NewTokens, Int32[Array, ""]]:
    """Draws tokens until there are SEGMENT more in every slot, or every sample has stopped. Returns them and their number.

    view: the first so many tokens of every slot hold all that was drawn before. prompt_B: lengths of the prompts.
    """
    decoder, layers = nnx.merge(graph, weights[0]), weights[1]
    (B, K, H, _), S, options = slots.k[0].shape, batches.SEGMENT, ForwardOptions(dtype=drawing.dtype)
    before = [(k[..., :view], v[:, :, :view]) for k, v in zip(slots.k, slots.v, strict=True)]
    nothing = jnp.zeros((B, K, S, H), drawing.dtype)

    def unfinished(carry: tuple) -> Array:
        step, slots, _, _ = carry
        return (step < S) & ~slots.stopped_B.all()

    def next_token(carry: tuple) -> tuple:
        step, slots, last, new = carry
        position_B1 = (slots.length_B + step)[:, None]
        caches = [SlotCache(*old, *new, slots.length_B, step) for old, new in zip(before, last, strict=True)]  # pyright: ignore[reportCallIssue]
        hidden_B1D, caches = decoder.stepping(
            slots.token_B[:, None], _at(position_B1), layers=layers, caches=caches, options=options, prompt_B=prompt_B
        )
        own = replace(rows, drawn_B=rows.drawn_B + slots.count_B)
        token_B, logp_B = drawn(decoder.logits(hidden_B1D)[:, 0], own, slots.held_BV, method=drawing.method)
        count_B = slots.count_B + 1
        stopped_B = slots.stopped_B | jnp.isin(token_B, stops) | (rows.limit_B <= count_B)
        held_BV = holding(slots.held_BV, token_B)
        slots = replace(slots, token_B=token_B, count_B=count_B, stopped_B=stopped_B, held_BV=held_BV)
        new = jax.tree.map(lambda all_BS, each_B: all_BS.at[:, step].set(each_B), new, NewTokens(token_B, logp_B))
        return step + 1, slots, [(each.last_k, each.last_v) for each in caches], new

    few = replace(slots, k=[], v=[])
    new = NewTokens(jnp.zeros((B, S), jnp.int32), jnp.zeros((B, S)) if drawing.method.logps else None)
    begin = (jnp.int32(0), few, [(nothing, nothing)] * len(layers), new)
    step, few, last, new = jax.lax.while_loop(unfinished, next_token, begin)
    k = [merged(k, each.swapaxes(2, 3), slots.length_B, axis=3) for k, (each, _) in zip(slots.k, last, strict=True)]
    v = [merged(v, each, slots.length_B, axis=2) for v, (_, each) in zip(slots.v, last, strict=True)]
    length_B = jnp.where(slots.stopped_B, slots.length_B, slots.length_B + step)
    return replace(few, k=k, v=v, length_B=length_B), new, step


def drawn(
    logits_BV: Float[Array, "B V"], rows: RowSampling, held_BV: Bool[Array, "B _"], *, method: Method
) -> tuple[Int32[Array, " B"], Float[Array, " B"] | None]:
    """Each row's next token, and its log-probability where that is asked."""
    token_B = draw(logits_BV, rows, method=method, held_BV=held_BV)
    return token_B, logps_of(logits_BV, token_B) if method.logps else None


def holding(held_BV: Bool[Array, "B _"], token_B: Int32[Array, " B"]) -> Bool[Array, "B _"]:
    """Which tokens rows hold once they hold these, too; as it was where nobody asks."""
    return held_BV.at[jnp.arange(len(held_BV)), token_B].set(True) if held_BV.shape[1] else held_BV


def _at(position_BT: Int32[Array, "B T"]) -> Layout:
    """The layout of one sequence per row. A cache slot with padding is overwritten before any token attends to it."""
    return Layout(position_BT, position_BT, jnp.ones_like(position_BT), jnp.zeros_like(position_BT))
