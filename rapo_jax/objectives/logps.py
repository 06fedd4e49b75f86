"""What a loss may read of a group: log-probabilities, rewards, lengths, and two scalars of the step."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Logps:
    """Groups of any shape [...] with C responses each, the most preferred first.

    `policy` and `reference` are natural-log probabilities summed over a response's tokens, end-of-turn included;
    `num_tokens` counts these tokens, 0 where a group has no such response. `rewards` are those under the group's goal,
    -(g - r)^2, or r without a goal; NaN where unknown. `prompt` is the log-ratio of the prompt without its first token.
    `divergence` estimates KL(policy | reference) over the optimizer batch, from responses to other prompts; `progress`
    is the share of training steps done. Values that no loss of the run needs are zero.

    `unrelated` is the log-ratio of a response to another prompt, `has_unrelated` which groups have one. They serve to
    compute `divergence`; losses do not read them.
    """

    policy: Float[Array, "*groups C"]
    reference: Float[Array, "*groups C"]
    num_tokens: Float[Array, "*groups C"]
    rewards: Float[Array, "*groups C"]
    prompt: Float[Array, "*groups"]
    divergence: Float[Array, ""]
    progress: Float[Array, ""]
    unrelated: Float[Array, "*groups"] | None = None
    has_unrelated: Bool[Array, "*groups"] | None = None

    @property
    def ratios(self) -> Float[Array, "*groups C"]:
        """log pi(y | x) - log pi_ref(y | x)."""
        return self.policy - self.reference

    @property
    def margin(self) -> Float[Array, "*groups"]:
        """The chosen response's log-ratio minus the rejected one's."""
        return self.ratios[..., 0] - self.ratios[..., 1]

    @property
    def means(self) -> Float[Array, "*groups C"]:
        """log pi(y | x) per token."""
        return self.policy / jnp.maximum(self.num_tokens, 1)

    @property
    def mean_ratios(self) -> Float[Array, "*groups C"]:
        """The log-ratio per token."""
        return self.ratios / jnp.maximum(self.num_tokens, 1)

    @property
    def present(self) -> Bool[Array, "*groups C"]:
        """Which responses a group has."""
        return self.num_tokens > 0

    @property
    def reward_gap(self) -> Float[Array, "*groups"]:
        """The chosen response's reward minus the rejected one's."""
        return self.rewards[..., 0] - self.rewards[..., 1]
