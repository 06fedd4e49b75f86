"""The verb: what was named becomes one page, and on request the same numbers as JSON and CSV."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from rapo_jax import __version__
from rapo_jax.borders import whole_file, write_json, write_text
from rapo_jax.drawing import styled
from rapo_jax.errors import UserError, masked
from rapo_jax.report.facts import command
from rapo_jax.report.inputs import Inputs, read_inputs
from rapo_jax.report.numbers import as_csv, numbers_tree
from rapo_jax.report.page import MARK, page_of

DEFAULT_TITLE = "What was trained, and what came of it"


def report(
    words: Sequence[str], out: Path, *, title: str = "", json: Path | None = None, csv: Path | None = None
) -> Inputs:
    """Writes the page of every PATH or NAME=PATH. Raises UserError for what cannot be shown, and for an `out` that is not a page
    of ours."""
    refuse_other_files(out)
    inputs = read_inputs(words)
    made_by, how = f"rapo_jax {__version__}", masked(command("rapo", "report", *words, "-o", str(out)))
    with styled():
        today = datetime.date.today().isoformat()
        page = page_of(inputs, title=title or DEFAULT_TITLE, made_by=made_by, made_on=today, command=how)
    with whole_file(out) as path:  # half of a surrogate pair, which UTF-8 does not have, as a reference
        path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    if json:
        write_json(json, numbers_tree(inputs, made_by=made_by, command=how))
    if csv:
        write_text(csv, as_csv(inputs))
    return inputs


def refuse_other_files(out: Path) -> None:
    """Raises UserError for an output that exists and that no `rapo report` wrote."""
    if out.is_dir():
        raise UserError(f"--out={out} is a directory; it must be a file, such as {out / 'report.html'}.")
    if out.exists():
        with out.open("rb") as file:
            ours = MARK.encode() in file.readline(1000)
        if not ours:
            raise UserError(f"--out={out} exists and is no page of rapo report; choose another name.")
