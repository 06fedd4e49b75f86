"""What samples: the protocol of engines. Ours is in own.py, the client of a server in served.py.

An engine gives samples as they finish, each under a key. It knows nothing of files: a caller stores what it gets, and tells
it what is known when a command is repeated.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from rapo_jax.generate.sampling import Sampling
from rapo_jax.generate.store import Key, Sample
from rapo_jax.messages import Message
from rapo_jax.servers.access import Access

Sends = Literal["tokens", "text", "chat"]


@dataclass(frozen=True)
class ServerOptions:
    """A server that samples in place of ours. `sends` is what a prompt is sent as: its token ids, their text, or messages to
    which the server applies its chat template."""

    access: Access
    sends: Sends = "tokens"


@dataclass(frozen=True)
class Question:
    """A prompt to be answered, and how its answers are drawn.

    `index` is its key, which samples carry and random numbers follow from. `tokens` are what the model continues. `messages`
    and `tools` are the same prompt for an engine that applies the chat template itself, to which `variables` are given: the
    goal is written into the messages, or is one of the variables. `sentence` is what asks for the goal, "" for nothing.
    """

    index: int
    tokens: Int32[np.ndarray, " _"]
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    tools: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = ""


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


@runtime_checkable
class OpenedEngine(Engine, Protocol):
    """An engine that reads no weights of MODEL_DIR."""

    def identity(self) -> dict[str, Any]:
        """What its samples belong to, by the names that a user knows."""
        ...
