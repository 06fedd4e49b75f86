"""`rapo relabel`: goal-conditioned data as a file that people can read and TRL trains on, with a report and a figure."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapo_jax.batching.pipeline import read_part
from rapo_jax.borders import whole_file, write_json, write_json_lines, write_text
from rapo_jax.chat.goal_prompt import GoalPrompt, refuse_twice
from rapo_jax.config.tree import Config
from rapo_jax.data.notes import notes_on_goals, notes_on_rows
from rapo_jax.data.relabelled import Relabelled, relabel_records
from rapo_jax.data.report import distributions_of, report_of
from rapo_jax.data.report_figure import draw_report
from rapo_jax.data.row_needs import responses_wanted
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted, first_line


@dataclass(frozen=True)
class OutputFiles:
    """The rows, and beside them the report, its figure and, where scores were mapped, the scale."""

    rows: Path
    report: Path
    figure: Path
    scale: Path


def unfinished(out: Path) -> Path:
    """Exists while the files are written: with it, those that are there are leftovers of an attempt that was killed."""
    return out.with_name(f"{out.name}.relabelling")


def output_files(out: Path) -> OutputFiles:
    """Raises UserError where one of them exists and is not the leftover of an attempt that was killed."""
    beside = (out.with_name(f"{out.stem}.{kind}") for kind in ("report.json", "report.png", "scale.json"))
    files = OutputFiles(out, *beside)
    for path in vars(files).values():
        if path.exists() and (path == out or not unfinished(out).exists()):
            raise UserError(f"{path} exists; nothing was written. Choose another --out.")
    return files


def write_preferences(config: Config, out: Path, *, goal_prompt: GoalPrompt) -> dict[str, int]:
    """Relabels the training data into `out`; returns the counts of what was read, dropped and written.

    JSON lines, or parquet for a name that ends in .parquet. The columns depend on what the objective compares: prompt,
    chosen, rejected, score_chosen, score_rejected for two responses (the scores are those of *this* row's chosen and
    rejected response, under its goal); prompt, completion, label, score for labelled responses; prompt, completion,
    score for one; prompt, responses, rewards for all. Every row has goal, goal_of and source_row, and weight and source
    where there are any. OUT.report.json, OUT.report.png and, where scores were mapped, OUT.scale.json go beside it.
    `out` appears last. An error while they are written leaves none of them.
    """
    files = output_files(out)
    prepared = read_part(config, "train")
    if config.relabel.goals:
        refuse_twice(goal_prompt, prepared.records)
    relabelled, num_ties = relabel_records(prepared.records, config)
    report = report_of(prepared, relabelled, num_ties, config)
    written = [(one, rows) for one in relabelled if (rows := as_rows(one, config, goal_prompt=goal_prompt))]
    if not written:
        raise UserError(
            f"{prepared.said}: nothing is left of its {counted(prepared.num_rows, 'row')}; {counted(num_ties, 'record is a tie', 'records are ties')}, which "
            "relabel.ties=keep keeps."
        )
    write_text(unfinished(out), "")
    with ExitStack() as stack:  # exited in reverse order: the rows are renamed into place last
        stack.callback(unfinished(out).unlink, missing_ok=True)
        whole = lambda path: stack.enter_context(whole_file(path))  # noqa: E731
        write_rows(whole(files.rows), [row for _, rows in written for row in rows], parquet=out.suffix == ".parquet")
        write_json(whole(files.report), report)
        if report["scale"]:
            write_json(whole(files.scale), report["scale"])
        draw_report(whole(files.figure), distributions_of(prepared.records), report, title=out.name)
    for note in (*notes_on_rows(report), *notes_on_goals(report["goals"], config.relabel)):
        say(textwrap.fill(f"note: {note}", width=79, subsequent_indent="  ", break_long_words=False))
    sides = Counter(one.preference.goal_of or "no goal" for one, _ in written)
    return {"rows": prepared.num_rows, "dropped": sum(prepared.dropped.values()), "ties": num_ties, **sides}


def write_rows(path: Path, rows: Sequence[dict[str, Any]], *, parquet: bool) -> None:
    if not parquet:
        write_json_lines(path, rows)
        return
    import pyarrow
    import pyarrow.parquet

    # Tools are written as JSON, which is read again: their shapes differ from row to row, and a column has one type.
    rows = [row | {"tools": json.dumps(row["tools"], ensure_ascii=False)} if "tools" in row else row for row in rows]
    try:
        table = pyarrow.Table.from_pylist(rows)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"the rows do not have one type a column, as parquet needs ({first_line(error)}); give --out a name in .jsonl."
        ) from error
    pyarrow.parquet.write_table(table, path)


def as_rows(relabelled: Relabelled, config: Config, *, goal_prompt: GoalPrompt) -> list[dict[str, Any]]:
    """The rows that one preference becomes: one, or with labels one for each response."""
    preference, record = relabelled.preference, relabelled.record
    prompt = goal_prompt.write(record.prompt, preference.goal, source=record.source)
    head = {"prompt": [message.as_dict() for message in prompt]}
    tail = {"goal": preference.goal, "goal_of": preference.goal_of, "source_row": record.row}
    tail |= {"tools": json.loads(record.tools)} if record.tools else {}
    tail |= {"source": record.source} if record.source else {}
    tail |= {"weight": relabelled.weight} if relabelled.weight != 1 else {}
    return [head | body | tail for body in _bodies(relabelled, responses_wanted(config))]


def _bodies(relabelled: Relabelled, want: str) -> list[dict[str, Any]]:
    scored = relabelled.record.rewards is not None
    rewards = [reward if scored else None for reward in relabelled.rewards]
    answers = [[answer.as_dict()] for answer in relabelled.answers]
    if want in ("all", "any"):
        responses = answers if relabelled.more else list(relabelled.responses)
        return [{"responses": responses, "rewards": rewards if scored else None}]
    if want == "labelled":
        assert relabelled.labels is not None
        triples = zip(answers, relabelled.labels, rewards, strict=True)
        return [{"completion": answer, "label": label, "score": reward} for answer, label, reward in triples]
    if want == "one":
        return [{"completion": answers[0], "score": rewards[0]}]
    if len(answers) < 2:  # Algorithm 1's term has no second response, so it has no place in a file of pairs
        return []
    (chosen, rejected), (score_chosen, score_rejected) = answers, rewards
    return [{"chosen": chosen, "score_chosen": score_chosen, "rejected": rejected, "score_rejected": score_rejected}]
