"""python -m tests.fuzz [--examples N] [--border NAME] [--seed N]: N inputs over all borders, and a table of them."""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

GIB = 2**30
HEADER = (
    f"{'border':<12} {'inputs':>7} {'accepted':>9} {'refused':>8} {'faults':>7} {'slowest s':>10} {'memory MiB':>11}"
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000, help="inputs over all borders")
    parser.add_argument("--border", action="append", help="only this one (may be repeated)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=8, help="GiB that the process may have in all")
    options = parser.parse_args()
    from tests import conftest  # noqa: F401 (devices and environment, before JAX starts)
    from tests.fuzz.borders import BORDERS
    from tests.fuzz.place import make_place
    from tests.fuzz.running import fuzz

    names = options.border or list(BORDERS)
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        place = make_place(Path(directory))
        resource.setrlimit(resource.RLIMIT_AS, (options.memory * GIB, options.memory * GIB))
        print(HEADER, flush=True)
        shares = sum(BORDERS[name].share for name in names)
        for name in names:
            number = -(-options.examples * BORDERS[name].share // shares)
            started = time.monotonic()
            tally = fuzz(BORDERS[name], place, number=number, seed=options.seed)
            row = f"{name:<12} {tally.inputs:>7,} {tally.accepted:>9,} {tally.refused:>8,} {tally.faults.total():>7,}"
            seconds = time.monotonic() - started
            print(f"{row} {tally.slowest:>10.2f} {tally.grown:>11,}  ({seconds:.0f} s)", flush=True)
            for fault, count in tally.faults.most_common():
                print(f"  {count:>6,}  {fault}\n          {tally.examples[fault]!r:.300}")
                if len(names) == 1:
                    print(tally.traces[fault])
            faults += tally.faults.total()
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
