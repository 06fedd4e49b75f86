"""Values that the user chooses for variables of a chat template, such as enable_thinking (`data.template_options`).

A template with options is the template behind a prelude that sets each variable where the caller gives none. Training,
generation, scoring and exports then write the same, and `apply_chat_template(messages, enable_thinking=True)` still decides
otherwise. trim_blocks removes the line feed between prelude and template.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rapo_jax.chat.dates import pin, pinned_day, unpinned
from rapo_jax.chat.jinja import literal, variables
from rapo_jax.errors import UserError, nearest

Options = Mapping[str, Any]

PRELUDE = re.compile(r"\{#- template options: (.*?) -#\}.*?\{#- end of the options #\}\n", re.DOTALL)


def options_of(template: str) -> dict[str, Any]:
    """The options of a template that has some."""
    found = PRELUDE.match(unpinned(template))
    return json.loads(found[1]) if found else {}


def without_options(template: str) -> str:
    """The template without the prelude of its options; its date stays."""
    bare, day = unpinned(template), pinned_day(template)
    bare = PRELUDE.sub("", bare, count=1) if PRELUDE.match(bare) else bare
    return pin(bare, day) if day else bare


def with_options(template: str, options: Options) -> str:
    """The template with these options besides its own, as far as it reads them; None leaves a variable to the template.

    Its date stays. Options that no template reads are for `refuse_unread`.
    """
    if not options:
        return template
    bare, day = unpinned(without_options(template)), pinned_day(template)
    read = variables(bare)
    chosen = {name: value for name, value in (options_of(template) | {**options}).items() if name in read}
    text = f"{prelude({name: value for name, value in chosen.items() if value is not None})}{bare}"
    return pin(text, day) if day else text


def prelude(options: Options) -> str:
    """Code that sets variables which are not given."""
    if not options:
        return ""
    # transformers gives None for documents that the caller does not give. Written as an escape, no # ends a comment.
    code = "".join(
        f"{{%- if {name} is undefined or {name} is none -%}}{{%- set {name} = {literal(value)} -%}}{{%- endif -%}}"
        for name, value in options.items()
    ).replace("#", r"\u0023")
    known = json.dumps({**options}).replace("#", r"\u0023")
    return f"{{#- template options: {known} -#}}{code}{{#- end of the options #}}\n"


def refuse_unread(templates: Sequence[str], options: Options, *, given: Collection[str], option: str) -> None:
    """Raises UserError for options, but None, that none of the templates reads. `given` are variables that the tokenizer gives them."""
    if not options:
        return
    known = set().union(*(variables(without_options(template)) for template in templates)) - set(given)
    for name, value in options.items():
        if name not in known and value is not None:
            hint = nearest(name, sorted(known)) if known else "it reads none that can be chosen."
            raise UserError(f"{option}: the chat template reads no variable {name!r}; {hint}")
