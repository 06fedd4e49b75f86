"""The arguments of verbs that sample: what is asked for, how tokens are drawn, and what samples, our own engine or a server."""

import argparse

from rapo_jax.arguments.shared import within


def goal_arguments(to: argparse.ArgumentParser, *, default: str) -> argparse._MutuallyExclusiveGroup:
    """The goal; returns the group of what excludes one."""
    to.add_argument("--any-goal", action="store_true", help="allow goals outside the model's scale")
    goal = to.add_mutually_exclusive_group()
    goal.add_argument("--goal", type=within(), metavar="G", help=f"ask for this score (default: {default})")
    goal.add_argument("--no-goal", action="store_true", help="ask for no score, even if the chat template would")
    return goal


def sampling_arguments(to: argparse.ArgumentParser, *, most: str, temperature: str) -> None:
    """How tokens are drawn, and how many at once. `most` and `temperature` say what the defaults are."""
    to.add_argument("--max-new-tokens", type=within(1, 10**6, kind=int), metavar="N", help=f"default {most}")
    to.add_argument(
        "--max-prompt-length",
        type=within(2, kind=int),
        default=4096,
        metavar="N",
        help="longer prompts lose their middle (default %(default)s)",
    )
    to.add_argument("--temperature", type=within(0), metavar="T", help=temperature)
    to.add_argument("--top-p", type=within(1e-6, 1), metavar="P", help="default 1")
    to.add_argument("--top-k", type=within(0, 2**31 - 1, kind=int), metavar="K", help="default 0, all tokens")
    to.add_argument(
        "--min-p", type=within(0, 1), metavar="P", help="least share of the highest probability (default 0)"
    )
    to.add_argument(
        "--repetition-penalty",
        type=within(0.01, 100),
        metavar="X",
        help="above 1 against tokens that prompt or answer hold already (default 1)",
    )
    to.add_argument(
        "--stop", action="append", metavar="TEXT", help="ends an answer, and is no part of it; may be repeated"
    )
    to.add_argument("--seed", type=within(-(2**63), 2**63 - 1, kind=int), metavar="S", help="default 0")
    to.add_argument("--batch-size", type=within(1, kind=int), metavar="B", help="prompts at once (default 16)")
    to.add_argument(
        "--batch-tokens",
        type=within(1, kind=int),
        metavar="N",
        help="tokens at once, prompts and answers together; bounds the memory (default 16384)",
    )
    to.add_argument("--dtype", choices=("float32", "bfloat16"), help="default float32")
    to.add_argument("--chat-template", metavar="T", help="plain, chatml, zephyr, deepseek-r1 or a .jinja file")
    to.add_argument(
        "--template-options", metavar="T", help="variables of the chat template, such as '{enable_thinking: false}'"
    )


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
