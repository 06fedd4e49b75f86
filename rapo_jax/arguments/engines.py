"""The arguments of `rapo generate` about what samples: our own engine, or a server."""

import argparse

from rapo_jax.arguments.shared import within


def engine_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--engine",
        default="own",
        metavar="URL",
        help="an OpenAI-compatible server of the same model, such as http://localhost:8000/v1 (default: own)",
    )
    to.add_argument(
        "--engine-model", metavar="NAME", help="the model's name there (default: the one that is MODEL_DIR)"
    )
    to.add_argument(
        "--engine-sends",
        choices=("tokens", "text", "chat"),
        help="what a prompt is sent as (default: tokens, which vLLM and SGLang take)",
    )
    to.add_argument(
        "--engine-key-from",
        metavar="VARIABLE",
        help="environment variable with the server's key, if it needs one (default OPENAI_API_KEY)",
    )
    to.add_argument(
        "--engine-concurrency", type=within(1, 4096, kind=int), metavar="N", help="requests at once (default 64)"
    )
    to.add_argument("--engine-timeout", type=within(0.001), metavar="S", help="seconds for one answer (default 600)")
    to.add_argument(
        "--engine-patience",
        type=within(0.001),
        metavar="S",
        help="seconds to wait for a server that went away, such as one that is restarted (default 1800)",
    )
