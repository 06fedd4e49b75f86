"""Directories of LoRA adapters are models, those of runs are told apart, and what is wrong with either is one sentence."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rapo_jax.errors import UserError
from rapo_jax.models.directory import base_directory, declared_stop_tokens, model_directory
from rapo_jax.models.files import load_parameters
from rapo_jax.models.lora import adapted_spec, merged
from rapo_jax.models.peft import save_adapters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.opened import open_tokenizer
from rapo_jax.parallel import make_mesh
from tests import tiny

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def refusal(directory, function=model_directory):
    with pytest.raises(UserError) as caught:
        function(str(directory), option="MODEL_DIR")
    return str(caught.value)


def test_a_run_directory_is_not_a_model(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    assert refusal(tmp_path).endswith(
        f"is a run directory; export it first: rapo export {tmp_path} OUT_DIR, and give OUT_DIR."
    )


@pytest.mark.parametrize("declared", ["2.5", "true", '"</s>"', "[1, null]", "{}"])
def test_stop_tokens_that_are_no_token_ids_are_refused(tmp_path, declared):
    """When this fails, a generation_config.json that was edited by hand ends in a TypeError."""
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {declared}}}')
    with pytest.raises(UserError, match=r"eos_token_id=.* must be a token id or a list of them; correct it\.$"):
        declared_stop_tokens(tmp_path)


@pytest.mark.parametrize(("declared", "tokens"), [("3", [3]), ("[3, 1]", [3, 1]), ("null", [])])
def test_stop_tokens_are_one_id_or_several(tmp_path, declared, tokens):
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {declared}}}')
    assert declared_stop_tokens(tmp_path) == tokens


@pytest.fixture
def base(tmp_path):
    return tiny.write_model(tmp_path / "model")


@pytest.fixture
def lora(base):
    """The spec of the model with adapters, scaled by 6 / 2."""
    spec = spec_from_config(read_config(base))
    return adapted_spec(spec, rank=2, alpha=6.0, targets=["q", "o", "down"], rslora=False)


@pytest.fixture
def adapter(base, lora):
    """A directory of adapters as training leaves it, without a tokenizer."""
    directory = base.with_name("adapter")
    directory.mkdir()
    trained = jax.tree.map(jax.numpy.asarray, tiny.random_trained(lora, seed=1))
    save_adapters(trained, lora, directory, base=str(base))
    return directory


def changed(directory, **keys):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return directory


def load(directory):
    spec = spec_from_config(read_config(directory))
    return load_parameters(directory, spec, mesh=make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]))


def test_adapters_are_the_model_that_they_make_of_their_base(base, lora, adapter, capsys):
    """When this fails, a run from adapters, or what is generated and scored with them, starts from the base model alone."""
    expected = merged(load(base), jax.tree.map(jax.numpy.asarray, tiny.random_trained(lora, seed=1)), lora)
    tiny.assert_same_trees(load(adapter), expected, atol=1e-6)
    assert np.abs(np.asarray(expected["blocks"]["q"]) - np.asarray(load(base)["blocks"]["q"])).max() > 0.01
    assert model_directory(str(adapter)) == adapter and base_directory(adapter) == base
    assert f"model.path={adapter}: LoRA adapters, merged in float32 into {base}" in capsys.readouterr().out


def test_config_tokenizer_and_stop_tokens_are_the_bases_where_the_adapters_have_none(base, adapter):
    assert read_config(adapter) == read_config(base)
    assert open_tokenizer(adapter).tokenizer.get_vocab() == open_tokenizer(base).tokenizer.get_vocab()
    assert declared_stop_tokens(adapter) == declared_stop_tokens(base) == [0]
    (adapter / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert declared_stop_tokens(adapter) == [0], "the base model's is what transformers reads"


def test_a_base_model_may_lie_beside_what_names_it(base, adapter):
    """When this fails, adapters that were moved with their base model no longer open."""
    assert base_directory(changed(adapter, base_model_name_or_path="../model")).resolve() == base


def test_rslora_and_whole_tensors_are_honoured(base, adapter):
    """When this fails, adapters are added with another scale than they were trained with."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    norm = np.full(16, 0.5, np.float32)
    save_file(tensors | {"base_model.model.model.norm.weight": norm}, adapter / "adapter_model.safetensors")
    plain = load(base)["blocks"]["q"]
    added = np.asarray(load(adapter)["blocks"]["q"] - plain)
    for pattern, times in (
        ({"q_proj": 24}, (4.0, 4.0)), ({"proj": 24}, (1.0, 1.0)),
        ({r"model\.layers\.0\..*\.[qk]_proj": 24, "q_proj": 12}, (4.0, 2.0)),
    ):  # fmt: skip
        scaled = np.asarray(load(changed(adapter, alpha_pattern=pattern))["blocks"]["q"] - plain)
        expected = added * np.array(times, np.float32)[:, None, None, None]
        np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-6)
    parameters = load(changed(adapter, alpha_pattern={}, use_rslora=True))
    np.testing.assert_allclose(np.asarray(parameters["blocks"]["q"] - plain), added * 2**0.5, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(parameters["norm"], norm)


def test_adapters_of_a_reward_model_bring_their_head(base, adapter):
    """When this fails, rewards come from a random head, or the adapters are refused for the head of the base."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    head = np.arange(16, dtype=np.float32)[None]
    save_file(tensors | {"base_model.model.score.weight": head}, adapter / "adapter_model.safetensors")
    spec = spec_from_config(read_config(changed(adapter, task_type="SEQ_CLS", modules_to_save=["score"])))
    assert spec.scored
    np.testing.assert_array_equal(load(adapter)["score_head"], head[0])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern={'q_proj': 'x'}"),
        ({"alpha_pattern": {"q_proj)": 8}}, "alpha_pattern={'q_proj)': 8}"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern=['q_proj']"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which changes the base model"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_alpha": "x", "fan_in_fan_out": True}, "fan_in_fan_out=True; lora_alpha='x'"),
    ],
)
def test_adapters_of_another_kind_are_refused_by_name(adapter, keys, said):
    """When this fails, something else than was trained is computed, without a word."""
    message = refusal(changed(adapter, **keys))
    assert f"adapter_config.json asks for what is not computed here: {said}. Give the merged model" in message


def test_a_base_model_that_is_not_there_is_named(adapter):
    said = f"base_model_name_or_path of {adapter / 'adapter_config.json'}"
    assert refusal(changed(adapter, base_model_name_or_path="/absent")).startswith(
        f"{said}='/absent': no such directory"
    )
    assert (
        refusal(changed(adapter, base_model_name_or_path=None))
        == f"{said} is None; write there where the base model is."
    )


def test_weights_that_do_not_fit_are_named(base, adapter):
    """When this fails, adapters of a larger model are a traceback deep in NumPy."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for wrong, said in (
        ({f"{Q}.lora_B.weight": np.zeros((20, 2), np.float32)}, "q_proj.weight: the adapters' is (20, 16), the base model's"),
        ({f"{Q}.lora_B.weight": np.zeros((16, 3), np.float32)}, "have ranks 2 and 3"),
        ({f"{Q}.lora_magnitude_vector": np.zeros(16, np.float32)}, "lora_magnitude_vector, which is not of plain LoRA"),
        ({f"{Q.replace('q_proj', 'z_proj')}.lora_A.weight": np.zeros((2, 16), np.float32)}, "does not hold both factors of"),
    ):  # fmt: skip
        save_file(tensors | wrong, path)
        with pytest.raises(UserError) as caught:
            load(adapter)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load(adapter)
    path.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors; adapters are read from safetensors only"):
        load(adapter)
