"""What was read, as it may be published: without the passwords and tokens of addresses, and in names only what UTF-8 can hold."""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

from rapo_jax.errors import masked
from rapo_jax.report.answers import Answer
from rapo_jax.report.inputs import Inputs
from rapo_jax.report.run_directory import RunRecord


def published(inputs: Inputs) -> Inputs:
    """The same, with every text `publishable`; prompts and answers keep their characters. Nothing that is shown is read before."""
    return safe(inputs)


def safe(value: Any) -> Any:
    match value:
        case str():
            return publishable(value)
        case Path():
            return Path(publishable(str(value)))
        case dict():
            return {safe(key): safe(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(safe, value))
        case Answer():
            kept = {"prompt": masked(value.prompt), "text": masked(value.text)}
            return dataclasses.replace(value, model=publishable(value.model), **kept)
        case RunRecord():
            records = tuple({name_of(key): x for key, x in record.items()} for record in value.records)
            own = {name: safe(getattr(value, name)) for name in ("name", "path", "config", "data")}
            return RunRecord(**own, records=records)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{each.name: safe(getattr(value, each.name)) for each in dataclasses.fields(value)})
    return value


def publishable(text: str) -> str:
    """A text that UTF-8 can hold, without passwords and tokens."""
    return masked(text).encode("utf-8", "replace").decode()


@lru_cache(maxsize=4096)
def name_of(metric: str) -> str:
    """A metric's name: there are few of them, in many records."""
    return publishable(metric)
