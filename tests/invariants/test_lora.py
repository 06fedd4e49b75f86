"""Adapters are trained over weights that nobody touches, and are the same model however one looks at them."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.batching.batch_plan import materialise
from rapo_jax.errors import UserError
from rapo_jax.generate.decode import Sampling, decode
from rapo_jax.matrices import MATRICES
from rapo_jax.models.lora import adapted_spec, merged, with_adapters
from rapo_jax.models.parameters import parameter_letters, trained_letters
from rapo_jax.parallel import my_rows, num_row_shards, to_device
from rapo_jax.train.losses import make_losses
from rapo_jax.train.optim import adamw
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import first_state, trainable
from rapo_jax.train.step import make_train_step
from tests import tiny
from tests.tiny import runs

CONFIG = tiny.tiny_config(
    train={"batch_size": 12}, model={"attention": "einsum"}
)  # compiles fastest; adapters do not see it
GROUPS = tiny.random_groups(36, prompt=(9, 50))


def first_step(config, spec, mesh, *, base_seed=0):
    """(base, metrics) of one optimizer step from where a run starts: adapters of no effect."""
    config = replace(config, train=replace(config.train, batch_size=12))
    plan = tiny.plan_of(GROUPS[:12], config, num_steps=1, row_length=128, num_shards=num_row_shards(mesh))
    weights = tiny.on_mesh(tiny.random_parameters(spec, seed=base_seed), spec, mesh)
    base = resident_reference(weights, config, spec, mesh)
    trained = trainable(weights, spec, mesh, seed=config.seed)
    state = first_state(trained, spec, mesh, adamw(config.optimizer, spec))
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=1)
    batch = materialise(GROUPS, plan.steps[0], plan.shape, mine=my_rows(mesh, plan.shape.B))
    with jax.set_mesh(mesh):
        _, metrics = step(state, base, to_device(batch, mesh, plan.shape.B))
    return base, {name: np.asarray(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("family", "remat", "dtype"),
    [("llama3", "none", "float32"), ("gemma2", "full", "float32"), ("qwen2", "full", "bfloat16")],
)
@pytest.mark.slow
def test_the_first_loss_is_ln_2_and_no_weight_changes(family, remat, dtype):
    """When this fails, a run starts from another model than its reference, or its reference moves along with it."""
    config, spec = tiny.with_lora(replace(CONFIG, model=replace(CONFIG.model, remat=remat, dtype=dtype)), family)
    base, metrics = first_step(config, spec, tiny.mesh_of(1, 1, 1))
    assert metrics["loss"] == np.float32(np.log(2))
    assert metrics["rewards/margins"] == 0 and metrics["grad_norm"] > 0
    before = jax.tree.map(lambda x: jnp.asarray(x, dtype), tiny.random_parameters(spec))
    tiny.assert_same_trees(*(jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (base, before)), atol=0)


def test_an_objective_without_a_reference_trains_adapters_too():
    """When this fails, LoRA is an option of DPO alone."""
    config, spec = tiny.with_lora(
        tiny.tiny_config(objective={"name": "sft", "beta": None}, relabel={"goals": []}), "llama3"
    )
    base, metrics = first_step(config, spec, tiny.mesh_of(1, 1, 1))
    assert jax.tree.structure(base) == jax.tree.structure(tiny.random_parameters(spec))
    assert metrics["grad_norm"] > 0 and metrics["skipped"] == 0


@pytest.mark.parametrize(
    ("family", "remat", "scan"),
    [
        ("llama3", "full", True),
        ("llama3.2-tied", "none", True),
        ("llama-biases", "attention", True),
        ("mistral-v0.1-window", "full", True),
        ("gemma2", "full", False),
        ("qwen2", "none", False),
        ("gemma3", "attention", True),
        ("olmo2", "none", False),
    ],
)
@pytest.mark.slow
def test_gradients_of_adapters_are_those_through_the_merged_weights(family, remat, scan):
    """When this fails, adapters train on another gradient than that of their product: W + scale * A B, differentiated
    as the full weights are."""
    scanned = replace(CONFIG, model=replace(CONFIG.model, scan_layers=scan))
    config, spec = tiny.with_lora(scanned, family, alpha=5.0, rslora=family in ("qwen2", "llama3.2-tied"))
    batch = tiny.microbatch(GROUPS[:4], *tiny.one_group_a_row(GROUPS[:4], row_length=128))
    mesh = tiny.mesh_of(1, 1, 1)
    base, trained = jax.tree.map(jnp.asarray, (tiny.random_parameters(spec), tiny.random_trained(spec, seed=1)))
    adapted, full = make_losses(config, spec, mesh), make_losses(CONFIG, spec.base, mesh)

    def through_the_weights(trained):
        return full(merged(base, trained, spec), base, batch, remat="none")

    theirs, _ = jax.jit(jax.grad(through_the_weights, has_aux=True))(trained)
    ours, _ = jax.jit(jax.grad(lambda t: adapted(t, base, batch, remat=remat), has_aux=True))(trained)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    tiny.assert_same_trees(ours, theirs, atol=2e-6 * scale, rtol=2e-4)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(ours)) > 1e-3 * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_promote_no_dtype_silently(dtype):
    """When this fails, an adapter has turned bfloat16 activations into float32 ones: memory doubles and nothing says so."""
    config, spec = tiny.with_lora(tiny.tiny_config(model={"dtype": dtype}), "gemma2")
    batch = tiny.microbatch(GROUPS[:4], *tiny.one_group_a_row(GROUPS[:4], row_length=128))
    losses = make_losses(config, spec, tiny.mesh_of(1, 1, 1))
    base = jax.tree.map(lambda x: jnp.asarray(x, dtype), tiny.random_parameters(spec))
    loss = jax.grad(lambda t: losses(t, base, batch, remat="full"), has_aux=True)
    with jax.numpy_dtype_promotion("strict"):
        gradient = jax.eval_shape(loss, tiny.random_trained(spec, seed=1))[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_no_frozen_matrix_gets_a_gradient():
    """When this fails, LoRA computes and stores what it exists to save. The same search finds them in full training."""
    config, spec = tiny.with_lora(CONFIG, "llama3")
    base = tiny.random_parameters(spec)
    assert weight_shaped_products(config, spec, tiny.random_trained(spec, seed=1), base) == set()
    found = weight_shaped_products(CONFIG, spec.base, tiny.random_parameters(spec, seed=1), base)
    assert found == {"D x NH", "D x KH", "NH x D", "D x F", "F x D", "V x D"}


def weight_shaped_products(config, spec, trained, base):
    """Which matrices of the model are the shape of a matrix product anywhere in the compiled gradient."""
    batch = tiny.microbatch(GROUPS[:4], *tiny.one_group_a_row(GROUPS[:4], row_length=128))
    losses = make_losses(config, spec, tiny.mesh_of(1, 1, 1))
    grad = jax.jit(jax.grad(lambda t, b: losses(t, b, batch, remat="none"), has_aux=True))
    lines = [line for line in grad.lower(trained, base).compile().as_text().splitlines() if " dot(" in line]
    size = lambda letters: int(np.prod([getattr(spec, c) for c in letters]))  # noqa: E731
    return {
        f"{rows} x {columns}"
        for rows, columns in {*((m.inputs, m.outputs) for m in MATRICES.values()), ("V", "D")}
        for shape in (f"[{size(rows)},{size(columns)}]", f"[{size(columns)},{size(rows)}]")
        if any(f" = f32{shape}" in line for line in lines)
    }


@functools.cache
def one_device(family, *, config=CONFIG):
    config, spec = tiny.with_lora(config, family)
    return tiny.train_steps(config, spec, tiny.mesh_of(1, 1, 1), GROUPS)


@pytest.mark.parametrize("family", ["gemma2", "llama3"])
@pytest.mark.slow
def test_one_device_and_eight_devices_take_the_same_three_steps(family):
    """When this fails, a gradient of an adapter is summed twice, or not over all devices."""
    config, spec = tiny.with_lora(CONFIG, family)
    alone, together = one_device(family), tiny.train_steps(config, spec, tiny.mesh_of(2, 2, 2), GROUPS)
    tiny.assert_same_metrics(alone.metrics, together.metrics, atol=2e-6, rtol=1e-5)
    tiny.assert_same_trees(alone.state.parameters, together.state.parameters, atol=1e-5)
    before = jax.tree.leaves(tiny.random_trained(spec, seed=1))
    after = jax.tree.leaves(alone.state.parameters)
    assert min(float(jnp.abs(a - b).max()) for a, b in zip(after, before, strict=True)) > 1e-3


@pytest.mark.slow
def test_what_is_recomputed_and_microbatches_change_no_step():
    """When this fails, a memory setting changes the training."""
    split = replace(CONFIG, rows=replace(CONFIG.rows, per_shard=4), model=replace(CONFIG.model, remat="none"))
    whole, parts = one_device("llama3"), one_device("llama3", config=split)
    tiny.assert_same_metrics(whole.metrics, parts.metrics, atol=2e-6, rtol=1e-5)
    tiny.assert_same_trees(whole.state.parameters, parts.state.parameters, atol=5e-6)


def test_the_cache_of_generation_sees_the_adapters():
    """When this fails, a policy that is sampled while it trains is not the policy."""
    _, spec = tiny.with_lora(CONFIG, "gemma2")
    base, trained = tiny.random_parameters(spec), tiny.random_trained(spec, seed=1)
    prompts = [np.arange(3, 30, dtype=np.int32), np.arange(40, 49, dtype=np.int32)]
    options = {"sampling": Sampling(max_new_tokens=8), "stop_tokens": [], "mesh": tiny.mesh_of(1, 1, 1)}
    adapted = list(decode(with_adapters(base, trained), spec, prompts, **options))
    assert adapted == list(decode(merged(base, trained, spec), spec.base, prompts, **options))
    assert adapted != list(decode(base, spec.base, prompts, **options))


def test_only_what_is_asked_for_is_trained():
    """When this fails, a run trains more than its configuration says, or its weights are counted as trained."""
    _, spec = tiny.with_lora(CONFIG, "llama3", targets=["down", "q"])
    assert list(trained_letters(spec)) == [("blocks", f"{name}_lora_{side}") for name in ("q", "down") for side in "ab"]
    assert parameter_letters(spec) == parameter_letters(spec.base) == trained_letters(spec.base)


def test_a_rank_that_is_not_low_is_refused():
    spec = tiny.tiny_spec("llama3")
    with pytest.raises(UserError) as caught:
        adapted_spec(spec, rank=20, alpha=None, targets=["q", "k", "up"], rslora=False)
    assert str(caught.value) == (
        "lora.rank=20 exceeds the smaller dimension of k (32 x 16); lower lora.rank to 16 or less, or take them out of "
        "lora.targets."
    )


# Whole runs.

LORA = ("lora.rank=4", "optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def lora_run(world, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    assert tiny.rapo(*world.train(run_dir, *LORA)) == runs.DONE
    return run_dir


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_and_their_moments_alone(lora_run):
    """When this fails, every checkpoint of an 8B model is a hundred gigabytes again."""
    arrays = runs.arrays_of(lora_run)
    kept = {name.split(".")[-1] for name in arrays if "blocks" in name}
    assert kept == {f"{name}_lora_{side}" for name in MATRICES for side in "ab"}
    assert not [name for name in arrays if "embed" in name or "norm" in name]
    losses = [step["loss"] for step in runs.metrics_of(lora_run)]
    assert losses[0] == pytest.approx(np.log(2), 1e-6) and max(abs(loss - losses[0]) for loss in losses) > 1e-3


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_for_bit(world, lora_run, tmp_path):
    """When this fails, N + N steps of adapters are not 2N."""
    run_dir = tmp_path / "run"
    assert tiny.rapo_until(5, world.train(run_dir, *LORA)) == runs.INTERRUPTED
    assert tiny.rapo(*world.train(run_dir, *LORA)) == runs.DONE
    runs.assert_same_run(run_dir, lora_run)


@pytest.mark.slow
def test_a_run_with_the_cache_has_the_metrics_of_one_that_computes_the_reference(world, lora_run, tmp_path):
    run_dir = tmp_path / "run"
    assert tiny.rapo(*world.train(run_dir, *LORA, f"reference.cache={tmp_path / 'cache'}")) == runs.DONE
    runs.assert_same_metrics(run_dir, lora_run, exact_ties=False)


@pytest.mark.slow
def test_a_run_from_random_weights_is_exported_merged_and_not_as_adapters(world, tmp_path, capsys):
    """When this fails, adapters are written for weights that no file holds."""
    run_dir = tmp_path / "run"
    assert tiny.rapo(*world.train(run_dir, *LORA, "model.random_init=true", "train.max_steps=1")) == runs.DONE
    assert tiny.rapo("export", run_dir, tmp_path / "out", "--adapter") == runs.USER_ERROR
    assert "started from random weights (model.random_init)" in capsys.readouterr().err
    assert tiny.rapo("export", run_dir, tmp_path / "out") == runs.DONE
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_adapters(world, lora_run, capsys):
    assert tiny.rapo(*world.train(lora_run, *LORA, "lora.alpha=3")) == runs.USER_ERROR
    assert "changed: lora.alpha (None -> 3.0)" in capsys.readouterr().err
    assert tiny.rapo(*world.train(lora_run, LORA[1])) == runs.USER_ERROR
    assert "lora.rank (4 -> None)" in capsys.readouterr().err
