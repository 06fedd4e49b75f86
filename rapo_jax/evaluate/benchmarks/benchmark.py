"""What a benchmark is: where its questions are published, how they are read and sampled, and the formats of its answers and verdicts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rapo_jax.borders import shaped
from rapo_jax.data.files import FileRow
from rapo_jax.evaluate.result import Result

Typed = TypeVar("Typed")


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question: what is asked in each turn, under an id that no other has. `category` and `dataset` are "" where it has none."""

    id: str | int
    turns: tuple[str, ...]
    category: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class BenchmarkAnswer:
    """The answers of one model to the turns of a question."""

    question: BenchmarkQuestion
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """The file of the questions on the Hugging Face hub, and how many questions it has."""

    repository: str
    kind: Literal["dataset", "space"]
    file: str
    questions: tuple[int, ...]

    @property
    def place(self) -> str:
        return f"{self.file} of the {self.kind} {self.repository} on the Hugging Face hub"


@dataclass(frozen=True)
class Verdicts:
    """The file of a judge: its rows, and what messages call it."""

    path: Path
    rows: Sequence[FileRow]

    def picked(self, shape: type[Typed]) -> Iterator[Typed]:
        """Of every row, the fields that `shape` has; others are of no interest here. Raises UserError where one is missing."""
        names = [field.name for field in dataclasses.fields(shape)]  # pyright: ignore[reportArgumentType]
        for row in self.rows:
            values = {name: row.values[name] for name in names if name in row.values}
            yield shaped(values, shape, said=row.place, remedy="judge again, or leave the file out")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    asks, judges: whether a row is one of its question file, or of its judge's verdicts. read: a question from a row. Answers have
    at most `max_new_tokens` tokens, drawn at `temperature`. write: the text of an answer file, of answers under a model's name
    at a time (seconds since 1970). advice: the commands of its judge for an answer file; the last lines name the file of
    verdicts. judged: what a file of verdicts says.
    """

    name: str
    title: str
    columns: str
    published: Published
    suffix: str
    named_by_file: bool
    max_new_tokens: int
    asks: Callable[[Mapping[str, Any]], bool]
    read: Callable[[FileRow], BenchmarkQuestion]
    temperature: Callable[[BenchmarkQuestion], float]
    write: Callable[[Sequence[BenchmarkAnswer], str, float], str]
    advice: Callable[[Path, str, Sequence[BenchmarkQuestion]], Sequence[str]]
    judges: Callable[[Mapping[str, Any]], bool]
    judged: Callable[[Verdicts], Result]
