"""The level at which the implicit rewards of direct reward optimization settle."""

import functools
import json
from statistics import fmean

import jax
import pytest

from rapo_jax.parallel import make_mesh
from tests import tiny

BARE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PAIRS = [  # mean score 6; a prompt is one token, which its log-ratio leaves out, so the prompt's part of the fit is 0
    {
        "prompt": letter,
        "chosen": f"It is {letter}, of course.",
        "rejected": f"No idea, {letter} perhaps?",
        "score_chosen": 8.0,
        "score_rejected": 4.0,
    }
    for letter in "ABCDEFGH"
]
NUM_STEPS, SETTLED = 50, 10


@pytest.mark.slow
def test_log_z0_sets_the_mean_implicit_reward_of_dro(tmp_path, monkeypatch, capsys):
    """beta (lr + log Z0) fits the scores, so beta lr settles at mean score - beta log Z0: 6 - 5 and 6 - 7.

    When this fails, log_z0 has a wrong sign, lacks its factor beta or is not in the loss, and the paper's Z0 pulls all
    log-probabilities up or down together, however well the pairs are told apart.
    """
    monkeypatch.setattr("rapo_jax.runs.setup.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    tiny.write_model(tmp_path / "model", chat_template=BARE)
    tiny.write_rows(tmp_path / "rows.jsonl", PAIRS)
    (tmp_path / "run.yaml").write_text(tiny.RUN)
    for log_z0, level in ((50, +1.0), (70, -1.0)):
        changes = {
            "model.path": tmp_path / "model",
            "data.path": tmp_path / "rows.jsonl",
            "relabel.goals": [],
            "objective.name": "dro_pointwise",
            "objective.log_z0": log_z0,
            "optimizer.learning_rate": 3e-3,
            "optimizer.schedule": "constant",
            "train.max_steps": NUM_STEPS,
            "run_dir": tmp_path / f"run-{log_z0}",
        }
        arguments = [f"{key}={value}" for key, value in changes.items()]
        assert tiny.rapo("train", tmp_path / "run.yaml", *arguments) == 0, capsys.readouterr().err
        lines = [json.loads(line) for line in (tmp_path / f"run-{log_z0}/metrics.jsonl").read_text().splitlines()]
        implied = [(line["rewards/chosen"] + line["rewards/rejected"]) / 2 for line in lines]
        assert implied[0] == pytest.approx(0.0, abs=1e-6)
        assert fmean(implied[-SETTLED:]) == pytest.approx(level, abs=0.1)
