"""The command line: each verb composes rooms, and is told in arguments.py. The only place that reads the environment."""

import argparse
import errno
import os
import sys
import traceback
from pathlib import Path

from rapo_jax.arguments import parse
from rapo_jax.errors import Interrupted, UserError

USER_ERROR, CRASHED, INTERRUPTED = 2, 13, 75
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


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb and exits: 0 done, 1 a plan that does not fit, 2 the user's mistake, 75 interrupted and saved."""
    options = parse(arguments)
    try:
        connect(options)
        code = VERBS[options.name](options)
    except UserError as error:
        print(f"rapo {options.name}: {error}", file=sys.stderr)
        code = USER_ERROR
    except Interrupted as stop:
        from rapo_jax.distributed import say

        say(f"interrupted: {stop}; run the same command to go on.")
        code = INTERRUPTED
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

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)


def relabel(options: argparse.Namespace) -> int:
    from rapo_jax.config.files import load_config
    from rapo_jax.export.preferences import write_preferences
    from rapo_jax.opened import goal_prompt_for_relabelling

    config = load_config(options.config, options.overrides)
    require_data(config)
    if config.relabel.placement == "auto":
        require(config, "model.path")
    counts = write_preferences(config, Path(options.out), goal_prompt=goal_prompt_for_relabelling(config))
    print(f"{options.out}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return 0


def train(options: argparse.Namespace) -> int:
    from rapo_jax.config.files import load_config
    from rapo_jax.runs.train import train_or_resume

    config = load_config(options.config, options.overrides)
    require(config, "run_dir", "model.path")
    require_data(config)
    keep_compilations()
    train_or_resume(config)
    return 0


def keep_compilations() -> None:
    """Where compiling takes minutes, its results outlive the process: a resumed run starts at once.

    JAX_COMPILATION_CACHE_DIR chooses another place. A CPU compiles in seconds, for just its own instructions.
    """
    import jax

    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "rapo_jax" / "compilations"))


def export(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from rapo_jax.checkpoint import Store
    from rapo_jax.export.model import refuse_no_adapters, refuse_nonempty, write_run
    from rapo_jax.runs.setup import open_run_dir, set_up
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
    goal_prompt = replace(setup.goal_prompt, baked=goal)
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
    from rapo_jax.config.files import load_config
    from rapo_jax.score.responses import score_source

    config = load_config(options.config, options.overrides)
    require_data(config)
    keep_compilations()
    out = Path(options.out)
    scored = score_source(
        config, options.model, out, reference=options.reference, say=lambda text: print(text, flush=True)
    )
    flat = [reward for each in scored.rewards for reward in each]
    origin = ", ".join(f"{key} {value}" for key, value in scored.origin.items())
    print(f"{out}: {len(flat):,} responses of {len(scored.rewards):,} rows ({origin})")
    print(f"  from {min(flat):.4g} to {max(flat):.4g}, mean {sum(flat) / len(flat):.4g}")
    print(f"  next: rapo train CONFIG data.rewards={out} relabel.scale.fit=minmax")
    return 0


def plan(options: argparse.Namespace) -> int:
    import json

    without_chips(options)
    from rapo_jax.config.files import load_config
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


VERBS = {"relabel": relabel, "train": train, "export": export, "generate": generate, "score": score, "plan": plan}
