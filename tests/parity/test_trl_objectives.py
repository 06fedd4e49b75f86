"""Every loss that TRL has is TRL's: three steps on the same rows, the same metrics, the same weights.

KTO compares responses with answers to other prompts: TRL takes those of a device's microbatch, in turn, we those of the whole
source. The two agree where one microbatch is the whole source, in its order, which is what is compared.

Not compared, and why: TRL's `aot` and `aot_unpaired` sort a whole batch, so their loss is none of single pairs (not offered
here); its `sft`, and the likelihood terms of its CPO and ORPO, are means over the tokens of a microbatch (ORPO's prompt
included), ours are means over responses, so that packing and microbatches change nothing; `rewards/margins` of its KTO is the
mean over desirable responses minus that over undesirable ones, ours the mean over rows that have both (none of these);
its RewardTrainer drops what is longer than max_length, we cut it (nothing here is), and leaves the embedding of the padding
token as it was, which matters where texts have that token (none here has).
"""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl

from rapo_jax.batching.pipeline import read_part
from rapo_jax.data.relabelled import relabel_records
from rapo_jax.export.preferences import as_rows
from tests.parity import trajectory
from tests.parity.test_trl import METRICS, in_order

NUM_STEPS, BATCH_SIZE = 3, 6
# A divergence is a difference of two log-probabilities of about -150, whose float32 spacing is 1.5e-5.
TOLERANCES = trajectory.TOLERANCES | {"kl": {"rtol": 1e-5, "atol": 1e-4}}
EPS = 1e-4  # far above rounding errors: Adam otherwise divides noise by noise where a gradient is nearly 0

# our objective section: TRL's name and settings
CASES = {
    "dpo": ({"name": "dpo", "beta": 0.1}, "sigmoid", {}),
    "hinge": ({"name": "hinge"}, "hinge", {}),
    "ipo": ({"name": "ipo", "average": True}, "ipo", {}),
    "exo_pair": ({"name": "exo_pair", "label_smoothing": 0.01}, "exo_pair", {"label_smoothing": 0.01}),
    "nca_pair": ({"name": "nca_pair"}, "nca_pair", {}),
    "robust_dpo": ({"name": "robust_dpo", "label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    "bco_pair": ({"name": "bco_pair"}, "bco_pair", {}),
    "sppo_hard": ({"name": "sppo_hard"}, "sppo_hard", {}),
    "apo_zero": ({"name": "apo_zero"}, "apo_zero", {}),
    "apo_down": ({"name": "apo_down"}, "apo_down", {}),
    "discopop": ({"name": "discopop"}, "discopop", {"discopop_tau": 0.05}),
    "sigmoid_norm": ({"name": "sigmoid_norm"}, "sigmoid_norm", {}),
}
REFERENCE_FREE = {
    "simpo": (
        {"name": "simpo", "beta": 2.0, "gamma": 0.5},
        "simpo",
        {"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    ),
    "cpo": ({"name": "cpo", "sft_weight": 0.0}, "sigmoid", {"beta": 0.1, "cpo_alpha": 0.0}),
}


def plain(directory):
    return {
        "output_dir": str(directory), "per_device_train_batch_size": BATCH_SIZE, "num_train_epochs": 1, "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "max_grad_norm": 0.0, "max_length": None, "adam_epsilon": EPS,
    }  # fmt: skip


def our_run(tmp_path, section, **sections):
    """A run of ours, and the rows that its steps took, in this order, as TRL reads them."""
    tree = {
        "run_dir": str(tmp_path / "run"),
        "model": {
            "path": str(trajectory.write_model(tmp_path / "model", "llama")),
            "dtype": "float32",
            "attention": "einsum",  # compiles fastest; losses do not see the kernel
        },
        "data": {"path": str(trajectory.write_rows(tmp_path / "rows.jsonl", 9))},
        "objective": section,
        "optimizer": {"learning_rate": 1e-3, "eps": EPS, "schedule": "constant", "warmup_ratio": 0.0},
        "train": {"batch_size": BATCH_SIZE, "max_steps": NUM_STEPS},
        "relabel": {"template": "Answer as one who scores {goal} of {goal_max}."},  # short: TRL repeats it
        "rows": {"length": 192, "per_shard": BATCH_SIZE},
    }
    for name, changes in sections.items():
        tree[name] = tree.get(name, {}) | changes
    ours = trajectory.run(tree)
    rows = rows_of(ours)
    assert len(rows) == len(ours.groups), "group i must come from line i"
    return ours, [rows[member] for step in ours.steps for member in step]


def rows_of(ours):
    """What `rapo relabel` writes of a run's data, row by row."""
    config, goal_prompt = ours.setup.config, ours.setup.goal_prompt
    relabelled, _ = relabel_records(read_part(config, "train").records, config)
    return [row for one in relabelled for row in as_rows(one, config, goal_prompt=goal_prompt)]


def load(model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")


def assert_same_run(ours, trainer, metrics, *, size=1.0):
    """`metrics` are names, or pairs of our name and TRL's; `size` is how much larger losses and gradients are than those of
    the sigmoid family."""
    trainer.train()
    theirs = [step for step in trainer.state.log_history if "loss" in step]
    assert len(theirs) == NUM_STEPS
    for metric in metrics:
        metric, name = (metric, metric) if isinstance(metric, str) else metric
        start = 1 if metric == "rewards/accuracies" else 0  # margins are 0 up to rounding until the first update
        mine, expected = [m[metric] for m in ours.metrics[start:]], [m[name] for m in theirs[start:]]
        tolerance = dict(TOLERANCES.get(metric, {"rtol": 1e-6}))
        tolerance["atol"] = tolerance.get("atol", 0) * size
        np.testing.assert_allclose(mine, expected, **tolerance, err_msg=metric)
    for name, tensor in trainer.model.named_parameters():
        np.testing.assert_allclose(ours.weights[name], tensor.detach().numpy(), rtol=1e-5, atol=5e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's
@pytest.mark.parametrize("case", CASES)
def test_losses_with_a_reference_are_those_of_trl(case, tmp_path):
    """When this fails, an objective under TRL's name trains another model here than there."""
    section, name, options = CASES[case]
    size = 10.0 if case in ("sppo_hard", "ipo") else 1.0
    ours, rows = our_run(tmp_path, section, optimizer={"eps": EPS * size})
    trainer = in_order(trl.DPOTrainer)(
        model=load(ours.setup.model_dir),
        ref_model=load(ours.setup.model_dir),
        args=trl.DPOConfig(
            **plain(tmp_path / "trl") | {"adam_epsilon": EPS * size}, loss_type=[name], beta=0.1, **options
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(ours.setup.model_dir),
    )
    assert_same_run(ours, trainer, METRICS, size=size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFERENCE_FREE)
def test_losses_without_a_reference_are_those_of_trl(case, tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # takes seconds, which every session would pay

    section, name, options = REFERENCE_FREE[case]
    ours, rows = our_run(tmp_path, section)
    settings = plain(tmp_path / "trl") | {"max_length": 2048}
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours.setup.model_dir)
    tokenizer.pad_token = tokenizer.eos_token = "<|eot|>"  # TRL would add another end after the turn's
    trainer = in_order(CPOTrainer)(
        model=load(ours.setup.model_dir),
        args=CPOConfig(**settings, loss_type=name, **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert_same_run(ours, trainer, ("loss", "grad_norm"))


def write_labelled(path):
    """Six responses and whether they are desirable, of unequal numbers, to prompts of their own."""
    labels, rows = [True, True, False, True, False, True], []
    pairs = [json.loads(line) for line in trajectory.write_rows(path, BATCH_SIZE).read_text().splitlines()]
    for label, pair in zip(labels, pairs, strict=True):
        completion = (pair["chosen"] if label else pair["rejected"])[-1:]
        rows.append({"prompt": pair["prompt"], "completion": completion, "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "weights", [{}, {"desirable_weight": 1.5, "undesirable_weight": 0.7}], ids=["plain", "weighted"]
)
def test_kto_on_a_batch_that_is_the_whole_source_is_that_of_trl(weights, tmp_path):
    """When this fails, labelled responses train another model here than there, or the divergence that they are compared with is
    of other answers."""
    section = {"name": "kto", "beta": 0.1} | weights
    source = {"path": str(write_labelled(tmp_path / "labelled.jsonl"))}
    ours, rows = our_run(tmp_path, section, data=source, relabel={"goals": []})
    in_source_order = rows_of(ours)
    for step in range(NUM_STEPS):
        each = slice(BATCH_SIZE * step, BATCH_SIZE * (step + 1))
        assert sorted(map(json.dumps, rows[each])) == sorted(map(json.dumps, in_source_order))
    trainer = trl.KTOTrainer(
        model=load(ours.setup.model_dir),
        ref_model=load(ours.setup.model_dir),
        args=trl.KTOConfig(
            **plain(tmp_path / "trl") | {"num_train_epochs": NUM_STEPS}, loss_type="kto", beta=0.1, **weights
        ),
        train_dataset=datasets.Dataset.from_list(in_source_order),
        processing_class=transformers.AutoTokenizer.from_pretrained(ours.setup.model_dir),
    )
    names = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "kl")
    assert_same_run(ours, trainer, names)
    assert max(step["kl"] for step in ours.metrics) > 0.01, "a divergence that is clamped to 0 would prove nothing"


def write_reward_model(directory, loudness=10.0):
    """transformers' classifier of one label on the tiny model, its fresh head made louder so that the layers move too.

    Its padding is a token that no text has: torch does not train the embedding of a padding token.
    """
    base = trajectory.write_model(directory.with_name("language_model"), "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token  # turns end with <|eot|>
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(base)
    config.update({"num_labels": 1, "pad_token_id": tokenizer.pad_token_id})
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, config=config)
    with torch.no_grad():
        model.score.weight *= loudness
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


REWARD_MODELS = {
    "plain": ({}, {}, 0.0),
    "centred": ({"centre_weight": 0.01}, {"center_rewards_coefficient": 0.01}, 0.0),
    "margins": ({"margin_weight": 0.3}, {}, 0.3),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REWARD_MODELS)
def test_reward_models_are_those_of_trl(case, tmp_path):
    """When this fails, a reward model trained here scores otherwise than TRL's from the same pairs, and with it everything that
    is relabelled by its scores."""
    section, options, margin = REWARD_MODELS[case]
    start = write_reward_model(tmp_path / "start")
    section = {"name": "bradley_terry"} | section
    ours, rows = our_run(tmp_path, section, model={"path": str(start)}, relabel={"goals": []})
    pairs = [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in rows]
    if margin:
        gaps = [row["score_chosen"] - row["score_rejected"] for row in rows]
        pairs = [pair | {"margin": margin * gap} for pair, gap in zip(pairs, gaps, strict=True)]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(start, attn_implementation="eager")
    trainer = in_order(trl.RewardTrainer)(
        model=model,
        args=trl.RewardConfig(**plain(tmp_path / "trl"), **options),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=transformers.AutoTokenizer.from_pretrained(start),
    )
    for seen, member in zip(trainer.train_dataset, [member for step in ours.steps for member in step], strict=True):
        group = ours.groups[member]
        whole = [[*group.prompt.tolist(), *response.tolist()] for response in group.responses]
        assert [seen["chosen_ids"], seen["rejected_ids"]] == whole
    assert_same_run(
        ours, trainer, ("loss", "grad_norm", ("rewards/margins", "margin"), ("rewards/accuracies", "accuracy"))
    )
