"""The type of a schema: how it is detected, which columns it needs, how a row is read, its words in messages and reports.

No schema is named here; the entries are in rapo_jax/data/schemas/registry.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from rapo_jax.config.tree import Columns
from rapo_jax.data.row_needs import Want
from rapo_jax.errors import UserError
from rapo_jax.messages import Record

Defect = Literal["repair", "drop", "keep"]


@dataclass(frozen=True)
class FirstRow:
    """All that detection looks at. `said` is what the user calls the source, `columns` are the ones the user named."""

    said: str
    values: Mapping[str, Any]
    columns: Columns
    want: Want = "pair"

    @property
    def present(self) -> str:
        """The beginning of every message about missing columns."""
        return f"{self.said} has the columns {', '.join(map(repr, self.values))}"

    def has(self, *names: str) -> bool:
        return all(name in self.values for name in names)

    def first_of(self, names: Sequence[str]) -> str:
        """The first of the names that is a column; "" if none is."""
        return next((name for name in names if name and name in self.values), "")


@dataclass(frozen=True)
class ReadOptions:
    """Options for readers. `defect`: what to do with UltraFeedback's scores of 10 that should be 1."""

    defect: Defect = "repair"


class Parsed(NamedTuple):
    """A record, and one note for each thing that was left out of it or changed in it."""

    record: Record
    notes: tuple[str, ...] = ()


Reader = Callable[[Mapping[str, Any], Columns, ReadOptions], Parsed]


def never(_: FirstRow) -> bool:
    return False


def named_columns(columns: Columns) -> str:
    """Where rewards come from, for the report: the columns of scores."""
    names = [name for name in (columns.score_chosen, columns.score_rejected, columns.rewards) if name]
    return f"column{'s' * (len(names) > 1)} {', '.join(names)}" if names else "none"


def usual_columns(schema: "Schema", first: FirstRow) -> Columns:
    """The columns that the user named, else the schema's usual ones. Raises UserError where a response or prompt is absent.

    An absent column of scores is not an error here: it becomes "".
    """
    usual, given = schema.usual, first.columns
    named = {role.name: getattr(given, role.name) or getattr(usual, role.name) for role in fields(Columns)}
    roles = ("prompt", "chosen", "rejected", "responses", "response", "label")
    absent = [name for role in roles if (name := named[role]) and name not in first.values]
    if absent:
        raise lacking(schema, first, " and ".join(absent), knob=" Name them with data.columns.*.")
    if named["rewards"] not in first.values and "rewards" not in schema.inside:
        named["rewards"] = ""
    for role in ("score_chosen", "score_rejected"):
        if not getattr(usual, role) or named[role] not in first.values:
            named[role] = ""
    return Columns(**named)


def lacking(schema: "Schema", first: FirstRow, needed: str, *, knob: str = "") -> UserError:
    """The refusal of rows without the columns that are needed."""
    return UserError(
        f"{first.present}; data.schema={schema.name} needs {needed}.{knob} Its rows have {schema.meaning}."
    )


@dataclass(frozen=True)
class Schema:
    """One shape of rows.

    Detection first calls `named` (do the columns that the user named imply this schema?) of every schema, then
    `detects`. `read` turns a row's values into a record, or raises BadRow. `usual` names the columns where the user
    names none, for the default `resolve`; those of the fields in `inside` are not columns but keys within each
    response.

    `meaning` continues the sentence "its rows have ...". `scores_sought` and `scores_knob` complete the message about
    absent scores; `scores_from` says in the report where rewards come from. With `merges_prompts` the rows of one
    prompt become one record.
    """

    name: str
    meaning: str
    read: Reader
    detects: Callable[[FirstRow], bool] = never
    named: Callable[[FirstRow], bool] = never
    usual: Columns = field(default_factory=Columns)
    inside: frozenset[str] = frozenset()
    resolve: Callable[["Schema", FirstRow], Columns] = usual_columns
    scores_sought: str = "the scores of its responses"
    scores_knob: str = "their column with data.columns.rewards=..."
    scores_from: Callable[[Columns], str] = named_columns
    merges_prompts: bool = False
