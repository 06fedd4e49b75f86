"""What a scorer is: prompts and their responses in, a reward for every response out, by whatever gives it.

A scorer keeps what it has computed in a directory of its own as it goes, so that the same call after an interruption
goes on. How its rewards are written for training is in responses.py, which scorers there are in scorers.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh

from rapo_jax.config.tree import Config
from rapo_jax.data.values import BadRow, finite_score
from rapo_jax.errors import UserError, counted, masked, shown
from rapo_jax.messages import Record
from rapo_jax.servers.access import Access

MakeMesh = Callable[[], Mesh]
Origin = dict[str, str | float]


@dataclass(frozen=True)
class RowScores:
    """The scores of one row's responses, in their order: rewards, named attributes of each if there are any, and further
    columns of the file."""

    rewards: tuple[float, ...]
    attributes: tuple[dict[str, float], ...] | None = None
    more: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def as_line(self, row: int) -> dict[str, Any]:
        """The line of a file of scores."""
        attributes = {} if self.attributes is None else {"attributes": self.attributes}
        return {"row": row, "rewards": self.rewards, **attributes, **self.more}


@runtime_checkable
class Scorer(Protocol):
    """(prompts, responses) -> rewards, attributes. A record is a prompt with its responses."""

    @property
    def kind(self) -> str:
        """The first word of `origin`, of which a directory of partial results is."""
        ...

    @property
    def origin(self) -> Origin:
        """What the scores come from, as it is written beside them."""
        ...

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        """The scores of every record, in their order. `kept` is an empty directory, or one that an interrupted call for the
        same records left. Raises Interrupted or KeyboardInterrupt with what was computed in `kept`, and UserError.
        """
        ...


@dataclass(frozen=True)
class JudgeOptions:
    """How a language model is asked. `key` is its server's, which is never printed; `key_from` is where it comes from."""

    url: str
    model: str
    key: str = ""
    key_from: str = "OPENAI_API_KEY"
    compare: bool = False
    concurrency: int = 8
    timeout: float = 120.0
    max_tokens: int = 1024
    cache: Path = Path("judge_cache.jsonl")

    @property
    def access(self) -> Access:
        """How its server is reached."""
        return Access(self.url, self.model, self.key, self.key_from, self.concurrency, self.timeout)


@dataclass(frozen=True)
class ScoreRequest:
    """What the options of `rapo score` ask for. The scorer is that of the model's own kind where it has no name.

    write: further columns of the file.
    patience: seconds that a program may write nothing, if not so many as it may by itself.
    """

    scorer: str = ""
    model: str = ""
    reference: str | None = None
    step: int | None = None
    write: tuple[str, ...] = ()
    patience: float | None = None
    judge: JudgeOptions | None = None


Opener = Callable[[Config, ScoreRequest, MakeMesh], Scorer]


def row_scores(values: Mapping[str, Any], num_responses: int) -> RowScores:
    """The scores that somebody else gave for one row. Raises BadRow for what is not so many finite numbers."""
    rewards, attributes = values.get("rewards"), values.get("attributes")
    if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != num_responses:
        raise BadRow("rewards", f"its rewards are {shown(rewards)} for {counted(num_responses, 'response')}")
    numbers = tuple(finite_score(value, f"rewards[{at}]") for at, value in enumerate(rewards))
    if attributes is None:
        return RowScores(numbers)
    named = isinstance(attributes, Sequence) and all(isinstance(each, Mapping) for each in attributes)
    if not named or len(attributes) != num_responses:
        raise BadRow(
            "attributes",
            f"its attributes are {shown(attributes)}, not {counted(num_responses, 'object')} of named numbers",
        )
    return RowScores(
        numbers,
        tuple(
            {str(key): finite_score(value, f"attributes[{at}].{key}") for key, value in each.items()}
            for at, each in enumerate(attributes)
        ),
    )


def plain(value: Any) -> Any:
    """A value that a user's own function gave, with lists and numbers of Python in the place of arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


COMMAND_SECRETS = (  # what a person gives a program to identify itself with: the value of an option or a variable, and well-known forms
    re.compile(
        r"(?i)((?<![\w-])(?:--?[\w-]*|\w*)(?:token|key|secret|password|passwd|pwd|credentials?|auth)=|"
        r"(?<![\w-])--?[\w-]*(?:token|key|secret|password|passwd|pwd|credentials?|auth)\s+|\bbearer\s+)"
        r"('[^']*'|\"[^\"]*\"|[^\s'\"]+)"
    ),
    re.compile(r"()\b((?:sk|pk|ghp|gho|xox[a-z])[-_][\w-]{8,})"),
)


def without_secrets(command: str) -> str:
    """A command for files and for the screen.

    >>> without_secrets("score.py --api-key abc --max-tokens 9 TOKEN=abc https://me:abc@host/x?key=abc")
    'score.py --api-key *** --max-tokens 9 TOKEN=*** https://***@host/x?key=***'
    """
    for pattern in COMMAND_SECRETS:
        command = pattern.sub(r"\1***", command)
    return masked(command)


def refuse_options(request: ScoreRequest, *, of: Sequence[str]) -> None:
    """Raises UserError for an option that the scorer of this name does not read; `of` are those that it reads."""
    given = {
        "--model": request.model,
        "--reference": request.reference,
        "--step": request.step is not None,
        "--write": request.write,
    }
    for option, value in given.items():
        if value and option not in of:
            raise UserError(f"--scorer={without_secrets(request.scorer)} does not read {option}; leave it out.")
