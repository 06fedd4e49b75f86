"""A configuration and rows to score, for scorers that need no model."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import RUN, rapo, write_rows

DONE, USER_ERROR = 0, 2
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is two plus one?", "responses": ["It is 3.", "No idea", "Three, because 2 + 1 = 3."]},
    {"prompt": "And one plus one?", "responses": ["2", "Well, it depends on what you call one."]},
    {"prompt": "Hi", "responses": ["Hello", "What?", "No"]},
]


class Place:
    """A directory with rows, in which `rapo score` runs."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]):
        self.directory, self.capsys = directory, capsys
        self.out = directory / "scores.jsonl"
        self.said = ""
        (directory / "config.yaml").write_text(RUN)
        write_rows(directory / "rows.jsonl", ROWS)

    def score(self, scorer: str, *more: object) -> int:
        """Runs the command; its exit code. What it printed is in `said`."""
        self.capsys.readouterr()
        data = f"data.path={self.directory / 'rows.jsonl'}"
        code = rapo("score", self.directory / "config.yaml", "--scorer", scorer, "--out", self.out, data, *more)
        printed = self.capsys.readouterr()
        self.said = printed.out + printed.err
        assert "Traceback" not in self.said, self.said
        return code

    def refused(self, scorer: str, *more: object) -> str:
        """The one sentence with which the command is refused."""
        assert self.score(scorer, *more) == USER_ERROR, self.said
        assert not self.out.exists()
        (message,) = [line for line in self.said.splitlines() if line.startswith("rapo score: ")]
        return message.removeprefix("rapo score: ")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def about(self) -> dict[str, Any]:
        return json.loads(self.out.with_suffix(".json").read_text())


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, capsys)
