"""The goal prompt: the sentence that asks a model for a score, and where in the conversation it is written.

Every sentence comes from a `GoalPrompt`: in training, in relabelled files, in exports and at generation. An exported
model keeps its own in rapo.json, so that it is later asked in the words it was trained on.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rapo_jax.borders import read_object, shaped
from rapo_jax.chat.templates import Placement, place_goal
from rapo_jax.config.tree import Relabel
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Message, Record
from rapo_jax.relabel import TEMPLATES, Goal, format_score, goal_text, template_complaint

SIDECAR = "rapo.json"
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
FEWEST_LETTERS = 8  # of a sentence that can be told from the beginning of a prompt


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

    def asks_like(self, other: "GoalPrompt") -> bool:
        """Whether both write the same sentence into the same turn for every goal."""
        same = (self.placement, self.goal_min, self.goal_max) == (other.placement, other.goal_min, other.goal_max)
        return same and self.pieces() == other.pieces()

    def pieces(self) -> list[tuple[str, int | None]]:
        """The sentence cut where it says a goal: (text, None), or ("", index of the attribute).

        Found by asking for marks in place of goals, so that all words come from `sentence`.
        """
        fixed = f"{self.template} {self.goal_min} {self.goal_max}"
        free = (mark for start in itertools.count(98765) if format_score(mark := start + 0.03125) not in fixed)
        marks = tuple(itertools.islice(free, max(1, len(self.attributes))))
        sentence = self.sentence(marks if self.attributes else marks[0], source="{source}")
        assert sentence is not None
        indices = {format_score(mark): index for index, mark in enumerate(marks)}
        parts = re.split(f"({'|'.join(map(re.escape, indices))})", sentence)
        return [("", indices[part]) if part in indices else (part, None) for part in parts if part]

    def pattern(self) -> re.Pattern[str] | None:
        """Matches the sentence as `place_goal` writes it, whatever its numbers and source; None for one of too few words."""
        text = "".join(text if index is None else "\0" for text, index in self.pieces())
        for end in (self.goal_min, self.goal_max):
            text = re.sub(rf"(?<![\d.]){re.escape(format_score(end))}(?![\d.]*\d)", "\0", text)
        if sum(map(str.isalpha, text.replace("{source}", ""))) < FEWEST_LETTERS:
            return None
        text = re.escape(text).replace("\0", NUMBER).replace(re.escape("{source}"), ".+?")
        return re.compile(f"{text}(?=\n\n|\\Z)")

    def recognise(self, conversations: Iterable[Sequence[Message]]) -> list[str | None]:
        """Of each conversation, the goal sentence that heads a system or user turn already; None where there is none.

        The sentence may be this prompt's or that of a preset, for any goal on any scale.
        """
        prompts = (self, *(replace(PAPER_GOAL_PROMPT, template=name) for name in TEMPLATES))
        patterns = [pattern for prompt in prompts if (pattern := prompt.pattern())]
        return [_first_match(patterns, messages) for messages in conversations]


def _first_match(patterns: Sequence[re.Pattern[str]], messages: Sequence[Message]) -> str | None:
    heads = (message.content for message in messages if message.role in ("system", "user"))
    matches = (pattern.match(head) for head in heads for pattern in patterns)
    return next((match[0] for match in matches if match), None)


@dataclass(frozen=True)
class Sidecar:
    """rapo.json: the version that exported a model, the optimizer step, and the model's goal prompt."""

    goal_prompt: GoalPrompt
    rapo_jax: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        complaint = template_complaint(self.goal_prompt.template, self.goal_prompt.attributes)
        if complaint:
            raise ValueError(complaint)


# For models that rapo did not export: the paper's sentence.
PAPER_GOAL_PROMPT = GoalPrompt(template="paper", goal_max=10, placement="system", baked=None, chat_template="")


def refuse_twice(goal_prompt: GoalPrompt, records: Sequence[Record]) -> None:
    """Raises UserError where prompts to which a goal would be written ask for one already."""
    sentences = goal_prompt.recognise(record.prompt for record in records)
    found = [(record.row, sentence) for record, sentence in zip(records, sentences, strict=True) if sentence]
    if found:
        row, sentence = found[0]
        raise UserError(
            f"{counted(len({row for row, _ in found}), 'row asks', 'rows ask')} for a goal already (the first: row {row}, ...{sentence[-40:]!r}), and a "
            "second sentence would be written; train on such data, as rapo relabel writes it, with relabel.goals=[], or give "
            "the data without goals."
        )


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
