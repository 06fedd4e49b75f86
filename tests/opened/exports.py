"""A model directory as `rapo export` leaves it, without the training."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from rapo_jax.chat.baking import baked_templates
from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.opened import ModelDirectory
from rapo_jax.parallel import make_mesh
from tests import tiny

OWN = GoalPrompt("paper", 5.0, "system", 5.0, tiny.CHAT_TEMPLATE, goal_min=0.0)


def as_export(model: Path, directory: Path, goal_prompt: GoalPrompt = OWN) -> Path:
    """A copy of the model with a goal in its chat template, and rapo.json, which says so."""
    shutil.copytree(model, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = baked_templates(goal_prompt)
    tokenizer.save_pretrained(directory)
    sidecar = {"rapo_jax": "0.1.0", "step": 8, "goal_prompt": vars(goal_prompt)}
    (directory / SIDECAR).write_text(json.dumps(sidecar))
    return directory


def closed(directory: Path) -> ModelDirectory:
    """A directory as a model that can be opened, on all devices."""
    return ModelDirectory(str(directory), directory, make_mesh(fsdp=-1))
