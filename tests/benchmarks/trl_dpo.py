"""Pairs per second of our training step beside TRL's, on the same pairs and the same model, in one process, by turns.

    python tests/benchmarks/trl_dpo.py --data pairs.jsonl
    python tests/benchmarks/trl_dpo.py --data pairs.jsonl --model DIR --pairs 32 --rounds 5 --out result.json

Both train all weights in float32, compute the reference's log-probabilities within the step, and see the same token ids in
the same optimizer batch of --pairs pairs: ours packs them into shared-prompt rows, TRL pads --trl-batch-size pairs at a
time and accumulates. Every round times one optimizer step of each, one after the other, so that whatever else the machine
does falls on both. The first round compiles and warms up and is not counted. Reading, tokenizing and logging are not
timed. Both losses are printed: they must agree, or the two did not do the same work.

On a machine that others use, too, torch's threads wait for each other far longer than XLA's, which flatters us; give both
one core: `OMP_NUM_THREADS=1 taskset -c 0 python ...`. With few pairs our rows are padded more than in a real run: look at
real_token_fraction in the JSON.

Without --model: a random Llama of 25 million weights and a byte-level tokenizer trained on the data, nothing downloaded.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import datasets
import jax
import numpy as np
import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rapo_jax.config import Config, from_dict
from rapo_jax.data import pipeline
from rapo_jax.data.files import read_rows
from rapo_jax.data.packing import Group, Plan
from rapo_jax.parallel import my_rows, num_row_shards
from rapo_jax.run import Setup, precision, set_up, starting_parameters
from rapo_jax.train.loop import to_device
from rapo_jax.train.optim import direction
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import first_state
from rapo_jax.train.step import make_train_step

VOCABULARY = 16_000
EOS, ROLES = "<|end|>", ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPTIMIZER = {"learning_rate": 1e-6, "warmup_ratio": 0.0, "schedule": "constant"}
BETA = 0.1


@dataclass
class Rounds:
    """Seconds, processor seconds and losses of every step, in turn; the first is the warm-up's."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "trl": []})
    cpu_seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "trl": []})
    losses: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "trl": []})

    def start(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def stop(self, name: str) -> None:
        started, cpu_started = self.started
        self.seconds[name].append(time.perf_counter() - started)
        round_ = f"round {len(self.seconds[name]) - 1}" if len(self.seconds[name]) > 1 else "warm-up"
        print(f"  {round_}: {name} {self.seconds[name][-1]:.2f} s", flush=True)
        self.cpu_seconds[name].append(time.process_time() - cpu_started)


def random_model(directory: Path, texts: list[str]) -> None:
    """A Llama of 8 layers, 384 wide, and its tokenizer."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [EOS, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=EOS, chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


def texts_of(value: object) -> list[str]:
    """Every string within a row."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_of(part)]


def configuration(options: argparse.Namespace, model_dir: Path, data: Path) -> Config:
    tree = {
        "model": {"path": str(model_dir), "dtype": "float32", "remat": "full" if options.checkpointing else "none"},
        "data": {
            "path": str(data),
            "max_length": options.max_length,
            "max_prompt_length": options.max_length // 2,
            "chat_template": options.chat_template,
        },
        "objective": {"beta": BETA},
        "optimizer": OPTIMIZER,
        "train": {"batch_size": options.pairs, "max_steps": 1},
        "rows": {"length": options.row_length, "per_shard": options.rows_per_shard},
        "seed": options.seed,
    }
    return from_dict(tree)


def our_step(setup: Setup, groups: list[Group], plan: Plan, rounds: Rounds):
    """A function that runs and times one optimizer step of ours on the one batch of `plan`."""
    config, spec, mesh = setup.config, setup.spec, setup.mesh
    parameters = starting_parameters(setup)
    transform = direction(config.optimizer, spec)
    reference = resident_reference(parameters, config, spec, mesh)
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=1)
    batch = next(pipeline.batches(groups, plan, my_rows(mesh, plan.shape.B))(0))
    held = [first_state(parameters, spec, mesh, transform)]

    def run() -> None:
        with jax.set_mesh(mesh), precision(config):
            rounds.start()
            held[0], metrics = step(held[0], reference, to_device(batch, mesh, plan.shape.B))
            jax.block_until_ready((held[0], metrics))
            rounds.stop("ours")
        rounds.losses["ours"].append(float(metrics["loss"]))

    return run


class Alternate(transformers.TrainerCallback):
    """Before each optimizer step of TRL, one of ours; then TRL's is timed."""

    def __init__(self, ours, rounds: Rounds):
        self.ours, self.rounds = ours, rounds

    def on_step_begin(self, args, state, control, **_) -> None:
        self.ours()
        self.rounds.start()

    def on_step_end(self, args, state, control, **_) -> None:
        if torch.cuda.is_available() and not args.use_cpu:
            torch.cuda.synchronize()
        self.rounds.stop("trl")


class InOrder(trl.DPOTrainer):
    """TRL's trainer, on rows in their own order."""

    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def their_trainer(setup: Setup, groups: list[Group], options: argparse.Namespace, directory: Path) -> InOrder:
    """TRL's trainer on our token ids: `--rounds` + 1 optimizer steps of the one batch."""
    arguments = trl.DPOConfig(
        output_dir=str(directory),
        beta=BETA,
        max_length=None,  # cut already
        per_device_train_batch_size=options.trl_batch_size,
        gradient_accumulation_steps=options.pairs // options.trl_batch_size,
        max_steps=options.rounds + 1,
        learning_rate=OPTIMIZER["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        gradient_checkpointing=options.checkpointing,
        precompute_ref_log_probs=False,
        bf16=False,
        use_cpu=jax.default_backend() == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(  # noqa: E731
        setup.model_dir, dtype=torch.float32, attn_implementation=options.attention
    )
    turn = lambda role: [{"role": role, "content": "?"}]  # noqa: E731
    placeholder = {"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant")}
    tokenizer = setup.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = InOrder(
        model=load(),
        ref_model=load(),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([placeholder]),
        processing_class=tokenizer,
    )
    rows = [
        {"prompt_ids": group.prompt.tolist()}
        | {f"{name}_ids": ids.tolist() for name, ids in zip(("chosen", "rejected"), group.responses, strict=True)}
        for group in groups
    ]
    trainer.train_dataset = datasets.Dataset.from_list(rows * (options.rounds + 1))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def benchmark(options: argparse.Namespace, directory: Path) -> dict:
    rows = [row.values for row in read_rows(options.data, split="train")]
    if options.model:
        model_dir = Path(options.model)
    else:
        model_dir = directory / "model"
        model_dir.mkdir()
        random_model(model_dir, texts_of(rows))
    some = np.random.default_rng(options.seed).permutation(len(rows))[: 2 * options.pairs]
    chosen = directory / "rows.jsonl"
    chosen.write_text("".join(json.dumps(rows[index]) + "\n" for index in some))

    setup = set_up(configuration(options, model_dir, chosen))
    data = {"path": str(chosen), "split": "train", "placement": setup.placement}
    groups = pipeline.load_dataset(setup.config, setup.tokenizer, **data).groups[: options.pairs]
    if len(groups) < options.pairs:
        raise SystemExit(f"{options.data} gives {len(groups)} pairs; lower --pairs to that.")
    batch = [np.arange(options.pairs)]
    plan = pipeline.pack_steps(groups, batch, setup.config, num_row_shards=num_row_shards(setup.mesh))
    rounds = Rounds()
    trainer = their_trainer(setup, groups, options, directory / "trl")
    trainer.add_callback(Alternate(our_step(setup, groups, plan, rounds), rounds))
    trainer.train()
    rounds.losses["trl"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return summary(options, setup, groups, plan, rounds)


def summary(options: argparse.Namespace, setup: Setup, groups: list[Group], plan: Plan, rounds: Rounds) -> dict:
    """Figures without the warm-up. A ratio of a round compares two steps that ran one after the other."""
    rates = {name: [options.pairs / s for s in seconds[1:]] for name, seconds in rounds.seconds.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["trl"], strict=True)]
    repeated = sum(2 * len(g.prompt) + sum(map(len, g.responses)) for g in groups)
    return {
        "pairs_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "rounds": {"ours": rates["ours"], "trl": rates["trl"], "ratio": ratios},
        "cpu_s_per_pair": {
            name: statistics.median(seconds[1:]) / options.pairs for name, seconds in rounds.cpu_seconds.items()
        },
        "first_step_s": {name: seconds[0] for name, seconds in rounds.seconds.items()},
        "losses": rounds.losses,
        "largest_difference_of_losses": float(np.abs(np.subtract(*rounds.losses.values())).max()),
        "tokens_per_pair": {
            "shared_prompt": sum(g.num_tokens for g in groups) / len(groups),
            "prompt_twice": repeated / len(groups),
            "prompt": float(np.mean([len(g.prompt) for g in groups])),
        },
        "plan": vars(plan.shape) | {"real_token_fraction": plan.real_token_fraction},
        "options": {key: value for key, value in vars(options).items() if key not in ("model", "data", "out")},
        "model": Path(options.model).name if options.model else "random Llama, 8 layers, 384 wide, 16k vocabulary",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "backend": jax.default_backend(),
            "torch_threads": torch.get_num_threads(),
        },
        "versions": {"jax": jax.__version__, "torch": torch.__version__}
        | {"trl": trl.__version__, "transformers": transformers.__version__},
    }


def show(result: dict) -> None:
    tokens, rates = result["tokens_per_pair"], result["pairs_per_s"]
    print(f"{result['model']}; {result['options']['pairs']} pairs a step, {tokens['shared_prompt']:.0f} tokens a pair")
    print(f"  ({tokens['prompt_twice']:.0f} with the prompt repeated); reference in the step; float32")
    for name, label in (("ours", "rapo_jax"), ("trl", f"TRL {result['versions']['trl']}")):
        values = ", ".join(f"{value:.3f}" for value in result["rounds"][name])
        print(f"  {label:10s} {rates[name]:8.3f} pairs/s   (rounds: {values})")
    print(f"  ratio      {result['ratio']:8.2f}           (median over rounds)")
    cpu = result["cpu_s_per_pair"]
    print(
        f"  processor seconds a pair: {cpu['ours']:.2f} and {cpu['trl']:.2f}; load of the machine {result['machine']['load']:.1f}"
    )
    print(f"  losses differ by at most {result['largest_difference_of_losses']:.1e}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="scored pairs, as rapo train reads them")
    parser.add_argument("--model", help="a Hugging Face directory (default: a random Llama)")
    parser.add_argument("--chat-template", help="for a tokenizer without one: plain, chatml, zephyr or a .jinja file")
    parser.add_argument("--pairs", type=int, default=32, help="pairs in the optimizer batch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each (default %(default)s)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and response")
    parser.add_argument(
        "--trl-batch-size", type=int, default=2, help="pairs that TRL pads together (default %(default)s)"
    )
    parser.add_argument("--attention", default="sdpa", help="of TRL's model: sdpa or eager (default %(default)s)")
    parser.add_argument("--row-length", type=int, help="tokens in a row of ours (default: automatic)")
    parser.add_argument("--rows-per-shard", type=int, help="rows in a microbatch of ours (default: automatic)")
    parser.add_argument("--checkpointing", action="store_true", help="both recompute activations in the backward pass")
    parser.add_argument("--seed", type=int, default=0, help="which pairs (default %(default)s)")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    options = parser.parse_args(arguments)
    if options.pairs % options.trl_batch_size:
        parser.error(f"--trl-batch-size {options.trl_batch_size} must divide --pairs {options.pairs}")
    return options


if __name__ == "__main__":
    options = parse()
    with tempfile.TemporaryDirectory() as directory:
        result = benchmark(options, Path(directory))
    show(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
