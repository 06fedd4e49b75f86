"""A model directory as `rapo export` leaves it, without the training."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.chat.templates import bake_goal
from tests import tiny

OWN = GoalPrompt("paper", 5.0, "system", 5.0, tiny.CHAT_TEMPLATE, goal_min=0.0)


def as_export(model: Path, directory: Path, goal_prompt: GoalPrompt = OWN) -> Path:
    """A copy of the model with a goal in its chat template, and rapo.json, which says so."""
    shutil.copytree(model, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sentence = goal_prompt.sentence(goal_prompt.baked)
    if sentence:
        tokenizer.chat_template = bake_goal(goal_prompt.chat_template, sentence, goal_prompt.placement)
    tokenizer.save_pretrained(directory)
    sidecar = {"rapo_jax": "0.1.0", "step": 8, "goal_prompt": vars(goal_prompt)}
    (directory / SIDECAR).write_text(json.dumps(sidecar))
    return directory
