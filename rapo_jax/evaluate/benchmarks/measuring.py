"""What the readers of questions and verdicts share: texts of rows, rows by model, and means of groups of prompts."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.data.files import FileRow
from rapo_jax.errors import UserError, shown
from rapo_jax.evaluate.bootstrap import mean_of
from rapo_jax.evaluate.result import Measure

Row = TypeVar("Row")
Group = TypeVar("Group", bound=Hashable)


def text_of(row: FileRow, column: str) -> str:
    """The text of a column, which is not blank. Raises UserError."""
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.place}: {column} is {shown(value)}, and must be a text; take the published file.")
    return value


def groups_of(rows: Sequence[Row], group: Callable[[Row], Group]) -> Iterator[tuple[Group, list[Row]]]:
    """The rows of each group, groups in the order of their first rows."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        found.setdefault(group(row), []).append(row)
    yield from found.items()


def numbered(ids: Iterable[Hashable]) -> Int[np.ndarray, " N"]:
    """Numbers of prompts, by their ids.

    >>> numbered(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in ids], np.int64)


def by_group(
    quantity: str,
    model: str,
    values_N: Float[np.ndarray, " N"],
    prompt_N: Int[np.ndarray, " N"],
    groups: Sequence[str],
) -> list[Measure]:
    """The mean over all, and over each group where there are several; those of no name are of none."""
    measures, names = [Measure(quantity, model, mean_of(values_N, prompt_N))], list(dict.fromkeys(groups))
    for name in (name for name in names if name and len(names) > 1):
        own_N = np.array([group == name for group in groups])
        measures.append(Measure(quantity, model, mean_of(values_N[own_N], prompt_N[own_N]), name, detail=True))
    return measures
