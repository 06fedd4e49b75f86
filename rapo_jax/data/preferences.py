"""Goal-conditioned pairs as a file that people can read and that TRL trains on as it is."""

import json
from collections import Counter
from pathlib import Path

from rapo_jax.config import Config
from rapo_jax.data.chat import Placement, place_goal
from rapo_jax.data.pipeline import Relabelled, read_source, relabel_records
from rapo_jax.errors import UserError


def write_preferences(config: Config, out: Path, *, placement: Placement) -> dict[str, int]:
    """Relabels data.path into JSON lines in the conversational preference format; returns what was counted.

    Columns: prompt, chosen, rejected (lists of messages), goal, goal_of, score_chosen, score_rejected (of the chosen and
    rejected response of *this* row, under its goal), source_row. The file appears whole or not at all.
    """
    if out.exists():
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    source = read_source(config, config.data.path, split=config.data.split)
    relabelled, num_ties = relabel_records(source.records, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("w") as file:
        for one in relabelled:
            file.write(json.dumps(as_row(one, config, placement), ensure_ascii=False) + "\n")
    temporary.replace(out)
    sides = Counter(one.preference.goal_of or "no goal" for one in relabelled)
    return {"rows": source.num_rows, "dropped": sum(source.dropped.values()), "ties": num_ties, **sides}


def as_row(relabelled: Relabelled, config: Config, placement: Placement) -> dict:
    prompt = place_goal(relabelled.record.prompt, relabelled.goal_sentence(config), placement)
    preference, scored = relabelled.preference, relabelled.record.rewards is not None
    row = {"prompt": [vars(message) for message in prompt]}
    for name, response, reward in zip(("chosen", "rejected"), relabelled.responses, relabelled.rewards, strict=False):
        row[name] = [{"role": "assistant", "content": response}]
        row[f"score_{name}"] = reward if scored else None
    return row | {"goal": preference.goal, "goal_of": preference.goal_of, "source_row": relabelled.record.row}
