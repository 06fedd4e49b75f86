"""TRL's DPOTrainer on the same token ids, padded --batch-size pairs at a time and accumulated to the optimizer batch.

The defaults are the fastest found on a CPU. Processor seconds for a step of 8 pairs on one core, TRL 1.16, torch 2.13:

    batch size 1, sdpa          13.6        batch size 2, by length     15.8
    the same, torch.compile     13.6        batch size 4, by length     30.4   (on two shared cores, where size 1 took
    batch size 1, eager         15.9        batch size 8, by length     61.2    18.4, and 2 took 22.1 or, as given, 27.8)

TRL itself disables padding_free in this version, and its DPO has no packing.
"""

import argparse
import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import datasets
import torch
import transformers
import trl
from turns import Turns, by_length, pairs, settings, worker_parser


class TakesTurns(transformers.TrainerCallback):
    """Makes every optimizer step wait for its turn. TRL's metrics, logged after it, are the answer."""

    def __init__(self, turns: Turns, facts: dict):
        self.turns, self.facts = turns, facts

    def on_step_begin(self, args, state, control, **_) -> None:
        self.turns.begin()

    def on_step_end(self, args, state, control, **_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.turns.end()

    def on_log(self, args, state, control, logs, **_) -> None:
        if "loss" in logs:
            logps = {name: logs[f"logps/{name}"] for name in ("chosen", "rejected")}
            self.turns.answer(loss=logs["loss"], logps=logps, **self.facts)


def make_trainer(options: argparse.Namespace, rows: list[dict]) -> trl.DPOTrainer:
    common, model_dir = settings(options.directory), options.directory / "model"
    if len(rows) % options.batch_size:
        raise SystemExit(f"--batch-size {options.batch_size} must divide the {len(rows)} pairs of the optimizer batch.")
    arguments = trl.DPOConfig(
        output_dir=str(options.directory / "trl"),
        beta=common["beta"],
        max_length=None,  # already truncated
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=len(rows) // options.batch_size,
        train_sampling_strategy="sequential",
        max_steps=options.steps,
        learning_rate=common["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=common["b1"],
        adam_beta2=common["b2"],
        adam_epsilon=common["eps"],
        weight_decay=0.0,
        max_grad_norm=0.0,
        gradient_checkpointing=options.checkpointing,
        torch_compile=options.compile,
        precompute_ref_log_probs=options.cached,
        bf16=options.dtype == "bfloat16",
        use_liger_kernel=options.liger,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    load = lambda dtype: transformers.AutoModelForCausalLM.from_pretrained(  # noqa: E731
        model_dir, dtype=getattr(torch, dtype), attn_implementation=options.attention
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    turn = lambda role: [{"role": role, "content": "?"}]  # noqa: E731
    placeholder = {"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant")}
    trainer = trl.DPOTrainer(
        model=load("float32"),  # master weights; autocast computes in --dtype
        ref_model=load(options.dtype),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([placeholder]),
        processing_class=tokenizer,
    )
    batch = datasets.Dataset.from_list([{f"{name}_ids": row[name] for name in placeholder} for row in rows])
    if options.cached:
        batch = trainer._precompute_ref_logps(batch, "train", options.batch_size)
    trainer.train_dataset = datasets.concatenate_datasets([batch] * options.steps)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def main(options: argparse.Namespace) -> None:
    turns = Turns()
    rows = pairs(options.directory)
    trainer = make_trainer(options, by_length(rows) if options.order == "length" else rows)
    modules = {"torch": torch, "trl": trl, "transformers": transformers}
    facts = {
        "versions": {name: module.__version__ for name, module in modules.items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads",
        "options": {name: getattr(options, name) for name in ("batch_size", "order", "attention", "compile", "liger")},
    }
    trainer.add_callback(TakesTurns(turns, facts))
    trainer.train()


if __name__ == "__main__":
    parser = worker_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=1, help="pairs padded together (default %(default)s)")
    parser.add_argument(
        "--order", default="length", choices=("length", "given"), help="order of the pairs in the batch"
    )
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2, ... (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--liger", action="store_true", help="Liger's kernels for norms, rotations and the MLP")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--cached", action="store_true", help="precompute_ref_log_probs, outside the timed step")
    main(parser.parse_args())
