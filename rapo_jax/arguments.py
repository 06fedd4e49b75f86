"""What can be typed after `rapo`: the verbs with their arguments, and the help that says so. What verbs do is in cli.py."""

import argparse
import math
import textwrap

from rapo_jax import __version__

ABOUT = """\
Make a language model aware of response quality: from preferences whose responses carry scores, train it to answer at
the score it is asked for, and export a Hugging Face checkpoint that answers at the highest.

  rapo relabel  CONFIG --out FILE     scored pairs -> goal-conditioned pairs, to look at or to train elsewhere
  rapo train    CONFIG                train; the same command resumes
  rapo export   RUN_DIR OUT_DIR       a Hugging Face directory that answers at the highest goal
  rapo generate MODEL_DIR --prompts FILE --out FILE
  rapo score    CONFIG --model DIR --out FILE    rewards for every response, for data.rewards
  rapo plan     CONFIG --topology v5e:4x4   what it would need and take on chips that are not here
"""

OVERRIDES = """\
CONFIG is a YAML file (examples in configs/); any leaf can be overridden as key=value:

  model.path=DIR_OR_HUB_ID    data.path=FILE_OR_HUB_ID      data.eval_path=...     run_dir=runs/mine
  objective.beta=0.1          optimizer.learning_rate=1e-6  train.batch_size=64    train.max_steps=100
  relabel.goals=[]            (plain baseline)              relabel.goals=[chosen] (goals of the chosen only)
  mesh.fsdp=8 mesh.tensor=1   model.dtype=float32           data.chat_template=chatml
  lora.rank=16 lora.alpha=32  lora.targets=[q, v]           (adapters over frozen weights)
"""

RELABEL_MORE = """\
In the formats that TRL reads: pairs, labelled responses or single ones, whatever the objective compares. Beside FILE come a
report in numbers and in a picture, and the scale where scores were mapped.

"""
TRAIN_MORE = """
The run directory holds config.yaml, data_report.json, metrics.jsonl, tensorboard/ and checkpoints/. Ctrl-C saves and
exits with 75; the same command goes on from there, also after a crash, with the metrics it would have had.
"""
EXPORT_MORE = """\
Safetensors in the dtype of the starting model, config, generation config, tokenizer and model card, read back and
compared before it says done. The exported chat template carries the goal, so that anyone who applies it gets the
behaviour of the highest score. Of a LoRA run, the adapters are merged into the weights they were trained on, or with
--adapter written alone, in float32, as peft reads them.
"""
GENERATE_MORE = """\
Greedy by default. On a directory that rapo exported, --goal replaces the goal that its chat template carries.
"""
SCORE_MORE = """\
A classifier of one label gives its scores; a language model its implicit rewards, objective.beta * (log pi - log pi_ref).
No response is asked for a goal. What was computed survives an interruption (exit code 75); the same command goes on.
"""
PLAN_MORE = """
Compiles the real step from shapes alone; weights are never read, data only if it is there (else lengths like
UltraFeedback's). TPUs need libtpu (the extra "tpu"), GPUs the CUDA plugin (the extra "plan-gpu"), neither needs a chip.
Exits with 1 when the step does not fit, after compiling the nearest change that does.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after options; argparse alone takes only those before them."""
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
        prog="rapo", description=ABOUT, formatter_class=shape, epilog="rapo VERB --help says more."
    )
    top.add_argument("--version", action="version", version=f"rapo_jax {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", dest="name")

    def verb(name: str, summary: str, more: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=summary, description=f"{summary}.\n\n{textwrap.dedent(more)}", formatter_class=shape
        )

    relabel_arguments(verb("relabel", "write goal-conditioned pairs", RELABEL_MORE + OVERRIDES))
    train_arguments(verb("train", "train, or resume where a run stopped", OVERRIDES + TRAIN_MORE))
    export_arguments(verb("export", "write a Hugging Face directory", EXPORT_MORE))
    generate_arguments(verb("generate", "answer a file of prompts", GENERATE_MORE))
    score_arguments(verb("score", "rewards for every response of a source", SCORE_MORE))
    plan_arguments(
        verb("plan", "memory, work and time of a step on chips that need not be here", OVERRIDES + PLAN_MORE)
    )
    return top


def relabel_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument("--out", required=True, metavar="FILE", help="JSON lines, or .parquet; must not exist yet")


def train_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument(
        "--distributed", action="store_true", help="join the processes of a pod that JAX can find (Cloud TPU, Slurm)"
    )
    to.add_argument(
        "--cpu-devices",
        type=within(1, 1024, kind=int),
        metavar="N",
        help="use a processor as N devices; one a core, with mesh.data=-1 mesh.fsdp=1, is the fastest",
    )
    to.add_argument("--coordinator", metavar="HOST:PORT", help="join processes by hand, with the two options below")
    to.add_argument("--num-processes", type=int, metavar="N")
    to.add_argument("--process-id", type=int, metavar="I")


def export_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("run_dir", metavar="RUN_DIR")
    to.add_argument("out_dir", metavar="OUT_DIR", help="must be empty or not exist")
    to.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the newest)")
    to.add_argument(
        "--adapter", action="store_true", help="of a LoRA run, the adapters for peft (default: merged into the model)"
    )
    goal = to.add_mutually_exclusive_group()
    goal.add_argument(
        "--goal",
        type=within(),
        metavar="G",
        help="the score that the exported chat template asks for (default: relabel.goal_max)",
    )
    goal.add_argument("--no-goal", dest="bake", action="store_false", help="leave the chat template alone")


def generate_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("model_dir", metavar="MODEL_DIR", help="a Hugging Face directory or hub id")
    to.add_argument("--prompts", required=True, metavar="FILE", help="rows with a prompt: a text or a list of messages")
    to.add_argument(
        "--out", required=True, metavar="FILE", help="the same rows with response, finish_reason, num_tokens"
    )
    goal = to.add_mutually_exclusive_group()
    goal.add_argument(
        "--goal", type=within(), metavar="G", help="ask for this score (default: what the chat template says)"
    )
    goal.add_argument("--no-goal", action="store_true", help="ask for no score, also where the chat template would")
    goal.add_argument("--raw", action="store_true", help="continue the texts as they are: no chat template, no goal")
    to.add_argument("--max-new-tokens", type=within(1, kind=int), default=512, metavar="N", help="default %(default)s")
    to.add_argument(
        "--max-prompt-length",
        type=within(2, kind=int),
        default=4096,
        metavar="N",
        help="longer prompts lose their middle (default %(default)s)",
    )
    to.add_argument("--temperature", type=within(0), default=0.0, metavar="T", help="0 is greedy (default)")
    to.add_argument("--top-p", type=within(1e-6, 1), default=1.0, metavar="P", help="default %(default)s")
    to.add_argument("--seed", type=int, default=0, metavar="S", help="default %(default)s")
    to.add_argument("--batch-size", type=within(1, kind=int), default=16, metavar="B", help="default %(default)s")
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")
    to.add_argument(
        "--chat-template", metavar="T", help="for a tokenizer without one: plain, chatml, zephyr or a .jinja file"
    )


def score_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    to.add_argument("--model", required=True, metavar="DIR", help="a reward model, or a policy trained by preferences")
    to.add_argument(
        "--reference", metavar="DIR", help="what the policy was trained from (default: CONFIG's model.path)"
    )
    to.add_argument("--out", required=True, metavar="FILE", help="JSON lines for data.rewards; must not exist yet")


def plan_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to)
    where = to.add_mutually_exclusive_group()
    where.add_argument(
        "--topology", metavar="KIND:SLICE", help="v5e:4x4, v5p:2x2x4, v6e:8x8, h100:1x8 (hosts x GPUs), ..."
    )
    where.add_argument("--devices", metavar="cpu:N", help="N virtual CPU devices (default: the devices here)")
    where.add_argument(
        "--smallest", metavar="KIND", help="walk the slices of v5e, h100, ... to the first on which it fits"
    )
    to.add_argument("--json", metavar="FILE", help="write the numbers there as well")


def add_config(to: argparse.ArgumentParser) -> None:
    to.add_argument("config", metavar="CONFIG", help="a YAML file")
    to.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides")


def within(least: float = -math.inf, most: float = math.inf, *, kind: type = float):
    """A type for argparse: a finite number of this kind from `least` to `most`."""

    def read(text: str) -> float:
        number = kind(text)
        if not (math.isfinite(number) and least <= number <= most):
            limits = f" of at least {least:g}" * (least > -math.inf) + f" and at most {most:g}" * (most < math.inf)
            raise argparse.ArgumentTypeError(f"{text} is out of range; it must be a finite number{limits}")
        return number

    read.__name__ = {int: "integer", float: "number"}[kind]  # argparse says: invalid number value
    return read
