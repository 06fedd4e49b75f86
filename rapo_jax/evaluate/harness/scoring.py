"""How likely continuations of contexts are, and whether greedy decoding would have written them, in batches by tokens on any mesh."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int32

from rapo_jax.errors import UserError
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Decoder, ForwardOptions, abstract_decoder
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel
from rapo_jax.parallel import CONTEXT, global_array, host_slice, matmul_precision, my_rows, num_row_shards, replicated

CHUNK = 128  # positions whose logits exist at a time


class Continued(NamedTuple):
    """Token ids: what is given, and what continues it; neither is empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """The log-probability of a continuation (nats), and whether each of its tokens is the likeliest."""

    logp: float
    is_greedy: bool


@dataclass(frozen=True)
class TokenScorer:
    """A model that scores continuations. With several processes, every process asks the same and gets all answers."""

    parameters: dict[str, Any]
    spec: Spec
    mesh: Mesh
    dtype: jnp.dtype
    limits: BatchLimits
    compiled: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(model: OpenedModel, limits: BatchLimits) -> "TokenScorer":
        if model.mesh.shape[CONTEXT] > 1:
            raise UserError("devices that share a row (context) are for training; leave context out.")
        return TokenScorer(model.parameters, model.spec, model.mesh, model.dtype, limits)

    def likelihoods(self, asked: Sequence[Continued]) -> Iterator[tuple[int, Likelihood]]:
        """(index, likelihood) of all, the longest first, so that what does not fit the memory does not fit at once."""
        assert all(each.context and each.continuation for each in asked)
        shapes = [(row_length(each), scored_length(each)) for each in asked]
        order = sorted(range(len(asked)), key=lambda index: shapes[index], reverse=True)
        with jax.set_mesh(self.mesh), matmul_precision(jnp.dtype(self.dtype).name):
            for (T, S), alike in groupby(order, key=lambda index: shapes[index]):
                indices = list(alike)
                shards = num_row_shards(self.mesh)
                B = self.limits.num_slots(T, num_samples=len(indices), row_shards=shards)
                for start in range(0, len(indices), B):
                    batch = indices[start : start + B]
                    logp_B, greedy_B = self.run([asked[index] for index in batch], B=B, T=T, S=S)
                    for index, logp, greedy in zip(batch, logp_B, greedy_B, strict=False):
                        yield index, Likelihood(float(logp), bool(greedy))

    def run(
        self, batch: Sequence[Continued], *, B: int, T: int, S: int
    ) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """One batch, in rows of T tokens of which at most S are scored. Rows beyond the batch are padding."""
        tokens_BT, start_B, end_B = np.zeros((B, T), np.int32), np.ones(B, np.int32), np.full(B, 2, np.int32)
        for row, each in enumerate(batch):
            start_B[row], end_B[row] = len(each.context), len(each.context) + len(each.continuation)
            tokens_BT[row, : end_B[row]] = [*each.context, *each.continuation]
        if S not in self.compiled:
            graph, _ = abstract_decoder(self.spec)
            program = partial(continuation_logps, graph, S=S, dtype=jnp.dtype(self.dtype))
            self.compiled[S] = jax.jit(program, out_shardings=replicated(self.mesh))
        mine = my_rows(self.mesh, B)
        arrays = [global_array(self.mesh, "BX"[: x.ndim], x[mine], num_rows=B) for x in (tokens_BT, start_B, end_B)]
        logp_B, greedy_B = self.compiled[S](self.parameters, *arrays)
        return host_slice(logp_B), host_slice(greedy_B)


def row_length(each: Continued) -> int:
    """The length that a row is padded to: few different ones.

    >>> [row_length(Continued([1] * n, [1])) for n in (3, 64, 300, 1024)]
    [64, 128, 384, 1536]
    """
    length = len(each.context) + len(each.continuation)
    multiple = 64 if length <= 256 else 128 if length <= 1024 else 512
    return -(-length // multiple) * multiple


def scored_length(each: Continued) -> int:
    """The room for scored tokens: a power of two from 8 up to CHUNK, then a multiple of it.

    >>> [scored_length(Continued([1], [1] * n)) for n in (1, 9, 129)]
    [8, 16, 256]
    """
    length = len(each.continuation)
    return max(8, 1 << (length - 1).bit_length()) if length <= CHUNK else -(-length // CHUNK) * CHUNK


def continuation_logps(
    graph: nnx.GraphDef[Decoder],
    parameters: dict[str, Any],
    tokens_BT: Int32[Array, "B T"],
    start_B: Int32[Array, " B"],
    end_B: Int32[Array, " B"],
    *,
    S: int,
    dtype: jnp.dtype,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Of the tokens from `start_B` to before `end_B`, given those before: the sum of their log-probabilities, and whether each is
    the likeliest. Logits exist for CHUNK positions at a time."""
    decoder, (B, T) = nnx.merge(graph, parameters), tokens_BT.shape
    at_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    layout = Layout(at_BT, at_BT, (at_BT < end_B[:, None]).astype(jnp.int32), jnp.zeros_like(at_BT))
    hidden_BTD = decoder(tokens_BT, layout, options=ForwardOptions(dtype=dtype))
    target_BS = start_B[:, None] + jnp.arange(S)
    is_scored_BS = target_BS < end_B[:, None]
    target_BS = jnp.minimum(target_BS, T - 1)
    chunks = (-1, min(S, CHUNK))

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        target_BC, is_scored_BC = chunk
        token_BC = jnp.take_along_axis(tokens_BT, target_BC, axis=1)
        logits_BCV = decoder.logits(jnp.take_along_axis(hidden_BTD, target_BC[..., None] - 1, axis=1))
        logp_BC = jnp.take_along_axis(logits_BCV, token_BC[..., None], axis=-1)[..., 0]
        logp_BC = logp_BC - jax.nn.logsumexp(logits_BCV, axis=-1)
        is_likeliest_BC = logits_BCV.argmax(-1) == token_BC
        return jnp.where(is_scored_BC, logp_BC, 0.0).sum(1), (is_likeliest_BC | ~is_scored_BC).all(1)

    parts = (each.reshape(B, *chunks).swapaxes(0, 1) for each in (target_BS, is_scored_BS))
    logp_NB, greedy_NB = jax.lax.map(of_chunk, tuple(parts))
    return logp_NB.sum(0), greedy_NB.all(0)
