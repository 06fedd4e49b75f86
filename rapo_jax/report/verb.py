"""The verb: what was named becomes one page, and on request the same numbers as JSON and CSV."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from rapo_jax import __version__
from rapo_jax.borders import path_of, whole_file, write_json, write_text
from rapo_jax.drawing import styled
from rapo_jax.errors import UserError
from rapo_jax.report.facts import command
from rapo_jax.report.inputs import Inputs, read_inputs, split
from rapo_jax.report.numbers import as_csv, numbers_tree
from rapo_jax.report.page import MARK, page_of
from rapo_jax.report.published import publishable, published

DEFAULT_TITLE = "What was trained, and what came of it"
RECORDS = ("metrics.jsonl", "data_report.json")  # of a run, beside its config.yaml


def report(
    words: Sequence[str], out: Path, *, title: str = "", json: Path | None = None, csv: Path | None = None
) -> Inputs:
    """Writes the page of every PATH or NAME=PATH. Raises UserError for what cannot be shown, and for an `out` that is not a page
    of ours."""
    outputs = {"--out": out} | {name: path for name, path in (("--json", json), ("--csv", csv)) if path}
    refuse_outputs(outputs, read=[path_of(split(word)[1], said=word) for word in words])
    refuse_other_files(out)
    inputs = published(read_inputs(words))
    options = [word for name, path in (("--json", json), ("--csv", csv)) if path for word in (name, str(path))]
    options = [*(("--title", title) if title else ()), *options]
    made_by, how = f"rapo_jax {__version__}", publishable(command("rapo", "report", *words, "-o", str(out), *options))
    with styled():
        today = datetime.date.today().isoformat()
        page = page_of(inputs, title=publishable(title) or DEFAULT_TITLE, made_by=made_by, made_on=today, command=how)
    with whole_file(out) as path:  # half of a surrogate pair, which UTF-8 does not have, as a reference
        path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    if json:
        write_json(json, numbers_tree(inputs, made_by=made_by, command=how))
    if csv:
        write_text(csv, as_csv(inputs))
    return inputs


def refuse_outputs(outputs: Mapping[str, Path], *, read: Sequence[Path]) -> None:
    """Raises UserError for an output that would replace another, what the page is made of, or a file of a run or of results."""
    inputs, taken = {path.resolve() for path in read}, {}
    for option, path in outputs.items():
        at = path_of(path, said=f"{option}={path}").resolve()
        if at in taken:
            raise UserError(f"{taken[at]} and {option} are both {path}; give each a file of its own.")
        taken[at] = option
        if at.is_dir():
            raise UserError(f"{option}={path} is a directory; it must be a file, such as {path / 'report.html'}.")
        if at in inputs:
            raise UserError(
                f"{option}={path} is one of the files to show, which it would replace; choose another name."
            )
        near = [at.parent] if (at.parent / "results.json").is_file() else []
        inside = next((each for each in at.parents if each in inputs or each in near or is_run(each)), None)
        if inside:
            raise UserError(
                f"{option}={path} lies in {inside}, a directory of a run or of results; choose a file outside."
            )


def is_run(directory: Path) -> bool:
    """Whether a directory is a run's, named or not."""
    return (directory / "config.yaml").is_file() and any((directory / name).is_file() for name in RECORDS)


def refuse_other_files(out: Path) -> None:
    """Raises UserError for an output that exists and that no `rapo report` wrote."""
    if out.exists():
        with out.open("rb") as file:
            ours = MARK.encode() in file.readline(1000)
        if not ours:
            raise UserError(f"--out={out} exists and is no page of rapo report; choose another name.")
