"""Twenty optimizer steps of ours are twenty optimizer steps of a plain torch loop that shares no code with us.

Ours packs several groups into a row, lays each prompt out once and sums over microbatches; torch takes one response per
sequence and one batch. Same tokens, same start, same order; float32 on both sides.
"""

import numpy as np
import pytest
import transformers

from rapo_jax.batch import CHOSEN_SIDE
from tests.parity import torch_dpo, trajectory
from tests.parity.torch_dpo import Pair, Recipe

NUM_STEPS, BATCH_SIZE, NUM_WARMUP, BETA = 12, 6, 2, 0.1


def configuration(directory, family: str, *, row_length: int, **sections) -> dict:
    """The resolved tree of a run on `family` and 24 made-up rows, both written to `directory`."""
    tree = {
        "run_dir": str(directory / "run"),
        "model": {"path": str(trajectory.write_model(directory / "model", family)), "dtype": "float32"},
        "data": {"path": str(trajectory.write_rows(directory / "rows.jsonl", 24, system_turns=family == "llama"))},
        "train": {"batch_size": BATCH_SIZE, "max_steps": NUM_STEPS},
        "relabel": {"template": "Answer as one who scores {goal} of {goal_max}."},  # short: torch repeats it
        "rows": {"length": row_length, "per_shard": 1},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return tree


def their_steps(ours: trajectory.Ours) -> list[list[Pair]]:
    """The pairs of each of our optimizer steps; a group with one response has no rejected one."""

    def pair(group) -> Pair:
        chosen, *rejected = (response.tolist() for response in group.responses)
        side = "chosen" if group.side == CHOSEN_SIDE else "rejected"
        return Pair(group.prompt.tolist(), chosen, rejected[0] if rejected else [], side)

    return [[pair(ours.groups[member]) for member in step] for step in ours.steps]


def torch_model(ours: trajectory.Ours):
    return transformers.AutoModelForCausalLM.from_pretrained(ours.setup.model_dir, attn_implementation="eager")


def assert_same_metrics(ours: list[dict], theirs: list[dict]) -> None:
    """Every metric that torch computed, at every step, those of one goal side included."""
    assert len(ours) == len(theirs)
    for name in sorted({name for step in theirs for name in step}):
        kind = name.removeprefix("goal_chosen/").removeprefix("goal_rejected/")
        mine, expected = ([step.get(name, np.nan) for step in steps] for steps in (ours, theirs))
        if kind == "rewards/accuracies":  # 0 or 1 for each pair: says nothing before the first update, at margins of 0
            np.testing.assert_array_almost_equal(mine[NUM_WARMUP:], expected[NUM_WARMUP:], err_msg=name)
        else:
            np.testing.assert_allclose(mine, expected, **trajectory.TOLERANCES[kind], err_msg=name)


def assert_same_weights(weights: dict[str, np.ndarray], model, start) -> None:
    expected = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, **trajectory.WEIGHTS, err_msg=name)
        moved = np.abs(tensor - start[name].detach().numpy()).max()
        assert moved > 1e-3, f"{name} hardly moved, so that agreement on it says nothing"


CASES = {
    # Rows of 256 are two tiles of the tiled attention, the others go through the einsum.
    "llama-as-the-paper": ("llama", 256, {"label_smoothing": 0.0}, {"schedule": "cosine"}),
    "llama-all-options": (
        "llama",
        300,
        {"label_smoothing": 0.3},
        {"schedule": "linear", "max_grad_norm": 1.0, "weight_decay": 0.1},
    ),
    "gemma2-smoothed-decayed": ("gemma2", 256, {"label_smoothing": 0.3}, {"schedule": "cosine", "weight_decay": 0.1}),
    "mistral-window-clipped": ("mistral", 200, {"label_smoothing": 0.0}, {"schedule": "linear", "max_grad_norm": 2.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_dpo_steps_are_those_of_a_plain_torch_loop(case, tmp_path):
    """When this fails, a run trains on another loss, gradient or schedule than its configuration says, and no reader of
    its curves can tell; every option that changes an update is in one of the cases."""
    family, row_length, objective, optimizer = CASES[case]
    ours = trajectory.run(
        configuration(
            tmp_path,
            family,
            row_length=row_length,
            model={"remat": "none"},
            objective=objective | {"beta": BETA},
            optimizer=optimizer | {"learning_rate": 1e-3},
        )
    )
    assert ours.plan.shape.M > 1 and ours.plan.shape.P > 1, "the point is microbatches and rows of several groups"
    model = torch_model(ours)
    recipe = Recipe(beta=BETA, num_warmup=NUM_WARMUP, learning_rate=1e-3, **objective, **optimizer)
    theirs = torch_dpo.train(model, their_steps(ours), recipe)
    assert len(theirs) == NUM_STEPS
    assert ours.metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    if recipe.max_grad_norm is not None:
        assert max(step["grad_norm"] for step in theirs) > recipe.max_grad_norm, "the clip must bind to be tested"
    assert_same_metrics(ours.metrics, theirs)
    assert_same_weights(ours.weights, model, dict(torch_model(ours).named_parameters()))


@pytest.mark.slow
def test_sft_minimises_the_mean_over_responses_of_their_mean_token_loss(tmp_path):
    """When this fails, long answers weigh more (or less) than short ones in an SFT run, and its loss is not comparable
    to anyone's: each response should count once, as the mean over its own tokens."""
    tree = configuration(
        tmp_path,
        "llama",
        row_length=128,
        objective={"name": "sft"},
        relabel={"goals": []},
        optimizer={"learning_rate": 1e-3},
        train={"max_steps": 5},
    )
    ours = trajectory.run(tree)
    assert ours.plan.shape.M > 1 and ours.plan.shape.P > 1 and ours.plan.shape.C == 1
    model, recipe = torch_model(ours), Recipe(objective="sft", num_warmup=1, learning_rate=1e-3)
    assert_same_metrics(ours.metrics, torch_dpo.train(model, their_steps(ours), recipe))
    assert_same_weights(ours.weights, model, dict(torch_model(ours).named_parameters()))
