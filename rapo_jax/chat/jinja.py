"""Chat templates as programs of Jinja: values written as literals, and the variables that a template reads."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2
from jinja2 import meta, nodes

from rapo_jax.errors import UserError, first_line

# Marks the assistant's text for transformers, and is no statement of Jinja's own.
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
# Functions, and what is given with every conversation.
GIVEN = {"raise_exception", "strftime_now", "messages", "tools", "add_generation_prompt", "goal"} | set(
    jinja2.Environment().globals
)


def literal(value: Any) -> str:
    """A text, number, boolean, None, list or mapping as a literal of Jinja.

    >>> literal({"a": [1, None, True], "b": "it's"})
    '{"a": [1, none, true], "b": "it\\'s"}'
    """
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if value is None:
        return "none"
    return json.dumps(
        value, ensure_ascii=False
    )  # of ASCII alone, Jinja would read surrogate pairs as broken characters


def variables(template: str) -> set[str]:
    """The variables that a template reads of those that a caller may choose to give, special tokens among them.

    Raises UserError for a template that is not Jinja.
    """
    code = GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template)
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(code)
        undeclared = meta.find_undeclared_variables(tree) - GIVEN
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f"the chat template cannot be read: {first_line(error)}.") from error
    # Jinja counts what is set in one branch and read after it; what a template sets before it reads it cannot be given.
    first = dict(reversed(list(mentions(tree))))
    return {name for name in undeclared if first.get(name) == "load"}


def mentions(node: nodes.Node) -> Iterator[tuple[str, str]]:
    """Every name in the order of the text, with "load" or "store"; a value comes before what it is assigned to."""
    if isinstance(node, nodes.Name):
        yield node.name, node.ctx
    children = [node.node, node.target] if isinstance(node, nodes.Assign) else node.iter_child_nodes()
    for child in children:
        yield from mentions(child)
