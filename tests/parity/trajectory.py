"""Our side of a trajectory: tiny models and made-up rows on disk, and a run's steps one by one with all their metrics.

Everything between the files and the step is the code that `rapo train` runs; only the loop around it is written here,
so that a test sees the metrics of every step and the weights in between.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import torch
from jax.sharding import AxisType, Mesh

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, Group
from rapo_jax.config.files import from_dict
from rapo_jax.models.peft import adapter_tensors
from rapo_jax.parallel import AXES, matmul_precision, my_rows, num_row_shards, to_device
from rapo_jax.runs.setup import Setup, set_up, starting_parameters
from rapo_jax.train.optim import adamw
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import first_state, trainable
from rapo_jax.train.step import make_train_step
from tests.parity.test_transformers import random_checkpoint
from tests.tiny.chat_templates import SHAPES, build
from tests.tiny.families import FAMILIES, GEMMA2, LLAMA, MISTRAL, QWEN2
from tests.tiny.parameters import file_tensors

WORDS = "ash birch cedar elm fir gum hazel larch maple oak pine rowan spruce teak willow yew".split()
# Llama-3's template without line feeds: the simple tokenizer here merges them with what follows, as Llama-3's does not,
# and then TRL cuts the prompt's end off.
LLAMA3, *LLAMA3_TOKENS = SHAPES["llama3"]
# A model, and the template and special tokens that go with it. Windows (8) are shorter than any prompt.
MODELS = {
    "llama": (LLAMA, (LLAMA3.replace("\\n\\n", ""), *LLAMA3_TOKENS)),
    "gemma2": (GEMMA2, SHAPES["gemma"]),
    "mistral": (MISTRAL | {"sliding_window": 8}, SHAPES["mistral"]),
    "qwen2": (QWEN2, SHAPES["qwen"]),
}

# How near two float32 computations of one trajectory come. The log-probability of a response is a sum of about -150, whose
# float32 spacing is 1.5e-5; rewards are beta = 0.1 times the difference of two such, and a loss, where a goal side has one
# pair, inherits the error of that pair's margin. The largest differences seen are a third to a half of what is allowed.
TOLERANCES = {
    "loss": {"rtol": 1e-5, "atol": 5e-6},
    "logps/chosen": {"rtol": 2e-6, "atol": 0},
    "logps/rejected": {"rtol": 2e-6, "atol": 0},
    "rewards/chosen": {"rtol": 1e-5, "atol": 3e-5},
    "rewards/rejected": {"rtol": 1e-5, "atol": 3e-5},
    "rewards/margins": {"rtol": 1e-5, "atol": 3e-5},
    "grad_norm": {"rtol": 3e-5, "atol": 0},
    "learning_rate": {"rtol": 1e-6, "atol": 1e-9},  # of 1e-3 at its height
}
WEIGHTS = {"rtol": 1e-5, "atol": 2e-6}  # they move by 1e-3 and more


def write_model(directory: Path, name: str, *, dtype: torch.dtype = torch.float32, loudness: float = 1.0) -> Path:
    """A random model of MODELS or, with Qwen's template, of FAMILIES, and its tokenizer; deterministic. `loudness` multiplies the matrices of its layers: at 2
    they outweigh the embedding, so that greedy continuations do not just repeat their last token."""
    config, shape = MODELS.get(name) or (FAMILIES[name], SHAPES["qwen"])
    directory.mkdir(parents=True)
    tokenizer = build(*shape)
    config = config | {"vocab_size": 384, "max_position_embeddings": 1024}
    config |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = random_checkpoint(config, directory, dtype=dtype)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter *= loudness if parameter.ndim > 1 else 1.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_rows(path: Path, num_rows: int, *, system_turns: bool = True) -> Path:
    """Scored pairs of unequal lengths, some with a system turn, some of several turns; deterministic."""
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    rows = []
    for number in range(num_rows):
        prompt = [{"role": "user", "content": text(1, 8)}]
        if number % 4 == 1:
            prompt += [{"role": "assistant", "content": text(1, 4)}, {"role": "user", "content": text(1, 4)}]
        if number % 4 == 2 and system_turns:
            prompt = [{"role": "system", "content": text(1, 4)}, *prompt]
        chosen, rejected = text(1, 7), text(2, 9)
        scores = sorted(rng.choice(20, 2, replace=False) / 2 + 0.5)
        rows.append(
            {"prompt": prompt, "chosen": [*prompt, {"role": "assistant", "content": chosen}]}
            | {"rejected": [*prompt, {"role": "assistant", "content": rejected}]}
            | {"score_chosen": scores[1], "score_rejected": scores[0]}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Ours:
    """A run of ours. `steps[s]` are the groups of optimizer step s; `weights` are named as in a Hugging Face file, or as in
    one of peft where adapters were trained."""

    setup: Setup
    plan: BatchPlan
    groups: list[Group]
    metrics: list[dict[str, float]]
    weights: dict[str, np.ndarray]

    @property
    def steps(self) -> list[list[int]]:
        return [[member for row in rows for member in row] for rows in self.plan.steps]


def run(tree: dict) -> Ours:
    """Trains on one device as `rapo train` would with this configuration."""
    config = from_dict(tree)
    ones = (1,) * len(AXES)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(ones), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    setup = replace(set_up(config), mesh=mesh)
    data = pipeline.load_training(config, setup.tokenizer, goal_prompt=setup.goal_prompt)
    plan = pipeline.plan_training(data.groups, config, num_row_shards=num_row_shards(mesh))
    parameters = starting_parameters(setup)
    reference = resident_reference(parameters, config, setup.spec, mesh)
    state = first_state(
        trainable(parameters, setup.spec, mesh, seed=config.seed),
        setup.spec,
        mesh,
        adamw(config.optimizer, setup.spec),
    )
    step = make_train_step(config, setup.spec, mesh, plan.shape, num_steps=len(plan.steps))
    metrics = []
    with jax.set_mesh(mesh), matmul_precision(config.model.dtype):
        for batch in pipeline.batches(data.groups, plan, my_rows(mesh, plan.shape.B))(0):
            state, values = step(state, reference, to_device(batch, mesh, plan.shape.B))
            metrics.append({name: float(value) for name, value in jax.device_get(values).items()})
    if setup.spec.lora:
        weights = dict(adapter_tensors(state.parameters, setup.spec))
    else:
        weights = file_tensors(state.parameters, setup.spec, dtype=np.dtype(np.float32))
    return Ours(setup, plan, data.groups, metrics, weights)
