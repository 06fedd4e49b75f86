"""Random numbers that depend on a prompt, a seed and a purpose alone: the same in any order, on any number of processes."""

import hashlib
import json
from collections.abc import Sequence

from rapo_jax.messages import Message, Record


def prompt_share(prompt: Sequence[Message], *, seed: int, purpose: str) -> float:
    """A number in [0, 1) for a prompt. The same prompt has the same number wherever it stands."""
    return _share([[message.role, message.content] for message in prompt], seed=seed, purpose=purpose)


def record_share(record: Record, *, seed: int, purpose: str) -> float:
    """A number in [0, 1) for a prompt with its responses."""
    turns = [[message.role, message.content] for message in record.prompt]
    return _share([turns, list(record.responses)], seed=seed, purpose=purpose)


def _share(what: list, *, seed: int, purpose: str) -> float:
    digest = hashlib.sha256(json.dumps([purpose, seed, what]).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
