"""A packed, sharded step in microbatches gives every loss the numbers that plain sequences give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax.batch import BEST_SIDE, CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE
from rapo_jax.batching.batch_plan import Group
from rapo_jax.config.files import from_dict
from rapo_jax.models.decoder import ForwardOptions, abstract_decoder, plain_layout
from rapo_jax.objectives import OBJECTIVES, Logps
from tests import tiny

NOTHING = np.zeros(0, np.int32)
NUM_GROUPS = 12


def groups_of(widths, sides, *, seed=0, unrelated=False):
    """Groups whose response c is missing where its width is 0; rewards 9, 8, 7 ... in the order of preference.

    With `unrelated` the last column is the response to another prompt.
    """
    random = np.random.default_rng(seed)
    draw = lambda low, high: random.integers(0, tiny.V, random.integers(low, high)).astype(np.int32)  # noqa: E731
    groups = []
    for row in range(NUM_GROUPS):
        has = widths[row % len(widths)]
        responses = tuple(draw(4, 14) if here else NOTHING for here in has)
        rewards = tuple(9.0 - c if here else float("nan") for c, here in enumerate(has))
        weight, other = 0.5 + row % 3, None
        if unrelated:
            *responses, other = responses
            rewards = rewards[:-1]
        groups.append(Group(draw(9, 25), tuple(responses), rewards, sides[row % len(sides)], row, weight, other))
    return groups


PAIRS = groups_of([(1, 1)], [CHOSEN_SIDE, REJECTED_SIDE])
# name: (the objective's section, groups)
CASES = {
    "dpo and sft": ({"name": "dpo", "beta": 0.1, "plus": [{"name": "sft", "weight": 0.3}]}, PAIRS),
    "ipo per token": ({"name": "ipo", "average": True}, PAIRS),
    "orpo": ({"name": "orpo"}, PAIRS),
    "rpo_bwd_kl": ({"name": "rpo_bwd_kl"}, PAIRS),
    "dpo_shift": ({"name": "dpo_shift", "shift": 0.6, "shift_end": 0.9}, PAIRS),
    "weighted sft": ({"name": "weighted_sft"}, groups_of([(1,)], [NO_SIDE])),
    "nca of three": ({"name": "nca", "temperature": 1.0}, groups_of([(1, 1, 1), (1, 1, 0)], [NO_SIDE])),
    "rrhf of three": ({"name": "rrhf"}, groups_of([(1, 1, 1), (1, 1, 0)], [NO_SIDE])),
    "dro_pointwise": ({"name": "dro_pointwise"}, groups_of([(1, 1, 1), (1, 0, 0)], [NO_SIDE])),
    "dro_pointwise, joint": ({"name": "dro_pointwise", "joint": True}, PAIRS),
    "kto": ({"name": "kto"}, groups_of([(1, 1, 1), (1, 0, 1), (0, 1, 1)], [NO_SIDE], seed=3, unrelated=True)),
    "best goal": (
        {"name": "dpo", "beta": 0.1, "best_goal_weight": 0.7},
        groups_of([(1, 1), (1, 1), (1, 0)], [CHOSEN_SIDE, REJECTED_SIDE, BEST_SIDE]),
    ),
}


def sequence_logps(spec, parameters, groups):
    """log pi of each response, an unrelated one last [G, A - 1], and of the prompt without its first token [G]: softmax
    over the logits of plain sequences, one per response."""
    decoder = nnx.merge(abstract_decoder(spec)[0], jax.tree.map(jnp.asarray, parameters))
    tokens_BT, is_response_BT = map(jnp.asarray, tiny.plain_sequences(groups))
    hidden_BTD = decoder(tokens_BT, plain_layout(tokens_BT), options=ForwardOptions(kernel="einsum"))
    logps_BTV = jax.nn.log_softmax(decoder.logits(hidden_BTD)[:, :-1], axis=-1)
    each_BT = jnp.take_along_axis(logps_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    lengths_B = np.repeat([len(group.prompt) for group in groups], len(groups[0].continuations))
    is_prompt_BT = np.arange(1, tokens_BT.shape[1]) < lengths_B[:, None]
    of = lambda mask_BT: jnp.where(mask_BT, each_BT, 0.0).sum(-1).reshape(len(groups), -1)  # noqa: E731
    return of(is_response_BT[:, 1:]), of(is_prompt_BT)[:, 0]


def by_the_book(config, spec, parameters, reference, groups):
    """The mean over groups of weight times loss."""
    objective = config.objective
    policy_GC, prompt_G = sequence_logps(spec, parameters, groups)
    reference_GC, reference_prompt_G = sequence_logps(spec, reference, groups)
    mean_ratio = (policy_GC - reference_GC)[:, -1].mean()  # of the unrelated responses, where that is asked for
    width = len(groups[0].responses)
    policy_GC, reference_GC = policy_GC[:, :width], reference_GC[:, :width]
    num_tokens_GC = jnp.asarray([[len(y) for y in group.responses] for group in groups], jnp.float32)
    logps = Logps(
        policy=policy_GC,
        reference=reference_GC if objective.needs("reference") else jnp.zeros_like(policy_GC),
        num_tokens=num_tokens_GC,
        rewards=jnp.nan_to_num(jnp.asarray([group.rewards for group in groups])),
        prompt=prompt_G - reference_prompt_G,
        divergence=jax.lax.stop_gradient(jnp.maximum(mean_ratio, 0.0))
        if objective.needs("divergence")
        else jnp.float32(0),
        progress=jnp.float32(0),
    )
    losses_G = sum(term.weight * OBJECTIVES[term.name].loss(logps, **term.options) for term in objective.terms)
    if objective.best_goal_weight:
        best_G = -objective.best_goal_weight * objective.options["beta"] * logps.policy[:, 0]
        losses_G = jnp.where(np.array([group.side == BEST_SIDE for group in groups]), best_G, losses_G)
    return (np.array([group.weight for group in groups]) * losses_G).mean()


def config_of(section, **rows):
    config = tiny.tiny_config(train={"batch_size": NUM_GROUPS}, optimizer={"max_grad_norm": None}, rows=rows)
    tree = {"objective": section, "relabel": {"goals": ["chosen"]}}  # these groups were made by hand
    return replace(config, objective=from_dict(tree).objective)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_step_agrees_with_the_definition_in_value_and_gradient(name):
    """When this fails, a loss reads something other than its formula says: a sibling's tokens, a prompt's first token,
    rewards in another order, the mean of a microbatch."""
    section, groups = CASES[name]
    config, spec = config_of(section, per_shard=2), tiny.tiny_spec("llama3")
    trained = tiny.train_steps(config, spec, tiny.mesh_of(1, 1, 1), groups, num_steps=1, row_length=80)
    policy, reference = tiny.random_parameters(spec, seed=1), tiny.random_parameters(spec)
    book = jax.jit(
        jax.value_and_grad(lambda p: by_the_book(config, spec, p, jax.tree.map(jnp.asarray, reference), groups))
    )
    loss, gradient = book(policy)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    assert norm > 1e-4
    assert trained.metrics[0].get("kl", 1.0) > 0, "a divergence that is clamped to 0 would prove nothing"
    np.testing.assert_allclose(trained.metrics[0]["loss"], loss, rtol=2e-5)
    np.testing.assert_allclose(trained.metrics[0]["grad_norm"], norm, rtol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "dro_pointwise", "best goal", "nca of three"])
def test_microbatches_and_devices_change_nothing(name):
    """When this fails, KTO's divergence is computed per microbatch or per device, and the loss depends on memory."""
    section, groups = CASES[name]
    spec = tiny.tiny_spec("llama3")
    whole = tiny.train_steps(config_of(section, per_shard=12), spec, tiny.mesh_of(1, 1, 1), groups, row_length=80)
    split = tiny.train_steps(config_of(section, per_shard=1), spec, tiny.mesh_of(1, 2, 1), groups, row_length=80)
    tiny.assert_same_metrics(whole.metrics, split.metrics, atol=5e-6, rtol=3e-5)
    tiny.assert_same_trees(whole.state.parameters, split.state.parameters, atol=2e-5)


def test_metrics_ignore_absent_responses():
    """When this fails, a response that does not exist is reported with a reward of 0, and means sink towards it."""
    section, groups = CASES["best goal"]
    spec = tiny.tiny_spec("llama3")
    (metrics,) = tiny.train_steps(
        config_of(section), spec, tiny.mesh_of(1, 1, 1), groups, num_steps=1, row_length=80
    ).metrics
    assert np.isnan(metrics["goal_best/rewards/margins"]) and np.isfinite(metrics["goal_best/logps/chosen"])
    sides = [metrics[f"goal_{side}/rewards/margins"] for side in ("chosen", "rejected")]
    np.testing.assert_allclose(metrics["rewards/margins"], np.mean(sides), rtol=1e-5)


@pytest.mark.slow
def test_the_implicit_reward_of_the_prompt_is_reported():
    """When this fails, users cannot see why DRO's rewards differ from log_z0: the prompt's share is missing."""
    section, groups = CASES["dro_pointwise"]
    config, spec = config_of(section), tiny.tiny_spec("llama3")
    policy, reference = tiny.random_parameters(spec, seed=1), tiny.random_parameters(spec)
    metrics = tiny.train_steps(config, spec, tiny.mesh_of(1, 1, 1), groups, num_steps=1, row_length=80).metrics[0]
    (_, prompt_G), (_, reference_G) = (sequence_logps(spec, p, groups) for p in (policy, reference))
    expected = config.objective.options["beta"] * np.mean(prompt_G - reference_G)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(metrics["rewards/prompt"], expected, rtol=2e-5)
