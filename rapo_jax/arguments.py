"""The command line's arguments and help. What each subcommand does is in cli.py."""

import argparse
import math
import textwrap

from rapo_jax import __version__

ABOUT = """\
Train a language model on preferences with scores so that it answers at the
quality it is asked for, and export it as a Hugging Face checkpoint that asks
for the best by itself.

  rapo relabel  CONFIG --out FILE        scored pairs -> goal-conditioned pairs
  rapo train    CONFIG                   train; the same command resumes
  rapo export   RUN_DIR OUT_DIR          write a Hugging Face directory
  rapo generate MODEL_DIR --prompts FILE --out FILE
                                         answer a file of prompts
  rapo score    CONFIG --model DIR --out FILE
                                         score responses, for data.rewards
  rapo evaluate CONFIG --model DIR --out DIR
                                         does what it finds likely follow goals?
  rapo report   PATH [PATH ...] -o FILE.html
                                         runs and results as one page
  rapo plan     CONFIG --topology v5e:4x4
                                         memory and time on other hardware
  rapo keys     [PREFIX]                 list the configuration's keys
"""

SUITES = ("likelihood", "unlearning", "preference")

OVERRIDES = """\
CONFIG is a YAML file (examples in configs/). Any key can be overridden:

  model.path=DIR_OR_HUB_ID      data.path=FILE_OR_HUB_ID
  run_dir=runs/mine             data.eval_path=FILE_OR_HUB_ID
  objective.beta=0.1            optimizer.learning_rate=1e-6
  train.batch_size=64           train.max_steps=100
  relabel.goals=[]              plain baseline, no goals
  relabel.goals=[chosen]        goals from chosen responses only
  mesh.fsdp=8 mesh.tensor=1     how the model is sharded
  data.chat_template=chatml     for a tokenizer without one
  lora.rank=16                  train adapters over frozen weights
"""

RELABEL_MORE = """\
Writes pairs, labelled or single responses, whichever the objective compares,
in the formats that TRL reads. A report (numbers and a picture) is written
beside FILE, and scale.json if scores were mapped.

"""
TRAIN_MORE = """
The run directory holds config.yaml, data_report.json (and .png), metrics.jsonl,
tensorboard/ and checkpoints/. Ctrl-C saves a checkpoint and exits with 75. Run
the same command again, also after a crash, and it continues from the last
checkpoint with the metrics it would have had.
"""
EXPORT_MORE = """\
Writes safetensors in the dtype of the starting model, config, generation
config, tokenizer and model card, then reads them back and compares the logits.
The chat template carries the goal, so anyone who applies it gets answers of
the highest score. LoRA adapters are merged into the weights; --adapter writes
them alone, in float32, as peft reads them.
"""
GENERATE_MORE = """\
Greedy by default. For a directory that rapo exported, --goal replaces the goal
that its chat template asks for. Of a run directory, also of a run that goes on,
the newest checkpoint answers as its export would.

Columns goal, temperature, top_p, max_new_tokens and seed of a row hold for that
row, unless the option of that name is given. All columns of FILE are kept
(dates as ISO 8601, decimals as text, bytes in base64); one that has the name of
a column of the answers and says something else is kept as input_NAME.

Answers are kept in OUT.partial as they end. Ctrl-C exits with 75; the same
command goes on, also after a crash, and gives the answers it would have given.
"""
SCORE_MORE = """\
A sequence classifier with one label gives its scores; a language model gives
its implicit rewards, objective.beta * (log pi - log pi_ref). Responses are
scored without a goal, in the chat template of CONFIG or else of the reward or
reference model; where the scored model has another one, a line says so. Ctrl-C
saves the scores so far and exits with 75; the same command continues.
"""
EVALUATE_MORE = """\
Nothing is generated: the suites read the log-probabilities of scored pairs under
no goal, a grid of goals, their own rewards and the highest goal.

  likelihood   is a response likeliest when asked for its reward, and does the
               likelier of two change with the goal?
  unlearning   what chosen and rejected responses lost or gained, against the
               first model
  preference   accuracy, margin and calibration of the implicit reward, by the
               side whose reward is the goal

Pairs are the held-out ones of CONFIG (data.eval_path or data.eval_fraction), else
all of data.path; a run's config.yaml will do. Numbers carry 95 % bootstrap intervals
over prompts. OUT holds results.json, .csv and .txt, a figure for each suite, and
what was computed: the same command goes on after an interruption, and a further
model or suite costs only itself.
"""
REPORT_MORE = """\
A PATH is a run directory, a directory of `rapo evaluate`, a goal sweep (its
sweep.json) or an answer file of `rapo generate`; NAME=PATH gives it a name, and
answer files of one NAME are one model's. Where a prompt was answered at several
goals, a slider goes from the lowest to the highest.

The page is one file: it opens from disk and loads nothing. Several runs are
compared: what differs in their configurations, and their curves. Nothing is
computed anew, so it takes seconds, also for a run that goes on.

"""
PLAN_MORE = """
Compiles the training step from shapes alone. It reads no weights, and the data
only if it is there (otherwise it assumes lengths like UltraFeedback's). TPUs
need libtpu (the extra "tpu"), GPUs the CUDA plugin (the extra "plan-gpu");
neither needs the hardware. Exits with 1 if the step does not fit, after
compiling the nearest change that does.
"""
KEYS_MORE = """\
Prints each key with its default, its type, what it affects, the verbs that read
it, and its meaning. A run resumes if no key has changed but those that "may
change on resume". `rapo keys objective.dpo` prints a loss with its options and
its paper, `rapo keys objective.beta` every loss that reads that option.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Accepts overrides before and after options; argparse alone accepts only those before them."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
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
    score_arguments(verb("score", "score every response of a data source", SCORE_MORE))
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
    goal = to.add_mutually_exclusive_group()
    goal.add_argument(
        "--goal",
        type=within(),
        metavar="G",
        help="ask for this score (default: the row's goal, or the chat template's)",
    )
    goal.add_argument("--no-goal", action="store_true", help="ask for no score, even if the chat template would")
    goal.add_argument("--raw", action="store_true", help="continue the text as it is, without chat template or goal")
    to.add_argument("--any-goal", action="store_true", help="allow goals outside the model's scale")
    to.add_argument("--max-new-tokens", type=within(1, 10**6, kind=int), metavar="N", help="default 512")
    to.add_argument(
        "--max-prompt-length",
        type=within(2, kind=int),
        default=4096,
        metavar="N",
        help="longer prompts lose their middle (default %(default)s)",
    )
    to.add_argument("--temperature", type=within(0), metavar="T", help="0 is greedy (the default)")
    to.add_argument("--top-p", type=within(1e-6, 1), metavar="P", help="default 1")
    to.add_argument("--seed", type=within(-(2**63), 2**63 - 1, kind=int), metavar="S", help="default 0")
    to.add_argument(
        "--batch-size", type=within(1, kind=int), default=16, metavar="B", help="prompts at once (default %(default)s)"
    )
    to.add_argument(
        "--batch-tokens",
        type=within(1, kind=int),
        default=16384,
        metavar="N",
        help="tokens at once, prompts and answers together; bounds the memory (default %(default)s)",
    )
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")
    to.add_argument("--chat-template", metavar="T", help="plain, chatml, zephyr, deepseek-r1 or a .jinja file")
    to.add_argument(
        "--template-options", metavar="T", help="variables of the chat template, such as '{enable_thinking: false}'"
    )
    add_machines(to)


def score_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a reward model, or a policy trained on preferences; a run directory will do",
    )
    add_step(to)
    to.add_argument(
        "--reference", metavar="DIR", help="model the policy was trained from (default: model.path of CONFIG)"
    )
    to.add_argument("--out", required=True, metavar="FILE", help="JSON lines for data.rewards; must not exist yet")
    add_machines(to)


def evaluate_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="DIR",
        help="a model or run directory; again for each further one (the first is what others are compared with)",
    )
    to.add_argument("--out", required=True, metavar="DIR", help="directory of the results")
    to.add_argument(
        "--suite",
        type=listed(SUITES),
        default=SUITES,
        metavar="NAME,NAME",
        help=f"{', '.join(SUITES)} (default: all)",
    )
    to.add_argument(
        "--goals",
        type=goal_list,
        default=(),
        metavar="G,G,...",
        help="the grid (default: at most 11 of the scale)",
    )
    to.add_argument(
        "--pairs",
        type=within(1, kind=int),
        metavar="N",
        help="at most so many of the pairs, drawn by the seed of CONFIG",
    )
    to.add_argument(
        "--reference", metavar="DIR", help="what training started from, for preference (default: model.path of CONFIG)"
    )
    add_machines(to)


def report_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("paths", nargs="+", metavar="[NAME=]PATH", help="runs, results, goal sweeps, answer files")
    to.add_argument("-o", "--out", required=True, metavar="FILE", help="the page; one that is there is replaced")
    to.add_argument("--title", default="", metavar="T", help="heading of the page")
    to.add_argument("--json", metavar="FILE", help="also write its numbers there")
    to.add_argument("--csv", metavar="FILE", help="also write what is a single number there, as a table")


def plan_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    where = to.add_mutually_exclusive_group()
    where.add_argument(
        "--topology", metavar="KIND:SLICE", help="v5e:4x4, v5p:2x2x4, v6e:8x8, h100:1x8 (hosts x GPUs), ..."
    )
    where.add_argument(
        "--devices", metavar="cpu:N", help="N simulated CPU devices (default: the devices of this machine)"
    )
    where.add_argument("--smallest", metavar="KIND", help="find the smallest slice of v5e, h100, ... on which it fits")
    to.add_argument("--json", metavar="FILE", help="also write the numbers there")


def keys_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="such as train, lora.rank or objective.dpo")


def add_step(to: argparse.ArgumentParser) -> None:
    to.add_argument("--step", type=int, metavar="N", help="of a run directory: which checkpoint (default: the newest)")


def add_config(to: argparse.ArgumentParser) -> None:
    to.add_argument("config", metavar="CONFIG", help="a YAML file")
    to.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides of CONFIG")


def add_machines(to: argparse.ArgumentParser) -> None:
    """The options of every verb that computes: which devices it uses, and which other processes it joins."""
    to.add_argument(
        "--distributed", action="store_true", help="join the processes that JAX finds by itself (Cloud TPU, GKE, Slurm)"
    )
    to.add_argument(
        "--cpu-devices",
        type=within(1, 1024, kind=int),
        metavar="N",
        help="split the CPU into N devices; one per core, with mesh.data=-1 mesh.fsdp=1, is the fastest",
    )
    to.add_argument("--coordinator", metavar="HOST:PORT", help="join processes explicitly, with the two options below")
    to.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    to.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")


def listed(names: tuple[str, ...]):
    """An argparse type: some of these names, separated by commas, in their order."""

    def read(text: str) -> tuple[str, ...]:
        given = [word.strip() for word in text.split(",")]
        if unknown := [word for word in given if word not in names]:
            raise argparse.ArgumentTypeError(
                f"{unknown[0] or 'an empty name'} is unknown; there are {', '.join(names)}"
            )
        return tuple(name for name in names if name in given)

    return read


def goal_list(text: str) -> tuple[float, ...]:
    """An argparse type: at least two different finite numbers, separated by commas, in ascending order."""
    try:
        goals = tuple(sorted({within()(word) for word in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be numbers, separated by commas") from None
    if len(goals) < 2:
        raise argparse.ArgumentTypeError(f"{text} is one goal; a grid needs two or more")
    return goals


def within(least: float = -math.inf, most: float = math.inf, *, kind: type = float):
    """An argparse type: a finite number of this kind between `least` and `most`."""

    def read(text: str) -> float:
        number = kind(text)
        if not (math.isfinite(number) and least <= number <= most):
            limits = f" of at least {least:g}" * (least > -math.inf) + f" and at most {most:g}" * (most < math.inf)
            raise argparse.ArgumentTypeError(f"{text} is out of range; it must be a finite number{limits}")
        return number

    read.__name__ = {int: "integer", float: "number"}[kind]  # argparse says: invalid number value
    return read
