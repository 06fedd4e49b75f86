"""What readers of a model directory from before transformers 5 need, vLLM as many have it among them.

transformers 5 names one class for all fast tokenizers, keeps the chat template in a file of its own and merges the settings
of rotary embeddings into one key. Earlier versions do not know these, and some do not say so: they compute something else.
Exports therefore carry both spellings, which are equal. What is computed is not decided here.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rapo_jax.borders import read_object, write_json
from rapo_jax.models.families import FAMILIES
from rapo_jax.models.rope_config import GLOBAL, LOCAL, ORIGINAL

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
# Files that transformers 5 does not write, and that others read: slow tokenizers, converters to other formats.
BESIDE = ("tokenizer.model", "added_tokens.json", SPECIAL_TOKENS, "vocab.json", "merges.txt")
# Keys that say where and how a tokenizer was loaded, paths of a machine among them.
OF_THE_MACHINE = ("name_or_path", "tokenizer_file", "vocab_file", "is_local", "local_files_only", "backend")
CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # transformers 5's name -> everybody's
LISTED = "additional_special_tokens"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path, *, source: Path) -> None:
    """Writes a tokenizer that was opened from the directory `source`, its padding token and chat template as they are now.

    Its class and settings are those that `source` declares.
    """
    tokenizer.save_pretrained(directory)
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    declared = source / TOKENIZER_CONFIG
    saved = read_object(declared if declared.is_file() else directory / TOKENIZER_CONFIG)
    write_json(directory / TOKENIZER_CONFIG, tokenizer_config(saved, tokenizer))
    path = directory / SPECIAL_TOKENS
    if path.is_file() and tokenizer.pad_token is not None:
        write_json(path, read_object(path) | {"pad_token": tokenizer.pad_token})


def tokenizer_config(declared: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """tokenizer_config.json as every version reads it."""
    config = {key: value for key, value in declared.items() if key not in OF_THE_MACHINE}
    if (name := config.get("tokenizer_class")) in CLASSES:
        config["tokenizer_class"] = CLASSES[name]
    if isinstance(config.get("extra_special_tokens"), list):  # before, an object of named tokens
        config[LISTED] = [*config.get(LISTED, []), *config.pop("extra_special_tokens")]
    if tokenizer.pad_token is not None:
        config["pad_token"] = tokenizer.pad_token
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return config | {"chat_template": template}


def model_config(config: dict[str, Any], *, dtype: str) -> dict[str, Any]:
    """config.json with the dtype of its weights, and rotary embeddings also in the spelling that all versions read."""
    config = {
        key: value for key, value in config.items() if key != "_name_or_path" or not Path(str(value)).is_absolute()
    }
    return config | older_rope(config) | {"dtype": dtype, "torch_dtype": dtype}


def older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling of transformers 4, from rope_parameters of transformers 5; {} where there are none.

    >>> older_rope({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}})
    {'rope_theta': 10000.0, 'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}
    """
    rope = {key: value for key, value in (config.get("rope_parameters") or {}).items() if value is not None}
    if GLOBAL in rope or LOCAL in rope:  # one rope for each kind of layer
        key, theta = FAMILIES[config["model_type"]].local_theta, rope.get(LOCAL, {}).get("rope_theta")
        told = {key: theta} if key != "rope_theta" and theta else {}
        return older_rope({"rope_parameters": rope.get(GLOBAL)}) | told
    theta, turning = rope.pop("rope_theta", None) or config.get("rope_theta"), rope.pop("partial_rotary_factor", 1)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theirs = {} if theta is None else {"rope_theta": theta}
    theirs |= {} if turning == 1 else {"partial_rotary_factor": turning}
    if (
        kind == "longrope" and ORIGINAL in config
    ):  # Phi-3's own class, which takes `type` and the factors, and nothing else
        rope = {"type": kind} | {
            name: value for name, value in rope.items() if name not in ("type", "rope_type", ORIGINAL)
        }
    return theirs if kind == "default" else theirs | {"rope_scaling": rope}
