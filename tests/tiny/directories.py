"""A model of 9,808 parameters, a dozen scored pairs, and the command line in this process: what whole runs are tested on."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rapo_jax.models.spec import spec_from_config
from rapo_jax.models.table import table
from rapo_jax.relabel import goal_text

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
PAIRS = [
    {
        "prompt": f"What is {n} plus one?",
        "chosen": f"It is {n + 1}.",
        "rejected": "No idea" + "!" * n,
        "score_chosen": 9.0 - n % 3,
        "score_rejected": 2.5,
    }
    for n in range(12)
]
RUN = """\
model: {dtype: float32, remat: none}
data: {max_length: 256, max_prompt_length: 192}
objective: {beta: 0.1}
optimizer: {learning_rate: 1e-3}
train: {batch_size: 8, max_steps: 2}
"""


def build_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level; the goal's sentence is few tokens, everything else about one per character."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([goal_text(8)] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=chat_template)


def write_model(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE, seed: int = 0) -> Path:
    """A Hugging Face directory of random weights."""
    directory.mkdir(parents=True)
    tokenizer = build_tokenizer(chat_template)
    tokenizer.save_pretrained(directory)
    write_weights(directory, CONFIG | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}, seed=seed)
    return directory


def write_weights(directory: Path, config: dict, *, seed: int = 0) -> None:
    """config.json and random weights of its shapes."""
    (directory / "config.json").write_text(json.dumps(config))
    spec, random = spec_from_config(config), np.random.default_rng(seed)
    shapes = {row.name: row.file_shape(spec) for row in table(spec)}
    weights = {name: random.normal(float("norm" in name), 0.1, shape) for name, shape in shapes.items()}
    save_file({name: weight.astype(np.float32) for name, weight in weights.items()}, directory / "model.safetensors")


def with_padding(directory: Path) -> Path:
    """The directory with a padding token that ends no text, which transformers needs to find the end of one."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = "<|system|>"
    tokenizer.save_pretrained(directory)
    return directory


def write_rows(path: Path, rows: list[dict] = PAIRS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
