"""Losses of a single response."""

from jax import Array
from jaxtyping import Float

from rapo_jax.objectives.logps import Logps


def sft(logps: Logps) -> Float[Array, "*groups"]:
    """Supervised fine-tuning: negative log-likelihood per token of the (chosen) response.

        -log pi(y | x) / |y|

    With loss weights from the data, and the source's class in the prompt, it is C-RLFT.

    References:
        Wang et al., "OpenChat: Advancing Open-source Language Models with Mixed-Quality Data", 2023 (C-RLFT).
    """
    return -logps.means[..., 0]
