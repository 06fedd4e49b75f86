"""Low-rank adapters: y = x W + scale * (x A) B with W frozen (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", 2021, section 4.1).

An adapter is two more parameters of its layer, `q_lora_a` and `q_lora_b`, stacked over the layers like all others. B starts
at 0, so training starts from the base model; the base model is also the reference. W gets no gradient. Files in peft's
format are in rapo_jax/models/peft.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Shaped

from rapo_jax.errors import UserError
from rapo_jax.matrices import MATRICES
from rapo_jax.models.contract import contract, product_by_outputs
from rapo_jax.models.parameters import Location, shape_of
from rapo_jax.models.spec import LoraSpec, Spec
from rapo_jax.models.weights import Weights


def adapted_spec(spec: Spec, *, rank: int | None, alpha: float | None, targets: Sequence[str], rslora: bool) -> Spec:
    """The spec with adapters as a configuration's section `lora` asks for; without a rank, the spec unchanged.

    The scale is alpha / rank (alpha = 2 * rank if None) or, with `rslora`, alpha / sqrt(rank) (Kalajdzievski, "A Rank
    Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, eq. 4). Raises UserError for a rank that exceeds a
    target's smaller dimension.
    """
    if rank is None:
        return spec
    spec = spec.base
    sides = {
        name: (prod(shape_of(spec, MATRICES[name].inputs)), prod(shape_of(spec, MATRICES[name].outputs)))
        for name in targets
    }
    narrow = {name: side for name, side in sides.items() if rank > min(side)}
    if narrow:
        listed = ", ".join(f"{name} ({rows} x {columns})" for name, (rows, columns) in narrow.items())
        raise UserError(
            f"lora.rank={rank} exceeds the smaller dimension of {listed}; lower lora.rank to "
            f"{min(min(side) for side in narrow.values())} or less, or take them out of lora.targets."
        )
    alpha = 2.0 * rank if alpha is None else alpha
    ordered = tuple(name for name in MATRICES if name in targets)
    return replace(spec, lora=LoraSpec(rank, alpha, ordered, rslora))


def product(
    x: Float[Array, "..."],
    factors: tuple[Float[Array, "..."], ...],
    equation: str,
    *,
    lora: LoraSpec | None,
    outputs_first: bool = False,
) -> Float[Array, "..."]:
    """einsum(equation, x, W) in x's dtype, plus scale * (x A) B if there is an adapter; `factors` are W, or W, A and B.

    With LoRA all matrices are frozen, even those without an adapter. `outputs_first`: the last dimensions of W are those that
    are summed; such a product has no gradient.
    """
    weight, *adapter = factors
    if outputs_first:
        y = product_by_outputs(x, weight, equation)
    elif lora is None:
        return contract(x, weight, equation)
    else:
        y = jnp.einsum(equation, x, jax.lax.stop_gradient(weight).astype(x.dtype))
    if lora is None or not adapter:
        return y
    x_letters, out_letters = equation.split(",")[0], equation.split("->")[1]
    into = "".join(letter for letter in x_letters if letter not in out_letters)
    out = "".join(letter for letter in out_letters if letter not in x_letters)
    low_BTR = checkpoint_name(contract(x, adapter[0], f"{x_letters},{into}R->BTR") * lora.scale, "adapter")
    return y + contract(low_BTR, adapter[1], f"BTR,R{out}->{out_letters}")


def with_adapters(base: dict, trained: dict) -> dict:
    """The parameters of the adapted model: frozen weights, and the trained adapters and score head over them."""
    return base | trained | {"blocks": base["blocks"] | trained["blocks"]}


def merged(base: dict, trained: dict, spec: Spec) -> dict:
    """The parameters of the equivalent model without adapters: W + scale * A B, in float32."""
    assert spec.lora is not None
    blocks = dict(base["blocks"])
    for name in spec.lora.targets:
        a, b = (trained["blocks"][f"{name}_lora_{side}"] for side in "ab")
        blocks[name] = with_adapter(blocks[name], a, b, name=name, scale=spec.lora.scale)
    return base | {name: leaf for name, leaf in trained.items() if name != "blocks"} | {"blocks": blocks}


@partial(jax.jit, static_argnames=("name", "scale"))
def with_adapter(
    weight: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."], *, name: str, scale: float
) -> Float[Array, "..."]:
    """W + scale * A B of some layers."""
    into, out = MATRICES[name].inputs, MATRICES[name].outputs
    return weight + scale * jnp.einsum(f"L{into}R,LR{out}->L{into}{out}", a, b, precision="highest")


class MergedWeights:
    """What `merged` computes, read in parts; `trained` is in the memory of this process. A layer is merged as a whole, because
    products of smaller parts are rounded differently, and kept until another one is read."""

    def __init__(self, base: Weights, trained: dict, spec: Spec):
        self.base, self.trained, self.spec = base, trained, spec
        self._held: tuple[str, int, np.ndarray] = ("", 0, np.empty(0))

    def read(self, path: Location, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        if path[0] in self.trained.keys() - {"blocks"}:
            return np.asarray(self.trained[path[0]])[tuple(index)]
        if path[0] != "blocks" or self.spec.lora is None or path[1] not in self.spec.lora.targets:
            return self.base.read(path, index)
        layers = [self._layer(path[1], layer) for layer in range(index[0].start, index[0].stop)]
        return np.stack([layer[tuple(index[1:])] for layer in layers])

    def _layer(self, name: str, at: int) -> Shaped[np.ndarray, "..."]:
        if self._held[:2] != (name, at):
            assert self.spec.lora is not None
            self._held = ("", 0, np.empty(0))  # before another one is made
            sizes = shape_of(self.spec, MATRICES[name].letters)
            one = (slice(at, at + 1), *(slice(0, size) for size in sizes))
            a, b = (np.asarray(self.trained["blocks"][f"{name}_lora_{side}"])[at : at + 1] for side in "ab")
            weight = self.base.read(("blocks", name), one)
            layer = with_adapter(weight, a, b, name=name, scale=self.spec.lora.scale)[0]
            self._held = (name, at, np.asarray(layer))
        return self._held[2]
