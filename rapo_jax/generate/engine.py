"""What samples: the protocol of engines. Ours is in own.py; a client of a server is another.

An engine gives samples as they finish, each under a key. It knows nothing of files: a caller stores what it gets, and tells
it what is known when a command is repeated.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int32

from rapo_jax.generate.sampling import Sampling
from rapo_jax.generate.store import Key, Sample
from rapo_jax.messages import Message


@dataclass(frozen=True)
class Question:
    """A prompt to be answered, and how its answers are drawn.

    `index` is its key, which samples carry and random numbers follow from. `tokens` are what the model continues. `messages`
    and `tools` are the same prompt for an engine that applies the chat template itself: the goal is written into them.
    """

    index: int
    tokens: Int32[np.ndarray, " _"]
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    tools: str = ""


@dataclass(frozen=True)
class Drawn:
    """What an engine has done since it last said so: samples that finished, the number of new tokens, those of unfinished
    samples included, the seconds of it that went into compiling, and how many samples it draws at once."""

    samples: list[Sample]
    num_tokens: int
    compiling: float = 0.0
    at_once: int = 1


class Engine(Protocol):
    def sample(
        self, questions: Sequence[Question], *, num_samples: int, known: Collection[Key] = ()
    ) -> Iterator[Drawn]:
        """Draws samples 0 to num_samples - 1 of every question but those that are `known`, and yields every second or so.

        Which samples finish first is not said. What a sample is depends on its question and its number, never on the other
        questions or on what is known. An engine may be closed in the middle: what was yielded is whole.
        """
        ...
