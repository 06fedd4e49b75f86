"""Makes the runs that later versions must resume: `python make_runs.py CHECKOUT OUT.tar.xz`.

CHECKOUT is a working tree of the version that makes them. Each run is made twice, on one CPU device: from start to end, and
stopped after five of eight steps. Paths in the archive are relative to the directory that it is unpacked to.
"""

import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}

RUN = """\
model: {path: model, dtype: float32, remat: none}
data: {path: pairs.jsonl, eval_fraction: 0.2, max_length: 256, max_prompt_length: 192}
objective: {beta: 0.1}
optimizer: {learning_rate: 1e-2}
train: {batch_size: 8, max_steps: 8, save_every: 4, eval_every: 4}
"""
KINDS = {
    "sft": ["objective={name: sft}", "relabel.goals=[]"],
    "ra-dpo": ["reference.cache=cache"],
    "lora": ["lora.rank=2"],
    "kto": ["objective={name: kto, beta: 0.1}"],
    "simpo-plus-sft": ["objective={name: simpo, gamma: 0.3, plus: [{name: sft, weight: 0.5}]}"],
}
NUM_STEPS, STOPPED_AFTER = 8, 5
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
D, F, L, N, K = 8, 16, 2, 2, 1  # hidden size, feed-forward size, layers, query heads, key/value heads


def write_model(directory: Path) -> None:
    """A Llama of 3,576 random parameters with a byte-level tokenizer; needs nothing of rapo_jax."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=TEMPLATE).save_pretrained(
        directory
    )
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(symbols), "eos_token_id": 0,
        "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": N,
        "num_key_value_heads": K, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    shapes = {"embed_tokens.weight": (len(symbols), D), "norm.weight": (D,)}
    for layer in range(L):
        for name, shape in {
            "input_layernorm": (D,), "post_attention_layernorm": (D,), "self_attn.q_proj": (D, D),
            "self_attn.k_proj": (D * K // N, D), "self_attn.v_proj": (D * K // N, D), "self_attn.o_proj": (D, D),
            "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
        }.items():  # fmt: skip
            shapes[f"layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(0)
    weights = {
        f"model.{name}": random.normal(float("norm" in name), 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_pairs(path: Path) -> None:
    rows = [
        {"prompt": f"What is {n} plus one?", "chosen": f"It is {n + 1}.", "rejected": "No idea" + "!" * (n % 12)}
        | {"score_chosen": 9.0 - n % 3, "score_rejected": 2.5}
        for n in range(48)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rapo(*arguments: str) -> int:
    from rapo_jax.cli import main

    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the command line always exits")


def rapo_until(step: int, *arguments: str) -> int:
    """Runs a command that gets SIGTERM when the metrics of the step before `step` are written, while `step` runs."""
    from rapo_jax.train.journal import Journal

    write = Journal.write

    def write_and_stop(journal, written, metrics):
        write(journal, written, metrics)
        if written == step - 1:
            signal.raise_signal(signal.SIGTERM)

    Journal.write = write_and_stop
    try:
        return rapo(*arguments)
    finally:
        Journal.write = write


def make_runs() -> None:
    """Fills the current directory."""
    Path("model").mkdir()
    write_model(Path("model"))
    write_pairs(Path("pairs.jsonl"))
    Path("run.yaml").write_text(RUN)
    for kind, settings in KINDS.items():
        Path(kind).mkdir()
        (Path(kind) / "settings.json").write_text(json.dumps(settings))
        assert rapo("train", "run.yaml", *settings, f"run_dir={kind}/whole") == 0
        assert rapo_until(STOPPED_AFTER, "train", "run.yaml", *settings, f"run_dir={kind}/half") == 75
        assert rapo("export", f"{kind}/whole", f"{kind}/export") == 0
    assert rapo("export", "lora/whole", "lora/adapter", "--adapter") == 0


def keep_what_is_needed() -> None:
    """Keeps the metrics of whole runs and the newest checkpoint of stopped ones, without this machine's paths."""
    here = str(Path.cwd())
    for kind in KINDS:
        metrics = Path(kind, "whole", "metrics.jsonl").read_text()
        shutil.rmtree(Path(kind, "whole"))
        Path(kind, "metrics.jsonl").write_text(metrics)
        shutil.rmtree(Path(kind, "half", "tensorboard"))
        for checkpoint in Path(kind, "half", "checkpoints").iterdir():
            if checkpoint.name.isdigit() and int(checkpoint.name) != STOPPED_AFTER:
                shutil.rmtree(checkpoint)
    for path in Path().rglob("*"):
        if path.is_file() and here.encode() in path.read_bytes():
            path.write_text(
                path.read_text().replace(here + "/", "")
            )  # fails for a binary file: nothing to correct there


if __name__ == "__main__":
    checkout, archive = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    sys.path.insert(0, str(checkout))
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        make_runs()
        keep_what_is_needed()
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for name in sorted(os.listdir()):
                tar.add(
                    name, filter=lambda member: member.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)
                )
    print(f"{archive}: {archive.stat().st_size:,} bytes")
