"""`rapo generate` and `rapo score` of a run directory: the numbers of its export, which is not written."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from rapo_jax.parallel import make_mesh
from rapo_jax.runs.trained import find_model
from tests.tiny import PAIRS, RUN, rapo, write_model, write_rows

DONE, USER_ERROR = 0, 2
CHANGED = [
    "lora.rank=4",
    "optimizer.learning_rate=0.1",
    "data.chat_template=plain",
    "relabel.goal_max=9.5",
    "train.max_steps=4",
]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    on_one = functools.partial(make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rapo_jax.runs.setup", "rapo_jax.score.responses", "rapo_jax.parallel"):
            patch.setattr(f"{module}.make_mesh", on_one)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model stored in bfloat16, an adapter run over it with a template and a goal of its own, and the run's export."""
    world = tmp_path_factory.mktemp("world")
    (world / "config.yaml").write_text(RUN)
    write_model(world / "model")
    config = json.loads((world / "model" / "config.json").read_text())
    (world / "model" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    write_rows(world / "pairs.jsonl")
    write_rows(world / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS[:3]])
    assert rapo("train", *settings(world), f"run_dir={world / 'run'}", *CHANGED, "train.save_every=2") == DONE
    assert rapo("export", world / "run", world / "exported") == DONE
    return world


def settings(world):
    return [world / "config.yaml", f"model.path={world / 'model'}", f"data.path={world / 'pairs.jsonl'}"]


def generate(world, model, out, *more):
    arguments = ["--prompts", world / "prompts.jsonl", "--out", out, "--max-new-tokens", 4, *more]
    return rapo("generate", model, *arguments)


def score(world, model, out, *more):
    return rapo("score", *settings(world), "--model", model, "--out", out, *more)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--goal", 2, "--temperature", 1], ["--raw"], ["--chat-template", "chatml"]])
def test_a_run_answers_as_its_export(world, tmp_path, capsys, more):
    """When this fails, what one reads while training is not what the exported model will say."""
    assert generate(world, world / "exported", tmp_path / "exported.jsonl", *more) == DONE
    capsys.readouterr()
    assert generate(world, world / "run", tmp_path / "run.jsonl", *more) == DONE
    assert f"{world / 'run'}: step 4 of the run, its newest checkpoint, adapters merged\n" in capsys.readouterr().out
    assert (tmp_path / "run.jsonl").read_text() == (tmp_path / "exported.jsonl").read_text()


@pytest.mark.slow
def test_answers_belong_to_one_step(world, tmp_path, capsys, monkeypatch):
    """When this fails, a command that is repeated while the run goes on writes answers of two models into one file."""
    kept = tmp_path / "out.jsonl.partial"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda path, **_: None)
        assert generate(world, world / "run", tmp_path / "out.jsonl", "--step", 2) == DONE
    assert "step 2 of the run, the one of --step, adapters merged" in capsys.readouterr().out
    (tmp_path / "out.jsonl").unlink()
    assert generate(world, world / "run", tmp_path / "out.jsonl") == USER_ERROR
    message = capsys.readouterr().err
    assert f"{kept} holds the answers of another command so far; what differs: MODEL_DIR (" in message
    assert "--step (2, now 4). Repeat that command" in message
    assert generate(world, world / "run", tmp_path / "out.jsonl", "--step", 2) == DONE
    assert "3 of 3 answers found" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_newest_step_is_passed_over(world, tmp_path, capsys):
    """When this fails, one bad disk block keeps everyone from the checkpoints before it, or is answered from."""
    shutil.copytree(world / "run", tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    shutil.copytree(steps / "4", steps / "6")  # which says that it is step 4
    assert generate(world, tmp_path / "run", tmp_path / "out.jsonl") == DONE
    assert "step 4 of the run" in capsys.readouterr().out
    assert {path.name for path in steps.iterdir()} >= {"2", "4", "6"}, "nothing is set aside"


@pytest.mark.slow
def test_a_run_scores_as_its_export(world, tmp_path, capsys):
    """When this fails, a second round is relabelled with the rewards of another model than the first one's."""
    assert score(world, world / "exported", tmp_path / "exported.jsonl") == DONE
    assert score(world, world / "run", tmp_path / "run.jsonl") == DONE
    assert "run: step 4 of the run" in capsys.readouterr().out
    assert (tmp_path / "run.jsonl").read_text() == (tmp_path / "exported.jsonl").read_text()
    origin = json.loads((tmp_path / "run.json").read_text())
    assert (origin["model"], origin["model_step"], origin["kind"]) == (str(world / "run"), 4, "implicit_reward")
    rewards = [json.loads(line)["rewards"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert max(abs(reward) for each in rewards for reward in each) > 0.01


@pytest.mark.slow
def test_what_is_no_checkpoint_is_named(world, tmp_path, capsys):
    """When this fails, people look for a step in vain, or believe that they have chosen one."""

    def refusal(code) -> str:
        assert code == USER_ERROR
        return capsys.readouterr().err

    assert f"--step=2 is of run directories, and MODEL_DIR={world / 'exported'} is none" in refusal(
        generate(world, world / "exported", tmp_path / "out.jsonl", "--step", 2)
    )
    assert "has no step 3; it has: 2, 4." in refusal(
        generate(world, world / "run", tmp_path / "out.jsonl", "--step", 3)
    )
    (tmp_path / "early" / "checkpoints").mkdir(parents=True)
    shutil.copy(world / "run" / "config.yaml", tmp_path / "early")
    shutil.copy(world / "run" / "checkpoints" / "rapo_jax.json", tmp_path / "early" / "checkpoints")
    said = refusal(generate(world, tmp_path / "early", tmp_path / "out.jsonl"))
    assert f"{tmp_path / 'early'} has no checkpoint yet; train it first." in said
    assert not (tmp_path / "out.jsonl").exists()


def test_the_weights_of_a_run_are_held_once(world):
    """When this fails, the policy of a scoring pass stays in memory beside its reference."""
    model = find_model(str(world / "run"), mesh=lambda: make_mesh(devices=jax.devices()[:1]))
    assert model.identity()["--step"] == 4 and model.held is not None
    model.parameters(jnp.dtype("float32"))
    assert model.held is None
