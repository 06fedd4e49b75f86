"""Every number in a model's config.json is read or refused, and every tensor is accounted for."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapo_jax.errors import UserError
from rapo_jax.models.directory import model_directory
from rapo_jax.models.families import FAMILIES as SUPPORTED
from rapo_jax.models.files import Checkpoint, check
from rapo_jax.models.spec import FULL_ATTENTION, read_config, spec_from_config
from rapo_jax.models.table import table
from tests.models.published import GEMMA2_9B
from tests.tiny.families import FAMILIES, GEMMA2, GEMMA3, GRANITE4, LLAMA, LLAMA31_ROPE, MISTRAL, QWEN2, SMOLLM3

SPEC = spec_from_config(LLAMA)


def refusal(config):
    with pytest.raises(UserError) as caught:
        spec_from_config(config)
    return str(caught.value)


# config.json.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.22),
        ("partial_rotary_factor", 0.5),
        ("a_number_of_next_year", 3),
        ("use_qk_norm", True),
        ("rope_interleaved", True),
    ],
)
def test_a_key_that_nobody_reads_is_refused_by_name(key, value):
    """When this fails, a number is ignored and the model computes something else, without a sign of it."""
    assert f"config.json (llama) asks for what this decoder does not compute: {key}={value!r}" in refusal(
        LLAMA | {key: value}
    )


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("attention_dropout", 0.1, "0"),
        ("pretraining_tp", 2, "1"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "None"),
        ("add_cross_attention", True, "False"),
    ],
)
def test_a_key_with_one_supported_value_is_refused_with_any_other(key, value, supported):
    assert f"{key}={value!r} (only {supported} is supported)" in refusal(LLAMA | {key: value})
    spec_from_config(LLAMA | {key: {"0": 0.0, "1": 1, "None": None, "False": False}[supported]})


def test_an_unsupported_activation_is_refused():
    """When this fails, Llama configs that say gelu, as some do, are run with silu, which gives fluent nonsense."""
    message = refusal(LLAMA | {"hidden_act": "gelu"})
    assert "hidden_act='gelu' (supported: silu, gelu_pytorch_tanh)" in message


def test_a_switch_of_another_family_is_refused():
    assert "attn_logit_softcapping=50.0" in refusal(LLAMA | {"attn_logit_softcapping": 50.0})
    assert "query_pre_attn_scalar=256" in refusal(MISTRAL | {"query_pre_attn_scalar": 256})


def test_everything_that_is_wrong_is_reported_at_once():
    """When this fails, ten wrong keys take ten attempts, each after a download."""
    message = refusal(LLAMA | {"num_experts": 8, "attention_dropout": 0.1, "hidden_act": "relu", "use_cache": True})
    assert message == (
        "config.json (llama) asks for what this decoder does not compute: num_experts=8; attention_dropout=0.1 (only 0 "
        "is supported); hidden_act='relu' (supported: silu, gelu_pytorch_tanh)."
    )


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "qwen3_moe", None])
def test_an_unknown_family_is_refused_with_the_known_ones(family):
    assert refusal(LLAMA | {"model_type": family}) == (
        f"config.json: model_type={family!r} is not supported; supported: {', '.join(SUPPORTED)}."
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_local_experts": 62}, "num_local_experts=62 (only 0, a dense model, is supported)"),
        ({"layer_types": None}, "no layer_types, so that every layer would be a Mamba layer"),
        ({"layer_types": ["mamba", "attention", "mamba"]}, "unknown mamba"),
        ({"position_embedding_type": "nope"}, "position_embedding_type='nope' (rope or null)"),
        ({"normalization_function": "layernorm"}, "normalization_function='layernorm' (only rmsnorm)"),
        ({"num_local_experts": None}, "num_local_experts=None must be a whole number"),
    ],
)
def test_granite_4_is_read_where_it_is_dense_and_refused_where_it_is_not(changed, message):
    """When this fails, a model with experts or Mamba layers is computed without them, or refused for a wrong reason."""
    assert message in refusal(GRANITE4 | changed)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"rope_type": "proportional", "factor": 4.0},
            "rope_type='proportional' is not supported; supported: default, linear, llama3, yarn, longrope, dynamic.",
        ),
        ({"type": "ntk", "factor": 2.0}, "rope_type='ntk' is not supported"),
        (LLAMA31_ROPE | {"beta_fast": 32}, "rope_type='llama3' has unknown keys beta_fast, lacks none."),
        ({"rope_type": "linear"}, "rope_type='linear' has unknown keys none, lacks factor."),
    ],
)
def test_an_unsupported_rope_is_refused(spelling, rope, message):
    """When this fails, positions are slightly wrong, and answers read well for a page and then do not."""
    assert message in refusal(LLAMA | {spelling: rope})


def test_missing_numbers_are_named_together():
    config = {key: value for key, value in LLAMA.items() if key not in ("vocab_size", "intermediate_size")}
    assert refusal(config) == "config.json lacks vocab_size, intermediate_size."


def test_layer_types_must_be_one_for_each_layer_and_known():
    message = refusal(MISTRAL | {"layer_types": ["full_attention", "linear_attention"]})
    assert "layer_types has 2 entries for 3 layers, unknown linear_attention" in message


def test_keys_that_change_no_computation_are_accepted():
    """When this fails, users are kept out by keys that checkpoints in the wild are full of."""
    inert = {"use_cache": False, "torch_dtype": "bfloat16", "eos_token_id": [1, 2], "_name_or_path": "x", "new": None}
    assert spec_from_config(LLAMA | inert) == SPEC


GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_length": 4096, "repetition_penalty": 1.1,
    "num_beams": 1, "typical_p": 1.0,
}  # fmt: skip


def test_a_published_config_with_a_key_twice_and_settings_of_generation_opens():
    """When this fails, a model that our own configurations name is refused for keys that change nothing."""
    spec = spec_from_config(GEMMA2_9B)
    assert (spec.L, spec.H, spec.windows[:2]) == (42, 256, (4096, FULL_ATTENTION))
    rope = {
        "rope_scaling": {"rope_type": "default", "factor": 1.0},
        "model_max_length": 4096,
        "attn_implementation": "sdpa",
    }
    assert spec_from_config(LLAMA | GENERATION | rope) == SPEC
    assert "sliding_window_size=1024 beside sliding_window=4096" in refusal(GEMMA2_9B | {"sliding_window_size": 1024})


def test_two_spellings_of_the_rotary_embedding_must_agree():
    """When this fails, a scaling that a user added by hand is ignored, and positions beyond the original are wrong."""
    new, old = {"rope_type": "default", "rope_theta": 10000.0}, {"rope_type": "linear", "factor": 2.0}
    assert "ask for different rotary embeddings" in refusal(LLAMA | {"rope_parameters": new, "rope_scaling": old})
    same = LLAMA31_ROPE | {"rope_theta": 500000.0}
    assert "lacks factor" in refusal(LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": None}})
    both = LLAMA | {"rope_parameters": same, "rope_scaling": LLAMA31_ROPE, "rope_theta": 500000.0}
    assert spec_from_config(both).rope == spec_from_config(LLAMA | {"rope_parameters": same}).rope


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("vocab_size", {}, "a whole number from 1 to 100,000,000"),
        ("hidden_size", 64.0, "a whole number from 1 to 100,000,000"),
        ("num_hidden_layers", 10**8, "a whole number from 1 to 10,000"),
        ("num_attention_heads", 0, "a whole number from 1 to 100,000,000"),
        ("num_key_value_heads", "4", "a whole number from 1 to 100,000,000"),
        ("head_dim", -8, "a whole number from 1 to 100,000,000"),
        ("rms_norm_eps", "x", "a number from 0 to 1"),
        ("rms_norm_eps", float("nan"), "a number from 0 to 1"),
        ("rms_norm_eps", -1, "a number from 0 to 1"),
        ("rope_theta", [10000.0], "a positive number"),
        ("rope_scaling", "linear", "an object whose rope_type is a text and whose factors are positive"),
        ("rope_scaling", {"type": 3}, "an object whose rope_type is a text and whose factors are positive"),
        ("layer_types", 5, "a list of texts"),
        ("architectures", "LlamaForCausalLM", "a list of texts"),
        ("hidden_act", ["silu"], "a text"),
        ("model_type", ["llama"], "a text"),
        ("tie_word_embeddings", "no", "true or false"),
        ("id2label", 1, "an object"),
        ("hidden_size", None, "a whole number from 1 to 100,000,000"),
        ("rms_norm_eps", None, "a number from 0 to 1"),
    ],
)
def test_a_value_of_another_type_or_range_is_one_sentence(key, value, must):
    """When this fails, a damaged config.json is a traceback, or a model of a hundred million layers is begun."""
    assert refusal(LLAMA | {key: value}) == f"config.json: {key}={value!r} must be {must}."


def test_layer_types_count_where_transformers_reads_them():
    """When this fails, a model is trained with windows that nobody else gives it."""
    types = ["full_attention", "sliding_attention", "full_attention"]
    assert "layer_types asks for other windows than a llama model has" in refusal(
        LLAMA | {"layer_types": types, "sliding_window": 8}
    )
    assert spec_from_config(LLAMA | {"layer_types": ["full_attention"] * 3}) == spec_from_config(LLAMA)
    assert "other windows than a mistral model has" in refusal(MISTRAL | {"layer_types": types, "sliding_window": 8})


def test_heads_that_do_not_divide_are_named():
    message = refusal(LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 3})
    assert message == "config.json: num_attention_heads=4 is not a multiple of num_key_value_heads=3."


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_is_read(family):
    spec = spec_from_config(FAMILIES[family])
    assert (spec.V, spec.D, spec.F, spec.N) == (96, 32, 48, 4)
    assert len(spec.windows) == spec.L


def test_an_absent_key_has_the_default_of_transformers():
    """When this fails, Mistral loses its default sliding_window of 4096, or Gemma its tied embeddings."""
    assert spec_from_config({k: v for k, v in GEMMA2.items() if k != "tie_word_embeddings"}).tied
    assert not spec_from_config({k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"}).tied
    assert set(spec_from_config({k: v for k, v in MISTRAL.items() if k != "sliding_window"}).windows) == {4096}
    assert spec_from_config(QWEN2).qkv_bias and not spec_from_config(QWEN2).out_bias


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters={'full_attention': 5} must be an object"),
        ({"rope_parameters": {"sliding_attention": "default"}}, "must be an object"),
        (
            {
                "rope_parameters": {"sliding_attention": {"rope_type": "dynamic", "factor": 2.0}},
                "max_position_embeddings": 64,
            },
            "rope_type='dynamic' of sliding_attention is not computed",
        ),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "is not a multiple of num_key_value_heads=4"),
    ],
)
def test_ropes_by_kind_of_layer_are_checked(change, said):
    assert said in refusal(GEMMA3 | change)


def test_heads_that_do_not_divide_the_families_default_are_refused():
    """When this fails, a config.json without num_key_value_heads is a shape error in attention."""
    config = {key: value for key, value in SMOLLM3.items() if key != "num_key_value_heads"}
    assert "num_attention_heads=6 is not a multiple of num_key_value_heads=4" in refusal(
        config | {"num_attention_heads": 6}
    )


def test_a_config_json_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist; model\.path must be"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(
        UserError, match=r"config\.json is not JSON: Expecting value at .*; it must be a model's config\.json"
    ):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(
        UserError, match=r"config\.json holds a list where a JSON object is expected; it must be a model's"
    ):
        read_config(tmp_path)


@pytest.mark.parametrize("path", ["", "nowhere", "./nowhere", "~/nowhere/at/all", "a/b/c"])
def test_a_directory_that_does_not_exist_is_not_looked_up_on_the_hub(path):
    """When this fails, a typing mistake causes a download, or a minute of retries."""
    with pytest.raises(UserError, match=r"model\.path='.*': no such directory; give a Hugging Face model directory"):
        model_directory(path)


# Tensors.


def tensors():
    return {row.name: np.zeros(row.file_shape(SPEC), np.float32) for row in table(SPEC)}


def complaint(directory):
    with pytest.raises(UserError) as caught:
        check(Checkpoint(directory), SPEC)
    return str(caught.value)


def test_a_directory_that_matches_is_accepted(tmp_path):
    recomputed = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    save_file(tensors() | recomputed, tmp_path / "model.safetensors")
    check(Checkpoint(tmp_path), SPEC)


def test_missing_unknown_and_misshapen_tensors_are_one_error(tmp_path):
    """When this fails, models train with some weights left at random values, or with adapters left out."""
    wrong = tensors()
    del wrong["model.norm.weight"], wrong["model.layers.2.mlp.up_proj.weight"]
    wrong["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    wrong["model.embed_tokens.weight"] = np.zeros((97, 32), np.float32)
    wrong["lm_head.weight"] = np.zeros((32, 96), np.float32)
    save_file(wrong, tmp_path / "model.safetensors")
    assert complaint(tmp_path) == (
        f"{tmp_path} does not match its config.json: missing: model.layers.2.mlp.up_proj.weight; missing: "
        "model.norm.weight; unknown: model.layers.0.self_attn.q_norm.weight; misshapen: lm_head.weight is (32, 96), "
        "config.json implies (96, 32); misshapen: model.embed_tokens.weight is (97, 32), config.json implies (96, 32)."
    )


def test_a_very_long_list_is_shown_in_part_and_counted(tmp_path):
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, tmp_path / "model.safetensors")
    assert len(table(SPEC)) == 30
    assert complaint(tmp_path).endswith("; and 9 more.")


def test_pickled_weights_are_refused(tmp_path):
    """When this fails, opening a model runs whatever program its .bin file contains."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    message = complaint(tmp_path)
    assert "has neither model.safetensors nor model.safetensors.index.json" in message
    assert "pickled .bin files are refused: convert them first" in message


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "file", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ".hidden.safetensors"]
)
def test_an_index_cannot_point_outside_its_directory(tmp_path, file):
    """When this fails, a model from the internet can name any file of this machine."""
    write_index(tmp_path, {"model.norm.weight": file})
    assert f"points at {file}; only safetensors files beside it are read" in complaint(tmp_path)


def test_shards_that_do_not_exist_are_named(tmp_path):
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    assert "files that do not exist: model-00001-of-00002.safetensors, model-00002-of-" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "holds a list where a JSON object is expected"),
        ("{}", "has no weight_map of tensor names to files"),
        ('{"weight_map": 3}', "has no weight_map of tensor names to files"),
    ],
)
def test_a_broken_index_is_named(tmp_path, text, fact):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    message = complaint(tmp_path)
    assert f"model.safetensors.index.json {fact}" in message and message.endswith("; download it again.")


def test_an_index_that_promises_a_tensor_its_file_does_not_hold_is_refused(tmp_path):
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, tmp_path / "one.safetensors")
    write_index(tmp_path, dict.fromkeys(tensors(), "one.safetensors"))
    assert "one.safetensors does not hold lm_head.weight, which the index promises" in complaint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_file_cut_short_is_refused_before_anything_is_read_from_it(tmp_path, keep):
    """When this fails, a partly downloaded model trains, with zeros or garbage at the end of its last tensor."""
    save_file(tensors(), tmp_path / "whole.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:keep])
    assert f"{tmp_path / 'model.safetensors'} is not a whole safetensors file (" in complaint(tmp_path)
