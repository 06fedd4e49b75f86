"""An optimizer step gives the same result on any mesh and in any number of microbatches; it happens entirely or not at all."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.batch import NO_SIDE
from rapo_jax.batching import pipeline
from rapo_jax.batching import steps as batching_steps
from rapo_jax.batching.batch_plan import materialise
from rapo_jax.parallel import num_row_shards, to_device
from rapo_jax.train.loop import Evaluation, Progress, Run, evaluate
from rapo_jax.train.losses import make_losses
from rapo_jax.train.optim import adamw
from rapo_jax.train.state import first_state
from rapo_jax.train.step import make_evaluate_step, make_train_step
from tests import tiny

CONFIG = tiny.tiny_config(train={"batch_size": 12})
EINSUM = tiny.tiny_config(train={"batch_size": 12}, model={"attention": "einsum"})  # compiles fastest
GROUPS = tiny.random_groups(36, prompt=(9, 50))


@functools.cache
def one_device(family, *, row_length, config=CONFIG):
    return tiny.train_steps(config, tiny.tiny_spec(family), tiny.mesh_of(1, 1, 1), GROUPS, row_length=row_length)


@pytest.mark.parametrize(
    ("family", "sizes", "row_length"),
    [
        pytest.param("gemma2", (2, 2, 2), 128, id="gemma2 2x2x2 tiles"),
        pytest.param("olmo2", (2, 2, 2), 128, id="olmo2 2x2x2, norms over split heads"),
        pytest.param("mistral-v0.1-window", (2, 2, 2), 120, id="mistral 2x2x2 einsum"),
        pytest.param("llama3", (1, 8, 1), 128, id="llama3 fsdp=8 tiles"),
        pytest.param("llama3", (1, 1, 8), 128, id="llama3 tensor=8, which divides no heads, tiles"),
    ],
)
@pytest.mark.slow
def test_one_device_and_eight_devices_take_the_same_three_steps(family, sizes, row_length):
    """When this fails, a result depends on the machine that it was trained on: a gradient is summed twice, or not over
    all devices."""
    alone = one_device(family, row_length=row_length)
    mesh = tiny.mesh_of(*sizes)
    together = tiny.train_steps(CONFIG, tiny.tiny_spec(family), mesh, GROUPS, row_length=row_length)
    tiny.assert_same_metrics(alone.metrics, together.metrics, atol=2e-6, rtol=1e-5)
    tiny.assert_same_trees(alone.state.parameters, together.state.parameters, atol=1e-5)
    assert moved(alone.state.parameters, tiny.random_parameters(tiny.tiny_spec(family), seed=1)) > 1e-3


def moved(parameters, start):
    return min(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (parameters, start)), strict=True))


@pytest.fixture
def unbalanced(monkeypatch):
    """Steps that are not balanced, so that they differ in their number of rows."""
    monkeypatch.setattr(batching_steps, "BALANCED_STEPS", 1)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "attention"])
def test_rematerialization_changes_no_step(remat, unbalanced):
    """When this fails, a memory setting changes the training: with "full", gradients are added to a running total layer
    by layer, otherwise at the end of each microbatch."""
    config = replace(EINSUM, rows=replace(CONFIG.rows, per_shard=4))
    assert config.model.remat == "full"
    full = one_device("llama3", row_length=128, config=config)
    other = one_device("llama3", row_length=128, config=replace(config, model=replace(config.model, remat=remat)))
    tiny.assert_same_metrics(full.metrics, other.metrics, atol=1e-6, rtol=1e-5)
    tiny.assert_same_trees(full.state.parameters, other.state.parameters, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "sizes", "remat"), [("llama3", (1, 1, 1), "full"), ("gemma2", (2, 2, 2), "none")])
def test_unrolled_layers_take_the_same_steps(family, sizes, remat):
    """When this fails, model.scan_layers=false changes the training: a layer's gradient joins another layer's total, or
    windows go to the wrong layers."""
    config = replace(EINSUM, rows=replace(CONFIG.rows, per_shard=2), model=replace(EINSUM.model, remat=remat))
    spec, mesh, start = (
        tiny.tiny_spec(family),
        tiny.mesh_of(*sizes),
        tiny.random_parameters(tiny.tiny_spec(family), seed=1),
    )
    scanned, unrolled = (
        tiny.train_steps(
            replace(config, model=replace(config.model, scan_layers=scan)), spec, mesh, GROUPS, row_length=128
        )
        for scan in (True, False)
    )
    tiny.assert_same_metrics(scanned.metrics, unrolled.metrics, atol=1e-6, rtol=1e-5)
    tiny.assert_same_trees(scanned.state.parameters, unrolled.state.parameters, atol=2e-6)
    assert moved(unrolled.state.parameters, start) > 1e-3


@pytest.mark.slow
def test_microbatches_change_nothing(unbalanced):
    """When this fails, the loss is divided by the groups of a microbatch instead of those of the whole batch, and
    someone with less memory trains another model. Some steps here use two of three microbatches."""
    whole, split = (replace(CONFIG, rows=replace(CONFIG.rows, per_shard=per_shard)) for per_shard in (9, 4))
    plans = [tiny.plan_of(GROUPS, c, num_steps=3, row_length=112, num_shards=1) for c in (whole, split)]
    assert [plan.shape.M for plan in plans] == [1, 3]
    assert sorted(len(rows) for rows in plans[1].steps) == [7, 7, 9]
    one, three = (one_device("llama3", row_length=112, config=config) for config in (whole, split))
    tiny.assert_same_metrics(one.metrics, three.metrics, atol=1e-6, rtol=1e-5)
    tiny.assert_same_trees(one.state.parameters, three.state.parameters, atol=2e-6)


@pytest.mark.slow
def test_an_epoch_of_differing_batches_compiles_once_and_consumes_its_state(unbalanced):
    """When this fails, a pod recompiles for minutes in the middle of a run, or holds its training state twice."""
    config = tiny.tiny_config(train={"batch_size": 6}, rows={"per_shard": 1})
    spec, mesh = tiny.tiny_spec("llama3"), tiny.mesh_of(1, 2, 1)
    plan = tiny.plan_of(GROUPS, config, num_steps=6, row_length=112, num_shards=num_row_shards(mesh))
    assert len({len(rows) for rows in plan.steps}) > 1, "batches must differ for the test to mean anything"
    trained = tiny.train_steps(config, spec, mesh, GROUPS, num_steps=6, row_length=112)
    assert trained.step._cache_size() == 1
    state, reference, batch = step_inputs(config, spec, mesh, plan)
    with jax.set_mesh(mesh):
        trained.step(state, reference, batch)
    assert trained.step._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))


def step_inputs(config, spec, mesh, plan, *, seed=1):
    reference = tiny.on_mesh(tiny.random_parameters(spec), spec, mesh)
    start = tiny.on_mesh(tiny.random_parameters(spec, seed=seed), spec, mesh)
    state = first_state(start, spec, mesh, adamw(config.optimizer, spec))
    batch = materialise(GROUPS, plan.steps[0], plan.shape, mine=range(plan.shape.B))
    return state, reference, to_device(batch, mesh, plan.shape.B)


@pytest.mark.parametrize("poison", ["parameter", "gradient"])
@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_no_bit_and_says_so(poison):
    """When this fails, one bad batch ruins the weights of a week's run, and the next checkpoint holds them."""
    overflow = {"beta": 1e38}  # the loss is ln 2 while policy = reference; the squared gradient is not finite
    config = tiny.tiny_config(objective=overflow if poison == "gradient" else {})
    spec, mesh = tiny.tiny_spec("llama3"), tiny.mesh_of(1, 2, 1)
    plan = tiny.plan_of(GROUPS[:12], replace(config, train=CONFIG.train), num_steps=1, row_length=128, num_shards=2)
    state, reference, batch = step_inputs(config, spec, mesh, plan, seed=0)
    if poison == "parameter":
        token = int(batch.target[0, 0, 0])
        embed = state.parameters["embed"].at[token, 3].set(jnp.nan)
        state = replace(state, parameters=state.parameters | {"embed": embed})
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), (state.parameters, state.optimizer))
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=1)
    with jax.set_mesh(mesh):
        state, metrics = step(state, reference, batch)
    assert np.isnan(metrics["loss"]) == (poison == "parameter")
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1.0 and state.step == 1
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), (state.parameters, state.optimizer)) == before


@pytest.mark.slow
def test_evaluation_is_the_mean_over_groups_taken_one_at_a_time():
    """When this fails, an evaluation depends on the batch size: its short last batch counts as much as a whole one. The
    goal sides are means over their own groups."""
    groups = tiny.random_groups(11, seed=5)
    groups = [*groups[:-1], replace(groups[-1], side=NO_SIDE)]
    spec, mesh = tiny.tiny_spec("llama3"), tiny.mesh_of(1, 2, 1)
    policy, reference = (tiny.on_mesh(tiny.random_parameters(spec, seed=seed), spec, mesh) for seed in (1, 0))
    state = first_state(policy, spec, mesh, adamw(CONFIG.optimizer, spec))

    def evaluated(chosen, *, batch_size):
        config = tiny.tiny_config(train={"batch_size": batch_size}, rows={"length": 128, "per_shard": 1})
        plan = pipeline.plan_evaluation(chosen, config, num_row_shards=2)
        return plan, Evaluation(
            step=make_evaluate_step(config, spec, mesh, plan.shape),
            batches=functools.partial(pipeline.batches(chosen, plan, range(plan.shape.B)), 0),
            num_rows=plan.shape.B,
        )

    def metrics_of(evaluation):
        run = Run(CONFIG, mesh, None, None, 0, 1, 0, None, None, {"eval": evaluation}, {})
        with jax.set_mesh(mesh):
            return evaluate(run, state, reference=reference, progress=Progress())

    plan, evaluation = evaluated(groups, batch_size=4)
    assert [sum(map(len, rows)) for rows in plan.steps] == [4, 4, 3]
    together = metrics_of(evaluation)
    single_plan, single = evaluated(groups, batch_size=1)
    ones = []
    for index in range(11):
        batches = functools.partial(
            pipeline.batches(groups, replace(single_plan, steps=single_plan.steps[index : index + 1]), [0, 1]), 0
        )
        ones.append(metrics_of(replace(single, batches=batches)))
    for name, value in together.items():
        of_ones = [one[name] for one in ones if not np.isnan(one[name])]
        expected = np.mean(of_ones) if of_ones else np.nan
        np.testing.assert_allclose(value, expected, atol=1e-6, rtol=1e-5, err_msg=name)
    assert together["eval_loss"] != pytest.approx(together["eval_goal_chosen/loss"])


@pytest.mark.slow
def test_an_evaluation_uses_the_current_training_progress_and_compiles_once():
    """When this fails, dpo_shift is evaluated at the shift of the first step, by a loss that is no longer trained on, or a
    pod recompiles at every evaluation."""
    groups, spec, mesh = tiny.random_groups(4, seed=5), tiny.tiny_spec("llama3"), tiny.mesh_of(1, 2, 1)
    policy, reference = (tiny.on_mesh(tiny.random_parameters(spec, seed=seed), spec, mesh) for seed in (1, 0))
    start = first_state(policy, spec, mesh, adamw(CONFIG.optimizer, spec))

    def evaluation_of(**shifts):
        objective = {"name": "dpo_shift", **shifts}
        config = tiny.tiny_config(objective=objective, train={"batch_size": 4}, rows={"length": 128})
        plan = pipeline.plan_evaluation(groups, config, num_row_shards=2)
        step = make_evaluate_step(config, spec, mesh, plan.shape)
        batches = functools.partial(pipeline.batches(groups, plan, range(plan.shape.B)), 0)
        return Evaluation(step=step, batches=batches, num_rows=plan.shape.B)

    def loss_of(evaluation, *, after):
        run = Run(CONFIG, mesh, None, None, 0, 10, 0, None, None, {"eval": evaluation}, {})
        state = replace(start, step=jax.device_put(jnp.int32(after), start.step.sharding))
        with jax.set_mesh(mesh):
            return evaluate(run, state, reference=reference, progress=Progress())["eval_loss"]

    going = evaluation_of(shift=0.5, shift_end=1.0)
    losses = [loss_of(going, after=step) for step in (0, 5, 10)]
    np.testing.assert_allclose(
        losses, [loss_of(evaluation_of(shift=shift), after=0) for shift in (0.5, 0.75, 1.0)], rtol=1e-5
    )
    assert len({round(loss, 3) for loss in losses}) == 3
    assert going.step._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_promote_no_dtype_silently(dtype):
    """When this fails, a float32 scalar or a bool has turned a bfloat16 array into a float32 one, or the reverse:
    memory doubles or digits are silently lost."""
    config = tiny.tiny_config(model={"dtype": dtype})
    spec, mesh = tiny.tiny_spec("gemma2"), tiny.mesh_of(1, 1, 1)
    plan = tiny.plan_of(
        GROUPS[:4],
        replace(config, train=replace(config.train, batch_size=4)),
        num_steps=1,
        row_length=128,
        num_shards=1,
    )
    losses = make_losses(config, spec, mesh)
    parameters = jax.tree.map(jnp.asarray, tiny.random_parameters(spec))
    batch = tiny.microbatch(GROUPS[:4], plan.steps[0], plan.shape)
    with jax.numpy_dtype_promotion("strict"):
        gradient = jax.eval_shape(
            jax.grad(lambda p: losses(p, parameters, batch, remat="full"), has_aux=True), parameters
        )[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
