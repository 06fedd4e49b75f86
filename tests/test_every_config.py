"""Every configuration that comes with the project trains: two steps of a tiny model on rows of the shape that it reads."""

import functools
import json
from pathlib import Path

import jax
import pytest
import yaml

from rapo_jax.config.files import as_dict, load_config
from rapo_jax.parallel import make_mesh
from tests import tiny

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
ARMO = yaml.safe_load((CONFIGS / "ablations/llama3-8b-attributes.yaml").read_text())["relabel"]["attributes"]


def ultrafeedback(n: int) -> dict:
    """A raw row: four completions with an overall score and four ratings."""
    rate = lambda k: {name: {"Rating": str(1 + (n + k + i) % 5)} for i, name in enumerate(ASPECTS)}  # noqa: E731
    completions = [
        {"response": f"Answer {k} to {n}", "overall_score": 1.0 + (3 * n + 2 * k) % 9, "annotations": rate(k)}
        | {
            "fine-grained_score": 3.0,
            "model": f"model-{k}",
            "critique": "",
            "custom_system_prompt": "",
            "principle": "",
        }
        for k in range(4)
    ]
    return {"source": "evol_instruct", "instruction": f"What is {n} plus one?", "completions": completions}


def helpsteer(n: int) -> dict:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": f"Why {n // 2}?", "response": f"Because {n}"} | {
        name: (n + i) % 5 for i, name in enumerate(names)
    }


ROWS = {  # what a configuration names as its data: rows of that shape
    "HuggingFaceH4/ultrafeedback_binarized": tiny.PAIRS,
    "": tiny.PAIRS,  # given on the command line: scored pairs
    "openbmb/UltraFeedback": [ultrafeedback(n) for n in range(12)],
    "nvidia/HelpSteer2": [helpsteer(n) for n in range(24)],
    "HuggingFaceH4/ultrachat_200k": [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(12)
    ],
}
SPECIAL = {
    "ablations/c-rlft.yaml": [
        {"prompt": f"Say {n}", "response": f"{n}!", "source": ("expert", "other")[n % 2]} for n in range(12)
    ],
    "ablations/llama3-8b-attributes.yaml": [
        {"prompt": f"Say {n}", "responses": [f"{n}!", f"{n}?", "Nothing", f"Well, {n}", "No"]} for n in range(12)
    ],
}  # fmt: skip
SCORES = {  # by what the file must hold
    "ablations/llama3-8b-attributes.yaml": [
        {"row": n, "rewards": [5.0, 4.0, 3.0, 2.0, 1.0]}
        | {"attributes": [{name: 0.1 * ((n + k + i) % 7) for i, name in enumerate(ARMO)} for k in range(5)]}
        for n in range(1, 13)
    ],
}
TWO_NUMBERS = [{"row": n, "rewards": [0.3 * n, -0.2 * n]} for n in range(1, 13)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model directory."""
    directory = tmp_path_factory.mktemp("world")
    tiny.with_padding(tiny.write_model(directory / "model"))  # reward models ask for it
    return directory


@pytest.fixture
def quick(monkeypatch):
    """One device, and no checkpoint, which takes as long as the two steps."""
    monkeypatch.setattr("rapo_jax.checkpoint.Store.save", lambda *_, **__: None)
    monkeypatch.setattr("rapo_jax.runs.setup.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


def overrides(name: str, world: Path, directory: Path) -> list[str]:
    """What makes a paper's run a tiny one, and leaves its data's shape, objective and goals alone."""
    config = load_config(CONFIGS / name)
    rows = SPECIAL.get(name) or ROWS[config.data.path]
    changes = {
        "model": {"path": str(world / "model"), "dtype": "float32", "remat": "none"},
        "data": {"path": str(tiny.write_rows(directory / "rows.jsonl", rows)), "split": "train", "eval_path": ""},
        "train": {"batch_size": 4, "max_steps": 2, "log_every": 1, "eval_every": None, "save_every": None}
        | {"num_epochs": 1, "keep_last": 1, "keep_best": 0},
        "optimizer": {"learning_rate": 1e-3},
        "rows": {"length": 256, "per_shard": 2},
        "run_dir": str(directory / "run"),
    }
    if "/" in name:  # compiles faster; configs/*.yaml take the default
        assert config.model.attention == "auto"
        changes["model"]["attention"] = "einsum"
    changes["data"] |= {"max_length": 224, "max_prompt_length": 192, "chat_template": None}
    changes["data"]["template_options"] = {}  # of the tiny model's template, which has no switch
    if config.lora.rank:
        changes["lora"] = {"rank": 4}  # the tiny model's smallest matrix is 16 x 8
    if config.data.eval_fraction:
        changes["data"]["eval_fraction"] = 0.3
    if config.data.rewards or name in SCORES or "implicit-reward" in name:
        scores = SCORES.get(name, TWO_NUMBERS)
        changes["data"]["rewards"] = str(tiny.write_rows(directory / "scores.jsonl", scores))
    leaves = []
    for key, value in changes.items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        leaves += [f"{key}.{sub}={json.dumps(v)}" if sub else f"{key}={json.dumps(v)}" for sub, v in pairs]
    return leaves


@pytest.fixture(scope="module")
def runs():
    """The metrics of runs by what sets them apart: many files differ in their model and directory only."""
    return {}


def sets_apart(name: str, leaves: list[str]) -> str:
    """A tiny run's settings, without its places, and whose rows it reads."""
    config = as_dict(load_config(CONFIGS / name, leaves))
    places = (config.pop("run_dir"), config["data"].pop("path"), config["data"].pop("rewards"))
    return json.dumps(
        [config, bool(places[-1]), load_config(CONFIGS / name).data.path, name if name in SPECIAL else ""]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_configuration_trains_for_two_steps(name, world, quick, runs, tmp_path, capsys):
    """When this fails, a system that the papers compare can be read about here and not be run."""
    leaves = overrides(name, world, tmp_path)
    key = sets_apart(name, leaves)
    if key not in runs:
        assert tiny.rapo("train", CONFIGS / name, *leaves) == 0, capsys.readouterr().err
        runs[key] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = runs[key]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(abs(line["loss"]) < 1e7 for line in lines)
    if load_config(CONFIGS / name).objective.name in ("dpo",) and "best-goal" not in name and "quickstart" not in name:
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
