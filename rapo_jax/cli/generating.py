"""`rapo generate` and `rapo answers`."""

import argparse
import os
from typing import Any

from rapo_jax.cli.preparing import keep_compilations, leave_accelerators
from rapo_jax.errors import UserError, nearest
from rapo_jax.interruption import work_begins

OURS = ("batch_size", "batch_tokens", "dtype")  # options that a server knows nothing of
OWN = "own"
COMMON = ("out", "goal", "no_goal", "any_goal", "max_new_tokens", "max_prompt_length", "chat_template")
COMMON += ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def generate(options: argparse.Namespace) -> int:
    """Answers a file of prompts."""
    model, given = asked(options)
    from rapo_jax.distributed import say
    from rapo_jax.generate.answers import Request, answer_file

    own = {name: getattr(options, name) for name in ("prompts", "raw", "num_samples", "logps")}
    say(f"{options.out}: {answer_file(model, Request(**given, **own))}")
    return 0


def answers(options: argparse.Namespace) -> int:
    """Answers a benchmark, in its own format."""
    model, given = asked(options)
    from rapo_jax.distributed import say
    from rapo_jax.evaluate.benchmarks.answering import answer_benchmark
    from rapo_jax.evaluate.benchmarks.registry import BENCHMARKS
    from rapo_jax.generate.answers import Request

    benchmark = BENCHMARKS[options.benchmark]
    say(answer_benchmark(model, benchmark, Request(prompts=options.input, **given), name=options.called))
    return 0


def asked(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model, and the fields of a request that both verbs have."""
    server = server_options(options)
    if server is not None:
        leave_accelerators()
    from rapo_jax.config.files import read_mapping
    from rapo_jax.parallel import mesh_of_replicas
    from rapo_jax.runs.trained import find_model

    keep_compilations()
    work_begins()
    given = {name: getattr(options, name) for name in COMMON} | {"server": server}
    given["stop"] = None if options.stop is None else tuple(options.stop)
    given |= {name: value for name in OURS if (value := getattr(options, name)) is not None}
    given["template_options"] = read_mapping(options.template_options or "{}", option="--template-options")
    return find_model(options.model_dir, step=options.step, mesh=mesh_of_replicas), given


def server_options(options: argparse.Namespace):
    """How a server is asked; None where our own engine samples. Raises UserError for options of the other engine."""
    from rapo_jax.generate.engine import ServerOptions
    from rapo_jax.servers.access import Access, key_of_environment

    given = options_of_engine(options)
    if options.engine == OWN:
        if given:
            names = ", ".join(f"--engine-{name.replace('_', '-')}" for name in given)
            raise UserError(f"{names}: these are of a server; add --engine URL, or leave them out.")
        return None
    if "://" not in options.engine:
        hint = nearest(options.engine, [OWN, "http://HOST:PORT/v1"])
        raise UserError(f"--engine={options.engine} is unknown; {hint}")
    ours = [f"--{name.replace('_', '-')}" for name in OURS if getattr(options, name, None) is not None]
    if ours:
        raise UserError(
            f"{', '.join(ours)}: the server decides that by itself; leave out {'it' if len(ours) == 1 else 'them'}."
        )
    sends, default = given.pop("sends", ServerOptions.sends), Access.key_from
    key = key_of_environment(os.environ, given.get("key_from"), default=default, option="--engine-key-from")
    defaults = {"concurrency": 64, "timeout": 600.0, "patience": 1800.0}
    access = Access(options.engine, key=key, **defaults | given, option="--engine", prefix="--engine")
    return ServerOptions(access, sends)


def options_of_engine(options: argparse.Namespace) -> dict[str, Any]:
    """Those options of a server that are given, without the beginning of their names."""
    given = {name: value for name, value in vars(options).items() if name.startswith("engine_")}
    return {name.removeprefix("engine_"): value for name, value in given.items() if value is not None}
