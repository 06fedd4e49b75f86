"""Of a model that also sees, the language model is read, trained and exported as transformers computes it on text."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.export.model import write_model
from rapo_jax.models.files import load_parameters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.models.text_part import text_config
from rapo_jax.models.weights import Held
from rapo_jax.runs.setup import set_up
from tests.parity.test_transformers import our_logits
from tests.tiny.chat_templates import SHAPES, build
from tests.tiny.families import FAMILIES

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 40))
LEFT_OUT = "only the text part is read; vision_tower and multi_modal_projector are left out"


def config() -> dict:
    """As the large ones are published: the text part holds what is not the default of transformers."""
    text = {key: value for key, value in FAMILIES["gemma3"].items() if key not in ("architectures", "model_type")}
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text | {"vocab_size": 384},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 380,
        "eoi_token_index": 381,
        "image_token_index": 382,
        "eos_token_id": [1, 5],
        "initializer_range": 0.02,
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration._from_config(
        transformers.AutoConfig.for_model(**config()), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("multimodal")
    model.save_pretrained(directory)
    build(*SHAPES["gemma"]).save_pretrained(directory)
    return directory


def their_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("names", ["as published", "as modules of the model"])
def test_text_gets_the_logits_of_the_whole_model(names, model, directory, tmp_path):
    """When this fails, the part that is trained is not the part that others will run. Both namings of tensors are in use."""
    tensors = load_file(directory / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"language_model", "vision_tower", "multi_modal_projector"}
    if names != "as published":
        tensors = {f"model.{name.replace('language_model.model', 'language_model')}": t for name, t in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    theirs = their_logits(model)
    assert np.abs(theirs).max() > 1.0
    np.testing.assert_allclose(our_logits(tmp_path, TOKENS), theirs, atol=1e-4)


@pytest.mark.slow
def test_what_is_exported_is_the_language_model_alone(model, directory, tmp_path, capsys):
    """When this fails, an export opens with a random half, or does not open at all."""
    setup = set_up(from_dict({"model": {"path": str(directory), "dtype": "float32"}, "run_dir": str(tmp_path / "run")}))
    assert LEFT_OUT in capsys.readouterr().out
    parameters = load_parameters(directory, setup.spec, mesh=setup.mesh)
    write_model(setup, Held(parameters), tmp_path / "out", step=1, goal_prompt=setup.goal_prompt)
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    written, loading = opened
    assert isinstance(written, transformers.Gemma3ForCausalLM)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    np.testing.assert_allclose(their_logits(written.eval()), their_logits(model), atol=1e-5)
    assert not {"text_config", "vision_config"} & json.loads((tmp_path / "out" / "config.json").read_text()).keys()
    assert spec_from_config(read_config(tmp_path / "out")) == setup.spec


def test_the_text_part_declares_what_the_whole_model_does():
    """When this fails, answers run on past the end of a turn, or weights in 4 bits are read as if they were whole."""
    text = text_config(config() | {"dtype": "bfloat16", "quantization_config": {"bits": 4}})
    assert text["eos_token_id"] == [1, 5] and text["dtype"] == "bfloat16"
    assert text["architectures"] == ["Gemma3ForCausalLM"] and "vision_config" not in text
    with pytest.raises(UserError, match="quantization_config"):
        spec_from_config(text)
    with pytest.raises(UserError, match=r"tie_word_embeddings=False, and True in text_config; remove the one"):
        text_config(config() | {"tie_word_embeddings": False})
    with pytest.raises(UserError, match=r"query_pre_attn_scalar=7, and \d+ in text_config; remove the one"):
        text_config(config() | {"query_pre_attn_scalar": 7})
    other = config()["text_config"] | {"model_type": "llama"}
    with pytest.raises(UserError, match=r"model_type='llama' in text_config must be 'gemma3_text'"):
        text_config(config() | {"text_config": other})
    with pytest.raises(UserError, match=r"text_config=None must be an object"):
        text_config(config() | {"text_config": None})


@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_adapters_of_the_whole_model_are_read_as_those_of_its_text_part(directory, tmp_path):
    """When this fails, adapters that others trained on the whole model are refused, or left out."""
    import peft  # here because it takes seconds

    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(directory, attn_implementation="eager")
    lora = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(whole.eval(), lora)
    adapted.peft_config["default"].base_model_name_or_path = str(directory)
    adapted.save_pretrained(tmp_path)
    theirs = their_logits(adapted)
    assert np.abs(theirs - our_logits(directory, TOKENS)).max() > 0.1
    np.testing.assert_allclose(our_logits(tmp_path, TOKENS), theirs, atol=1e-4)
