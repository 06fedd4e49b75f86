"""What every family must do, whole: RA-DPO steps as torch's, adapters as peft's, greedy answers as transformers', and one result
on one device and on eight.

The suite takes the families whose switches the other tests leave out of whole steps. All of them:

    bash tests/run.sh --every-family tests/parity/test_every_family.py
"""

import jax
import numpy as np
import pytest
import torch

from rapo_jax.config.files import from_dict
from rapo_jax.generate.decode import Sampling, decode
from rapo_jax.models.files import load_parameters
from rapo_jax.models.peft import adapter_tensors, save_adapters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.runs.setup import set_up, starting_parameters
from rapo_jax.train.state import trainable
from tests import tiny
from tests.parity import torch_dpo, trajectory
from tests.parity.test_peft import base_model, with_adapter
from tests.parity.test_torch_training import assert_same_metrics, their_steps
from tests.parity.torch_dpo import Recipe
from tests.tiny.families import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # from other libraries

IN_THE_SUITE = {"granite4", "phi3-longrope"}
assert FAMILIES.keys() >= IN_THE_SUITE
NUM_STEPS = 3
# With eps far above rounding errors: Adam otherwise divides noise by noise where a gradient is nearly 0.
RECIPE = Recipe(beta=0.1, learning_rate=1e-2, schedule="linear", eps=1e-3)
NUM_PROMPTS, NUM_NEW = 20, 16


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        every = metafunc.config.getoption("every_family")
        metafunc.parametrize("family", [name for name in FAMILIES if every or name in IN_THE_SUITE])


def configuration(directory, family: str, **sections) -> dict:
    """Three RA-DPO steps of six groups; the goal stands in what is tokenized."""
    return {
        "run_dir": str(directory / "run"),
        "model": {"path": str(trajectory.write_model(directory / "model", family)), "dtype": "float32"},
        "data": {"path": str(trajectory.write_rows(directory / "rows.jsonl", 9, system_turns=False))},
        "objective": {"beta": 0.1},
        "train": {"batch_size": 6, "max_steps": NUM_STEPS},
        "relabel": {"template": "Answer as one who scores {goal} of {goal_max}."},
        "rows": {"length": 256, "per_shard": 1},
        "optimizer": {"learning_rate": 1e-2, "warmup_ratio": 0.0, "schedule": "linear", "eps": 1e-3},
    } | sections


def named(model) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def assert_moved_alike(ours: dict, theirs: dict, start: dict) -> None:
    """Every tensor moved, and to the same place within a thousandth of how far it moved."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        moved = np.abs(tensor - start[name]).max()
        assert moved > 1e-4, name
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-3 * moved, err_msg=name)


def test_reward_augmented_steps_are_those_of_a_plain_torch_loop(family, tmp_path):
    """When this fails, a family's forward pass is right and what it is trained to is not."""
    ours = trajectory.run(configuration(tmp_path, family))
    model, start = (base_model(ours.setup.model_dir) for _ in range(2))
    theirs = torch_dpo.train(model, their_steps(ours), RECIPE)
    assert {side for step in their_steps(ours) for side in (pair.side for pair in step)} == {"chosen", "rejected"}
    assert_same_metrics(ours.metrics, theirs)
    assert_moved_alike(ours.weights, named(model), named(start))


def test_steps_of_adapters_are_those_of_peft(family, tmp_path):
    """When this fails, adapters of this family have another place, shape or gradient than peft gives them."""
    tree = configuration(tmp_path, family, lora={"rank": 4, "alpha": 12.0})
    setup = set_up(from_dict(tree))
    (tmp_path / "start").mkdir()
    first = trainable(starting_parameters(setup), setup.spec, setup.mesh, seed=0)
    save_adapters(first, setup.spec, tmp_path / "start", base=tree["model"]["path"])
    ours = trajectory.run(tree)
    model = with_adapter(base_model(setup.model_dir), tmp_path / "start", is_trainable=True)
    keep_blocks(model, dict(adapter_tensors(jax.device_put(tiny.random_trained(setup.spec, seed=2)), setup.spec)))
    theirs = torch_dpo.train(model, their_steps(ours), RECIPE)
    assert_same_metrics(ours.metrics, theirs)
    expected = {name.replace(".default", ""): tensor for name, tensor in named(model).items() if ".lora_" in name}
    assert_moved_alike(ours.weights, expected, dict(adapter_tensors(first, setup.spec)))


def keep_blocks(model, filled: dict[str, np.ndarray]) -> None:
    """Lets peft train what ours trains: of a stacked matrix (Phi-3's qkv_proj) its parts have adapters of their own, which
    peft holds as one of more ranks; what is 0 in it for ever would be trained there."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mask = torch.tensor(filled[name.replace(".default", "")] != 0, dtype=torch.float32)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def test_greedy_answers_are_those_of_transformers(family, tmp_path):
    """When this fails, what is generated from a checkpoint of this family is not what everyone else gets from it."""
    directory = trajectory.write_model(tmp_path / "model", family, loudness=2.0)
    spec, mesh = spec_from_config(read_config(directory)), tiny.mesh_of(1, 1, 1)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, spec.V, length).astype(np.int32) for length in random.integers(2, 60, NUM_PROMPTS)]
    answers = decode(
        load_parameters(directory, spec, mesh=mesh),
        spec,
        prompts,
        sampling=Sampling(max_new_tokens=NUM_NEW),
        stop_tokens=(),
        mesh=mesh,
        batch_size=NUM_PROMPTS,
    )
    ours = {index: answer.tokens for index, answer in answers}
    assert len({token for tokens in ours.values() for token in tokens}) > NUM_PROMPTS, "one token repeated says nothing"
    model = base_model(directory)
    model.generation_config.eos_token_id = None
    for index, prompt in enumerate(prompts):
        ids = torch.tensor(prompt[None], dtype=torch.long)
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0)  # fmt: skip
        assert ours[index] == whole[0, len(prompt) :].tolist(), f"prompt {index} of {len(prompt)} tokens"


def test_eight_devices_compute_what_one_does(family):
    """When this fails, a norm, a multiplier or a stacked matrix of this family is computed from a part of its numbers."""
    spec = tiny.tiny_spec(family)
    sizes = (2, 2, 2) if spec.K % 2 == 0 else (2, 4, 1)
    groups = tiny.random_groups(8, seed=3)
    alone, together = (
        tiny.train_steps(tiny.tiny_config(), spec, tiny.mesh_of(*each), groups, num_steps=1)
        for each in ((1, 1, 1), sizes)
    )
    tiny.assert_same_metrics(alone.metrics, together.metrics, atol=5e-6, rtol=2e-5)
    tiny.assert_same_trees(
        jax.device_get(alone.state.parameters), jax.device_get(together.state.parameters), atol=5e-6, rtol=1e-5
    )
