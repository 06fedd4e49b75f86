"""The decoder: one NNX module for every family, with its layers stacked on a leading L.

What differs between families is a field of the spec, or data that is scanned with the layers (attention windows). The
vocabulary's matrix product during training is in rapo_jax/logprobs.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from rapo_jax.matrices import MATRICES
from rapo_jax.models.accumulate import accumulate_over_layers, over_layers
from rapo_jax.models.attention.dispatch import Visible, attend, kernel_for, visible, visible_in_layer
from rapo_jax.models.attention.layout import Layout, sees
from rapo_jax.models.cache import Cache, SlotCache, cache_layout
from rapo_jax.models.lora import product
from rapo_jax.models.parameters import adapter_letters, block_letters, initial
from rapo_jax.models.rope import Angles, rotary_angles, rotate
from rapo_jax.models.rope_config import Rope
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import constrain_rows, looked_up

KEPT = {  # by `remat`: the checkpoint_names that a layer keeps for its backward pass, besides its input
    "none": ("attention_in", "attention_out", "residual_branch", "hidden", "adapter"),  # the result of every product
    "mlp": ("hidden",),
    "attention": ("attention_in", "attention_out"),
    "full": (),
}
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}
FLOAT32 = np.dtype("float32")
Cached = Cache | SlotCache | None  # of one layer


@dataclass(frozen=True)
class ForwardOptions:
    """How to run the decoder; none of it changes the function that is computed.

    dtype: of activations and matrix products.
    remat: rematerialization, the matrix products that the backward pass recomputes instead of keeping: "none"; "mlp",
        which recomputes all but gate and up; "attention", all but q, k, v and attention itself; "full". Elementwise operations are
        recomputed at every level.
    kernel: a name in rapo_jax/models/attention/dispatch.py's KERNELS; None = the default of this machine.
    unrolled: layers are traced one after another instead of scanned: slower to compile, faster on a GPU.
    """

    dtype: np.dtype = FLOAT32
    remat: str = "none"
    kernel: str | None = None
    unrolled: bool = False


DEFAULT = ForwardOptions()


def logits_are_kept(remat: str, spec: Spec) -> bool:
    """Whether the backward pass reads stored logits (rapo_jax/logprobs.py); not possible with a soft-cap."""
    return remat == "none" and spec.final_softcap is None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shared:
    """Inputs that are the same for all layers; `seen` leaves out attention windows, which differ by layer.

    Where layers differ in their rotary embedding, `angles` has those of each on a leading axis.
    """

    layout: Layout
    seen: Visible
    angles: Angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerLayer:
    """Data that differs by layer and is scanned with the parameters, int32 [L]; of one layer inside the scan.

    rope: which of `Shared.angles` turn the layer's queries and keys; None where all layers have the same.
    """

    window: Array
    rope: Array | None


def rms_norm(x: Float[Array, "*X"], weight: Float[Array, "*D"], spec: Spec) -> Float[Array, "*X"]:
    """x / rms(x) * weight over the last dimensions, those of the weight, in float32; back in x's dtype (Zhang and
    Sennrich, 2019)."""
    normed, axes = x.astype(jnp.float32), tuple(range(-weight.ndim, 0))
    normed = normed * jax.lax.rsqrt(jnp.mean(normed * normed, axis=axes, keepdims=True) + spec.norm_eps)
    weight = weight.astype(jnp.float32)
    return scaled(normed, 1 + weight if spec.zero_centered_norms else weight).astype(x.dtype)


def multiplied(x: Float[Array, "*X"], multiplier: float) -> Float[Array, "*X"]:
    """x * multiplier, which is not rounded to bfloat16; x itself for 1."""
    return x if multiplier == 1 else (x.astype(jnp.float32) * multiplier).astype(x.dtype)


@jax.custom_vjp
def scaled(x: Float[Array, "*X"], weight: Float[Array, "*D"]) -> Float[Array, "*X"]:
    """x * weight. The weight's gradient is a matrix product with ones, because column sums are slow on CPUs."""
    return x * weight


def _scaled_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = saved
    products_XD = (cotangent * x).reshape(-1, weight.size)
    ones_X = jnp.ones(products_XD.shape[0], products_XD.dtype)
    return cotangent * weight, jnp.matmul(ones_X, products_XD, precision="highest").reshape(weight.shape)


scaled.defvjp(lambda x, weight: (x * weight, (x, weight)), _scaled_backward)


class Block(nnx.Module):
    """A decoder layer. Built with all L layers stacked; called on a slice with one layer.

    outputs_first: the matrices' outputs are their first dimensions, as in files (rapo_jax/generate/weights.py).
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs, outputs_first: bool = False):
        self.spec, self.outputs_first = spec, outputs_first
        for name, letters in (block_letters(spec) | adapter_letters(spec)).items():
            setattr(self, name, nnx.Param(initial(spec, name, letters="L" + letters, rngs=rngs)))

    def __call__(
        self, x_BTD: Float[Array, "B T D"], shared: Shared, *, layer: PerLayer, cache: Cached = None
    ) -> tuple[Float[Array, "B T D"], Cached]:
        """The layer's output, and this layer's cache with the call's keys and values."""
        branch_BTD, cache = self.attention(self.normed(x_BTD, "attention_norm"), shared, layer=layer, cache=cache)
        x_BTD = self.added(x_BTD, self.normed(branch_BTD, "attention_out_norm"))
        branch_BTD = self.mlp(self.normed(x_BTD, "mlp_norm"))
        return self.added(x_BTD, self.normed(branch_BTD, "mlp_out_norm")), cache

    def normed(self, x: Float[Array, "*X"], name: str) -> Float[Array, "*X"]:
        """x after one of the layer's norms; x itself where the family has no such norm."""
        weight = getattr(self, name, None)
        return x if weight is None else rms_norm(x, weight[...], self.spec)

    def added(self, x_BTD: Float[Array, "B T D"], branch_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The residual stream after a branch."""
        return x_BTD + multiplied(branch_BTD, self.spec.residual_multiplier)

    def attention(
        self, x_BTD: Float[Array, "B T D"], shared: Shared, *, layer: PerLayer, cache: Cached
    ) -> tuple[Float[Array, "B T D"], Cached]:
        spec, queries, angles = self.spec, shared.layout, angles_of_layer(shared, layer)
        q_BTNH, k_BUKH = self.turned(x_BTD, "q", angles), self.turned(x_BTD, "k", angles)
        v_BUKH = checkpoint_name(self.project(x_BTD, "v"), "attention_in")
        if cache is None:
            seen = visible_in_layer(shared.seen, queries, queries, window=layer.window, windows=spec.windows, H=spec.H)
            scale, softcap = spec.query_scale, spec.attention_softcap
            out_BTNH = attend(q_BTNH, k_BUKH, v_BUKH, visible=seen, scale=scale, softcap=softcap)
        else:
            layout = {"queries": queries, "seen": shared.seen, "window": layer.window}
            out_BTNH, cache = cache.attend(q_BTNH, k_BUKH, v_BUKH, spec=spec, **layout)
        return checkpoint_name(self.project(out_BTNH, "o"), "residual_branch"), cache

    def turned(self, x_BTD: Float[Array, "B T D"], name: str, angles: Angles) -> Float[Array, "B T _ H"]:
        """Queries or keys with their rotary embedding. Where they are normed, the backward pass keeps the product before
        the norm, whose gradient reads it; what follows is elementwise and computed again."""
        if self.spec.qk_norm == "none":
            return checkpoint_name(rotate(self.project(x_BTD, name), angles), "attention_in")
        product_BTNH = checkpoint_name(self.project(x_BTD, name), "attention_in")
        return rotate(self.normed(product_BTNH, f"{name}_norm"), angles)

    def mlp(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = (checkpoint_name(self.project(x_BTD, name), "hidden") for name in ("gate", "up"))
        activate, lora = ACTIVATIONS[self.spec.activation], self.spec.lora

        def down(gate: Array, up: Array, factors: tuple[Array, ...]) -> Array:
            equation = MATRICES["down"].equation
            return product(activate(gate) * up, factors, equation, lora=lora, outputs_first=self.outputs_first)

        out_BTD = self.biased(jax.checkpoint(down)(gate, up, self.factors("down")), "down")
        return checkpoint_name(out_BTD, "residual_branch")

    def project(self, x: Float[Array, "B T ..."], name: str) -> Float[Array, "B T ..."]:
        """The product with a matrix of this layer, its adapter and its bias included, in x's dtype."""
        equation, lora = MATRICES[name].equation, self.spec.lora
        return self.biased(product(x, self.factors(name), equation, lora=lora, outputs_first=self.outputs_first), name)

    def factors(self, name: str) -> tuple[Float[Array, "..."], ...]:
        """A matrix, followed by its adapter's A and B if it has one."""
        names = (name, f"{name}_lora_a", f"{name}_lora_b")
        return tuple(getattr(self, each)[...] for each in names if hasattr(self, each))

    def biased(self, y: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(y.dtype)


def angles_of_layer(shared: Shared, layer: PerLayer) -> Angles:
    if layer.rope is None:
        return shared.angles
    cos, sin = (jax.lax.dynamic_index_in_dim(each, layer.rope, keepdims=False) for each in shared.angles)
    return cos, sin


class Decoder(nnx.Module):
    """Tokens to final hidden states. A reward model has one score per position in place of vocabulary logits.

    Four ways through the same layers: a plain call; `accumulating`, whose backward pass adds gradients to running totals;
    `decoding`, with a key/value cache; `stepping`, one token a row.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs, outputs_first: bool = False):
        self.spec = spec
        self.embed = nnx.Param(initial(spec, "embed", letters="VD", rngs=rngs))
        self.blocks = Block(spec, rngs=rngs, outputs_first=outputs_first)
        self.norm = nnx.Param(initial(spec, "norm", letters="D", rngs=rngs))
        if spec.scored:
            self.score_head = nnx.Param(initial(spec, "score_head", letters="D", rngs=rngs))
        elif not spec.tied:
            self.head = nnx.Param(initial(spec, "head", letters="VD", rngs=rngs))

    def __call__(
        self, tokens_BT: Int[Array, "B T"], layout: Layout, *, options: ForwardOptions = DEFAULT
    ) -> Float[Array, "B T D"]:
        """Final hidden states after the last norm, in `options.dtype`."""
        shared = self.shared(layout, layout, options)
        blocks, parameters = nnx.split(self.blocks)
        # In unrolled layers XLA's common-subexpression elimination would undo rematerialization; in a scan it cannot.
        layer = rematerialized(blocks, options, prevent_cse=options.unrolled)

        def one(x_BTD: Array, scanned: tuple) -> tuple[Array, None]:
            return layer(x_BTD, *scanned, shared), None

        layers = (parameters, self.per_layer())
        x_BTD, _ = over_layers(one, self.embedded(tokens_BT, options), layers, unrolled=options.unrolled)
        return self.final(x_BTD)

    def accumulating(
        self, tokens_BT: Int[Array, "B T"], layout: Layout, *, totals: nnx.State, options: ForwardOptions = DEFAULT
    ) -> Float[Array, "B T D"]:
        """The plain call, for training over microbatches: in the backward pass the cotangent of `totals`, one array per
        parameter of the layers, is totals + gradients (rapo_jax/models/accumulate.py)."""
        shared = self.shared(layout, layout, options)
        blocks, parameters = nnx.split(self.blocks)
        layer = rematerialized(blocks, options, prevent_cse=False)  # accumulate_over_layers has barriers of its own
        x_BTD = accumulate_over_layers(
            layer, self.embedded(tokens_BT, options), parameters, totals, self.per_layer(), shared,
            unrolled=options.unrolled,
        )  # fmt: skip
        return self.final(x_BTD)

    def decoding(
        self,
        tokens_BT: Int[Array, "B T"],
        layout: Layout,
        *,
        cache: Cache,
        options: ForwardOptions = DEFAULT,
        prompt_B: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The plain call, for generation: these tokens also see the cached ones. Returns the cache with their keys and
        values written at `layout.index`. Ignores `remat` and `unrolled`.

        prompt_B: the whole prompts' lengths, where these tokens may be a part of one (for ropes that depend on it)."""
        shared = self.shared(layout, cache_layout(layout, cache.k.shape[2]), options, prompt_B=prompt_B)
        blocks, parameters = nnx.split(self.blocks)

        def one(x_BTD: Array, scanned: tuple) -> tuple[Array, Cache]:
            parameters, layer, cache = scanned
            x_BTD, written = nnx.merge(blocks, parameters)(constrain_rows(x_BTD), shared, layer=layer, cache=cache)
            assert isinstance(written, Cache)
            return x_BTD, written

        x_BTD = self.embedded(tokens_BT, options)
        x_BTD, cache = jax.lax.scan(one, x_BTD, (parameters, self.per_layer(), cache))
        return self.final(x_BTD), cache

    def stepping(
        self,
        tokens_B1: Int[Array, "B 1"],
        layout: Layout,
        *,
        layers: Sequence[dict[str, Any]],
        caches: Sequence[SlotCache],
        options: ForwardOptions,
        prompt_B: Int[Array, " B"],
    ) -> tuple[Float[Array, "B 1 D"], list[SlotCache]]:
        """As `decoding`, for one token a row: each layer has its own parameters and its own cache, which are never copied."""
        shared = self.shared(layout, layout, options, prompt_B=prompt_B)
        (blocks, _), each = nnx.split(self.blocks), self.per_layer()
        x_BTD, written = self.embedded(tokens_B1, options), []
        for at, (parameters, cache) in enumerate(zip(layers, caches, strict=True)):
            layer = PerLayer(each.window[at], None if each.rope is None else each.rope[at])
            block = nnx.merge(blocks, parameters)
            x_BTD, cache = block(constrain_rows(x_BTD), shared, layer=layer, cache=cache)
            assert isinstance(cache, SlotCache)
            written.append(cache)
        return self.final(x_BTD), written

    def embedded(self, tokens_BT: Int[Array, "B T"], options: ForwardOptions) -> Float[Array, "B T D"]:
        x_BTD = looked_up(self.embed[...], tokens_BT, options.dtype)
        if self.spec.scaled_embeddings:
            return x_BTD * jnp.asarray(self.spec.D**0.5, options.dtype)
        return multiplied(x_BTD, self.spec.embedding_multiplier)

    def final(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, divided by what the family divides its logits by."""
        return multiplied(rms_norm(x_BTD, self.norm[...], self.spec), 1 / self.spec.logits_divisor)

    def shared(
        self, layout: Layout, keys: Layout, options: ForwardOptions, *, prompt_B: Int[Array, " B"] | None = None
    ) -> Shared:
        kernel = options.kernel or kernel_for(jax.default_backend())
        seen = visible(sees(layout, keys), kernel=kernel, H=self.spec.H)
        ropes = distinct_ropes(self.spec)
        angles = [layer_angles(layout, self.spec, rope=rope, prompt_B=prompt_B) for rope in ropes]
        if len(ropes) == 1:
            return Shared(layout, seen, angles[0])
        cos, sin = (jnp.stack(each) for each in zip(*angles, strict=True))
        return Shared(layout, seen, (cos, sin))

    def per_layer(self) -> PerLayer:
        """What differs by layer, with a leading L."""
        ropes = distinct_ropes(self.spec)
        which = None if len(ropes) == 1 else [ropes.index(rope) for rope in self.spec.layer_ropes]
        return PerLayer(
            jnp.asarray(self.spec.windows, jnp.int32), None if which is None else jnp.asarray(which, jnp.int32)
        )

    @property
    def vocabulary_VD(self) -> Float[Array, "V D"]:
        """The matrix of the vocabulary logits: the head, or the embedding if the two are tied."""
        assert not self.spec.scored, "a reward model has no vocabulary"
        return (self.embed if self.spec.tied else self.head)[...]

    def logits(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 logits, soft-capped if the family does so; for generation and verification, never for training."""
        weight_VD = self.vocabulary_VD.astype(hidden_BTD.dtype)
        logits = jnp.einsum("BTD,VD->BTV", hidden_BTD, weight_VD, preferred_element_type=jnp.float32)
        cap = self.spec.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def score(self, hidden_XD: Float[Array, "*X D"]) -> Float[Array, "*X"]:
        """float32 scores of a reward model, one per position; a text's score is the one at its last token."""
        weight_D = self.score_head[...].astype(jnp.float32)
        return jnp.einsum("...D,D->...", hidden_XD.astype(jnp.float32), weight_D, precision="highest")


def distinct_ropes(spec: Spec) -> list[Rope | None]:
    return list(dict.fromkeys(spec.layer_ropes))


def layer_angles(layout: Layout, spec: Spec, *, rope: Rope | None, prompt_B: Int[Array, " B"] | None) -> Angles:
    """The angles of layers with this rope; angles of zero for None, under which nothing turns."""
    cos, sin = rotary_angles(layout, rope=rope or spec.rope, H=spec.H, prompt_B=prompt_B)
    return (cos, sin) if rope else (jnp.ones_like(cos), jnp.zeros_like(sin))


def rematerialized(
    blocks: nnx.GraphDef, options: ForwardOptions, *, prevent_cse: bool
) -> Callable[..., Float[Array, "B T D"]]:
    """(x_BTD, parameters, PerLayer, shared) -> x_BTD: one layer that keeps for its backward pass what `remat` says."""

    def layer(x_BTD: Array, parameters: nnx.State, own: PerLayer, shared: Shared) -> Array:
        return nnx.merge(blocks, parameters)(constrain_rows(x_BTD), shared, layer=own)[0]

    policy = jax.checkpoint_policies.save_only_these_names(*KEPT[options.remat])
    return jax.checkpoint(layer, policy=policy, prevent_cse=prevent_cse)


def plain_layout(tokens_BT: Int[Array, "B T"]) -> Layout:
    """The layout of ordinary rows: one sequence per row, no padding."""
    index = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return Layout(index=index, position=index, group=jnp.ones_like(index), branch=jnp.zeros_like(index))


def abstract_decoder(spec: Spec, *, outputs_first: bool = False) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure and the shapes of its parameters, without allocating any."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0), outputs_first=outputs_first)))
