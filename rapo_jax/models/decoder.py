"""The decoder: one NNX module for every family, its layers stacked on a leading L and scanned.

What differs between families is in the spec (flags) or in scanned data (windows), never in a second class.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from rapo_jax.matrices import MATRICES
from rapo_jax.models.accumulate import accumulate_over_layers, over_layers
from rapo_jax.models.attention.dispatch import (
    Layout,
    Visible,
    attend,
    kernel_for,
    of_layer,
    rotary_angles,
    rotate,
    sees,
    visible,
)
from rapo_jax.models.lora import product
from rapo_jax.models.parameters import adapter_letters, block_letters, initial
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import constrain_rows

KEPT = {  # by `remat`: what the forward pass keeps of a layer besides its input
    "none": ("attention_in", "attention_out", "residual_branch", "hidden", "adapter"),  # all that costs a product
    "mlp": ("hidden",),
    "attention": ("attention_in", "attention_out"),
    "full": (),
}
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


def logits_are_kept(remat: str, spec: Spec) -> bool:
    """Whether a backward pass reads what rapo_jax/logprobs.py kept of the logits; a soft-cap's slope needs more than that."""
    return remat == "none" and spec.final_softcap is None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, [L, B, S, K, H]; slot s of a row holds the token at position s."""

    k: Array
    v: Array

    @staticmethod
    def empty(spec: Spec, *, num_rows: int, num_slots: int, dtype: jnp.dtype) -> "Cache":
        shape = (spec.L, num_rows, num_slots, spec.K, spec.H)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def rms_norm(x_BTD: Array, weight_D: Array, spec: Spec) -> Array:
    """x / rms(x) * weight in float32, back in x's dtype (Zhang and Sennrich, 2019)."""
    x = x_BTD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps)
    weight = weight_D.astype(jnp.float32)
    return scaled(x, 1 + weight if spec.zero_centered_norms else weight).astype(x_BTD.dtype)


@jax.custom_vjp
def scaled(x_BTD: Array, weight_D: Array) -> Array:
    """x * weight, whose gradient for the weight is a product with ones: sums down a tall matrix are slow on processors."""
    return x_BTD * weight_D


def _scaled_backward(saved: tuple[Array, Array], cotangent_BTD: Array) -> tuple[Array, Array]:
    x_BTD, weight_D = saved
    products_XD = (cotangent_BTD * x_BTD).reshape(-1, x_BTD.shape[-1])
    ones_X = jnp.ones(products_XD.shape[0], products_XD.dtype)
    return cotangent_BTD * weight_D, jnp.matmul(ones_X, products_XD, precision="highest")


scaled.defvjp(lambda x_BTD, weight_D: (x_BTD * weight_D, (x_BTD, weight_D)), _scaled_backward)


class Block(nnx.Module):
    """A decoder layer. Built with all L layers stacked; called on one, inside the scan."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.spec = spec
        for name, letters in (block_letters(spec) | adapter_letters(spec)).items():
            setattr(self, name, nnx.Param(initial(spec, name, letters="L" + letters, rngs=rngs)))

    def __call__(
        self, x_BTD: Array, *, queries: Layout, seen: Visible, angles, window: Array, cache: Cache | None, kernel: str
    ):
        branch, cache = self.attention(
            self.normed(x_BTD, "attention_norm"),
            queries=queries, seen=seen, angles=angles, window=window, cache=cache, kernel=kernel,
        )  # fmt: skip
        x_BTD = x_BTD + self.normed(branch, "attention_out_norm")
        branch = self.mlp(self.normed(x_BTD, "mlp_norm"))
        return x_BTD + self.normed(branch, "mlp_out_norm"), cache

    def normed(self, x_BTD: Array, name: str) -> Array:
        """x behind one of the layer's norms; x itself where the family has no norm there."""
        weight = getattr(self, name, None)
        return x_BTD if weight is None else rms_norm(x_BTD, weight[...], self.spec)

    def attention(
        self, x_BTD: Array, *, queries: Layout, seen: Visible, angles, window: Array, cache: Cache | None, kernel: str
    ):
        spec = self.spec
        q_BTNH = rotate(self.project(x_BTD, "q"), angles)
        k_BTKH = rotate(self.project(x_BTD, "k"), angles)
        v_BTKH = self.project(x_BTD, "v")
        q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(x, "attention_in") for x in (q_BTNH, k_BTKH, v_BTKH))
        keys = queries
        if cache is not None:
            row = jnp.arange(x_BTD.shape[0])[:, None]
            cache = Cache(
                cache.k.at[row, queries.index].set(k_BTKH, mode="drop"),
                cache.v.at[row, queries.index].set(v_BTKH, mode="drop"),
            )
            k_BTKH, v_BTKH, keys = cache.k, cache.v, cache_layout(queries, cache.k.shape[1])
        seen = of_layer(seen, queries, keys, window=window, windows=spec.windows, kernel=kernel, H=spec.H)
        out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, visible=seen, scale=spec.query_scale, softcap=spec.attention_softcap)
        return checkpoint_name(self.project(out_BTNH, "o"), "residual_branch"), cache

    def mlp(self, x_BTD: Array) -> Array:
        gate, up = (checkpoint_name(self.project(x_BTD, name), "hidden") for name in ("gate", "up"))
        activate, lora = ACTIVATIONS[self.spec.activation], self.spec.lora

        def down(gate: Array, up: Array, factors: tuple[Array, ...]) -> Array:
            return product(activate(gate) * up, factors, MATRICES["down"].equation, lora=lora)

        out_BTD = self.biased(jax.checkpoint(down)(gate, up, self.factors("down")), "down")
        return checkpoint_name(out_BTD, "residual_branch")

    def project(self, x: Array, name: str) -> Array:
        """The product with a matrix of this layer, its adapter and its bias included, in x's dtype."""
        return self.biased(product(x, self.factors(name), MATRICES[name].equation, lora=self.spec.lora), name)

    def factors(self, name: str) -> tuple[Array, ...]:
        """A matrix, and the two of its adapter where it has one."""
        names = (name, f"{name}_lora_a", f"{name}_lora_b")
        return tuple(getattr(self, each)[...] for each in names if hasattr(self, each))

    def biased(self, y: Array, name: str) -> Array:
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(y.dtype)


def cache_layout(queries: Layout, num_slots: int) -> Layout:
    """The layout of cache slots: slot s is position s of the row's only group."""
    slot = jnp.broadcast_to(jnp.arange(num_slots), (queries.index.shape[0], num_slots))
    return Layout(index=slot, position=slot, group=jnp.ones_like(slot), branch=jnp.zeros_like(slot))


class Decoder(nnx.Module):
    """Tokens to final hidden states. Vocabulary logits are the business of `logits` and of rapo_jax/logprobs.py; a reward
    model has no vocabulary and one score a position instead."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.embed = nnx.Param(initial(spec, "embed", letters="VD", rngs=rngs))
        self.blocks = Block(spec, rngs=rngs)
        self.norm = nnx.Param(initial(spec, "norm", letters="D", rngs=rngs))
        if spec.scored:
            self.score_head = nnx.Param(initial(spec, "score_head", letters="D", rngs=rngs))
        elif not spec.tied:
            self.head = nnx.Param(initial(spec, "head", letters="VD", rngs=rngs))

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        layout: Layout,
        *,
        dtype: jnp.dtype = jnp.float32,
        cache: Cache | None = None,
        remat: str = "none",
        kernel: str | None = None,
        totals: nnx.State | None = None,
        unrolled: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Final normed hidden states, in `dtype`, and the cache with this call's keys and values written at
        `layout.index`.

        `remat` says which products of matrices the backward pass computes again instead of keeping them: "none" (what is
        cheap is computed again all the same); all but those of the "mlp" or of the "attention", which are kept; or all,
        "full". `kernel` is the attention's (default: this machine's). `totals` are sums of gradients of the layers'
        parameters, which this call's gradients join as told in rapo_jax/models/accumulate.py.
        `unrolled` layers are written out one after another instead of scanned.
        """
        spec = self.spec
        x_BTD = constrain_rows(self.embed[...][tokens_BT].astype(dtype))
        if spec.scaled_embeddings:
            x_BTD = x_BTD * jnp.asarray(spec.D**0.5, dtype)
        keys = layout if cache is None else cache_layout(layout, cache.k.shape[2])
        kernel = kernel or kernel_for(jax.default_backend())
        seen = visible(sees(layout, keys), kernel=kernel, H=spec.H)
        angles = rotary_angles(layout.position, rope=spec.rope, H=spec.H)
        blocks, parameters = nnx.split(self.blocks)

        def layer(x_BTD, parameters, window, shared, cache):
            layout, seen, angles = shared
            block = nnx.merge(blocks, parameters)
            return block(
                constrain_rows(x_BTD),
                queries=layout, seen=seen, angles=angles, window=window, cache=cache, kernel=kernel,
            )  # fmt: skip

        policy = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
        in_the_open = unrolled and totals is None  # elsewhere a loop or a barrier keeps the two passes apart
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=in_the_open)
        windows, shared = jnp.asarray(spec.windows, jnp.int32), (layout, seen, angles)
        if totals is not None:
            assert cache is None
            one = lambda *arguments: layer(*arguments, None)[0]  # noqa: E731
            layers = parameters, totals, windows
            x_BTD = accumulate_over_layers(one, x_BTD, *layers, shared, unrolled=unrolled)
        else:
            one = lambda x_BTD, scanned: layer(x_BTD, *scanned[:2], shared, scanned[2])  # noqa: E731
            assert cache is None or not unrolled
            x_BTD, caches = over_layers(one, x_BTD, (parameters, windows, cache), unrolled=unrolled)
            cache = cache if cache is None else caches
        return rms_norm(x_BTD, self.norm[...], spec), cache

    @property
    def vocabulary_VD(self) -> Array:
        """The matrix that turns hidden states into logits: the head, or the embedding where the two are tied."""
        assert not self.spec.scored, "a reward model has no vocabulary"
        return (self.embed if self.spec.tied else self.head)[...]

    def logits(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 logits, soft-capped where the family does; for generation and verification, never for training."""
        weight_VD = self.vocabulary_VD.astype(hidden_BTD.dtype)
        logits = jnp.einsum("BTD,VD->BTV", hidden_BTD, weight_VD, preferred_element_type=jnp.float32)
        cap = self.spec.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def score(self, hidden_XD: Float[Array, "*X D"]) -> Float[Array, "*X"]:
        """float32 scores of a reward model, one a position, computed in float32; that of a text stands at its last token."""
        weight_D = self.score_head[...].astype(jnp.float32)
        return jnp.einsum("...D,D->...", hidden_XD.astype(jnp.float32), weight_D, precision="highest")


def plain_layout(tokens_BT: Array) -> Layout:
    """The layout of ordinary rows: one sequence a row, no padding."""
    index = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return Layout(index=index, position=index, group=jnp.ones_like(index), branch=jnp.zeros_like(index))


def abstract_decoder(spec: Spec) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure and the shapes of its parameters, without allocating any."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))
