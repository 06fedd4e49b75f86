"""What is wrong with a model directory is named by every verb that opens it, before anything is computed from it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.export.model import write_model
from rapo_jax.models.files import load_parameters, write_tensors
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.models.weights import Held
from rapo_jax.models.writing import save_parameters
from rapo_jax.parallel import make_mesh
from rapo_jax.runs.setup import set_up
from tests import tiny

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@pytest.fixture
def model(tmp_path):
    return tiny.write_model(tmp_path / "model")


def change(model, function):
    """Rewrites the weights of a directory as `function` of {name: array}."""
    save_file(function(load_file(model / "model.safetensors")), model / "model.safetensors")
    return model


def with_value(name, value, dtype=np.float32):
    def function(weights):
        array = weights[name].astype(dtype)
        array[(1,) * array.ndim] = value
        return weights | {name: array}

    return function


def commands(model, place):
    """Every verb that reads the weights of a model."""
    rows = tiny.write_rows(place / "rows.jsonl")
    tiny.write_rows(place / "prompts.jsonl", [{"prompt": "Why?"}])
    (place / "run.yaml").write_text(tiny.RUN)
    run = (place / "run.yaml", f"model.path={model}", f"data.path={rows}")
    return {
        "train": ("train", *run, f"run_dir={place / 'run'}"),
        "generate": ("generate", model, "--prompts", place / "prompts.jsonl", "--out", place / "answers.jsonl"),
        "score": ("score", *run, "--model", model, "--out", place / "scores.jsonl"),
    }


@pytest.mark.parametrize("verb", ["train", "generate", "score"])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (with_value(NORM, np.nan), f"{NORM} has 1 value that is not finite in float32"),
        (with_value(EMBEDDING, 1e300, np.float64), f"{EMBEDDING} has 1 value that is not finite in float32"),
        (
            with_value(NORM, 3, np.int8),
            f"quantized or not a weight: {NORM} is I8, and only F16, BF16, F32, F64 are read",
        ),
    ],
    ids=["NaN", "beyond float32", "int8"],
)
def test_weights_that_cannot_be_computed_with_are_refused_by_name(verb, function, said, model, tmp_path, capsys):
    """When this fails, a broken download trains to the end without one update, or answers every prompt with nothing."""
    change(model, function)
    assert tiny.rapo(*commands(model, tmp_path)[verb]) == 2
    message = capsys.readouterr().err
    assert said in message and str(model) in message and "Traceback" not in message
    assert not (tmp_path / "run").exists() and not (tmp_path / "answers.jsonl").exists()


def test_another_head_than_the_tied_embedding_is_refused_and_the_same_one_is_not(model):
    """When this fails, a model with a head of its own is trained with its embedding in the head's place."""
    spec, mesh = spec_from_config(read_config(model)), make_mesh(fsdp=-1)
    plain = load_parameters(model, spec, mesh=mesh)
    change(model, lambda weights: weights | {HEAD: weights[EMBEDDING]})
    tiny.assert_same_trees(load_parameters(model, spec, mesh=mesh), plain, atol=0)
    change(model, with_value(HEAD, 0.5))
    with pytest.raises(
        UserError, match=r"lm_head\.weight, which differs from the embedding that config.json ties it to; set"
    ):
        load_parameters(model, spec, mesh=mesh)


@pytest.mark.parametrize("verb", ["train", "generate", "score"])
def test_a_token_beyond_the_embedding_is_refused(verb, model, tmp_path, capsys):
    """When this fails, tokens that were added to a tokenizer are all read as the last row of the embedding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|think|>", "<|answer|>", "<|never|>"])
    tokenizer.save_pretrained(model)
    assert json.loads((model / "config.json").read_text())["vocab_size"] == size
    command = commands(model, tmp_path)[verb]
    tiny.write_rows(tmp_path / "rows.jsonl", [row | {"chosen": "<|think|>Yes.<|answer|>No."} for row in tiny.PAIRS])
    tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "<|think|>Why?<|answer|>"}])
    assert tiny.rapo(*command) == 2
    said = f"2 tokens beyond the model's vocabulary of {size}: '<|think|>' ({size}), '<|answer|>' ({size + 1}); take"
    assert said in " ".join(capsys.readouterr().err.split())


def test_weights_that_are_not_finite_are_not_written(model, tmp_path):
    """When this fails, a diverged model is published."""
    setup = set_up(from_dict({"model": {"path": str(model)}, "run_dir": str(tmp_path / "run")}))
    parameters = tiny.random_parameters(setup.spec)
    broken = parameters | {"norm": np.full_like(parameters["norm"], np.inf)}
    with pytest.raises(UserError, match=r"model\.norm\.weight has .* values that are not finite in float32"):
        write_model(setup, Held(broken), tmp_path / "out", step=1, goal_prompt=setup.goal_prompt)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_weights_that_the_disk_lost_are_noticed_before_the_export_appears(model, tmp_path, monkeypatch):
    """When this fails, a bad disk publishes another model than the one that was trained."""
    setup = set_up(from_dict({"model": {"path": str(model)}, "run_dir": str(tmp_path / "run")}))

    def lose_a_bit(path):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)

    def save(weights, spec, directory, **more):
        written = save_parameters(weights, spec, directory, **more)
        lose_a_bit(directory / "model.safetensors")
        return written

    monkeypatch.setattr("rapo_jax.export.model.save_parameters", save)
    with pytest.raises(RuntimeError, match="reads back as something else: norm"):
        write_model(
            setup,
            Held(tiny.random_parameters(setup.spec)),
            tmp_path / "out",
            step=1,
            goal_prompt=setup.goal_prompt,
        )
    assert not (tmp_path / "out").exists()


def test_weights_are_as_readable_as_the_files_beside_them(tmp_path):
    """When this fails, a model in a shared directory opens for the one who trained it and for nobody else."""
    (tmp_path / "beside").touch()
    write_tensors(tmp_path / "model.safetensors", {"a": np.zeros(3, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "beside").stat().st_mode
