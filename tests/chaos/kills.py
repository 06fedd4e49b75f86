"""Kills every command at random moments and runs it again, until it is done: the result must be that of an undisturbed one.

    python -m tests.chaos.kills [--kills 60] [--seed 0] [--only VERB ...] [--directory DIR]

Of two processes one is killed at random; the other must end by itself within a minute, with the name of the first in its last
line. Prints a line for every kill and a table at the end; exits with 1 if anything differs. 60 kills take some 15 minutes on
two idle cores.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.commands import Command, Ended, commands_of, digests, run
from tests.tiny import runs

BOUND = 60  # seconds within which the survivor of two processes ends
# What the last line of a survivor may be: it names the other, which may have been killed before it joined, or after the
# result was complete.
SENTENCES = (
    r"^process {killed} \(host ",
    r"^(rapo \w+: )?could not join ",
    r"^rapo (generate|score): .*out\.jsonl exists; ",
    r"^rapo export: .*model is not empty",
)


@dataclass
class Tally:
    """What happened to one command."""

    kills: int = 0
    resumed: int = 0
    equal: int = 0
    slowest_survivor: float = 0.0
    faults: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="VERB")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    root = options.directory or Path(tempfile.mkdtemp(prefix="kills-"))
    sys.exit(run_all(root, options))


def run_all(root: Path, options: argparse.Namespace) -> int:
    """Number of the kills that went wrong, at most 1 as an exit code."""
    cache, chance, world = root / "compiled", random.Random(options.seed), prepared(root)
    commands = [
        c
        for c in commands_of(world, root / "first" / "run", root / "exported")
        if not options.only or c.name in options.only
    ]
    expected: dict[str, tuple[dict[str, str], float]] = {}
    tallies = {title(command): Tally() for command in commands}
    while sum(tally.kills for tally in tallies.values()) < options.kills:
        for command in commands:
            if sum(tally.kills for tally in tallies.values()) >= options.kills:
                break
            if title(command) not in expected:
                expected[title(command)] = undisturbed(command, root, cache)
            one_trial(command, root / "trial", cache, chance=chance, expected=expected, tally=tallies[title(command)])
    print(f"\n{'command':24} kills resumed equal faults slowest survivor")
    for name, tally in tallies.items():
        print(
            f"{name:24} {tally.kills:5} {tally.resumed:7} {tally.equal:5} {tally.faults:6} {tally.slowest_survivor:10.1f} s"
        )
    return int(any(tally.faults for tally in tallies.values()))


def title(command: Command) -> str:
    return f"{command.name}, {command.processes} process{'es' * (command.processes > 1)}"


def prepared(root: Path) -> runs.World:
    """The world, a finished run in it, and its export; made once in a directory."""
    root.mkdir(parents=True, exist_ok=True)
    world = runs.World(root / "world")
    if not (root / "exported").exists():
        shutil.rmtree(root / "world", ignore_errors=True)
        shutil.rmtree(root / "first", ignore_errors=True)
        world = runs.make_world(root)
        (root / "first").mkdir()
        for arguments in (
            world.train(root / "first" / "run"),
            ["export", str(root / "first" / "run"), str(root / "exported")],
        ):
            ended = run([arguments], log=root / "prepare", cache=root / "compiled")
            assert ended.codes == [0], ended.said[0][-3000:]
    return world


def undisturbed(command: Command, root: Path, cache: Path) -> tuple[dict[str, str], float]:
    """What a command leaves that nothing disturbs, and the seconds it takes with everything compiled."""
    out, ended = root / "undisturbed", None
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        ended = run([command.into(out)] * command.processes, log=root / "log", cache=cache)
        assert set(ended.codes) == {0}, "".join(ended.said)[-3000:]
    assert ended is not None
    print(f"{title(command)}: {ended.seconds:.0f} s undisturbed", flush=True)
    return digests(out), ended.seconds


def one_trial(command: Command, out: Path, cache: Path, *, chance: random.Random, expected: dict, tally: Tally) -> None:
    """A few kills of one command, and then the same command until it is done."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    wanted, seconds = expected[title(command)]
    whole, log = [command.into(out)] * command.processes, out.with_name("log")
    kills = chance.choice((1, 2, 3, 4))
    for _ in range(kills):
        victim, after = chance.randrange(command.processes), chance.uniform(0.1, 1.0) * seconds
        ended = run(whole, log=log, cache=cache, kill=(victim, after))
        if set(ended.codes) == {0}:
            break  # it was faster than its death
        tally.kills += 1
        tally.slowest_survivor = max(tally.slowest_survivor, ended.seconds if command.processes > 1 else 0.0)
        fault = fault_of(ended)
        tally.faults += bool(fault)
        print(f"{title(command)}: killed {victim} after {after:.1f} s; {fault or told(ended)}", flush=True)
    started = time.monotonic()
    ended = run(whole, log=log, cache=cache)
    # What was finished before the kill is not overwritten.
    done = set(ended.codes) == {0} or any((out / name).exists() for name in ("out.jsonl", "model"))
    found = digests(out) if done else {}
    different = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    tally.resumed += done
    tally.equal += not different
    tally.faults += bool(different)
    print(
        f"{title(command)}: {'DIFFERENT ' + str(different) if different else 'equal'}, {time.monotonic() - started:.0f} s"
    )
    if different:
        print("".join(said[-1500:] for said in ended.said))
        shutil.move(out, out.with_name(f"different-{time.time():.0f}"))


def fault_of(ended: Ended) -> str | None:
    """What is wrong with how the survivor of two processes ended."""
    if len(ended.codes) == 1 or ended.killed is None:
        return None
    other = 1 - ended.killed
    last = ended.last_line(other)
    if ended.codes[other] == 0:  # it had done all its work
        return None
    if ended.seconds > BOUND:
        return f"SURVIVOR took {ended.seconds:.0f} s"
    said = any(re.search(sentence.format(killed=ended.killed), last) for sentence in SENTENCES)
    return None if said else f"SURVIVOR ended with {ended.codes[other]}: {last[:200]}"


def told(ended: Ended) -> str:
    """The last line of the survivor, or of the one that was killed."""
    index = 0 if len(ended.codes) == 1 else 1 - (ended.killed or 0)
    last = ended.last_line(index)
    return f"{ended.codes[index]} after {ended.seconds:.0f} s: {last[:110]}" if len(ended.codes) > 1 else last[:110]


if __name__ == "__main__":
    main()
