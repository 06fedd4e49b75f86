"""`rapo evaluate`: likelihoods that anyone else would compute, and numbers that follow from them."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from rapo_jax.config.files import load_config
from rapo_jax.evaluate.held_out import better_first, held_out_pairs
from rapo_jax.evaluate.likelihoods import ask, column_name, common_rows, labels_of, likelihoods, tokenize
from rapo_jax.evaluate.verb import grid_of
from rapo_jax.parallel import make_mesh
from rapo_jax.passes import forward_pass
from rapo_jax.relabel import goal_text
from rapo_jax.runs.trained import find_model
from tests.opened.exports import as_export
from tests.tiny import PAIRS, RUN, rapo, write_model, write_rows

GRID = (1.0, 5.0, 9.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A configuration, two models, scored pairs, one of them too long, and a run of one step."""
    world = tmp_path_factory.mktemp("world")
    write_model(world / "model")
    write_model(world / "policy", seed=1)
    write_rows(world / "pairs.jsonl", [*PAIRS, PAIRS[0] | {"prompt": "Too long", "chosen": "word " * 300}])
    (world / "config.yaml").write_text(
        RUN.replace("data: {", f"data: {{path: {world / 'pairs.jsonl'}, ") + f"run_dir: {world / 'run'}\n"
    )
    return world


def one_device():
    return make_mesh(fsdp=1, devices=jax.devices()[:1])


def evaluate(world, out, *more, models=("model", "policy"), reference="model"):
    named = [word for name in models for word in ("--model", world / name)]
    return rapo("evaluate", world / "config.yaml", f"model.path={world / reference}", *named, "--out", out, *more)


@functools.cache
def torch_logps(directory, goal: float | None, row: int, response: str) -> float:
    """log pi(response | prompt, goal) by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    turns = [{"role": "system", "content": goal_text(goal)}] if goal is not None else []
    turns += [{"role": "user", "content": PAIRS[row]["prompt"]}]
    before = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]
    turns += [{"role": "assistant", "content": PAIRS[row][response]}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    assert whole[: len(before)] == before
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
    return float(sum(logps[n - 1, whole[n]] for n in range(len(before), len(whole))))


@pytest.mark.slow
def test_log_probabilities_under_every_goal_are_those_of_transformers(world, tmp_path, capsys):
    """When this fails, every number that an evaluation gives is about something else."""
    config = load_config(world / "config.yaml", [f"model.path={world / 'model'}"])
    asked = ask(find_model(str(world / "model"), mesh=one_device), config, label="model")
    pairs = held_out_pairs(config, most=None)
    tokens = tokenize(asked, pairs, config, grid=GRID)
    rows = common_rows([tokens], config, num_pairs=len(pairs))
    assert "1 of 13 pairs left out: longer than data.max_length=256" in capsys.readouterr().out
    table = likelihoods(tokens, asked.model, pairs, config, grid=GRID, rows=rows, out=tmp_path)
    assert len(table.rewards_N2) == len(PAIRS)
    assert table.rewards_N2[4].tolist() == [8.0, 2.5]
    found = {
        None: table.none_N2[4],
        **{goal: table.grid_NG2[4, g] for g, goal in enumerate(GRID)},
        8.0: table.own_N22[4, 0],
        2.5: table.own_N22[4, 1],
        10.0: table.highest_N2[4],
    }
    for goal, logps_2 in found.items():
        expected = [torch_logps(world / "model", goal, 4, response) for response in ("chosen", "rejected")]
        np.testing.assert_allclose(logps_2, expected, atol=1e-4)
    assert len({round(float(logps[0]), 3) for logps in found.values()}) == len(found), "goals must show"


@pytest.mark.slow
def test_the_verb_writes_its_results_and_computes_nothing_twice(world, tmp_path, capsys, monkeypatch):
    """When this fails, adding a suite or a model to an evaluation costs the whole of it again, or a table loses a model."""
    out = tmp_path / "out"
    assert evaluate(world, out, "--goals", "1,9") == 0
    screen = capsys.readouterr().out
    assert "unlearning" in screen and "accuracy of the implicit reward" in screen
    assert all(len(line) < 81 for line in screen.splitlines()[-20:-2])
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"likelihood", "unlearning", "preference"}
    assert {m["model"] for m in results["likelihood"]["measures"]} == {"model", "policy"}
    assert {m["model"] for m in results["preference"]["measures"]} == {"policy"}, "the reference has no margins"
    for suite in results:
        assert (out / f"{suite}.png").stat().st_size > 5000
    lines = (out / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(result["measures"]) for result in results.values())

    with monkeypatch.context() as patch:
        patch.setattr("rapo_jax.passes.forward_pass.run_pass", None)  # not callable
        assert evaluate(world, out, "--goals", "1,9", "--suite", "preference") == 0
    assert set(json.loads((out / "results.json").read_text())) == {"preference"}
    assert not (out / "likelihood.png").exists(), "a figure of an earlier command would pass for this one's"
    write_model(world / "third", seed=2)
    passes, run = [], forward_pass.run_pass
    monkeypatch.setattr(forward_pass, "run_pass", lambda *a, **k: passes.append(k["results"].said) or run(*a, **k))
    assert evaluate(world, out, "--goals", "1,9", models=("model", "policy", "third")) == 0
    assert passes == ["third"], "the reference has read these texts as a model"


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_evaluated_as_its_export_would_be(world, tmp_path, capsys):
    arguments = [world / "config.yaml", f"model.path={world / 'model'}", "train.max_steps=1"]
    assert rapo("train", *arguments) == 0
    assert rapo("export", world / "run", tmp_path / "exported") == 0
    capsys.readouterr()
    for number, model in enumerate((f"{world / 'run'}@1", tmp_path / "exported")):
        command = ["evaluate", world / "run" / "config.yaml", "--model", model, "--suite", "likelihood"]
        assert rapo(*command, "--out", tmp_path / str(number), "--pairs", "5") == 0
        assert "5 of 13 pairs" in capsys.readouterr().out
    one, other = ((tmp_path / str(n) / "likelihood.png").exists() for n in range(2))
    assert one and other
    values = [
        [m["value"] for m in json.loads((tmp_path / str(n) / "results.json").read_text())["likelihood"]["measures"]]
        for n in range(2)
    ]
    np.testing.assert_allclose(*values, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--suite", "likelihod"],
            "likelihod is unknown; there are likelihood, unlearning, preference, goals, frontier",
        ),
        (["--goals", "7"], "7 is one goal; a grid needs two or more"),
        (["--goals", "1,x"], "1,x must be numbers, separated by commas"),
        (["--suite", ","], "an empty name is unknown"),
        (["--pairs", "0"], "it must be a finite number of at least 1"),
        (["model.path="], "the suite preference compares with the model that training started from"),
        (
            ["data.max_length=32", "data.max_prompt_length=16"],
            "none of 13 pairs fits data.max_length=32 or data.max_prompt_length=16; raise them.",
        ),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, world, tmp_path, capsys):
    assert evaluate(world, tmp_path / "out", *arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said


def test_a_model_named_twice_or_an_output_that_is_a_file_is_refused(world, tmp_path, capsys):
    assert evaluate(world, tmp_path / "out", models=("model", "model")) == 2
    assert "--model names one model twice" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert evaluate(world, tmp_path / "file") == 2
    assert "is a file; it must be a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_is_never_its_own_policy_however_it_is_spelled(world, tmp_path, capsys, monkeypatch):
    """When this fails, the start of a training run is told that its implicit reward is always wrong."""
    monkeypatch.chdir(world)
    assert evaluate(world, tmp_path / "out", "--reference", "./model", models=("model",)) == 2
    assert "compares models with ./model, and no other is named" in " ".join(capsys.readouterr().err.split())
    assert evaluate(world, tmp_path / "out", "--model", "policy/", models=("policy",)) == 2
    assert "names one model twice" in capsys.readouterr().err


def test_a_model_with_another_goal_scale_is_refused(world, tmp_path, capsys):
    """When this fails, a model is asked for 9 on a scale that ends at 5, and the numbers look like any other."""
    as_export(world / "policy", tmp_path / "exported")
    code = evaluate(world, tmp_path / "out", "relabel.goal_max=5", "--model", tmp_path / "exported", models=("model",))
    assert code == 2
    assert "exported knows goals from 0 to 5, and the data's scores go from 1 to 5" in " ".join(
        capsys.readouterr().err.split()
    )


def test_pairs_are_read_whatever_the_objective_compares(world, capsys):
    """When this fails, the config.yaml of an SFT run has no pairs to evaluate on."""
    config = load_config(world / "config.yaml", ["objective.name=sft", "objective.beta=null", "relabel.goals=[]"])
    assert len(held_out_pairs(config, most=None)) == 13
    assert "13 pairs of data.path" in capsys.readouterr().out


def test_pairs_without_scores_are_refused(world, tmp_path, capsys):
    write_rows(tmp_path / "plain.jsonl", [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in PAIRS])
    assert evaluate(world, tmp_path / "out", f"data.path={tmp_path / 'plain.jsonl'}") == 2
    assert "score" in capsys.readouterr().err


def test_models_are_called_by_the_shortest_names_that_tell_them_apart():
    assert labels_of(["runs/dpo", "runs/ra-dpo/"]) == ["dpo", "ra-dpo"]
    assert labels_of(["a/model", "b/model"]) == ["a/model", "b/model"]
    assert labels_of(["Qwen/Qwen3-8B"]) == ["Qwen3-8B"]
    assert column_name("runs/a b", "") != column_name("runs/a/b", "") and column_name("运行" * 80, "").isascii()


def test_the_grid_is_of_whole_goals_where_the_scale_is_whole(world):
    config = functools.partial(load_config, world / "config.yaml")
    assert grid_of(config([])) == tuple(float(goal) for goal in range(1, 11))
    assert grid_of(config(["relabel.goal_min=0"])) == tuple(float(goal) for goal in range(11))
    assert grid_of(config(["relabel.goal_min=0", "relabel.goal_max=1"])) == (0.0, 1.0)
    assert grid_of(config(["relabel.goal_max=100"]))[:3] == (1.0, 11.0, 21.0)
    assert grid_of(config(["relabel.goal_max=1.55"]))[:3] == (1.0, 1.055, 1.11)


def test_the_better_response_comes_first(world):
    config = load_config(world / "config.yaml", [])
    record = held_out_pairs(config, most=1)[0]
    turned = better_first(type(record)(1, record.prompt, record.responses[::-1], record.rewards[::-1], ranked=False))
    assert (turned.responses, turned.rewards) == (record.responses, record.rewards)
