"""Keys and values of earlier tokens, for generation: each kind of cache writes a layer's new ones and attends to them all."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from rapo_jax.models.attention.dispatch import Visible, attend, visible_in_layer
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.spec import FULL_ATTENTION, Spec

TILE = 64  # cached tokens whose values are summed at once, so that a sum does not depend on how many follow
LOWEST = float(jnp.finfo(jnp.float32).min)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """For prompts. Keys and values of every layer, [L, B, U, K, H], or of one; slot u of a row holds the token at position u."""

    k: Array
    v: Array

    @staticmethod
    def empty(spec: Spec, *, num_rows: int, num_slots: int, dtype: np.dtype) -> "Cache":
        shape = (spec.L, num_rows, num_slots, spec.K, spec.H)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def attend(
        self,
        q_BTNH: Float[Array, "B T N H"],
        k_BTKH: Float[Array, "B T K H"],
        v_BTKH: Float[Array, "B T K H"],
        *,
        queries: Layout,
        seen: Visible,
        window: Int[Array, ""] | int,
        spec: Spec,
    ) -> tuple[Float[Array, "B T N H"], "Cache"]:
        """The new tokens' attention to all that is cached, they included, and the cache with them at `queries.index`."""
        row = jnp.arange(q_BTNH.shape[0])[:, None]
        cache = Cache(
            self.k.at[row, queries.index].set(k_BTKH, mode="drop"),
            self.v.at[row, queries.index].set(v_BTKH, mode="drop"),
        )
        keys = cache_layout(queries, cache.k.shape[1])
        seen = visible_in_layer(seen, queries, keys, window=window, windows=spec.windows, H=spec.H)
        scale, softcap = spec.query_scale, spec.attention_softcap
        return attend(q_BTNH, cache.k, cache.v, visible=seen, scale=scale, softcap=softcap), cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotCache:
    """For one new token a row. One layer's keys and values of the tokens before the last few, [B, K, H, U] and [B, K, U, H], of
    which a row has `length_B`, and those of the last few, [B, K, S, H] each, of which there are `step` in every row.

    All rows write to the same place of the last few, which costs nothing; a place of its own for each row is found once for
    many tokens (`merged`).
    """

    k: Array
    v: Array
    last_k: Array
    last_v: Array
    length_B: Array
    step: Array

    def attend(
        self,
        q_BTNH: Float[Array, "B 1 N H"],
        k_BTKH: Float[Array, "B 1 K H"],
        v_BTKH: Float[Array, "B 1 K H"],
        *,
        queries: Layout,
        seen: Visible | None,
        window: Int[Array, ""] | int,
        spec: Spec,
    ) -> tuple[Float[Array, "B 1 N H"], "SlotCache"]:
        """As that of `Cache`. The softmax is in float32."""
        B, K, H, _ = self.k.shape
        at = (0, 0, self.step, 0)
        last_k = jax.lax.dynamic_update_slice(self.last_k, k_BTKH.swapaxes(1, 2), at)
        last_v = jax.lax.dynamic_update_slice(self.last_v, v_BTKH.swapaxes(1, 2), at)
        q_BKGH = q_BTNH.reshape(B, K, spec.N // K, H)
        exact = {"preferred_element_type": jnp.float32}
        before_BKGU = self.masked(jnp.einsum("BKGH,BKHU->BKGU", q_BKGH, self.k, **exact), window, spec=spec)
        last_BKGS = self.masked(jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, last_k, **exact), window, spec=spec, last=True)
        top_BKG1 = jnp.maximum(before_BKGU.max(-1, keepdims=True), last_BKGS.max(-1, keepdims=True))
        before_BKGU, last_BKGS = jnp.exp(before_BKGU - top_BKG1), jnp.exp(last_BKGS - top_BKG1)
        total_BKG1 = summed(before_BKGU) + last_BKGS.sum(-1, keepdims=True)
        out_BKGH = summed_values(before_BKGU.astype(self.v.dtype), self.v)
        out_BKGH += summed_values(last_BKGS.astype(last_v.dtype), last_v)
        out_BTNH = (out_BKGH / total_BKG1).astype(q_BTNH.dtype).reshape(q_BTNH.shape)
        return out_BTNH, replace(self, last_k=last_k, last_v=last_v)

    def masked(
        self, scores_BKGX: Float[Array, "B K G X"], window: Int[Array, ""] | int, *, spec: Spec, last: bool = False
    ) -> Float[Array, "B K G X"]:
        """Scores, soft-capped if the family does so, of the keys that the new tokens see."""
        scores_BKGX, cap = scores_BKGX * spec.query_scale, spec.attention_softcap
        if cap is not None:
            scores_BKGX = cap * jnp.tanh(scores_BKGX / cap)
        return jnp.where(self.seen(scores_BKGX.shape[-1], window, spec=spec, last=last), scores_BKGX, LOWEST)

    def seen(
        self, number: int, window: Int[Array, ""] | int, *, spec: Spec, last: bool
    ) -> Bool[Array, "B 1 1 X"] | Bool[Array, "1 1 1 X"]:
        place_X, windowed = jnp.arange(number), any(width != FULL_ATTENTION for width in spec.windows)
        if last:
            seen_X = place_X <= self.step
            return (seen_X & (self.step - place_X < window) if windowed else seen_X)[None, None, None]
        length_B1 = self.length_B[:, None]
        seen_BX = place_X < length_B1
        seen_BX = seen_BX & (length_B1 + self.step - place_X < window) if windowed else seen_BX
        return seen_BX[:, None, None]


def summed(weight_BKGU: Float[Array, "B K G U"]) -> Float[Array, "B K G 1"]:
    """The sum of weights, which does not depend on how many zeros follow. The barrier keeps XLA from adding up at once."""
    tiles_BKGIU = weight_BKGU.reshape(*weight_BKGU.shape[:3], -1, TILE)
    return jax.lax.optimization_barrier(tiles_BKGIU.sum(3)).sum(-1, keepdims=True)


def summed_values(weight_BKGU: Float[Array, "B K G U"], value_BKUH: Float[Array, "B K U H"]) -> Float[Array, "B K G H"]:
    """The weighted sum of values, float32, which does not depend on how many of weight 0 follow.

    A CPU adds them one after another, in a quarter of the time of products of tiles: three queries a matrix are too few.
    """
    return jax.lax.platform_dependent(weight_BKGU, value_BKUH, cpu=one_by_one, default=by_tiles)


def one_by_one(weight_BKGU: Float[Array, "B K G U"], value_BKUH: Float[Array, "B K U H"]) -> Float[Array, "B K G H"]:
    weight_BKGU1, value_BK1UH = (each.astype(jnp.float32) for each in (weight_BKGU[..., None], value_BKUH[:, :, None]))
    return (weight_BKGU1 * value_BK1UH).sum(3)


def by_tiles(weight_BKGU: Float[Array, "B K G U"], value_BKUH: Float[Array, "B K U H"]) -> Float[Array, "B K G H"]:
    B, K, G, U = weight_BKGU.shape
    tile = min(U, TILE)
    weight_BKGIU = weight_BKGU.reshape(B, K, G, U // tile, tile)
    value_BKIUH = value_BKUH.reshape(B, K, U // tile, tile, -1)
    return jnp.einsum("BKGIU,BKIUH->IBKGH", weight_BKGIU, value_BKIUH, preferred_element_type=jnp.float32).sum(0)


def merged(
    before: Float[Array, "B ..."], last: Float[Array, "B ..."], length_B: Int[Array, " B"], *, axis: int
) -> Float[Array, "B ..."]:
    """What was cached before, with the last few behind each row's own: along this axis of both, which counts the rows."""

    def of_row(before: Array, last: Array, length: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(before, last.astype(before.dtype), length, axis - 1)

    return jax.vmap(of_row)(before, last, length_B)


def cache_layout(queries: Layout, num_slots: int) -> Layout:
    """The layout of cache slots: slot u is position u of the row's only group."""
    slot = jnp.broadcast_to(jnp.arange(num_slots), (queries.index.shape[0], num_slots))
    return Layout(index=slot, position=slot, group=jnp.ones_like(slot), branch=jnp.zeros_like(slot))
