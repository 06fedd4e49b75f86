"""What is said where a model that gives scores was prompted otherwise than the rows are that it scores."""

from rapo_jax.chat.dates import pinned_day, unpinned, writes_date
from rapo_jax.chat.options import options_of, without_options
from rapo_jax.config.tree import Config
from rapo_jax.errors import shown
from rapo_jax.opened import ClosedModel


def notes_of(scored: ClosedModel, *, written: str, reader: ClosedModel, config: Config) -> list[str]:
    """Sentences about how `scored` was prompted; `written` is the chat template of the rows, which is the configuration's or
    else that of `reader`."""
    own = scored.own_goal_prompt()
    if own is None:
        return []
    chosen = config.data.chat_template
    source = f"data.chat_template={chosen}" if chosen else f"that of {reader.name}"
    notes = []
    if bare(own.chat_template) != bare(written):
        remedy = (
            "leave data.chat_template out"
            if chosen and scored is reader
            else "give data.chat_template as in its training"
        )
        notes.append(
            f"{scored.name} has a chat template of its own, and the rows are rendered with {source}; {remedy} where that is "
            "not meant."
        )
    elif options_of(own.chat_template) != options_of(written):
        notes.append(
            f"{scored.name} has the template options {shown(options_of(own.chat_template))}, and the rows are rendered with "
            f"{shown(options_of(written))} (data.template_options)."
        )
    elif (day := pinned_day(own.chat_template)) and day != pinned_day(written) and writes_date(written):
        now = pinned_day(written) or "today's date"
        notes.append(
            f"{scored.name} was trained with the date {day}, and the rows are rendered with {now} (data.date={day})."
        )
    if own.baked is not None:
        notes.append(f"{scored.name} was trained with goals; its responses are scored without one.")
    return notes


def bare(template: str) -> str:
    """A chat template without the values of its options and its date."""
    return unpinned(without_options(template)).strip()
