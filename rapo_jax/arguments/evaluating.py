"""The arguments of `rapo evaluate`."""

import argparse

from rapo_jax.arguments.engines import engine_arguments
from rapo_jax.arguments.scoring import judge_arguments
from rapo_jax.arguments.shared import add_machines, goal_list, listed, within

BY_LIKELIHOOD = ("likelihood", "unlearning", "preference")
BY_ANSWERS = ("goals", "frontier")
SUITES = (*BY_LIKELIHOOD, *BY_ANSWERS)


def evaluate_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="WORD",
        help="CONFIG, a YAML file (default: that of the first run directory); MODEL, a model or run directory (RUN@STEP for a checkpoint); key=value",
    )
    to.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DIR",
        help="a MODEL, said otherwise; again for each further one (the first is what others are compared with)",
    )
    to.add_argument("--out", required=True, metavar="DIR", help="directory of the results")
    to.add_argument(
        "--suite",
        type=listed(SUITES),
        default=BY_LIKELIHOOD,
        metavar="NAME,NAME",
        help=f"{', '.join(SUITES)} (default: {', '.join(BY_LIKELIHOOD)})",
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
        help="at most so many of the pairs (or prompts), drawn by the seed of CONFIG",
    )
    to.add_argument(
        "--reference",
        metavar="DIR",
        help="what training started from, for preference and frontier (default: model.path of CONFIG)",
    )
    goals_arguments(to.add_argument_group("of the suites goals and frontier"))
    add_machines(to)


def goals_arguments(to) -> None:
    to.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="NAME",
        help="judge, reward_model:DIR, implicit:DIR, python:MODULE:FUNCTION or command:PROGRAM; again for a second one",
    )
    to.add_argument(
        "--scale",
        action="append",
        default=[],
        metavar="S",
        help="scale of the scorer: goals (that of the goals), LOW,HIGH or a scale.json; again for the second "
        "(default: 1,10 of judge, else not known: no errors are told)",
    )
    to.add_argument("--prompts", metavar="FILE", help="prompts to answer (default: those of the held-out pairs)")
    to.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="DIR",
        help="a model without goals to compare with, as it is and with the goal in its prompt; again for a further one",
    )
    to.add_argument("--any-goal", action="store_true", help="allow --goals outside a model's scale")
    number = within(1, 10**4, kind=int)
    to.add_argument("--num-samples", type=number, metavar="N", help="answers to a prompt at each goal (default 1)")
    to.add_argument(
        "--best-of",
        type=within(0, 10**4, kind=int),
        metavar="N",
        help="answers to a prompt without a goal (default: as many as with goals; 0: none)",
    )
    to.add_argument(
        "--temperature", type=within(0), metavar="T", help="of answers (default 0.8, of frontier 1; 0 is greedy)"
    )
    to.add_argument("--top-p", type=within(1e-6, 1), metavar="P", help="of answers (default 0.95, of frontier 1)")
    to.add_argument("--max-new-tokens", type=within(1, 10**6, kind=int), metavar="N", help="default 512")
    to.add_argument("--seed", type=within(-(2**31), 2**31, kind=int), metavar="S", help="of answers (default 0)")
    to.add_argument("--batch-size", type=within(1, kind=int), metavar="B", help="answers at once (default 16)")
    to.add_argument(
        "--scorer-timeout",
        type=within(0.001),
        metavar="S",
        help="seconds that a program may write nothing (default 600)",
    )
    judge_arguments(to)
    engine_arguments(to)
