"""The rows of an answer file: the user's columns as JSON, and ours beside them."""

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rapo_jax.data.files import FileRow
from rapo_jax.errors import UserError

OURS = ("response", "finish_reason", "num_tokens", "sample", "goal", "temperature", "top_p", "seed")
LOGPS = ("tokens", "logps")  # where log-probabilities are asked for: what they are of, and they themselves
KEPT_AS = "input_{}"  # the name of a user's column that has one of our names and another value


def as_json(row: FileRow) -> dict[str, Any]:
    """A row's columns as JSON can hold them: dates and times in ISO 8601, decimals exactly, bytes in base64, no NaN.

    Raises UserError, which names the column, for a value that has no form in JSON, such as half a surrogate pair.

    >>> as_json(FileRow(1, "", {"at": datetime.date(2024, 5, 1), "price": decimal.Decimal("1.50"), "raw": b"Hi"}))
    {'at': '2024-05-01', 'price': '1.50', 'raw': 'SGk='}
    """
    columns = {}
    for name, value in row.values.items():
        try:
            columns[str(name)] = plain(value)
            json.dumps({str(name): columns[str(name)]}, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            fact = "half a surrogate pair" if isinstance(error, UnicodeEncodeError) else str(error) or "nested too deep"
            raise UserError(
                f"{row.place}: column {ascii(name)[1:-1]} cannot be written as JSON ({fact}); mend the value, or leave the "
                "column out."
            ) from error
    return columns


def plain(value: Any) -> Any:
    """A value of a data file as JSON can hold it. Raises TypeError for one of an unknown type."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__}")


def renamed_columns(
    rows: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]], *, said: str, more: Sequence[str] = ()
) -> dict[str, str]:
    """The user's columns that have one of our names (`more` are those that only some commands write), and the names they are
    kept under. `asked` are our columns that are known before anything is sampled; a column of the user's that says the same
    needs no other name.

    Raises UserError where the other name is taken.
    """
    names = (*OURS, *more)
    differing = {
        name
        for row, ours in zip(rows, asked, strict=True)
        for name in names
        if row.get(name) is not None and (name not in ours or row[name] != ours[name])
    }
    renamed = {name: KEPT_AS.format(name) for name in names if name in differing}
    taken = sorted({new for new in renamed.values() for row in rows if new in row})
    if taken:
        raise UserError(
            f"{said}: the columns {', '.join(renamed)} have names that answers take and would be kept as "
            f"{', '.join(renamed.values())}, but there is a column {taken[0]} too; rename one of the two."
        )
    return renamed


def beside(row: Mapping[str, Any], ours: Mapping[str, Any], *, renamed: Mapping[str, str]) -> dict[str, Any]:
    """A row with our columns behind the user's, some of which are renamed."""
    return {renamed.get(name, name): value for name, value in row.items()} | dict(ours)
