"""Reward models are transformers' sequence classifiers with one label: the same scores, the same files, both ways."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from rapo_jax.chat.templates import padding_token
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.export.model import write_model
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.files import load_parameters
from rapo_jax.models.lora import adapted_spec, merged, with_adapters
from rapo_jax.models.peft import load_adapters, save_adapters
from rapo_jax.models.spec import read_config, score_config, spec_from_config
from rapo_jax.models.weights import Held
from rapo_jax.models.writing import save_parameters
from rapo_jax.parallel import make_mesh
from rapo_jax.runs.setup import set_up
from tests.parity import trajectory
from tests.parity.test_transformers import random_checkpoint
from tests.tiny import assert_same_trees, random_trained
from tests.tiny.families import FAMILIES

PAD = 95
NAMES = [
    "llama3",
    "llama3.2-tied",
    "mistral-v0.1-window",
    "qwen2",
    "gemma2",
    "qwen3",
    "gemma3",
    "smollm3",
    "phi3-longrope",
]


def classifier(family: str) -> dict:
    """A tiny config.json of a reward model."""
    return score_config(FAMILIES[family], pad_token=PAD)


def write_classifier(family: str, directory: Path):
    directory.mkdir(exist_ok=True)
    return random_checkpoint(classifier(family), directory)


def our_scores(parameters: dict, spec, tokens_BT: np.ndarray, last_B: np.ndarray) -> np.ndarray:
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def scores(parameters, tokens_BT):
        decoder = nnx.merge(graph, parameters)
        return decoder.score(decoder(tokens_BT, plain_layout(tokens_BT)))

    scores_BT = scores(parameters, tokens_BT)
    assert scores_BT.dtype == jnp.float32
    return np.asarray(scores_BT)[np.arange(len(last_B)), last_B]


def padded_rows() -> tuple[np.ndarray, np.ndarray]:
    """Two rows, the shorter one padded on the right; where each ends."""
    tokens_BT = np.random.default_rng(0).integers(0, PAD, (2, 40))
    tokens_BT[0, 23:] = PAD
    return tokens_BT, np.array([22, 39])


def their_scores(model, tokens_BT: np.ndarray) -> np.ndarray:
    tokens = torch.tensor(tokens_BT)
    with torch.no_grad():
        return model(tokens, attention_mask=(tokens != PAD).long()).logits[:, 0].numpy()


@pytest.mark.parametrize("family", NAMES)
def test_scores_are_those_of_transformers(family, tmp_path):
    """When this fails, a reward model that others trained gives other rewards here."""
    write_classifier(family, tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    spec = spec_from_config(read_config(tmp_path))
    assert spec.scored
    parameters = load_parameters(tmp_path, spec, mesh=make_mesh(fsdp=-1))
    tokens_BT, last_B = padded_rows()
    theirs = their_scores(model, tokens_BT)
    assert np.abs(np.diff(theirs)) > 0.01
    np.testing.assert_allclose(our_scores(parameters, spec, tokens_BT, last_B), theirs, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_weights_come_back_bit_for_bit(family, tmp_path):
    write_classifier(family, tmp_path / "in")
    spec = spec_from_config(read_config(tmp_path / "in"))
    parameters = load_parameters(tmp_path / "in", spec, mesh=make_mesh(fsdp=4, tensor=2))
    (tmp_path / "out").mkdir()
    save_parameters(Held(parameters), spec, tmp_path / "out", dtype=jnp.float32)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys() and "score.weight" in after and "lm_head.weight" not in after
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []


@pytest.mark.parametrize("family", ["llama3", "gemma2"])
def test_a_language_model_starts_a_reward_model_with_a_new_head(family, tmp_path):
    """When this fails, a reward model starts from another model than was named, or from a head no seed reproduces."""
    (tmp_path / "model").mkdir(), (tmp_path / "out").mkdir()
    model, config = random_checkpoint(FAMILIES[family], tmp_path / "model"), FAMILIES[family]
    spec = replace(spec_from_config(config), scored=True)
    load = lambda seed: load_parameters(tmp_path / "model", spec, mesh=make_mesh(fsdp=-1), seed=seed)  # noqa: E731
    parameters, again, other = load(0), load(0), load(1)
    head = np.asarray(parameters["score_head"])
    assert head.tobytes() == np.asarray(again["score_head"]).tobytes() != np.asarray(other["score_head"]).tobytes()
    assert 0.5 * 0.02 < head.std() < 1.5 * 0.02 and "head" not in parameters

    save_parameters(Held(parameters), spec, tmp_path / "out", dtype=jnp.float32)
    (tmp_path / "out" / "config.json").write_text(json.dumps(score_config(config, pad_token=PAD)))
    reward, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and reward.config.num_labels == 1
    assert torch.equal(reward.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    tokens_BT, last_B = padded_rows()
    ours = our_scores(parameters, spec, tokens_BT, last_B)
    np.testing.assert_allclose(ours, their_scores(reward.eval(), tokens_BT), atol=1e-5)


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """When this fails, a broken download scores with random numbers."""
    write_classifier("llama3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"score.bias": tensors.pop("score.weight")[:, 0]}, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_parameters(tmp_path, spec_from_config(read_config(tmp_path)), mesh=make_mesh(fsdp=-1))
    assert str(caught.value) == (
        f"{tmp_path} does not match its config.json: missing: score.weight; unknown: score.bias."
    )


def test_a_classifier_of_several_labels_is_refused():
    with pytest.raises(UserError, match=r"num_labels=2 \(only 1, a reward model's, is supported\)"):
        spec_from_config(classifier("llama3") | {"id2label": {"0": "bad", "1": "good"}})


@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_adapters_of_a_reward_model_are_pefts_and_bring_their_head(tmp_path):
    """When this fails, a reward model trained with LoRA scores with the random head it began with."""
    import peft  # here because it takes seconds

    write_classifier("qwen2", tmp_path / "base")
    spec = adapted_spec(
        spec_from_config(read_config(tmp_path / "base")), rank=3, alpha=5.0, targets=["q", "down"], rslora=False
    )
    base = load_parameters(tmp_path / "base", spec, mesh=make_mesh(fsdp=-1))
    trained = jax.tree.map(jnp.asarray, random_trained(spec, seed=1))
    (tmp_path / "adapter").mkdir()
    save_adapters(trained, spec, tmp_path / "adapter", base=str(tmp_path / "base"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    tokens_BT, last_B = padded_rows()
    theirs = their_scores(model, tokens_BT)
    ours = our_scores(with_adapters(base, trained), spec, tokens_BT, last_B)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(our_scores(merged(base, trained, spec), spec.base, tokens_BT, last_B), theirs, atol=1e-5)
    assert np.abs(our_scores(base, spec.base, tokens_BT, last_B) - theirs).max() > 0.01
    assert_same_trees(load_adapters(tmp_path / "adapter", spec, mesh=make_mesh(fsdp=-1)), trained, atol=0)


@pytest.mark.slow
def test_a_reward_model_is_exported_as_transformers_reads_it(tmp_path):
    """When this fails, batches of texts cannot be scored, or a text that ends a turn is scored at its last word."""
    model = trajectory.write_model(tmp_path / "model", "llama")
    setup = set_up(from_dict({"model": {"path": str(model), "dtype": "float32"}, "run_dir": str(tmp_path / "run")}))
    setup = replace(setup, spec=replace(setup.spec, scored=True))
    parameters = load_parameters(setup.model_dir, setup.spec, mesh=setup.mesh)
    write_model(setup, Held(parameters), tmp_path / "out", step=1, goal_prompt=setup.goal_prompt)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"] and written["problem_type"] is None
    stops = written["eos_token_id"] if isinstance(written["eos_token_id"], list) else [written["eos_token_id"]]
    assert written["pad_token_id"] == padding_token(setup.tokenizer, stops) and written["pad_token_id"] not in stops
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token_id == written["pad_token_id"]
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens_BT = np.random.default_rng(0).integers(200, 300, (2, 20))
    with torch.no_grad():
        theirs = reward.eval()(torch.tensor(tokens_BT)).logits[:, 0].numpy()
    ours = our_scores(parameters, setup.spec, tokens_BT, np.array([19, 19]))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def program_of(card: str, directory: Path) -> str:
    """The Python of a model card, for this directory."""
    return card.partition("```python\n")[2].partition("```")[0].replace("PATH_OF_THIS_DIRECTORY", str(directory))


@pytest.mark.slow
def test_the_program_in_a_reward_models_card_prints_the_score_that_training_gives(tmp_path, capsys):
    """When this fails, whoever follows the card gets a traceback, or scores that are read one token too late: this
    template writes a line feed after the token that ends a turn."""
    model = trajectory.write_model(tmp_path / "model", "qwen2")
    setup = set_up(from_dict({"model": {"path": str(model), "dtype": "float32"}, "run_dir": str(tmp_path / "run")}))
    setup = replace(setup, spec=replace(setup.spec, scored=True))
    parameters = load_parameters(setup.model_dir, setup.spec, mesh=setup.mesh)
    write_model(setup, Held(parameters), tmp_path / "out", step=1, goal_prompt=setup.goal_prompt)
    capsys.readouterr()
    exec(program_of((tmp_path / "out" / "README.md").read_text(), tmp_path / "out"), {})
    text = (
        "<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user\nWhat is two plus two?<|im_end|>\n"
        "<|im_start|>assistant\nFour.<|im_end|>"
    )
    tokens = np.array([setup.tokenizer(text).input_ids])
    expected = our_scores(parameters, setup.spec, tokens, np.array([tokens.shape[1] - 1]))
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(float(expected[0]), abs=1e-5)


def test_a_reward_model_is_refused_where_a_language_model_is_trained(tmp_path):
    """When this fails, a tied reward model is trained through its embedding, as if it had a vocabulary."""
    model = trajectory.write_model(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(score_config(config, pad_token=0)))
    with pytest.raises(UserError, match=r"is a reward model \(its config.json says LlamaForSequenceClassification\)"):
        set_up(from_dict({"model": {"path": str(model)}}))
