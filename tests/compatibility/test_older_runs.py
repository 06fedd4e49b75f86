"""Runs, caches and exports of an older version are continued and opened by this one.

The archive was made by make_runs.py under version b461566: runs of eight steps that were stopped after the fifth, the
metrics that they would have had, and what was exported from them.
"""

import functools
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rapo_jax.parallel import make_mesh
from tests import tiny

ARCHIVE = Path(__file__).parent / "runs_of_b461566.tar.xz"
KINDS = ("sft", "ra-dpo", "lora", "kto", "simpo-plus-sft")
CLOCKED = ("pairs_per_s", "real_tokens_per_s", "time/")
DONE = 0


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    directory = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(directory, filter="data")
    return directory


@pytest.fixture
def older(unpacked, monkeypatch):
    """The directory that the archive's paths are relative to, made current; one device, as when the runs were made."""
    monkeypatch.chdir(unpacked)
    monkeypatch.setattr("rapo_jax.runs.setup.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    return unpacked


def metrics_of(path: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the numbers that depend on the clock."""
    records = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in record.items() if not key.startswith(CLOCKED)} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_an_older_version_resumes_as_if_nothing_had_happened(kind, older, capsys):
    """When this fails, whoever updates in the middle of a run loses it: it is refused, or continues with other data,
    another model or other arithmetic. On the machine that made the archive, with all of XLA's optimizations, the
    remaining metrics are bit-identical; other processors round differently."""
    settings = json.loads((older / kind / "settings.json").read_text())
    cache_before = {path.name: path.stat().st_mtime_ns for path in (older / "cache").iterdir()}
    assert tiny.rapo("train", "run.yaml", *settings, f"run_dir={kind}/half") == DONE, capsys.readouterr().err
    cache_after = {name: (older / "cache" / name).stat().st_mtime_ns for name in cache_before}  # CRCs are added
    assert cache_after == cache_before, "computed again"
    mine, expected = metrics_of(older / kind / "half" / "metrics.jsonl"), metrics_of(older / kind / "metrics.jsonl")
    assert [record["step"] for record in mine] == [record["step"] for record in expected]
    assert len(mine) >= 8
    for ours, theirs in zip(mine, expected, strict=True):
        assert theirs.keys() <= ours.keys()
        for name, value in theirs.items():
            # Log-probabilities are sums of about -100; rewards and losses are differences of two of them.
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-5), f"{name} at step {theirs['step']}"

    assert tiny.rapo("export", f"{kind}/half", f"{kind}/exported") == DONE, capsys.readouterr().err
    weights, older_weights = (load_file(older / kind / name / "model.safetensors") for name in ("exported", "export"))
    assert weights.keys() == older_weights.keys()
    for name, weight in older_weights.items():
        np.testing.assert_allclose(weights[name], weight, rtol=1e-6, atol=2e-6, err_msg=name)
    records, older_records = (
        json.loads((older / kind / name / "rapo.json").read_text()) for name in ("exported", "export")
    )
    assert older_records.items() <= records.items()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ra-dpo/export", "sft/export"])
def test_an_export_of_an_older_version_is_opened_and_answers(model, older, capsys):
    """When this fails, a model that somebody trained and published can no longer be sampled, scored or evaluated."""
    (older / "prompts.jsonl").write_text(json.dumps({"prompt": "What is 3 plus one?"}) + "\n")
    out = older / f"{Path(model).parent}-answers.json"
    assert tiny.rapo("generate", model, "--prompts", "prompts.jsonl", "--out", out, "--max-new-tokens", "4") == DONE, (
        capsys.readouterr().err
    )
    assert out.stat().st_size > 0
