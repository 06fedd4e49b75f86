"""HelpSteer: one response a row with five attributes from 0 to 4; the rows of a prompt become one record.

Source: Wang et al., "HelpSteer: Multi-attribute Helpfulness Dataset for SteerLM", 2023, and HelpSteer2, 2024.
"""

import re
from collections.abc import Mapping
from typing import Any

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.responses import Candidate, several
from rapo_jax.data.schemas.schema import FirstRow, Parsed, ReadOptions, Schema
from rapo_jax.data.values import finite_score, messages, present
from rapo_jax.messages import Message

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TURN_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # between the turns of a prompt


def read_helpsteer(values: Mapping[str, Any], columns: Columns, _: ReadOptions) -> Parsed:
    """The reward is the helpfulness, mapped from 0-4 onto 1-10."""
    text = present(values, columns.prompt)
    prompt = _marked_turns(text) if isinstance(text, str) else messages(text, columns.prompt)
    found = {name: finite_score(values.get(name), name) for name in ATTRIBUTES if name in values}
    reward = 1 + 9 * finite_score(values.get(columns.rewards), columns.rewards) / 4
    response = present(values, columns.response)
    return several(prompt, [Candidate(columns.response, response, reward, found)])


def _marked_turns(text: str) -> tuple[Message, ...]:
    """The turns between the marks; the first is the user's and has no mark."""
    first, *rest = TURN_MARK.split(text)
    turns = zip(rest[::2], rest[1::2], strict=True)
    return (Message("user", first), *(Message(speaker.lower(), content) for speaker, content in turns))


def has_helpfulness(first: FirstRow) -> bool:
    return first.has("response", "helpfulness")


def helpfulness(_: Columns) -> str:
    return "helpfulness 0-4 as 1-10"


HELPSTEER = Schema(
    name="helpsteer",
    meaning="response, helpfulness and four more attributes from 0 to 4 (HelpSteer)",
    read=read_helpsteer,
    detects=has_helpfulness,
    usual=Columns(prompt="prompt", response="response", rewards="helpfulness"),
    scores_from=helpfulness,
    merges_prompts=True,
)
