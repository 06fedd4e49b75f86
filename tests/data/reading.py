"""Records of one file, with the options that the tests of sources and schemas vary."""

from rapo_jax.config.tree import Columns, Data, SourceOptions
from rapo_jax.data.row_needs import RowNeeds, Want
from rapo_jax.data.sources import SourceRecords, read_records

KNOWN_COLUMNS = Columns()


def read_file(
    path: str,
    *,
    scores: bool = False,
    want: Want = "pair",
    columns: Columns = KNOWN_COLUMNS,
    option: str = "data.path",
    data: Data | None = None,
    **source,
) -> SourceRecords:
    options = SourceOptions(path=path, columns=columns, **source)
    return read_records(options, RowNeeds(want, scores), option=option, data=data)
