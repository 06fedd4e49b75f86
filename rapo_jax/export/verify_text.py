"""Reads the tokenizer of an export back and checks that its chat template writes what the model was trained on."""

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rapo_jax.chat.bounds import bounded
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.rendering import CannotRender, render
from rapo_jax.chat.templates import first_difference, tokenize
from rapo_jax.errors import UserError
from rapo_jax.messages import Message

FIRST, ANSWER, LAST = Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "What is 2 + 2?")
BRIEF = Message("system", "Be brief.")
CONVERSATIONS = ((FIRST,), (FIRST, ANSWER), (FIRST, ANSWER, LAST), (BRIEF, FIRST), (BRIEF, FIRST, ANSWER, LAST))
SHOWN = 40  # characters of either text, around the first difference


def require_same_text(directory: Path, tokenizer: PreTrainedTokenizerBase, goal_prompt: GoalPrompt) -> None:
    """Raises UserError where the tokenizer in `directory`, read back, turns a conversation into other tokens than training.

    `tokenizer` is that of the training; its template asks for no goal. The goal is the baked one, and others that are
    given to the template as the variable `goal`. Conversations that the template refuses in training are left out.
    """
    written = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    for messages, goal in cases(goal_prompt):
        placed = goal_prompt.write(messages, goal_prompt.baked if goal is None else goal)
        with bounded():
            try:
                expected = render(tokenizer, placed)
            except CannotRender:  # a template without a system turn
                continue
            try:
                found = render(written, messages, **({} if goal is None else {"goal": goal}))
            except CannotRender as error:
                raise UserError(f"{directory}: its chat template, read back, cannot be rendered: {error}.") from error
        if tokenize(written, [found]) != tokenize(tokenizer, [expected]):
            raise other_text(directory, found, expected)


def cases(goal_prompt: GoalPrompt) -> Iterator[tuple[tuple[Message, ...], float | None]]:
    """Conversations, each with the value of the variable `goal`; None leaves it out."""
    yield from ((messages, None) for messages in CONVERSATIONS)
    if goal_prompt.baked is not None:
        middle = (goal_prompt.goal_min + goal_prompt.goal_max) / 2
        yield from ((CONVERSATIONS[-1], goal) for goal in (goal_prompt.goal_min, middle))
        yield (FIRST,), middle


def other_text(directory: Path, found: str, expected: str) -> UserError:
    begin = max(0, first_difference(found, expected) - SHOWN // 2)
    return UserError(
        f"{directory}: its chat template and tokenizer, read back, write ...{found[begin : begin + SHOWN]!r} where training "
        f"had ...{expected[begin : begin + SHOWN]!r}, or cut the same text into other tokens. Nothing was exported; leave "
        "the template as it is with --no-goal, or supply one that renders the same messages alike."
    )
