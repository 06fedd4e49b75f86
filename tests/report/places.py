"""Small run directories, results, sweeps and answer files, written by hand, and a page as a parser reads it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests import tiny

CONFIG = """\
run_dir: runs/x
seed: 0
model: {path: models/base, dtype: float32}
lora: {rank: null, targets: [q, v]}
data: {path: pairs.jsonl, sources: [], eval_path: held.jsonl, eval_fraction: 0.0}
relabel: {goals: [chosen, rejected], goal_min: 1.0, goal_max: 10.0, attributes: []}
objective: {name: dpo, weight: 1.0, best_goal_weight: 0.0, beta: 0.1}
optimizer: {learning_rate: 1.0e-06, schedule: cosine}
train: {batch_size: 8}
mesh: {data: 1, fsdp: -1, tensor: 1}
"""
REPORT = {
    "train": {
        "path": "pairs.jsonl",
        "rows_read": 12,
        "rows_dropped": {"empty_response": 1},
        "records": 11,
        "ties": {"found": 1, "dropped": 1},
        "scores": {"chosen": {"8": 6, "9": 5}, "rejected": {"2": 10, "8": 1}},
        "margins": {"0": 1, "6": 10},
        "preferences": {"chosen": 10, "rejected": 10},
        "tokens": {"prompt": {"mean": 30.5, "median": 30.0, "p95": 40.0, "max": 41}},
        "cut": {"prompt_tokens_cut": 7, "rows_with_prompt_cut": 2, "response_tokens_cut": 0, "dropped": {}},
    },
    "eval": None,
    "plan": {"steps": 4},
}
RECORDS = [
    {"step": n, "loss": 0.7 - n / 10, "goal_chosen/loss": 0.6, "goal_rejected/loss": 0.5, "rewards/accuracies": n / 4}
    | {"goal_chosen/rewards/accuracies": n / 4, "goal_rejected/rewards/accuracies": n / 8, "pairs_per_s": 10.0 * n}
    | {"time/step_s": 2.0, "epoch": n / 4}
    for n in range(1, 5)
]
RECORDS[3] |= {"eval_loss": 0.45, "eval_goal_chosen/loss": 0.4, "eval_goal_rejected/loss": 0.5}
HOSTILE = "</script><script>alert(1)</script><img src=http://x.example/y onerror=alert(2)> &amp; \u2028 \ud83d"
ESTIMATE = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 12}


def write_run(
    path: Path, *, records: list[dict] | str | None = None, config: str = CONFIG, report: Any = REPORT
) -> Path:
    """A run directory; `records` may be the text of metrics.jsonl, and "" leaves the file out, as a `report` of None does."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    if report is not None:
        (path / "data_report.json").write_text(json.dumps(report))
    text = records if isinstance(records, str) else "".join(json.dumps(each) + "\n" for each in records or RECORDS)
    if text:
        (path / "metrics.jsonl").write_text(text)
    return path


def write_results(path: Path, **suites: dict) -> Path:
    """A directory of results with these suites, or with one that has no figure."""
    named = {"quantity": "accuracy (share)", "where": "all", "model": "m"}
    suites = suites or {"odd": {"suite": "odd", "explains": "Look.", "measures": [named | ESTIMATE], "curves": {}}}
    path.mkdir()
    (path / "results.json").write_text(json.dumps(suites))
    return path


def write_answers(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report(*words: object) -> int:
    return tiny.rapo("report", *words)


class Page(HTMLParser):
    """What a browser makes of a page: tags with their attributes, visible text, and scripts by id."""

    VOID = ("meta", "link", "input", "br", "path", "use", "img")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown, self.styles, self.scripts, self.open = "", "", [], []
        self.around: list[str | None] = []  # the roles of the open tags
        self.focusable: list[tuple[str, list[str | None]]] = []  # (tag, roles around it)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if "tabindex" in dict(attrs):
            self.focusable.append((tag, self.around.copy()))
        if tag not in self.VOID:
            self.open.append(tag)
            self.around.append(dict(attrs).get("role"))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()
            self.around.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.shown += data

    def script(self, name: str) -> Any:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return json.loads(text)

    def attribute(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]
