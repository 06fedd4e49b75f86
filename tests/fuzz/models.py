"""The files of a model: config.json, generation_config.json, weights, tokenizer and chat template."""

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from rapo_jax.generate.prompts import chat_tokens, read_prompts
from rapo_jax.models.directory import declared_stop_tokens
from rapo_jax.models.files import load_parameters
from rapo_jax.models.lora import adapted_spec
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.models.table import table
from rapo_jax.opened import OpenedTokenizer, Rendering, open_tokenizer
from tests.fuzz.hostile import VALUES, altered, as_json, damaged
from tests.fuzz.place import Border, Place, lines_of
from tests.fuzz.rows import PROMPTS
from tests.tiny import CHAT_TEMPLATE, CONFIG, build_tokenizer
from tests.tiny.chat_templates import SHAPES

FULL = CONFIG | {
    "vocab_size": 300, "head_dim": 8, "sliding_window": 128, "layer_types": ["full_attention"] * 2, "rope_theta": 1e4,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64},
    "hidden_act": "silu", "eos_token_id": 0, "initializer_range": 0.02, "attention_bias": False,
}  # fmt: skip
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "phi3")
CONFIG_KEYS = (
    "num_labels", "id2label", "architectures", "rope_parameters", "rope_scaling", "quantization_config", "query_pre_attn_scalar",
    "attn_logit_softcapping", "hidden_activation", "use_sliding_window", "max_window_layers", "torch_dtype", "mlp_bias",
)  # fmt: skip


def read_model_config(place: Place, content: bytes) -> object:
    directory = place.write({"config.json": content})
    spec = spec_from_config(read_config(directory))
    declared_stop_tokens(directory)
    return adapted_spec(spec, rank=1, alpha=None, targets=("q", "v"), rslora=False)


ROPES = (
    {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
)
CONFIGS = st.one_of(
    altered([FULL | {"model_type": kind} for kind in MODEL_TYPES], keys=CONFIG_KEYS).map(as_json),
    altered([FULL | {"rope_scaling": rope} for rope in ROPES], keys=CONFIG_KEYS).map(as_json),
    damaged(as_json(FULL)),
)
STOPS = altered([{"eos_token_id": [1, 2], "max_length": 20}, {"eos_token_id": 3}]).map(as_json)


def read_generation(place: Place, content: bytes) -> object:
    return declared_stop_tokens(place.write({"generation_config.json": content}))


SMALL = CONFIG | {"vocab_size": 32, "num_hidden_layers": 1}


@functools.cache
def small_weights() -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a sound file."""
    spec = spec_from_config(SMALL)
    whole = save({row.name: np.ones(row.file_shape(spec), np.float32) for row in table(spec)}, {"format": "pt"})
    (size,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def weight_bytes(header: Any) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + small_weights()[1]


DTYPES = ("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "I64", "BF16", "F16", "F64", "C64", "F4", "", 3)


@st.composite
def retyped(draw) -> bytes:
    """A file in which tensors have other types."""
    header = json.loads(json.dumps(small_weights()[0]))
    for name in header:
        if name != "__metadata__" and draw(st.booleans()):
            header[name]["dtype"] = draw(st.sampled_from(DTYPES))
    return weight_bytes(header)


def read_weights(place: Place, files: dict[str, bytes]) -> object:
    directory = place.write({"config.json": as_json(SMALL)} | files)
    return jax.block_until_ready(load_parameters(directory, spec_from_config(SMALL), mesh=place.mesh))


@st.composite
def indexed(draw) -> dict[str, bytes]:
    header, _ = small_weights()
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {n: "model-1.safetensors" for n in header if n != "__metadata__"},
    }
    content = draw(st.one_of(altered([index]).map(as_json), damaged(as_json(index))))
    return {"model.safetensors.index.json": content, "model-1.safetensors": weight_bytes(header)}


WEIGHTS = st.one_of(
    altered([small_weights()[0]]).map(weight_bytes).map(lambda whole: {"model.safetensors": whole}),
    damaged(weight_bytes(small_weights()[0])).map(lambda whole: {"model.safetensors": whole}),
    retyped().map(lambda whole: {"model.safetensors": whole}),
    indexed(),
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE_FILE = "chat_template.jinja"


@functools.cache
def tokenizer_trees() -> dict[str, Any]:
    """The files of a sound tokenizer, its vocabulary small."""
    with tempfile.TemporaryDirectory() as directory:
        build_tokenizer().save_pretrained(directory)
        return {name: json.loads((Path(directory) / name).read_text()) for name in TOKENIZER_FILES}


@st.composite
def tokenizers(draw) -> dict[str, bytes]:
    whole = tokenizer_trees()
    changed = draw(st.sampled_from(TOKENIZER_FILES))
    how = draw(st.sampled_from(["alter", "alter", "damage", "part", "extra"]))
    files = {name: as_json(tree) for name, tree in whole.items()} | {TEMPLATE_FILE: CHAT_TEMPLATE.encode()}
    if how == "alter":
        head = {name: value for name, value in whole[changed].items() if name != "model"}
        files[changed] = as_json(draw(altered([head]).map(lambda tree: with_model(tree, whole[changed]))))
    elif how == "part" and changed == "tokenizer.json":
        model = dict(whole[changed]["model"])
        keys = list(model["vocab"])
        part = draw(st.sampled_from(["lost token", "lost merge", "merge", "type", "vocab", "id", "field"]))
        model["vocab"], model["merges"] = dict(model["vocab"]), list(model["merges"])
        if part == "lost token":
            del model["vocab"][draw(st.sampled_from(keys))]
        elif part == "lost merge":
            del model["merges"][draw(st.integers(0, len(model["merges"]) - 1))]
        elif part == "merge":
            model["merges"][0] = draw(VALUES)
        elif part == "id":
            model["vocab"][draw(st.sampled_from(keys))] = draw(VALUES)
        elif part == "vocab":
            model["vocab"] = draw(VALUES)
        else:
            model[draw(st.sampled_from(["type", "unk_token", "dropout", "byte_fallback", "fuse_unk", "x"]))] = draw(
                VALUES
            )
        files[changed] = as_json(whole[changed] | {"model": model})
    elif how == "extra":
        name = draw(
            st.sampled_from(["special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model"])
        )
        base = {"eos_token": "<|end|>", "additional_special_tokens": ["<|user|>"], "<|user|>": 2}
        files[name] = draw(st.one_of(altered([base]).map(as_json), damaged(as_json(base))))
    else:
        files[changed] = draw(damaged(files[changed]))
    return files


def with_model(tree: Any, whole: dict[str, Any]) -> Any:
    return tree | ({"model": whole["model"]} if "model" in whole else {}) if isinstance(tree, dict) else tree


def read_tokenizer(place: Place, files: dict[str, bytes]) -> object:
    opened = open_tokenizer(place.write({"config.json": as_json(FULL)} | files))
    return read_with(opened, place)


def read_with(opened: OpenedTokenizer, place: Place) -> object:
    place.scratch.mkdir(exist_ok=True)
    (place.scratch / "prompts.jsonl").write_bytes(lines_of(PROMPTS))
    prompts = read_prompts(str(place.scratch / "prompts.jsonl"))
    return chat_tokens(opened, prompts, goals=[7.0] * len(prompts), max_length=256)


TEMPLATE_PARTS = (
    "{{ 1 / 0 }}", "{{ 'a' * 10**10 }}", "{{ x.y.z }}", "{{ messages[99].content }}", "{% for i in range(10**9) %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages | tojson }}",
    "{{ raise_exception('no') }}", "{{ [1] | sum(start='x') }}", "{{ strftime_now('%Y') }}", "{{ 10 ** 10 ** 10 }}", "{{ 'x' | foo }}",
    "{% generation %}x{% endgeneration %}", "{{ messages[0] + 1 }}", "{% set messages = [] %}", "{% if %}", "{{", "}}", "{#", "\0", "é",
    "{{ dict(a=1).a.b.c }}", "{{ lipsum() }}", "{{ cycler().next() }}", "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ '%999999999d' % 1 }}", "{{ ('x' * 1000) | center(10**9) }}", "{{ range(10**8) | list | length }}", "{% extends 'y' %}",
)  # fmt: skip


def read_template(place: Place, content: bytes) -> object:
    path = place.write({"mine.jinja": content}) / "mine.jinja"
    return read_with(open_tokenizer(place.model, Rendering(chat_template=str(path))), place)


@st.composite
def with_part(draw) -> bytes:
    template = draw(st.sampled_from([CHAT_TEMPLATE, *(shape[0] for shape in SHAPES.values())]))
    at = draw(st.integers(0, len(template)))
    return (template[:at] + draw(st.sampled_from(TEMPLATE_PARTS)) + template[at:]).encode()


CHAT_TEMPLATES = st.one_of(
    with_part(), st.sampled_from(list(SHAPES.values())).flatmap(lambda shape: damaged(shape[0].encode()))
)
MODELS = {
    "config.json": Border(CONFIGS, read_model_config, 20),
    "stop tokens": Border(STOPS, read_generation, 5),
    "weights": Border(WEIGHTS, read_weights, 15),
    "tokenizer": Border(tokenizers(), read_tokenizer, 10),
    "template": Border(CHAT_TEMPLATES, read_template, 10),
}
