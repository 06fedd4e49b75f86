"""Writes what all systems share: a model directory, one optimizer batch of token ids, and settings.

    DIR/model/          config.json, safetensors, tokenizer: a random Llama, unless --model names another
    DIR/batch.jsonl     one pair per line: prompt, chosen, rejected as token ids, and whose reward is the goal
    DIR/lengths.json    token counts of prompt, chosen and rejected for every pair of the data
    DIR/settings.json   beta and the optimizer's constants
    DIR/facts.json      tokens and FLOPs of the batch

The random Llama's rotary base is 1e6 because Tunix's Llama always computes with 1e6, whatever its configuration says.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rapo_jax.accounting import real_work, step_flops
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.steps import shuffled_steps
from rapo_jax.config.files import from_dict
from rapo_jax.data.files import read_rows
from rapo_jax.models.parameters import parameter_letters, shape_of
from rapo_jax.models.spec import Spec, read_config, spec_from_config
from rapo_jax.opened import open_for_training

SETTINGS = {"beta": 0.1, "learning_rate": 5e-7, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
TOKENS = 16_000  # vocabulary of the tokenizer trained on the data
EOS, ROLES = "<|end|>", ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#            V        D     L   N   K  H    F
SIZES = {
    "25m": (16_000, 384, 8, 6, 2, 64, 1024),
    "1b": (128_256, 2048, 16, 32, 8, 64, 8192),
    "8b": (128_256, 4096, 32, 32, 8, 128, 14336),
}


def random_llama(directory: Path, size: str) -> None:
    """Writes a config and weights drawn from fixed seeds, one file per layer in parallel; large sizes in bfloat16."""
    V, D, L, N, K, H, F = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "eos_token_id": 0,
        "dtype": "float32" if size == "25m" else "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    index, num_files = {}, L + 1
    dtype = np.float32 if size == "25m" else bfloat16

    def write(number: int) -> None:
        rng, name = np.random.default_rng(number), f"model-{number:05d}-of-{num_files:05d}.safetensors"
        draw = lambda shape: 0.02 * rng.standard_normal(shape, np.float32) if len(shape) > 1 else np.ones(shape)  # noqa: E731
        tensors = {key: draw(shape).astype(dtype) for key, shape in shapes[number].items()}
        save_file(tensors, directory / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    shapes = {1: {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}}
    for layer in range(L):
        block = {
            "self_attn.q_proj": (N * H, D),
            "self_attn.k_proj": (K * H, D),
            "self_attn.v_proj": (K * H, D),
            "self_attn.o_proj": (D, N * H),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
            "input_layernorm": (D,),
            "post_attention_layernorm": (D,),
        }
        shapes[layer + 2] = {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, shapes))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def train_tokenizer(directory: Path, texts: list[str]) -> None:
    """Trains a byte-level tokenizer on the data."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"vocab_size": TOKENS, "special_tokens": [EOS, *ROLES], "initial_alphabet": alphabet}
    core.train_from_iterator(texts, trainers.BpeTrainer(**options, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=EOS, chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(directory)


def texts_of(value: object) -> list[str]:
    """Every string in a row."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_of(part)]


def all_groups(options: argparse.Namespace, model_dir: Path) -> list[Group]:
    """All goal-conditioned preferences of the data."""
    data = {"path": options.data, "max_length": options.max_length, "max_prompt_length": options.max_length // 2}
    config = from_dict({"data": data | {"chat_template": options.chat_template}})
    opened = open_for_training(model_dir, config)
    groups = pipeline.load_training(config, opened.tokenizer, goal_prompt=opened.goal_prompt).groups
    if len(groups) < options.pairs:
        raise SystemExit(f"{options.data} gives {len(groups)} pairs; lower --pairs={options.pairs} to that.")
    return groups


def draw_batch(options: argparse.Namespace, groups: list[Group]) -> list[dict]:
    """The first optimizer batch of a run over them, in which consecutive batches share short and long pairs evenly."""
    sizes, num_steps = np.array([group.num_tokens for group in groups]), len(groups) // options.pairs
    some = shuffled_steps(sizes, batch_size=options.pairs, num_steps=num_steps, seed=options.seed)[0]
    names = ("prompt", "chosen", "rejected")
    return [
        {name: ids.tolist() for name, ids in zip(names, (groups[i].prompt, *groups[i].responses), strict=True)}
        | {"side": int(groups[i].side)}
        for i in some
    ]


def facts(batch: list[dict], spec: Spec) -> dict:
    """Means over the pairs: tokens, and useful FLOPs as in rapo_jax/accounting.py."""
    prompts = np.array([len(pair["prompt"]) for pair in batch])
    responses = np.array([[len(pair[name]) for name in ("chosen", "rejected")] for pair in batch])
    work = real_work(prompts, responses, spec.windows)
    gflop = lambda reference: step_flops(spec, work, reference=reference) / len(batch) / 1e9  # noqa: E731
    return {
        "pairs": len(batch),
        "tokens_per_pair": {
            "prompt_shared": float(prompts.mean() + responses.sum(1).mean()),
            "prompt_repeated": float(2 * prompts.mean() + responses.sum(1).mean()),
            "prompt": float(prompts.mean()),
        },
        "gflop_per_pair": {"with_reference": gflop(True), "reference_cached": gflop(False)},
        "parameters": sum(prod(shape_of(spec, letters)) for letters in parameter_letters(spec).values()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", choices=SIZES, default="25m")
    parser.add_argument("--model")
    parser.add_argument("--chat-template")
    return parser.parse_args()


def main() -> None:
    options = parse()
    model_dir = options.directory / "model"
    if options.model:
        model_dir.symlink_to(Path(options.model).resolve())
    else:
        model_dir.mkdir()
        random_llama(model_dir, options.size)
        train_tokenizer(
            model_dir, [text for row in read_rows(options.data, split="train") for text in texts_of(row.values)]
        )
    groups = all_groups(options, model_dir)
    batch = draw_batch(options, groups)
    spec = spec_from_config(read_config(model_dir))
    (options.directory / "batch.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in batch))
    lengths = [[len(group.prompt), *map(len, group.responses)] for group in groups]
    (options.directory / "lengths.json").write_text(json.dumps(lengths))
    (options.directory / "settings.json").write_text(json.dumps(SETTINGS))
    (options.directory / "facts.json").write_text(json.dumps(facts(batch, spec)))


if __name__ == "__main__":
    main()
