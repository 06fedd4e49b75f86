"""Our step is TRL's DPOTrainer's step: the same tokens from the relabelled file, the same metrics, the same weights."""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl

from rapo_jax.export.preferences import write_preferences
from tests.parity import trajectory

BETA, BATCH_SIZE = 0.1, 6
METRICS = (*trajectory.TOLERANCES, "rewards/accuracies")


def in_order(trainer_class):
    """A trainer that sees the rows in the order of its data set. trl imports a trainer where it is first named."""

    class InOrder(trainer_class):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def trainer_of(model_dir, rows: list[dict], directory, *, num_accumulated: int, **options):
    settings = trl.DPOConfig(
        output_dir=str(directory),
        beta=BETA,
        loss_type=["sigmoid"],
        max_length=None,
        per_device_train_batch_size=BATCH_SIZE // num_accumulated,
        gradient_accumulation_steps=num_accumulated,
        num_train_epochs=1,
        precompute_ref_log_probs=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")  # noqa: E731
    return in_order(trl.DPOTrainer)(
        model=load(),
        ref_model=load(),
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(model_dir),
    )


CASES = {
    "llama": ("llama", 12, 1, {"schedule": "cosine"}),
    "mistral-accumulated-clipped-decayed": (
        "mistral",
        8,
        2,
        {"schedule": "linear", "max_grad_norm": 1.0, "weight_decay": 0.1},
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from other libraries
@pytest.mark.parametrize("case", CASES)
def test_our_steps_are_those_of_trl_on_our_relabelled_file(case, tmp_path):
    """When this fails, a user who moves a run from TRL to us (or checks us against it) gets another model from the same
    pairs, or metrics under TRL's names that mean something else."""
    name, num_steps, num_accumulated, optimizer = CASES[case]
    tree = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(trajectory.write_model(tmp_path / "model", name)), "dtype": "float32"},
        "data": {"path": str(trajectory.write_rows(tmp_path / "rows.jsonl", 24, system_turns=name == "llama"))},
        "objective": {"beta": BETA},
        "optimizer": optimizer | {"learning_rate": 1e-3},
        "train": {"batch_size": BATCH_SIZE, "max_steps": num_steps},
        "relabel": {"template": "Answer as one who scores {goal} of {goal_max}."},  # short: TRL repeats it
        "rows": {"length": 192, "per_shard": 1},
    }
    ours = trajectory.run(tree)
    write_preferences(ours.setup.config, tmp_path / "pairs.jsonl", goal_prompt=ours.setup.goal_prompt)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == len(ours.groups), "group i must come from line i"
    order = [member for step in ours.steps for member in step]

    trainer = trainer_of(
        ours.setup.model_dir,
        [rows[member] for member in order],
        tmp_path / "trl",
        num_accumulated=num_accumulated,
        learning_rate=1e-3,
        warmup_steps=-(-num_steps // 10),
        lr_scheduler_type=optimizer["schedule"],
        weight_decay=optimizer.get("weight_decay", 0.0),
        max_grad_norm=optimizer.get("max_grad_norm", 0.0),
    )
    for seen, member in zip(trainer.train_dataset, order, strict=True):
        group = ours.groups[member]
        assert seen["prompt_ids"] == group.prompt.tolist()
        assert [seen["chosen_ids"], seen["rejected_ids"]] == [response.tolist() for response in group.responses]

    trainer.train()
    theirs = [step for step in trainer.state.log_history if "loss" in step]
    assert len(theirs) == num_steps
    if "max_grad_norm" in optimizer:
        assert max(step["grad_norm"] for step in theirs) > optimizer["max_grad_norm"], "the clip must bind"
    for metric in METRICS:
        start = 2 if metric == "rewards/accuracies" else 0  # margins are 0 up to rounding until the first update
        mine, expected = ([step[metric] for step in steps[start:]] for steps in (ours.metrics, theirs))
        tolerance = trajectory.TOLERANCES.get(metric, {"rtol": 1e-6})
        np.testing.assert_allclose(mine, expected, **tolerance, err_msg=metric)
    start = dict(transformers.AutoModelForCausalLM.from_pretrained(ours.setup.model_dir).named_parameters())
    for name, tensor in trainer.model.named_parameters():
        expected = tensor.detach().numpy()
        np.testing.assert_allclose(ours.weights[name], expected, **trajectory.WEIGHTS, err_msg=name)
        assert (tensor - start[name]).abs().max() > 1e-3, f"{name} hardly moved"
