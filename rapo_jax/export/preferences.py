"""Goal-conditioned data as a file that people can read and that TRL trains on as it is, with a report and a picture of it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapo_jax.batching.pipeline import read_part
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.config.tree import Config
from rapo_jax.data.need import responses_wanted
from rapo_jax.data.relabelled import Relabelled, relabel_records
from rapo_jax.data.report import report_of
from rapo_jax.data.report_figure import draw_report
from rapo_jax.data.scaling import write_scales
from rapo_jax.errors import UserError


def write_preferences(config: Config, out: Path, *, goal_prompt: GoalPrompt) -> dict[str, int]:
    """Relabels the training data into `out`; returns what was counted.

    JSON lines, or parquet for a name that ends so. Columns, by what the objective compares: two responses: prompt, chosen,
    rejected, score_chosen, score_rejected (of the chosen and rejected response of *this* row, under its goal); responses
    with labels: prompt, completion, label, score; one: prompt, completion, score; all: prompt, responses, rewards. Always
    goal, goal_of, source_row; weight and source where there are any. Beside it OUT.report.json, OUT.report.png and, where
    scores were mapped, OUT.scale.json. The file appears whole or not at all.
    """
    report_file, figure_file, scale_file = (
        out.with_name(f"{out.stem}.{kind}") for kind in ("report.json", "report.png", "scale.json")
    )
    for path in (out, report_file, figure_file, scale_file):
        if path.exists():
            raise UserError(f"{path} exists; nothing was written. Choose another --out.")
    prepared = read_part(config, "train")
    relabelled, num_ties = relabel_records(prepared.records, config)
    report = report_of(prepared, relabelled, num_ties, config)
    written = [(one, rows) for one in relabelled if (rows := as_rows(one, config, goal_prompt))]
    rows = [row for _, each in written for row in each]
    if not rows:
        raise UserError(
            f"{prepared.said}: nothing is left of its {prepared.num_rows} rows; {num_ties} records are ties, which "
            "relabel.ties=keep keeps."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    write_rows(temporary, rows, parquet=out.suffix == ".parquet")
    report_file.write_text(json.dumps(report, indent=2) + "\n")
    if report["scale"]:
        write_scales(scale_file, report["scale"])
    draw_report(figure_file, prepared.records, report, title=str(out.name))
    temporary.replace(out)
    sides = Counter(one.preference.goal_of or "no goal" for one, _ in written)
    return {"rows": prepared.num_rows, "dropped": sum(prepared.dropped.values()), "ties": num_ties, **sides}


def write_rows(path: Path, rows: Sequence[dict], *, parquet: bool) -> None:
    if not parquet:
        with path.open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def as_rows(relabelled: Relabelled, config: Config, goal_prompt: GoalPrompt) -> list[dict]:
    """The lines that one preference becomes: one, or with labels one for each response."""
    preference, record = relabelled.preference, relabelled.record
    prompt = goal_prompt.write(record.prompt, preference.goal, source=record.source)
    head = {"prompt": [vars(message) for message in prompt]}
    tail = {"goal": preference.goal, "goal_of": preference.goal_of, "source_row": record.row}
    tail |= {"source": record.source} if record.source else {}
    tail |= {"weight": relabelled.weight} if relabelled.weight != 1 else {}
    return [head | body | tail for body in _bodies(relabelled, responses_wanted(config))]


def _bodies(relabelled: Relabelled, want: str) -> list[dict[str, Any]]:
    scored = relabelled.record.rewards is not None
    rewards = [reward if scored else None for reward in relabelled.rewards]
    answers = [[{"role": "assistant", "content": response}] for response in relabelled.responses]
    if want in ("all", "any"):
        return [{"responses": list(relabelled.responses), "rewards": rewards if scored else None}]
    if want == "labelled":
        triples = zip(answers, relabelled.labels, rewards, strict=True)
        return [{"completion": answer, "label": label, "score": reward} for answer, label, reward in triples]
    if want == "one":
        return [{"completion": answers[0], "score": rewards[0]}]
    if len(answers) < 2:  # the term of Algorithm 1 has no second response, and no place in a file of pairs
        return []
    (chosen, rejected), (score_chosen, score_rejected) = answers, rewards
    return [{"chosen": chosen, "score_chosen": score_chosen, "rejected": rejected, "score_rejected": score_rejected}]
