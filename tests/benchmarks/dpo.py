"""DPO throughput of our training step, TRL's and Tunix's, measured in turns, and each one's share of the machine's ceiling.

    python tests/benchmarks/dpo.py --data pairs.jsonl --out result.json --picture result.png
    python tests/benchmarks/dpo.py --data pairs.jsonl --python tunix=/path/to/python   # Tunix in an environment of its own
    python tests/benchmarks/dpo.py --data pairs.jsonl --options "trl=--batch-size 4" --options "ours=--set rows.length=1024"

Every system trains all weights of the same model on the same token ids and the same optimizer batch of --pairs pairs, with
the same precision and AdamW, and computes the reference's log-probabilities within the step (except those named -cached).
Each runs in its own process. All are loaded and warmed up, then take one optimizer step each in turn, so that other load
affects all of them. Use an idle machine nevertheless: torch's threads spin while one of them is descheduled, which flatters
us. Reading, tokenizing and logging are not timed. Losses and log-probabilities of all systems must agree; otherwise they did
not do the same work.

All have the shapes of a run over all of the data: our rows are its batch plan's, Tunix pads to the longest prompt and
response as it does itself (tunix-batch: to those of this batch, and compiles for that shape), TRL pads each microbatch.

Every round also measures the fastest large matrix product of jax and torch. Divided by the useful FLOPs of DPO
(rapo_jax/accounting.py), it bounds the pairs per second of any implementation on this machine: the ceiling.

Without --model, a random Llama (--size 25m, 1b or 8b) and a tokenizer trained on the data are made; nothing is downloaded.
On a GPU: --dtype bfloat16 --size 1b --options "trl=--batch-size 8 --attention flash_attention_2" and the like; `python
tests/benchmarks/workers/with_trl.py --help` lists a worker's options. Defaults are what was fastest on a CPU.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"

# The same for all. glibc keeps freed memory; otherwise torch would request its activations from the kernel in every step.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class System:
    label: str
    worker: str
    arguments: tuple[str, ...] = ()
    python: str = ""  # whose environment it runs in, if not its own
    cached: bool = False  # the reference's log-probabilities are not computed in the step


CEILINGS = {
    "ceiling-jax": System("matmul, jax", "matmul.py", python="ours"),
    "ceiling-torch": System("matmul, torch", "matmul.py", ("--library", "torch"), python="trl"),
}
SYSTEMS = {
    "ours": System("rapo_jax", "ours.py"),
    "ours-cached": System("rapo_jax,\ncached reference", "ours.py", ("--cached",), python="ours", cached=True),
    "trl": System("TRL", "with_trl.py"),
    "trl-cached": System("TRL,\ncached reference", "with_trl.py", ("--cached",), python="trl", cached=True),
    "tunix": System("Tunix", "with_tunix.py"),
    "tunix-batch": System("Tunix,\nfits the batch", "with_tunix.py", ("--fit", "batch"), python="tunix"),
    "tunix-buckets": System("Tunix,\nbucketed by user", "with_tunix.py", ("--buckets", "8"), python="tunix"),
}


@dataclass
class Worker:
    """A process that runs one system, with its answers: first the warm-up, then the rounds."""

    name: str
    process: subprocess.Popen
    log: Path
    answers: list[dict] = field(default_factory=list)

    def take_turn(self) -> None:
        """Starts a round and reads its answer. The warm-up needs no start signal."""
        if self.answers:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SystemExit(f"{self.name} ended with status {self.process.returncode}:\n{tail}")
        self.answers.append(json.loads(line))

    @property
    def timed(self) -> list[dict]:
        return self.answers[1:]


def start(name: str, system: System, options: argparse.Namespace, directory: Path) -> Worker:
    python = options.python.get(system.python or name, sys.executable)
    command = [python, str(WORKERS / system.worker), *system.arguments, *options.options.get(name, [])]
    command += ["--directory", str(directory), "--steps", str(options.rounds + 1), "--dtype", options.dtype]
    log = directory / f"{name}.log"
    environment = ENVIRONMENT | os.environ
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("w")}
    return Worker(name, subprocess.Popen(command, text=True, env=environment, **pipes), log)


def prepare(options: argparse.Namespace, directory: Path) -> dict:
    """Writes the directory that all workers read, in the environment of `ours`; returns facts about its batch."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [options.python.get("ours", sys.executable), str(WORKERS / "prepare.py"), "--directory", str(directory)]
    names = ("data", "pairs", "max_length", "seed", "size", "model", "chat_template")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    command += [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    if subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode:
        raise SystemExit("the model and the batch could not be prepared; see above.")
    return json.loads((directory / "facts.json").read_text())


def measure(options: argparse.Namespace, directory: Path) -> dict[str, Worker]:
    """Starts all workers one after another, lets them take turns, and returns them with their answers."""
    systems = {name: system for name, system in CEILINGS.items() if (system.python in options.systems)}
    systems |= {name: SYSTEMS[name] for name in options.systems}
    workers = {}
    try:
        for name, system in systems.items():
            workers[name] = start(name, system, options, directory)
            workers[name].take_turn()
            say(name, "warm-up", workers[name].answers[-1])
        for round_ in range(1, options.rounds + 1):
            for name, worker in workers.items():
                worker.take_turn()
                say(name, f"round {round_}", worker.answers[-1])
    finally:
        for worker in workers.values():
            worker.process.stdin.close()
            worker.process.terminate()
            worker.process.wait()
    return workers


def say(name: str, round_: str, answer: dict) -> None:
    if "gflops" in answer:
        print(f"  {round_}: {name} {max(answer['gflops'].values()):.1f} GFLOP/s", flush=True)
    else:
        print(f"  {round_}: {name} {answer['seconds']:.2f} s, loss {answer['loss']:.6f}", flush=True)


def summary(options: argparse.Namespace, facts: dict, workers: dict[str, Worker], *, load: float) -> dict:
    """Figures without the warm-up. Ratios are taken within a round, between steps that ran one after the other."""
    ceilings = {name: worker for name, worker in workers.items() if name in CEILINGS}
    systems = {name: worker for name, worker in workers.items() if name in SYSTEMS}
    best = {name: best_product(worker.timed) for name, worker in ceilings.items()}
    ceiling = max(gflops for _, gflops in best.values())
    results = {name: result(name, worker, facts, ceiling) for name, worker in systems.items()}
    ours = [name for name in results if name.startswith("ours")]
    others = [name for name in results if name not in ours]
    pairs_of = [(mine, theirs) for mine in ours for theirs in others] + [("ours-cached", "ours")] * (len(ours) == 2)
    return {
        "systems": results,
        "ratios": {f"{a}/{b}": ratio(results[a], results[b]) for a, b in pairs_of},
        "largest_difference": {
            "losses": spread([entry["losses"] for entry in results.values()]),
            "logps_relative": max(apart(k, list(systems.values())) for k in ("chosen", "rejected")),
        },
        "ceiling": {
            "gflops": ceiling,
            "by_library": {name: {"shape": shape, "gflops": gflops} for name, (shape, gflops) in best.items()},
            "pairs_per_s": {kind: ceiling / gflop for kind, gflop in facts["gflop_per_pair"].items()},
        },
        "batch": facts,
        "options": {
            key: value
            for key, value in vars(options).items()
            if key not in ("data", "model", "directory", "out", "picture", "python")
        },
        "model": Path(options.model).name
        if options.model
        else f"random Llama, {facts['parameters'] / 1e6:.1f}M weights",
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_before": load,
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
    }


def best_product(answers: list[dict]) -> tuple[str, float]:
    return max((item for answer in answers for item in answer["gflops"].items()), key=lambda item: item[1])


def result(name: str, worker: Worker, facts: dict, ceiling: float) -> dict:
    pairs = facts["pairs"]
    kind = "reference_cached" if SYSTEMS[name].cached else "with_reference"
    rates = [pairs / answer["seconds"] for answer in worker.timed]
    rate, gflops = statistics.median(rates), statistics.median(rates) * facts["gflop_per_pair"][kind]
    said = ("versions", "device", "options", "plan", "padded_to")
    return {
        "pairs_per_s": rate,
        "rounds": rates,
        "useful_gflops": gflops,
        "share_of_ceiling": gflops / ceiling,
        "processor_s_per_pair": statistics.median(a["processor_seconds"] for a in worker.timed) / pairs,
        "first_step_s": worker.answers[0]["seconds"],
        "peak_memory_mib": worker.answers[-1]["peak_memory_mib"],
        "losses": [answer["loss"] for answer in worker.answers],
        "logps": [answer["logps"] for answer in worker.answers],
    } | {key: worker.answers[-1][key] for key in said if key in worker.answers[-1]}


def ratio(ours: dict, theirs: dict) -> dict:
    rounds = [a / b for a, b in zip(ours["rounds"], theirs["rounds"], strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def spread(columns: Sequence[Sequence[float]]) -> float:
    """The largest difference between systems over all steps."""
    return max(max(values) - min(values) for values in zip(*columns, strict=True))


def apart(response: str, workers: Sequence[Worker]) -> float:
    """The largest relative difference between systems in mean log-probability of chosen (or rejected) responses."""
    columns = [[answer["logps"][response] for answer in worker.answers] for worker in workers]
    return spread(columns) / abs(columns[0][0])


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def show(figures: dict) -> None:
    batch, tokens, ceiling = figures["batch"], figures["batch"]["tokens_per_pair"], figures["ceiling"]
    print(f"{figures['model']}, {figures['options']['dtype']}; {batch['pairs']} pairs a step")
    print(f"  tokens a pair: {tokens['prompt_shared']:.0f}, {tokens['prompt_repeated']:.0f} with the prompt repeated")
    for name, entry in figures["systems"].items():
        rounds = ", ".join(f"{value:.3f}" for value in entry["rounds"])
        share = f"{entry['share_of_ceiling']:6.1%} of the ceiling"
        print(f"  {name:14s} {entry['pairs_per_s']:8.3f} pairs/s  {share}  (rounds: {rounds})")
        if "plan" in entry:
            print(f"  {'':14s} {entry['plan']['real_token_fraction']:8.1%} real tokens in its rows")
    for name, entry in figures["ratios"].items():
        print(
            f"  {name:14s} {entry['median']:8.2f}          (rounds: {', '.join(f'{v:.2f}' for v in entry['rounds'])})"
        )
    for name, entry in ceiling["by_library"].items():
        print(f"  {name:14s} {entry['gflops']:8.1f} GFLOP/s ({entry['shape']})")
    bounds, needed = ceiling["pairs_per_s"], batch["gflop_per_pair"]
    for kind in bounds:
        print(f"  {kind}: {needed[kind]:.1f} GFLOP a pair, so at most {bounds[kind]:.3f} pairs/s")
    differ = figures["largest_difference"]
    print(
        f"  losses differ by at most {differ['losses']:.1e}, log-probabilities by {differ['logps_relative']:.1e} (relative)"
    )
    load = figures["machine"]["load_before"]
    if load > 0.3:
        print(
            f"  the machine was not idle (load {load:.1f} before the start), which slows torch's threads more than XLA's;"
        )
        print("  do not quote these figures")


def draw(figures: dict, path: Path) -> None:
    """Bars of pairs/s with the rounds as dots, and the ceiling as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    entries, bounds = figures["systems"], figures["ceiling"]["pairs_per_s"]
    figure, axes = plt.subplots(figsize=(2.2 + 1.5 * len(entries), 4.5), layout="constrained")
    top = max(bounds["reference_cached" if SYSTEMS[name].cached else "with_reference"] for name in entries)
    for x, (name, entry) in enumerate(entries.items()):
        system, rate = SYSTEMS[name], entry["pairs_per_s"]
        bound = bounds["reference_cached" if system.cached else "with_reference"]
        axes.bar(x, rate, width=0.6, color="tab:blue" if name.startswith("ours") else "0.7")
        axes.plot([x] * len(entry["rounds"]), entry["rounds"], "o", color="0.25", markersize=3)
        axes.hlines(
            bound, x - 0.5, x + 0.5, color="tab:red", linewidth=1.5, label="ceiling by matrix products" * (x == 0)
        )
        axes.annotate(f"{rate:.2f}\n{entry['share_of_ceiling']:.0%}", (x, max(rate, *entry["rounds"]) + 0.01 * top), ha="center", va="bottom")  # fmt: skip
    axes.set_xticks(range(len(entries)), [SYSTEMS[name].label for name in entries])
    axes.set(ylabel="pairs per second", ylim=(0, 1.15 * top))
    axes.set_title(f"DPO, {figures['model']}, {figures['options']['dtype']}\n{where(figures)}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)


def where(figures: dict) -> str:
    """The accelerator, or the processor if there is none."""
    accelerators = {entry.get("device", "") for entry in figures["systems"].values()} - {"", "cpu"}
    named = sorted(name for name in accelerators if not name.endswith("threads"))
    machine = figures["machine"]
    return ", ".join(named) or f"{machine['processor']}, {machine['cores']} cores"


def by_name(texts: list[str], *, option: str, known: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """["trl=TEXT"] -> {"trl": TEXT}."""
    named = dict(text.partition("=")[::2] for text in texts)
    for name in named:
        if name not in known:
            parser.error(f"{option} {name}=...: unknown; one of {', '.join(known)}")
    return named


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="scored pairs, as rapo train reads them")
    parser.add_argument("--pairs", type=int, default=128, help="pairs in the optimizer batch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each system (default %(default)s)")
    parser.add_argument(
        "--systems", default="ours,trl,tunix", help=f"some of {', '.join(SYSTEMS)} (default %(default)s)"
    )
    parser.add_argument("--model", help="a Hugging Face directory (default: a random Llama)")
    parser.add_argument("--size", default="25m", help="size of the random Llama: 25m, 1b or 8b (default %(default)s)")
    parser.add_argument("--chat-template", help="for tokenizers without one: plain, chatml, zephyr or a .jinja file")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and response")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0, help="selects the pairs (default %(default)s)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="SYSTEM=PATH", help="Python of its environment"
    )
    parser.add_argument(
        "--options", action="append", default=[], metavar="SYSTEM=ARGUMENTS", help="further arguments of its worker"
    )
    parser.add_argument("--directory", type=Path, help="new directory that keeps model, batch and logs (default: none)")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--picture", type=Path, help="write the picture there")
    options = parser.parse_args(arguments)
    options.systems = options.systems.split(",")
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown:
        parser.error(f"--systems {', '.join(unknown)}: unknown; one of {', '.join(SYSTEMS)}")
    owners = [name for name, system in SYSTEMS.items() if not system.python]
    options.python = by_name(options.python, option="--python", known=owners, parser=parser)
    given = by_name(options.options, option="--options", known=[*SYSTEMS, *CEILINGS], parser=parser)
    options.options = {name: shlex.split(text) for name, text in given.items()}
    return options


def main() -> None:
    options, load = parse(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        facts = prepare(options, directory)
        figures = summary(options, facts, measure(options, directory), load=load)
    show(figures)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if options.picture:
        draw(figures, options.picture)


if __name__ == "__main__":
    main()
