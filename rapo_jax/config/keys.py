"""Every configuration key by its dotted name: what `rapo keys` prints, and what a change of it affects."""

import dataclasses
import typing

from rapo_jax.config.fields import Affects, description
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config


def affects(dotted_key: str) -> Affects:
    """What a change of a key of `as_dict` changes about a run: "tokens", "arithmetic", "order" or "nothing".

    `lora.*` counts only where lora.rank is set. Keys of a mapping (data.source_weights.NAME) are those of its field,
    options of a loss (objective.beta) are arithmetic; data.sources[0].path is a key of the first entry. Raises KeyError
    for what is no key.

    >>> affects("optimizer.learning_rate"), affects("train.log_every")
    ('arithmetic', 'nothing')
    """
    cls = Config
    for part in dotted_key.split("."):
        part, bracket, _ = part.partition("[")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if cls is Objective and part not in fields:
            return "arithmetic"
        if part not in fields:
            raise KeyError(f"{dotted_key} is no configuration key")
        hint = typing.get_type_hints(cls)[part]
        hint = typing.get_args(hint)[0] if bracket and typing.get_args(hint) else hint
        if not dataclasses.is_dataclass(hint):
            return typing.cast(Affects, description(fields[part]).affects)
        cls = typing.cast(type, hint)
    raise KeyError(f"{dotted_key} is a section, not a key")
