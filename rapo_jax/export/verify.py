"""Reads an export back and checks that it computes what was trained."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.spec import Spec

NUM_TOKENS = 32
TOLERANCE = 1e-5  # between float32 logits computed from bit-identical weights


def largest_difference(
    parameters: dict[str, Any], written: dict[str, Any], *, spec: Spec, dtype: jnp.dtype | str = "float32"
) -> float:
    """The largest difference of logits (of scores, for a reward model) on random tokens, weights rounded to `dtype`.

    Infinite where an output is not finite.
    """
    tokens_BT = np.random.default_rng(0).integers(0, spec.V, (1, NUM_TOKENS))
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def outputs(parameters: dict[str, Any]) -> jax.Array:
        decoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), parameters))
        hidden_BTD = decoder(jnp.asarray(tokens_BT), plain_layout(jnp.asarray(tokens_BT)))
        return decoder.score(hidden_BTD) if spec.scored else decoder.logits(hidden_BTD)

    ours, theirs = outputs(parameters), outputs(written)
    return float(jnp.where(jnp.isfinite(ours) & jnp.isfinite(theirs), jnp.abs(ours - theirs), jnp.inf).max())


def require_same(difference: float, directory: Path) -> None:
    """Raises RuntimeError for a difference beyond rounding: a bug, or a disk that lost what was written."""
    if not abs(difference) <= TOLERANCE:
        raise RuntimeError(f"{directory} was written but computes other logits (difference {difference:.3g})")
