"""AdamW, learning rate schedules and clipping, as torch.optim.AdamW and transformers' schedulers define them."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

from rapo_jax.config.tree import Optimizer
from rapo_jax.models.parameters import place, trained_letters
from rapo_jax.models.spec import Spec


def learning_rate(config: Optimizer, *, num_steps: int) -> Callable[[Num[Array, ""]], Float[Array, ""]]:
    """Step (from 0) -> learning rate: linear warmup from 0 over ceil(warmup_ratio * num_steps), then the schedule.

    "cosine" and "linear" decay to 0. The first step of a warmup has rate 0, as in transformers.
    """
    num_warmup = math.ceil(config.warmup_ratio * num_steps)

    def rate(step: Num[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        warmup = step / max(1, num_warmup)
        progress = (step - num_warmup) / max(1, num_steps - num_warmup)
        decay = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": 1 - progress,
            "constant": jnp.ones_like(progress),
        }[config.schedule]
        return config.learning_rate * jnp.where(step < num_warmup, warmup, jnp.maximum(decay, 0.0))

    return rate


def adamw(config: Optimizer, spec: Spec) -> optax.GradientTransformation:
    """AdamW's update, not yet scaled by the learning rate (Loshchilov and Hutter, 2019, algorithm 2).

    Norms and biases do not decay.
    """
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.mu_dtype)
    if config.weight_decay == 0:
        return adam
    decays: dict = {}
    for path, letters in trained_letters(spec).items():
        is_head = path == ("score_head",)  # decays: in transformers it is a matrix with one row
        is_matrix = len(letters.removeprefix("L")) > 1 or is_head
        place(decays, path, is_matrix and not path[-1].endswith(("bias", "norm")))
    return optax.chain(adam, optax.add_decayed_weights(config.weight_decay, mask=decays))


def clip(gradients: dict, norm: Float[Array, ""], max_norm: float | None) -> dict:
    """Scales all gradients so that their global norm is at most `max_norm`."""
    if max_norm is None:
        return gradients
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    return optax.tree.scale(scale, gradients)
