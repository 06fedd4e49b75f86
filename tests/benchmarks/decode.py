"""New tokens per second of greedy decoding: ours, transformers and, from an environment of its own, vLLM, in turns.

    python tests/benchmarks/decode.py --model DIR --prompts FILE --out result.json --picture result.png
    python tests/benchmarks/decode.py ... --systems ours-16,ours-48,transformers-48,vllm-48 --python vllm=/path/to/python

Every system gets the same token ids of the same prompts and draws exactly as many new tokens for each: nothing stops early.
A system is NAME-B, B samples at once. All are loaded and warmed up, then take one pass over the prompts each in turn, so
that other load on the machine affects all of them. Prompts are computed within the time. With --n, each prompt is answered
so often (transformers repeats it). Ratios are of medians, and answers are compared: systems that disagree much did not do
the same work. Standard library only at the top: a worker runs in the environment of what it measures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Answers = list[list[int]]


def main() -> None:
    options = parser().parse_args()
    if options.worker:
        work(options)
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [json.loads(line) for line in Path(options.prompts).read_text().splitlines()][: options.num_prompts]
    texts = [row.get("prompt") or row["instruction"] for row in rows]
    turns = [[{"role": "user", "content": text}] for text in texts]
    ids = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    pythons = dict(each.split("=", 1) for each in options.python)
    workers = {name: start(name, ids, options, pythons) for name in options.systems.split(",")}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    found: dict[str, Answers] = {}
    for number in range(options.rounds + 1):  # the first one compiles and warms up
        for name, worker in workers.items():
            seconds, found[name] = turn_of(worker)
            rate = sum(map(len, found[name])) / seconds
            print(
                f"{'warm-up' if number == 0 else f'round {number}'}  {name:>16}  {rate:8.1f} new tokens/s", flush=True
            )
            if number:
                rates[name].append(rate)
    report(rates, found, ids, options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--prompts", default="", help="JSON lines with a prompt or an instruction")
    made.add_argument("--num-prompts", type=int, default=48)
    made.add_argument("--new-tokens", type=int, default=128)
    made.add_argument("--n", type=int, default=1, help="samples of each prompt")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--dtype", default="float32")
    made.add_argument("--systems", default="ours-16,ours-48,transformers-16,transformers-48")
    made.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    made.add_argument("--out")
    made.add_argument("--picture")
    made.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return made


def start(name: str, ids: list[list[int]], options: argparse.Namespace, pythons: dict[str, str]) -> subprocess.Popen:
    python = pythons.get(name.split("-")[0], sys.executable)
    same = [f"--{each}={getattr(options, each.replace('-', '_'))}" for each in ("model", "new-tokens", "n", "dtype")]
    command = [python, __file__, "--worker", name, *same]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin
    worker.stdin.write(json.dumps(ids) + "\n")
    return worker


def turn_of(worker: subprocess.Popen) -> tuple[float, Answers]:
    assert worker.stdin and worker.stdout
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended; its error is above")
    return tuple(json.loads(line))


def work(options: argparse.Namespace) -> None:
    """Answers every line on stdin with the seconds of one pass and its answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep library output away from the driver
    ids = json.loads(sys.stdin.readline())
    name, at_once = options.worker.rsplit("-", 1)
    run = {"ours": ours, "transformers": transformers, "vllm": vllm}[name](ids, int(at_once), options)
    for _ in sys.stdin:
        started = time.perf_counter()
        found = run()
        print(json.dumps([time.perf_counter() - started, found]), file=answers, flush=True)


def ours(ids: list[list[int]], at_once: int, options: argparse.Namespace) -> Callable[[], Answers]:
    import jax.numpy as jnp
    import numpy as np

    from rapo_jax.cli import keep_compilations
    from rapo_jax.generate.batches import BatchLimits
    from rapo_jax.generate.engine import Question
    from rapo_jax.generate.own import OwnEngine
    from rapo_jax.generate.sampling import Sampling
    from rapo_jax.opened import open_model

    keep_compilations()
    model = open_model(options.model, dtype=options.dtype)
    limits = BatchLimits(at_once, 10**9)
    engine = OwnEngine(model.parameters, model.spec, model.mesh, jnp.dtype(options.dtype), (), limits)
    sampling = Sampling(max_new_tokens=options.new_tokens)
    questions = [Question(index, np.asarray(each, np.int32), sampling) for index, each in enumerate(ids)]

    def run() -> Answers:
        drawn = engine.sample(questions, num_samples=options.n)
        samples = {sample.key: sample.tokens for each in drawn for sample in each.samples}
        return [samples[key] for key in sorted(samples)]

    return run


def transformers(ids: list[list[int]], at_once: int, options: argparse.Namespace) -> Callable[[], Answers]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    model.generation_config.eos_token_id = None
    asked = sorted((-len(each), at, each) for at, each in enumerate([each for each in ids for _ in range(options.n)]))

    @torch.no_grad()
    def run() -> Answers:
        found: dict[int, list[int]] = {}
        for begin in range(0, len(asked), at_once):
            part = asked[begin : begin + at_once]
            longest = max(len(each) for _, _, each in part)
            padded = torch.tensor([[0] * (longest - len(each)) + each for _, _, each in part])
            real = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for _, _, each in part])
            more = {"max_new_tokens": options.new_tokens, "do_sample": False, "pad_token_id": 0}
            new = model.generate(padded, attention_mask=real, **more)[:, longest:].tolist()
            found |= {at: tokens for (_, at, _), tokens in zip(part, new, strict=True)}
        return [found[at] for at in sorted(found)]

    return run


def vllm(ids: list[list[int]], at_once: int, options: argparse.Namespace) -> Callable[[], Answers]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    model = LLM(options.model, dtype=options.dtype, max_model_len=1024, max_num_seqs=at_once)
    asked = [{"prompt_token_ids": each} for each in ids for _ in range(options.n)]
    sampling = SamplingParams(temperature=0, max_tokens=options.new_tokens, ignore_eos=True)
    return lambda: [list(each.outputs[0].token_ids) for each in model.generate(asked, sampling, use_tqdm=False)]


def report(
    rates: dict[str, list[float]], found: dict[str, Answers], ids: list[list[int]], options: argparse.Namespace
) -> None:
    medians = {name: statistics.median(each) for name, each in rates.items()}
    first = next(iter(found))
    same = {name: sum(a == b for a, b in zip(found[first], each, strict=True)) for name, each in found.items()}
    for name, rate in medians.items():
        print(
            f"{name:>16}  {rate:8.1f} new tokens/s   {same[name]} of {len(found[first])} answers are those of {first}"
        )
    if options.out:
        settings = {
            "prompts": len(ids),
            "prompt_tokens": sum(map(len, ids)),
            "new_tokens": options.new_tokens,
            "n": options.n,
        }
        Path(options.out).write_text(json.dumps({"settings": settings, "rates": rates, "same": same}, indent=1) + "\n")
    if options.picture:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 0.5 * len(medians) + 1.2))
        axes.barh(list(medians), list(medians.values()), color="#4477aa")
        for at, each in enumerate(rates.values()):
            axes.plot(each, [at] * len(each), ".", color="black")
        axes.invert_yaxis()
        axes.set_xlabel("new tokens/s (bars: medians; dots: rounds)")
        figure.savefig(options.picture, bbox_inches="tight", dpi=150)


if __name__ == "__main__":
    main()
