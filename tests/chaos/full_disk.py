"""Runs every command on a disk that fills up at several moments: nothing may be lost, and with space made it goes on.

    python -m tests.chaos.full_disk [--only NAME] [--directory DIR]          (as root: it mounts a small tmpfs)

For each command the disk has room for a share of what it writes. The command must end with exit code 2 and one sentence that
names the path and the free space, and leave earlier steps and files as they were; with the filler removed the same command
must give the result of an undisturbed one. Prints a line for every case; exits with 1 if any went wrong.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.commands import Command, commands_of, digests, run
from tests.chaos.kills import prepared, title, undisturbed
from tests.tiny import runs

DISK = 64 * 2**20
# Room on the disk, as a share of all that a command leaves behind. Below the first step of training are its records.
SHARES = {
    "train": {"config record": 0.0, "first step": 0.1, "a later step": 0.45, "metrics line": 0.995},
    "export": {"weights": 0.3, "tokenizer": 0.9},
    "score": {"column": 0.0, "scores": 0.9},
    "relabel": {"rows": 0.3, "figure": 0.8},
    "generate": {"answers": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    root = options.directory or Path(tempfile.mkdtemp(prefix="full-disk-"))
    world = prepared(root)
    commands = [c for c in commands_of(world, root / "first" / "run", root / "exported") if c.processes == 1]
    wrong = [
        f"{command.name}: {case}"
        for command in commands
        if command.name.startswith(options.only)
        for case in wrong_cases(command, root)
    ]
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def wrong_cases(command: Command, root: Path) -> list[str]:
    wanted, _ = undisturbed(command, root, root / "compiled")
    size = sum(pages(path) for path in (root / "undisturbed").rglob("*") if path.is_file())
    return [
        f"{case}: {fault}"
        for case, share in SHARES[command.name].items()
        if (fault := fault_of(command, root, case=case, room=int(size * share), wanted=wanted))
    ]


def pages(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096


def fault_of(command: Command, root: Path, *, case: str, room: int, wanted: dict[str, str]) -> str | None:
    """Runs a command on a disk with so many free bytes, and again with enough; what went wrong, if anything."""
    disk, log = root / "disk", root / "log"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    try:
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(disk).free - room // 4096 * 4096)
        out = disk / "out"
        arguments = [command.into(out)]
        full = run(arguments, log=log, cache=root / "compiled")
        errors = [line for line in full.said[0].splitlines() if line.startswith(f"rapo {command.name}: ")]
        kept = runs.steps_of(out / "run")
        print(
            f"{title(command)}, {case}, {room} bytes free: {full.codes[0]}: {(errors or [full.last_line(0)])[-1]}",
            flush=True,
        )
        if full.codes != [2] or len(errors) != 1 or str(disk) not in errors[0] or "Traceback" in full.said[0]:
            print(full.said[0][-3000:])
            return f"ended with {full.codes[0]}"
        (disk / "filler").unlink()
        if any(step not in runs.steps_of(out / "run") for step in kept):
            return "lost a step"
        again = run(arguments, log=log, cache=root / "compiled")
        if again.codes != [0]:
            print(again.said[0][-3000:])
            return f"does not go on: {again.codes[0]}"
        found = digests(out)
        return next((f"other {name}" for name in {**wanted, **found} if wanted.get(name) != found.get(name)), None)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


if __name__ == "__main__":
    main()
