"""From packed rows to the loss of every group: policy and reference log-probabilities, the divergence, the objective."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rapo_jax.batch import BEST_SIDE, Batch, Shape
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config
from rapo_jax.models.decoder import abstract_decoder
from rapo_jax.models.lora import with_adapters
from rapo_jax.models.spec import Spec
from rapo_jax.objectives import Logps
from rapo_jax.train.forward import forward_of, response_logps
from rapo_jax.train.metrics import GroupSums, group_sums
from rapo_jax.train.microbatches import sum_over_microbatches


class Losses(Protocol):
    """The loss summed over the groups of one microbatch, and its metrics."""

    def __call__(
        self,
        parameters: dict,
        reference: dict,
        rows: Batch[Array],
        *,
        remat: str,
        totals: dict | None = None,
        divergence: Float[Array, ""] | None = None,
        progress: Float[Array, ""] | float = 0.0,
    ) -> tuple[Float[Array, ""], GroupSums]: ...


def make_logps(config: Config, spec: Spec, mesh: Mesh) -> Callable[..., Logps]:
    """(parameters, reference, rows) -> the losses' inputs for one microbatch, except `divergence` and `progress`.

    With LoRA the parameters are adapters, and the reference is the policy without them.
    """
    forward = forward_of(config, spec, mesh)
    (graph, _), (reference_graph, _) = abstract_decoder(spec), abstract_decoder(spec.base)

    def logps(
        parameters: dict, reference: dict, rows: Batch[Array], *, remat: str, totals: dict | None = None
    ) -> Logps:
        if spec.lora is not None:
            parameters = with_adapters(reference, parameters)
        policy_BPA, num_tokens_BPA = response_logps(
            graph, parameters, rows, forward=forward, remat=remat, totals=totals
        )
        reference_BPA = jnp.zeros_like(policy_BPA)
        if config.reference.cache:
            reference_BPA = jnp.where(rows.side[..., None] >= 0, rows.reference, 0.0)
        elif config.objective.needs("reference"):
            reference_BPA, _ = response_logps(reference_graph, reference, rows, forward=forward, remat="none")
        return as_logps(rows, policy_BPA, jax.lax.stop_gradient(reference_BPA), num_tokens_BPA)

    return logps


def as_logps(
    rows: Batch[Array],
    policy_BPA: Float[Array, "B P A"],
    reference_BPA: Float[Array, "B P A"],
    num_tokens_BPA: Float[Array, "B P A"],
) -> Logps:
    """The losses' inputs. Absent responses have reward 0 instead of NaN, because NaN would spread to the gradients."""
    responses = slice(1, 1 + rows.num_responses)
    present_BPC = num_tokens_BPA[..., responses] > 0
    logps = Logps(
        policy=policy_BPA[..., responses],
        reference=reference_BPA[..., responses],
        num_tokens=num_tokens_BPA[..., responses],
        rewards=jnp.where(present_BPC, rows.reward, 0.0),
        prompt=policy_BPA[..., 0] - reference_BPA[..., 0],
        divergence=jnp.float32(0),
        progress=jnp.float32(0),
    )
    if not rows.has_unrelated:
        return logps
    unrelated_BP = policy_BPA[..., -1] - reference_BPA[..., -1]
    return replace(logps, unrelated=unrelated_BP, has_unrelated=num_tokens_BPA[..., -1] > 0)


def make_losses(config: Config, spec: Spec, mesh: Mesh) -> Losses:
    """The loss of a run's objective on one microbatch; see `Losses`.

    `divergence` and `progress` are those of `Logps`. Without a divergence, it is estimated from these rows alone.
    """
    logps_of, objective = make_logps(config, spec, mesh), config.objective

    def losses(
        parameters: dict,
        reference: dict,
        rows: Batch[Array],
        *,
        remat: str,
        totals: dict | None = None,
        divergence: Float[Array, ""] | None = None,
        progress: Float[Array, ""] | float = 0.0,
    ) -> tuple[Float[Array, ""], GroupSums]:
        logps = logps_of(parameters, reference, rows, remat=remat, totals=totals)
        if objective.needs("divergence"):
            divergence = mean_divergence(*divergence_sums(logps)) if divergence is None else divergence
            logps = replace(logps, divergence=jax.lax.stop_gradient(divergence))
        logps = replace(logps, progress=jnp.asarray(progress, jnp.float32))
        is_best_BP = rows.side == BEST_SIDE
        loss_BP = jnp.where(is_best_BP, best_goal_loss(objective, logps), total_loss(objective, logps)) * rows.weight
        return jnp.where(rows.side >= 0, loss_BP, 0.0).sum(), group_sums(loss_BP, logps, rows.side, objective)

    return losses


def total_loss(objective: Objective, logps: Logps) -> Float[Array, "*groups"]:
    """The weighted sum of an objective's terms, group by group."""
    losses = [term.weight * term.spec.loss(logps, **term.options) for term in objective.terms]
    return sum(losses[1:], start=losses[0])


def best_goal_loss(objective: Objective, logps: Logps) -> Float[Array, "*groups"]:
    """-eta beta log pi(y | x, g*): the likelihood that groups at the highest goal add to the loss of the preferences.

    The weights of these groups turn a batch's mean into the sum of two means.

    References:
        Zhang et al., "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs", 2024, algorithm 1, eq. A.9.
    """
    if not objective.best_goal_weight:
        return jnp.zeros_like(logps.prompt)
    return -objective.best_goal_weight * objective.options["beta"] * logps.policy[..., 0]


# The divergence.


def divergence_sums(logps: Logps) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of the log-ratios of the groups' unrelated responses, and their number."""
    assert logps.unrelated is not None and logps.has_unrelated is not None, "groups lack an unrelated response"
    total = jnp.where(logps.has_unrelated, logps.unrelated, 0.0).sum()
    return total, logps.has_unrelated.sum().astype(jnp.float32)


def mean_divergence(total: Float[Array, ""], number: Float[Array, ""]) -> Float[Array, ""]:
    """max(0, mean log-ratio): KTO's estimate of KL(policy | reference), from responses to other prompts."""
    return jnp.maximum(total / jnp.maximum(number, 1.0), 0.0)


def make_divergence(
    config: Config, spec: Spec, mesh: Mesh, shape: Shape
) -> Callable[[dict, dict, Batch[Array]], Float[Array, ""] | None]:
    """(parameters, reference, batch) -> the divergence over all microbatches of a batch, from a separate forward pass.

    None where no loss reads it, and where there is a single microbatch, from which `make_losses` estimates it.
    """
    logps_of = make_logps(config, spec, mesh)

    def divergence(parameters: dict, reference: dict, batch: Batch[Array]) -> Array | None:
        if not config.objective.needs("divergence") or shape.M == 1:
            return None

        def sums_of(rows: Batch[Array]) -> tuple[Array, Array]:
            return divergence_sums(logps_of(parameters, reference, rows, remat="none"))

        zero = jnp.float32(0), jnp.float32(0)
        return mean_divergence(*sum_over_microbatches(sums_of, zero, batch, shape))

    return divergence
