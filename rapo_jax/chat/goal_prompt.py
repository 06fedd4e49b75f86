"""The goal prompt: the sentence that asks a model for a score, and where in the conversation it is written.

Every sentence comes from a `GoalPrompt`: in training, in relabelled files, in exports and at generation. An exported
model keeps its own in rapo.json, so that it is later asked in the words it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rapo_jax.borders import read_object, shaped
from rapo_jax.chat.templates import Placement, place_goal
from rapo_jax.config.tree import Relabel
from rapo_jax.messages import Message
from rapo_jax.relabel import Goal, goal_text

SIDECAR = "rapo.json"


@dataclass(frozen=True)
class GoalPrompt:
    """A sentence template, the scale it names, and the turn it is written in.

    `baked` is the goal that an exported chat template asks for by itself, if any; `chat_template` is the template
    without it. `named_templates` are all templates of a tokenizer that has several, such as default and tool_use. With
    `attributes`, a goal is one number per attribute; a single number is repeated for each.
    """

    template: str
    goal_max: float
    placement: Placement
    baked: float | None
    chat_template: str
    goal_min: float = 1
    attributes: tuple[str, ...] = ()
    named_templates: dict[str, str] = field(default_factory=dict)

    def sentence(self, goal: Goal | None, *, source: str = "") -> str | None:
        """The sentence that asks for `goal`, or None where there is nothing to ask for.

        A template with {source} may condition on the row's source alone, without a goal.
        """
        if goal is None and not (source and "{source}" in self.template):
            return None
        return goal_text(
            goal,
            template=self.template,
            goal_min=self.goal_min,
            goal_max=self.goal_max,
            attributes=self.attributes,
            source=source,
        )

    def write(self, messages: Sequence[Message], goal: Goal | None, *, source: str = "") -> tuple[Message, ...]:
        """The conversation with the sentence in its place."""
        return place_goal(messages, self.sentence(goal, source=source), self.placement)


@dataclass(frozen=True)
class Sidecar:
    """rapo.json: the version that exported a model, the optimizer step, and the model's goal prompt."""

    goal_prompt: GoalPrompt
    rapo_jax: str = ""
    step: int = 0


# For models that rapo did not export: the paper's sentence.
PAPER_GOAL_PROMPT = GoalPrompt(template="paper", goal_max=10, placement="system", baked=None, chat_template="")


def configured_goal_prompt(options: Relabel, *, placement: Placement, chat_template: str) -> GoalPrompt:
    """The goal prompt of a run, from its configuration. Nothing is baked in before the export."""
    return GoalPrompt(
        template=options.template,
        goal_max=options.goal_max,
        placement=placement,
        baked=None,
        chat_template=chat_template,
        goal_min=options.goal_min,
        attributes=tuple(options.attributes),
    )


def read_goal_prompt(directory: Path) -> GoalPrompt | None:
    """The goal prompt of a directory that rapo exported; None for any other. Raises UserError for a damaged rapo.json."""
    path = Path(directory) / SIDECAR
    if not path.is_file():
        return None
    remedy = "export the model again, or use the version of rapo_jax that wrote it"
    return shaped(read_object(path, remedy=remedy), Sidecar, said=str(path), remedy=remedy).goal_prompt
