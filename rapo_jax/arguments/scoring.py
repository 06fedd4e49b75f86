"""The arguments of `rapo score`."""

import argparse

from rapo_jax.arguments.shared import add_config, add_machines, add_step, listed, within


def score_arguments(to: argparse.ArgumentParser) -> None:
    add_config(to, needed=False)
    to.add_argument(
        "--scorer",
        default="",
        metavar="NAME",
        help="reward_model, implicit, judge, python:MODULE:FUNCTION or command:PROGRAM (default: what --model is)",
    )
    to.add_argument(
        "--model",
        default="",
        metavar="DIR",
        help="a reward model, or a policy trained on preferences; a run directory will do",
    )
    add_step(to)
    to.add_argument(
        "--reference", metavar="DIR", help="model the policy was trained from (default: model.path of CONFIG)"
    )
    to.add_argument(
        "--out", metavar="FILE", help="JSON lines for data.rewards (with --compare a .png); must not exist yet"
    )
    to.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="in place of all else: how far two files of scores agree (Kendall's tau, same best and worst)",
    )
    to.add_argument(
        "--write",
        type=listed(("logps",)),
        default=(),
        metavar="logps",
        help="with implicit rewards, also the log-probabilities of policy and reference",
    )
    to.add_argument(
        "--scorer-timeout",
        type=within(0.001),
        metavar="S",
        help="seconds that a program may write nothing (default 600)",
    )
    judge_arguments(to)
    add_machines(to)


def judge_arguments(to: argparse.ArgumentParser) -> None:
    """Of --scorer=judge."""
    to.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server, such as http://localhost:8000/v1")
    to.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    to.add_argument(
        "--judge-key-from",
        metavar="VARIABLE",
        help="environment variable with the server's key, if it needs one (default OPENAI_API_KEY)",
    )
    to.add_argument(
        "--judge-compare", action="store_true", help="compare every two responses, in both orders (default: rate each)"
    )
    to.add_argument(
        "--judge-cache",
        metavar="FILE",
        help="replies that were given, and are not asked for again (default: judge_cache.jsonl beside OUT)",
    )
    number = within(1, 1024, kind=int)
    to.add_argument("--judge-concurrency", type=number, metavar="N", help="questions at once (default 8)")
    to.add_argument(
        "--judge-timeout",
        type=within(0.001),
        metavar="S",
        help="seconds for one answer (default 120)",
    )
    to.add_argument(
        "--judge-max-tokens",
        type=within(1, kind=int),
        metavar="N",
        help="tokens of one reply; more for a judge that thinks aloud (default 1024)",
    )
