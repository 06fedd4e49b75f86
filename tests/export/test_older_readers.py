"""What exports say in the words of transformers 4 beside those of transformers 5.

The files of tiny exports of every family were opened with transformers 4.57.6: tokens, text and logits were equal. These
tests hold the files as they were then.
"""

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from rapo_jax.export.older_readers import model_config, older_rope, save_tokenizer, tokenizer_config
from rapo_jax.models.rope_config import ROPE_NAMES, rope_from_config
from rapo_jax.models.spec import spec_from_config
from tests import tiny
from tests.tiny.families import FAMILIES

LONG = {"short_factor": [1.0, 1.1, 1.5], "long_factor": [1.5, 4.0, 12.0]}
PHI = {"original_max_position_embeddings": 24, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "attention_factor": None}},
         {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 7e4},
         {"rope_theta": 7e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4,
                              "beta_fast": None}},
         {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
        (PHI | {"rope_parameters": LONG | {"partial_rotary_factor": 0.75, "rope_theta": 1e4, "rope_type": "longrope",
                                           "original_max_position_embeddings": 24}},
         {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope"} | LONG}),
        (PHI | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
         {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        (PHI | {"rope_scaling": {"type": "su"} | LONG, "partial_rotary_factor": 0.75}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_rotary_embeddings_are_also_spelled_as_before_transformers_5(config, expected):
    """When this fails, transformers 4 and vLLM compute every position with a base of 10,000, and say nothing."""
    assert older_rope(config) == expected
    names = {"su": "longrope"} | ROPE_NAMES
    both = [rope_from_config(each, names=names, partial=True) for each in (config | older_rope(config), config)]
    assert both[0] == both[1]
    older = {key: value for key, value in config.items() if key != "rope_parameters"} | older_rope(config)
    assert rope_from_config(older, names=names, partial=True) == both[1], "also without the newer spelling"


def test_a_config_has_both_names_of_the_dtype_and_no_path():
    config = model_config(
        {"torch_dtype": "float16", "_name_or_path": "/home/me/model", "vocab_size": 3}, dtype="float32"
    )
    assert config == {"torch_dtype": "float32", "dtype": "float32", "vocab_size": 3}
    assert model_config({"_name_or_path": "org/model"}, dtype="bfloat16")["_name_or_path"] == "org/model"


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "eos_token": "<|end|>"},
         {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}),
        ({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "name_or_path": "/home/me/model"},
         {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}),
        ({"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]}, {"additional_special_tokens": ["<b>", "<a>"]}),
        ({"extra_special_tokens": {"image_token": "<a>"}}, {"extra_special_tokens": {"image_token": "<a>"}}),
        ({"chat_template": [{"name": "tool_use", "template": "old"}]}, {}),
    ],
)  # fmt: skip
def test_a_tokenizer_config_is_one_that_every_version_reads(declared, expected):
    """When this fails, transformers 4 says that the class TokenizersBackend does not exist, or has no chat template."""
    tokenizer = tiny.build_tokenizer()
    assert tokenizer_config(declared, tokenizer) == expected | {"chat_template": tiny.CHAT_TEMPLATE}


def test_named_templates_are_a_list_as_before_transformers_5():
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert tokenizer_config({}, tokenizer)["chat_template"] == [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]


def test_a_saved_tokenizer_keeps_the_files_and_the_class_of_its_source(tmp_path):
    """When this fails, a converter misses tokenizer.model, or a padding token is named in one of two files only."""
    source = tiny.write_model(tmp_path / "model")
    declared = json.loads((source / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    (source / "tokenizer_config.json").write_text(json.dumps(declared))
    (source / "tokenizer.model").write_bytes(b"pieces")
    (source / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token, tokenizer.chat_template = "<|system|>", "new"
    out = tmp_path / "out"
    out.mkdir()
    save_tokenizer(tokenizer, out, source=source)
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert (written["tokenizer_class"], written["pad_token"], written["chat_template"]) == (
        "LlamaTokenizerFast", "<|system|>", "new",
    )  # fmt: skip
    assert (out / "chat_template.jinja").read_text() == "new"
    assert (out / "tokenizer.model").read_bytes() == b"pieces"
    assert json.loads((out / "special_tokens_map.json").read_text()) == {
        "eos_token": "<|end|>", "pad_token": "<|system|>",
    }  # fmt: skip
    assert AutoTokenizer.from_pretrained(out).pad_token == "<|system|>"


@pytest.mark.parametrize("family", ["gemma3-linear-rope", "olmo3-yarn"])
def test_ropes_that_differ_by_layer_are_spelled_as_published(family):
    """When this fails, an export of a long-context model runs without its scaling, or with one theta, under transformers 4."""
    saved = AutoConfig.for_model(**FAMILIES[family]).to_dict()
    older = {key: value for key, value in saved.items() if key != "rope_parameters"} | older_rope(saved)
    assert spec_from_config(older) == spec_from_config(saved) == spec_from_config(FAMILIES[family])
    assert older["rope_scaling"]["factor"] > 1 and ("rope_local_base_freq" in older) == family.startswith("gemma3")
    assert spec_from_config(saved | older_rope(saved)) == spec_from_config(saved)
