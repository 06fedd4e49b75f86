"""Chat templates that ask for a goal by themselves: a prelude of Jinja code in front of a template, for exports.

The prelude rebinds `messages` and renders nothing; the template follows unchanged. It renders any messages as the template
renders them after `place_goal`, and a content that is a list of parts keeps its parts. The variable `goal` asks for another
goal at run time: `apply_chat_template(messages, goal=7)`, or {"chat_template_kwargs": {"goal": 7}} of a vLLM server.

The names that the prelude binds begin with rapo_, and it loops over no content: vLLM reads from the loops of a template
whether it takes parts.
"""

from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.jinja import literal
from rapo_jax.chat.templates import Placement
from rapo_jax.relabel import format_score

# A number as `format_score` writes it: 7.0 is 7, 7.5 is 7.5.
SAID = "(rapo_number | int | string if rapo_number == rapo_number | int else rapo_number | string)"
# From `rapo_own`, a content, to `rapo_content`, the content with the sentence at its head.
JOIN = (
    r"{%- if rapo_own is string -%}{%- set rapo_content = rapo_sentence ~ '\n\n' ~ rapo_own -%}"
    "{%- elif not rapo_own -%}{%- set rapo_content = rapo_sentence -%}"
    "{%- elif rapo_own[0]['type'] == 'text' -%}"
    r"{%- set rapo_content = [dict(rapo_own[0], text=rapo_sentence ~ '\n\n' ~ rapo_own[0]['text'])] + rapo_own[1:] -%}"
    r"{%- else -%}{%- set rapo_content = [{'type': 'text', 'text': rapo_sentence ~ '\n\n'}] + rapo_own -%}{%- endif -%}"
)
# trim_blocks removes the line feed that ends a prelude, so the template after it renders as if it came first.
PLACE: dict[Placement, str] = {
    "system": (
        "{%- if messages[0]['role'] == 'system' -%}{%- set rapo_own = messages[0]['content'] -%}"
        f"{JOIN}"
        "{%- set messages = [dict(messages[0], content=rapo_content)] + messages[1:] -%}"
        "{%- else -%}{%- set messages = [{'role': 'system', 'content': rapo_sentence}] + messages -%}{%- endif %}\n"
    ),
    "user": (
        "{%- set rapo_turns = namespace(placed=[], pending=true) -%}"
        "{%- for rapo_turn in messages -%}"
        "{%- if rapo_turns.pending and rapo_turn['role'] == 'user' -%}{%- set rapo_own = rapo_turn['content'] -%}"
        f"{JOIN}"
        "{%- set rapo_turn = dict(rapo_turn, content=rapo_content) -%}{%- set rapo_turns.pending = false -%}{%- endif -%}"
        "{%- set rapo_turns.placed = rapo_turns.placed + [rapo_turn] -%}"
        "{%- endfor -%}"
        "{%- set messages = rapo_turns.placed %}\n"
    ),
}


def baked_templates(goal_prompt: GoalPrompt) -> str | dict[str, str]:
    """The chat template of an export, or all of them by name where the tokenizer has several."""
    named = {name: bake_goal(template, goal_prompt) for name, template in goal_prompt.named_templates.items()}
    return named or bake_goal(goal_prompt.chat_template, goal_prompt)


def bake_goal(template: str, goal_prompt: GoalPrompt) -> str:
    """A chat template that asks for `goal_prompt.baked` or, at run time, for the variable `goal`.

    `goal` is a number or, where goals are of several attributes, also a mapping from some of their names to numbers; None
    is the baked one. The template raises an exception for anything else and for numbers outside the scale. Without a baked
    goal it is `template` itself.
    """
    if goal_prompt.sentence(goal_prompt.baked) is None:
        return template
    pieces = goal_prompt.pieces()
    code = "".join(
        number_said(index, goal_prompt) for index in sorted({index for _, index in pieces if index is not None})
    )
    sentence = " ~ ".join(literal(text) if index is None else f"rapo_said_{index}" for text, index in pieces)
    return f"{names_known(goal_prompt)}{code}{{%- set rapo_sentence = {sentence} -%}}{PLACE[goal_prompt.placement]}{template}"


def number_said(index: int, goal_prompt: GoalPrompt) -> str:
    """Code that sets rapo_said_INDEX to the goal as text."""
    assert goal_prompt.baked is not None
    given = "goal"
    if goal_prompt.attributes:
        given = f"goal[{literal(goal_prompt.attributes[index])}] if goal is mapping else goal"
    low, high = goal_prompt.goal_min, goal_prompt.goal_max
    complaint = (
        f"goal must be a number from {format_score(low)} to {format_score(high)}, on which the model was trained"
    )
    return (
        f"{{%- set rapo_said_{index} = {literal(format_score(goal_prompt.baked))} -%}}{{%- set rapo_goal = {given} -%}}"
        "{%- if rapo_goal is defined and rapo_goal is not none -%}"
        "{%- set rapo_number = none if rapo_goal is boolean else rapo_goal | float(none) -%}"
        f"{{%- if rapo_number is none or not (rapo_number >= {low} and rapo_number <= {high}) -%}}"
        f"{{{{- raise_exception({literal(complaint)}) -}}}}{{%- endif -%}}"
        f"{{%- set rapo_said_{index} = {SAID} -%}}"
        "{%- endif -%}"
    )


def names_known(goal_prompt: GoalPrompt) -> str:
    """Code that refuses names in a mapping of goals that are no attributes."""
    if not goal_prompt.attributes:
        return ""
    known = ", ".join(map(literal, goal_prompt.attributes))
    complaint = literal(f"goal names what is not one of {', '.join(goal_prompt.attributes)}")
    return (
        f"{{%- if goal is mapping and goal | reject('in', [{known}]) | list -%}}"
        f"{{{{- raise_exception({complaint}) -}}}}{{%- endif -%}}"
    )
