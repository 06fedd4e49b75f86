"""The command line: one function per subcommand; arguments are declared in rapo_jax/arguments.

Exit codes and printing live here and nowhere else, and this is the only place that reads the environment.
"""

import argparse
import errno
import io
import os
import re
import sys
import textwrap
import traceback
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path

from rapo_jax.arguments import parse
from rapo_jax.cli.evaluating import evaluate
from rapo_jax.cli.generating import answers, generate
from rapo_jax.cli.preparing import keep_compilations, require, require_data, without_chips
from rapo_jax.cli.scoring import score
from rapo_jax.errors import Interrupted, Lost, UserError, counted, masked
from rapo_jax.interruption import NOTHING_SAVED, STOPPED, was_interrupted, work_begins, work_has_ended
from rapo_jax.memory import is_out_of_memory, out_of_memory
from rapo_jax.terminal import for_stream

DONE, USER_ERROR, CRASHED, INTERRUPTED, LOST = 0, 2, 13, 75, 76
# Errors of the file system about a path that the user chose: no permission, not a directory, read-only, full.
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)

# Options that each process of a pod may have for itself: its place in the pod, and where its host keeps files. What the files
# hold is compared by the verbs.
OWN = {"name", "coordinator", "distributed", "num_processes", "process_id", "config", "overrides", "json"}
OWN |= {"run_dir", "out_dir", "model_dir", "model", "base", "reference", "prompts", "input", "out", "chat_template"}


def main(arguments: list[str] | None = None) -> None:
    """Runs a verb and exits: 0 done, 1 a plan that does not fit, 2 the user's mistake, 13 a crash, 75 interrupted and saved,
    76 another process was killed or lost, or a run hung, 130 interrupted with nothing to save. One of several processes that stops because
    another one failed has the exit code of that one."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 shows what it can
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    options = parsed(arguments)
    code = exit_code_of(options)
    work_has_ended()
    sys.stdout.flush()
    if joins_others(options):
        from rapo_jax.peers import leave

        leave(code)
    sys.exit(code)


def exit_code_of(options: argparse.Namespace) -> int:
    """Runs a verb; prints what went wrong, if anything did."""
    if joins_others(options):
        work_begins()  # the others have to be told
    try:
        quiet()
        with telling(options):
            connect(options)
            return VERBS[options.name](options)
    except UserError as error:
        tell_error(options.name, str(error))
        return USER_ERROR
    except Interrupted as stop:
        from rapo_jax.distributed import say

        say(f"interrupted: {stop}; run the same command to go on.")
        return INTERRUPTED
    except Lost as error:
        tell_error(options.name, str(error))
        return LOST
    except KeyboardInterrupt:  # long work that saves raises Interrupted instead
        return stopped(options)
    except BrokenPipeError:
        return DONE
    except Exception as error:
        if was_interrupted():
            return stopped(options)
        if getattr(error, "errno", None) in REFUSED:
            tell_error(options.name, f"cannot write or read there: {error}")
            return USER_ERROR
        if is_out_of_memory(error):
            tell_error(options.name, out_of_memory(options.name, error))
            return USER_ERROR
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
        return CRASHED


def tell_error(verb: str, message: str) -> None:
    """Prints a message to the user, under the name of the command."""
    prefix = f"rapo {verb}: "
    print(for_stream(masked(prefix + message), sys.stderr, hang=len(prefix)), file=sys.stderr)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments. What argparse says of wrong ones is wrapped like other messages."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse(arguments)
    finally:
        for line in said.getvalue().splitlines():
            prefix = re.match(r"rapo[\w ]*: error: ", line)
            print(for_stream(line, sys.stderr, hang=len(prefix[0]) if prefix else 0), file=sys.stderr)


def stopped(options: argparse.Namespace) -> int:
    """Says that the work was interrupted with nothing to save."""
    work_has_ended()
    tell_error(options.name, NOTHING_SAVED)
    return STOPPED


def telling(options: argparse.Namespace) -> AbstractContextManager[None]:
    """A block whose error the other processes are told, if there are any."""
    if not joins_others(options):
        return nullcontext()
    from rapo_jax.peers import told_to_others

    return told_to_others()


def joins_others(options: argparse.Namespace) -> bool:
    """Whether this process is one of several."""
    return bool(getattr(options, "distributed", False) or getattr(options, "coordinator", None))


def connect(options: argparse.Namespace) -> None:
    """Sets up devices and, with --distributed or --coordinator, joins the other processes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if getattr(options, "cpu_devices", None):
        import jax

        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    by_hand = {key: getattr(options, key, None) for key in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{key.replace('_', '-')}" for key, value in by_hand.items() if value is None]
    if 0 < len(missing) < len(by_hand):
        raise UserError(f"--coordinator, --num-processes and --process-id go together; add {' and '.join(missing)}.")
    if joins_others(options):
        from rapo_jax.distributed import Pod, gpus_of, join, require_same

        join(Pod(**by_hand, gpus=gpus_of(os.environ)))
        require_same(
            {f"--{name}": value for name, value in vars(options).items() if name not in OWN}
            | {"the verb": options.name}
        )


def quiet() -> None:
    """Silences the libraries' warnings; their errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs the traceback of what it raises, too
    logging.getLogger("jax").setLevel(logging.ERROR)


def relabel(options: argparse.Namespace) -> int:
    """Writes goal-conditioned preferences."""
    from rapo_jax.config.files import load_config
    from rapo_jax.export.preferences import write_preferences
    from rapo_jax.opened import goal_prompt_for_relabelling

    work_begins()
    config = load_config(options.config, options.overrides)
    require_data(config)
    if config.relabel.placement == "auto":
        require(config, "model.path")
    counts = write_preferences(config, Path(options.out), goal_prompt=goal_prompt_for_relabelling(config))
    print(f"{options.out}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return 0


def train(options: argparse.Namespace) -> int:
    """Trains, or resumes where a run stopped."""
    from rapo_jax.config.files import load_config
    from rapo_jax.runs.train import train_or_resume
    from rapo_jax.score.while_training import sample_scorer

    config = load_config(options.config, options.overrides)
    require(config, "run_dir", "model.path")
    require_data(config)
    keep_compilations()
    work_begins()
    train_or_resume(config, score=sample_scorer(config))
    return 0


def export(options: argparse.Namespace) -> int:
    """Writes a checkpoint as a Hugging Face directory."""
    from rapo_jax.distributed import say
    from rapo_jax.export.run import ExportOptions, export_run

    work_begins()
    fields = ("step", "adapter", "goal", "bake", "push_to_hub", "private")
    chosen = ExportOptions(**{name: getattr(options, name) for name in fields})
    done = export_run(Path(options.run_dir), Path(options.out_dir), options=chosen)
    asks = f"its chat template asks for: {done.goal_prompt.sentence(done.goal_prompt.baked) or 'no goal'}"
    say(f"{options.out_dir}: step {done.step} of {options.run_dir}")
    say("  read back: the weights are those of the checkpoint, bit for bit")
    say(textwrap.fill(asks, width=79, initial_indent="  ", subsequent_indent="  ", break_long_words=False))
    if done.address:
        say(f"  uploaded to {done.address}")
    return 0


def round_(options: argparse.Namespace) -> int:
    """Trains on the model's own responses, round by round."""
    from rapo_jax.config.files import load_config
    from rapo_jax.rounds.rounds import run_rounds

    more = [] if options.rounds is None else [f"rounds.num_rounds={options.rounds}"]
    config = load_config(options.config, [*options.overrides, *more])
    keep_compilations()
    work_begins()
    run_rounds(config)
    return 0


def report(options: argparse.Namespace) -> int:
    """Writes one HTML page of runs, evaluations, goal sweeps and answers."""
    from rapo_jax.report.verb import report as write_report

    out, json, csv = (Path(path) if path else None for path in (options.out, options.json, options.csv))
    assert out is not None  # the option is required
    work_begins()
    read = write_report(options.paths, out, title=options.title, json=json, csv=csv)
    parts = {
        "run": len(read.runs),
        "evaluation": len(read.evaluations),
        "goal sweep": len(read.sweeps),
        "answer": len(read.answers),
    }
    print(f"{out}: " + ", ".join(counted(number, one) for one, number in parts.items() if number))
    print(f"  open it: {out.resolve().as_uri()}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Prints the memory and the time that a run would take on hardware that need not be present."""
    without_chips(options)
    from rapo_jax.borders import json_text
    from rapo_jax.config.files import load_config
    from rapo_jax.plan import verb

    config = load_config(options.config, options.overrides)
    require(config, "model.path")
    where = {"topology": options.topology, "devices": options.devices}
    if options.fastest and options.smallest:
        raise UserError("--fastest searches on one target; give --topology KIND:SLICE in place of --smallest.")
    if options.most_compiles is not None and not options.fastest:
        raise UserError("--most-compiles belongs to --fastest.")
    if options.smallest:
        answer = verb.smallest(config, kind=options.smallest)
    elif options.fastest:
        most = options.most_compiles or verb.MOST_COMPILES
        answer = verb.fastest(config, name=options.config, **where, most_compiles=most)
    else:
        answer = verb.plan_target(config, name=options.config, **where)
    print(answer.text)
    if options.json:
        # Not renamed into place: FILE may be /dev/stdout.
        Path(options.json).write_text(json_text(answer.tree), encoding="utf-8")
    if answer.interrupted:
        sys.stdout.flush()
        os._exit(answer.code)  # its compiler cannot be stopped, and must not outlive what Python takes down
    return answer.code


def keys(options: argparse.Namespace) -> int:
    """Prints configuration keys and objectives."""
    from rapo_jax.config.keys import listing

    print(listing(options.prefix))
    return 0


VERBS = {
    "relabel": relabel,
    "train": train,
    "export": export,
    "generate": generate,
    "answers": answers,
    "score": score,
    "round": round_,
    "evaluate": evaluate,
    "report": report,
    "plan": plan,
    "keys": keys,
}
