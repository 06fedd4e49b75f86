"""The registry of schemas, and the choice of one for a source, made once, from its first row."""

from dataclasses import fields, replace

from rapo_jax.config.tree import Columns
from rapo_jax.data.row_needs import RowNeeds
from rapo_jax.data.schemas.helpsteer import HELPSTEER
from rapo_jax.data.schemas.labelled import LABELS
from rapo_jax.data.schemas.listed import LISTS, NUMBERED, SAMPLED
from rapo_jax.data.schemas.nectar import NECTAR
from rapo_jax.data.schemas.openai import OPENAI
from rapo_jax.data.schemas.pairs import PAIRS, SINGLE
from rapo_jax.data.schemas.schema import FirstRow, Schema
from rapo_jax.data.schemas.sharegpt import SHAREGPT
from rapo_jax.data.schemas.ultrafeedback import ULTRAFEEDBACK
from rapo_jax.errors import UserError, nearest

# The most general first. Detection goes from the last to the first, so that an added schema is tried before all others.
SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (SINGLE, PAIRS, LABELS, LISTS, NUMBERED, HELPSTEER, NECTAR, SAMPLED, SHAREGPT, OPENAI, ULTRAFEEDBACK)
}
AUTO = "auto"


def resolve_schema(first: FirstRow, name: str, need: RowNeeds) -> tuple[Schema, Columns]:
    """The schema of rows like this one (`name`, or the detected one for "auto"), and the names of its columns.

    `name` has passed `require_schema`. Raises UserError for absent columns and, where they are needed, for absent scores.
    """
    schema = detect(first) if name == AUTO else SCHEMAS[name]
    for field in fields(Columns):
        column = getattr(first.columns, field.name)
        if column and column not in first.values and field.name not in schema.inside:
            hint = nearest(column, list(first.values))
            raise UserError(f"{first.present}, not data.columns.{field.name}={column!r}; {hint}")
    resolved = replace(
        schema.resolve(schema, first),
        source=first.first_of([first.columns.source, "source"]),
        attributes=first.first_of([first.columns.attributes, "attributes"]),
        weight=first.columns.weight,
        system=first.columns.system,
        input=first.columns.input,
    )
    has_scores = resolved.rewards or resolved.score_chosen or "rewards" in schema.inside
    if need.scores and not has_scores:
        raise UserError(
            f"{first.present}, none of which is known as {schema.scores_sought}; {need.because}: name "
            f"{schema.scores_knob}, give a file of them with data.rewards=FILE.jsonl, {need.instead}."
        )
    return schema, resolved


def detect(first: FirstRow) -> Schema:
    """The schema implied by the columns that the user named, else the most specific one that recognizes the row."""
    specific_first = list(reversed(SCHEMAS.values()))
    for schema in specific_first:
        if schema.named(first):
            return schema
    return next(schema for schema in specific_first if schema.detects(first))


def require_schema(name: str, *, option: str = "data.schema") -> None:
    """Raises UserError for a name that is neither "auto" nor that of a schema; `option` is the key that holds it."""
    if name not in (AUTO, *SCHEMAS):
        raise UserError(f"{option}={name!r} is unknown; {nearest(name, [AUTO, *SCHEMAS])}")
