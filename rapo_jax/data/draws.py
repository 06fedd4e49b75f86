"""Pseudo-random numbers from a hash of prompt, seed and purpose: independent of row order and of the number of processes."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from rapo_jax.messages import Message, Record


def prompt_share(prompt: Sequence[Message], *, seed: int, purpose: str) -> float:
    """A number in [0, 1) for a prompt; the same wherever the prompt occurs."""
    return _share([[message.role, message.content] for message in prompt], seed=seed, purpose=purpose)


def record_share(record: Record, *, seed: int, purpose: str) -> float:
    """A number in [0, 1) for a prompt with its responses."""
    turns = [[message.role, message.content] for message in record.prompt]
    return _share([turns, list(record.responses)], seed=seed, purpose=purpose)


def _share(what: list[Any], *, seed: int, purpose: str) -> float:
    digest = hashlib.sha256(json.dumps([purpose, seed, what]).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
