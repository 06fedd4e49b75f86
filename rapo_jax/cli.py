"""The command line: each verb composes rooms. The only place that reads the environment."""

import argparse
import errno
import math
import os
import sys
import textwrap
import traceback
from pathlib import Path

from rapo_jax import __version__
from rapo_jax.errors import UserError

USER_ERROR, CRASHED = 2, 13
# What a file system says to a path that the user chose: no permission, a file in place of a directory, read-only, full.
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)

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


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb and exits: 0 done, 1 a plan that does not fit, 2 the user's mistake, 75 interrupted and saved."""
    options = parse(arguments)
    try:
        connect(options)
        code = options.verb(options)
    except UserError as error:
        print(f"rapo {options.name}: {error}", file=sys.stderr)
        code = USER_ERROR
    except BrokenPipeError:
        code = 0
    except Exception as error:
        code = USER_ERROR if getattr(error, "errno", None) in REFUSED else CRASHED
        if code == USER_ERROR:
            print(f"rapo {options.name}: cannot write or read there: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
    sys.stdout.flush()
    if code and options.processes:
        os._exit(code)  # the other processes would wait for this one in the shutdown barrier
    sys.exit(code)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after options; argparse alone takes only those before them."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def connect(options: argparse.Namespace) -> None:
    """Joins the processes of a pod, where there are several: told by options, or found by JAX with --distributed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet()
    if getattr(options, "cpu_devices", None):
        import jax

        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    options.processes = bool(getattr(options, "distributed", False) or getattr(options, "coordinator", None))
    if not options.processes:
        return
    import jax

    told = {"coordinator_address": options.coordinator, "num_processes": options.num_processes}
    told |= {"process_id": options.process_id}
    jax.distributed.initialize(**told if options.coordinator else {}, heartbeat_timeout_seconds=60)


def quiet() -> None:
    """Libraries speak only when something is wrong."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import logging

    from absl import flags
    from absl import logging as absl_logging

    flags.FLAGS.mark_as_parsed()  # tokamax would else read our command line as its own and refuse it
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)


def relabel(options: argparse.Namespace) -> int:
    from rapo_jax.config_file import load_config
    from rapo_jax.data.chat import load_tokenizer, resolve_placement
    from rapo_jax.data.preferences import write_preferences
    from rapo_jax.models.directory import model_directory

    config = load_config(options.config, options.overrides)
    require_data(config)
    placement = config.relabel.placement
    if placement == "auto":  # only the model's chat template knows where a goal can stand
        require(config, "model.path")
        directory = model_directory(config.model.path)
        tokenizer = load_tokenizer(str(directory), chat_template=config.data.chat_template)
        placement = resolve_placement(tokenizer, "auto")
    counts = write_preferences(config, Path(options.out), placement=placement)
    print(f"{options.out}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return 0


def train(options: argparse.Namespace) -> int:
    from rapo_jax.config_file import load_config
    from rapo_jax.run import train_or_resume

    config = load_config(options.config, options.overrides)
    require(config, "run_dir", "model.path")
    require_data(config)
    keep_compilations()
    return train_or_resume(config)


def keep_compilations() -> None:
    """Where compiling takes minutes, its results outlive the process: a resumed run starts at once.

    JAX_COMPILATION_CACHE_DIR chooses another place. A CPU compiles in seconds, for just its own instructions.
    """
    import jax

    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "rapo_jax" / "compilations"))


def export(options: argparse.Namespace) -> int:
    from rapo_jax.checkpoint import Store
    from rapo_jax.export import GoalPrompt, refuse_no_adapters, refuse_nonempty, write_run
    from rapo_jax.run import open_run_dir, set_up
    from rapo_jax.train.state import abstract_trained

    run_dir, out_dir = Path(options.run_dir), Path(options.out_dir)
    config = open_run_dir(run_dir)
    refuse_nonempty(out_dir)
    if options.adapter:
        refuse_no_adapters(config)
    setup = set_up(config)
    store = Store(run_dir, writes=False)
    abstract = {"parameters": abstract_trained(setup.spec, setup.mesh)}
    restored = store.restore(abstract, step=options.step)
    store.close()
    if restored is None:
        raise UserError(f"{run_dir} has no checkpoint yet; train it first.")
    goal = options.goal
    if goal is None and options.bake and config.relabel.has_highest_goal:
        goal = config.relabel.goal_max
    goal_prompt = GoalPrompt(
        template=config.relabel.template,
        goal_max=config.relabel.goal_max,
        placement=setup.placement,
        baked=goal,
        chat_template=setup.tokenizer.chat_template,
        goal_min=config.relabel.goal_min,
        attributes=config.relabel.attributes,
    )
    difference = write_run(setup, restored, out_dir, goal_prompt=goal_prompt, adapter=options.adapter)
    asks = goal_prompt.sentence(goal) or "no goal"
    print(f"{out_dir}: step {restored.step} of {run_dir}; read back, largest difference of logits {difference:.1e}")
    print(f"  its chat template asks for: {asks}")
    return 0


def generate(options: argparse.Namespace) -> int:
    from rapo_jax.generate.answers import Request, answer_file

    fields = ("prompts", "out", "raw", "goal", "no_goal", "max_new_tokens", "max_prompt_length")
    fields += ("temperature", "top_p", "seed", "batch_size", "dtype", "chat_template")
    rate = answer_file(options.model_dir, Request(**{name: getattr(options, name) for name in fields}))
    print(f"{options.out}: {rate}")
    return 0


def score(options: argparse.Namespace) -> int:
    from rapo_jax.config_file import load_config
    from rapo_jax.score.responses import score_source
    from rapo_jax.train.loop import INTERRUPTED

    config = load_config(options.config, options.overrides)
    require_data(config)
    keep_compilations()
    out = Path(options.out)
    scored = score_source(
        config, options.model, out, reference=options.reference, say=lambda text: print(text, flush=True)
    )
    if scored is None:
        return INTERRUPTED
    flat = [reward for each in scored.rewards for reward in each]
    origin = ", ".join(f"{key} {value}" for key, value in scored.origin.items())
    print(f"{out}: {len(flat):,} responses of {len(scored.rewards):,} rows ({origin})")
    print(f"  from {min(flat):.4g} to {max(flat):.4g}, mean {sum(flat) / len(flat):.4g}")
    print(f"  next: rapo train CONFIG data.rewards={out} relabel.scale.fit=minmax")
    return 0


def plan(options: argparse.Namespace) -> int:
    import json

    without_chips(options)
    from rapo_jax.config_file import load_config
    from rapo_jax.plan import verb

    config = load_config(options.config, options.overrides)
    require(config, "model.path")
    if options.smallest:
        answer = verb.smallest(config, kind=options.smallest)
    else:
        answer = verb.plan(config, name=options.config, topology=options.topology, devices=options.devices)
    print(answer.text)
    if options.json:
        Path(options.json).write_text(json.dumps(answer.tree, indent=2) + "\n")
    return answer.code


def without_chips(options: argparse.Namespace) -> None:
    """Before JAX starts: the CPU is its only backend, and libtpu looks for no machine around it where there is no TPU."""
    target = options.topology or options.smallest
    if not (target or options.devices):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.devices:
        from rapo_jax.plan.targets import cpu_count

        flag = "--xla_force_host_platform_device_count"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={cpu_count(options.devices)}".strip()
    elif target.startswith(("v", "tpu")) and not tpu_is_here():
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
            "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any value silences a warning; every topology can still be described
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time
        }


def tpu_is_here() -> bool:
    return any(list(Path("/dev").glob(device)) for device in ("accel[0-9]*", "vfio/[0-9]*"))


def require(config, *keys: str) -> None:
    """Raises UserError for a key that this verb cannot do without."""
    for key in keys:
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value:
            raise UserError(f"{key} is not set; add it to CONFIG or to the command line: {key}=...")


def require_data(config) -> None:
    """Raises UserError where there is nothing to read."""
    if not config.data.sources:
        require(config, "data.path")


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


def parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="rapo", description=ABOUT, formatter_class=shape, epilog="rapo VERB --help says more."
    )
    top.add_argument("--version", action="version", version=f"rapo_jax {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", dest="name")

    def verb(name: str, function, summary: str, more: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name, help=summary, description=f"{summary}.\n\n{textwrap.dedent(more)}", formatter_class=shape
        )
        added.set_defaults(verb=function)
        return added

    relabel_arguments(
        verb(
            "relabel",
            relabel,
            "write goal-conditioned pairs",
            RELABEL_MORE + OVERRIDES,
        )
    )
    train_arguments(verb("train", train, "train, or resume where a run stopped", OVERRIDES + TRAIN_MORE))
    export_arguments(verb("export", export, "write a Hugging Face directory", EXPORT_MORE))
    generate_arguments(verb("generate", generate, "answer a file of prompts", GENERATE_MORE))
    score_arguments(verb("score", score, "rewards for every response of a source", SCORE_MORE))
    plan_arguments(
        verb("plan", plan, "memory, work and time of a step on chips that need not be here", OVERRIDES + PLAN_MORE)
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


def add_config(to: argparse.ArgumentParser) -> None:
    to.add_argument("config", metavar="CONFIG", help="a YAML file")
    to.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="overrides")
