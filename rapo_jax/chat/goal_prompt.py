"""How a model is asked for a goal, remembered beside its exported weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from rapo_jax.chat.templates import Placement
from rapo_jax.relabel import goal_text

SIDECAR = "rapo.json"


@dataclass(frozen=True)
class GoalPrompt:
    """The sentence's template and place. `baked` is the goal that the exported chat template carries by itself, if any;
    `chat_template` is the template without it."""

    template: str
    goal_max: float
    placement: Placement
    baked: float | None
    chat_template: str
    goal_min: float = 1
    attributes: tuple[str, ...] = ()  # of which a goal has one number each; a single number is meant for all of them

    def sentence(self, goal: float | None) -> str | None:
        if goal is None:
            return None
        scale = {"goal_min": self.goal_min, "goal_max": self.goal_max}
        return goal_text(goal, template=self.template, attributes=tuple(self.attributes), **scale)


# For directories that rapo_jax did not export: the paper's sentence, placed wherever their template takes it.
DEFAULT_GOAL_PROMPT = GoalPrompt(template="paper", goal_max=10, placement="system", baked=None, chat_template="")


def read_goal_prompt(directory: Path) -> GoalPrompt | None:
    """What an exported directory says about its goals; None for any other directory."""
    path = Path(directory) / SIDECAR
    return GoalPrompt(**json.loads(path.read_text())["goal_prompt"]) if path.is_file() else None
