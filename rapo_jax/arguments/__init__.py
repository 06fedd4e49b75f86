"""The command line's arguments and help. What each subcommand does is in rapo_jax/cli."""

import argparse
import textwrap

from rapo_jax import __version__
from rapo_jax.arguments.engines import engine_arguments, goal_arguments, sampling_arguments
from rapo_jax.arguments.evaluating import evaluate_arguments
from rapo_jax.arguments.scoring import score_arguments
from rapo_jax.arguments.shared import add_config, add_machines, add_step, within
from rapo_jax.arguments.texts import (
    ABOUT,
    ANSWERS_MORE,
    EVALUATE_MORE,
    EXPORT_MORE,
    GENERATE_MORE,
    KEYS_MORE,
    OVERRIDES,
    PLAN_MORE,
    RELABEL_MORE,
    REPORT_MORE,
    ROUND_MORE,
    SCORE_MORE,
    TRAIN_MORE,
)

BENCHMARKS = ("alpaca_eval", "mt_bench", "arena_hard")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Accepts overrides before and after options; argparse alone accepts only those before them."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    if getattr(options, "config", None) == "" and options.overrides:
        # argparse takes a CONFIG that may be absent for absent where options stand before it
        options.config, *options.overrides = options.overrides
    return options


def parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="rapo", description=ABOUT, formatter_class=shape, epilog="rapo VERB --help explains each."
    )
    top.add_argument("--version", action="version", version=f"rapo_jax {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", dest="name")

    def verb(name: str, summary: str, more: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{textwrap.dedent(more)}",
            formatter_class=shape,
        )

    relabel_arguments(
        verb("relabel", "write goal-conditioned pairs to inspect, or to train elsewhere", RELABEL_MORE + OVERRIDES)
    )
    train_arguments(verb("train", "train, or resume a run where it stopped", OVERRIDES + TRAIN_MORE))
    export_arguments(verb("export", "write a Hugging Face directory", EXPORT_MORE))
    generate_arguments(verb("generate", "answer a file of prompts", GENERATE_MORE))
    answers_arguments(verb("answers", "answer a benchmark, in its own format", ANSWERS_MORE))
    score_arguments(verb("score", "score every response of a data source", SCORE_MORE))
    round_arguments(verb("round", "train on the model's own scored responses", OVERRIDES + ROUND_MORE))
    evaluate_arguments(verb("evaluate", "measure how models follow goals", EVALUATE_MORE))
    report_arguments(verb("report", "show runs and results on one HTML page", REPORT_MORE))
    plan_arguments(verb("plan", "memory, work and time of a step on any hardware", OVERRIDES + PLAN_MORE))
    keys_arguments(verb("keys", "list the configuration's keys", KEYS_MORE))
    return top


def relabel_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument("--out", required=True, metavar="FILE", help="JSON lines, or .parquet; must not exist yet")


def train_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    add_machines(to)


def export_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("run_dir", metavar="RUN_DIR")
    to.add_argument("out_dir", metavar="OUT_DIR", help="must not exist, or be empty")
    to.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the newest)")
    to.add_argument(
        "--adapter", action="store_true", help="LoRA runs: write the adapters for peft (default: merge them)"
    )
    goal = to.add_mutually_exclusive_group()
    goal.add_argument(
        "--goal",
        type=within(),
        metavar="G",
        help="score that the exported chat template asks for (default: relabel.goal_max)",
    )
    goal.add_argument("--no-goal", dest="bake", action="store_false", help="leave the chat template alone")
    to.add_argument(
        "--push-to-hub", metavar="REPO", help="upload OUT_DIR to the Hugging Face hub, as you are logged in there"
    )
    to.add_argument("--private", action="store_true", help="with --push-to-hub: a repository that only you see")
    add_machines(to)


def generate_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("model_dir", metavar="MODEL_DIR", help="a Hugging Face directory, a hub id, or a run directory")
    add_step(to)
    to.add_argument(
        "--prompts", required=True, metavar="FILE", help="rows with a prompt, as text or a list of messages"
    )
    to.add_argument(
        "--out", required=True, metavar="FILE", help="the same rows with response, finish_reason and num_tokens"
    )
    goal = goal_arguments(to, default="the row's goal, or the chat template's")
    goal.add_argument("--raw", action="store_true", help="continue the text as it is, without chat template or goal")
    to.add_argument(
        "--num-samples",
        "--n",
        type=within(1, 10**6, kind=int),
        default=1,
        metavar="N",
        help="answers to each prompt, one a row, numbered in a column sample (default %(default)s)",
    )
    to.add_argument("--logps", action="store_true", help="write the answers' tokens and their log-probabilities")
    sampling_arguments(to, most="512", temperature="0 is greedy (the default)")
    engine_arguments(to)
    add_machines(to)


def answers_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("model_dir", metavar="MODEL_DIR", help="a Hugging Face directory, a hub id, or a run directory")
    add_step(to)
    to.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    to.add_argument(
        "--input", default="", metavar="FILE", help="its published questions (default: fetched from the hub)"
    )
    to.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="the answers, as the benchmark reads them: .json for alpaca_eval, else .jsonl",
    )
    to.add_argument(
        "--name",
        dest="called",
        default="",
        metavar="NAME",
        help="what the benchmark calls the model (default: what FILE is called, or the directory of a model_outputs.json)",
    )
    goal_arguments(to, default="the highest, of a model that asks for goals")
    sampling_arguments(
        to,
        most="2048, 1024 (mt_bench) or 4096 (arena_hard)",
        temperature="default 0, which is greedy; of mt_bench by category",
    )
    engine_arguments(to)
    add_machines(to)


def round_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument("--rounds", type=within(1, kind=int), metavar="N", help="how many (default: rounds.num_rounds)")
    add_machines(to)


def report_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "paths", nargs="+", metavar="[NAME=]PATH", help="runs, results, sweeps, answers, verdicts of benchmarks' judges"
    )
    to.add_argument("-o", "--out", required=True, metavar="FILE", help="the page; one that is there is replaced")
    to.add_argument("--title", default="", metavar="T", help="heading of the page")
    to.add_argument("--json", metavar="FILE", help="also write its numbers there")
    to.add_argument("--csv", metavar="FILE", help="also write what is a single number there, as a table")


def plan_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    where = to.add_mutually_exclusive_group()
    where.add_argument(
        "--topology",
        metavar="KIND:SLICE",
        help="v5e:4x4, v5p:2x2x4, 2xv6e:8x8 (two slices), h100:1x8 (hosts x GPUs), ...",
    )
    where.add_argument(
        "--devices", metavar="cpu:N", help="N simulated CPU devices (default: the devices of this machine)"
    )
    where.add_argument("--smallest", metavar="KIND", help="find the smallest slice of v5e, h100, ... on which it fits")
    to.add_argument("--fastest", action="store_true", help="search the settings for the fastest step that fits")
    to.add_argument(
        "--most-compiles",
        type=within(1, 1000, kind=int),
        metavar="N",
        help="of --fastest: programs to compile (default: 8)",
    )
    to.add_argument("--json", metavar="FILE", help="also write the numbers there")


def keys_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="such as train, lora.rank or objective.dpo")
