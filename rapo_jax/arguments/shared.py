"""Arguments of several verbs, and the types of their values."""

import argparse
import math


def add_step(to: argparse.ArgumentParser) -> None:
    to.add_argument("--step", type=int, metavar="N", help="of a run directory: which checkpoint (default: the newest)")


def add_config(to: argparse.ArgumentParser, *, needed: bool = True) -> None:
    to.add_argument("config", nargs=None if needed else "?", default="", metavar="CONFIG", help="a YAML file")
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
