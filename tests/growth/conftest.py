"""A tiny model, pairs and a configuration, and `rapo train` on them on one device."""

import functools
import json
from collections.abc import Callable

import jax
import pytest

from rapo_jax.parallel import make_mesh
from tests import tiny

Train = Callable[..., list[dict[str, float]]]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys) -> Train:
    """Trains for two steps with these settings, on these rows, by this YAML, and returns the lines of metrics.jsonl."""
    monkeypatch.setattr("rapo_jax.runs.setup.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    model = tiny.write_model(tmp_path / "model")

    def run(*settings: str, rows: list[dict] = tiny.PAIRS, yaml: str = tiny.RUN, name: str = "run"):
        (tmp_path / f"{name}.yaml").write_text(yaml)
        data = tiny.write_rows(tmp_path / f"{name}.jsonl", rows)
        files = (f"model.path={model}", f"data.path={data}", f"run_dir={tmp_path / name}", "train.log_every=1")
        assert tiny.rapo("train", tmp_path / f"{name}.yaml", *files, *settings) == 0, capsys.readouterr().err
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return run
