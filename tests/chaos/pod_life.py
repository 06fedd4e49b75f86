"""The life of a pod of two processes, hours of it in minutes: whatever happens, the same command goes on to the same result.

    python -m tests.chaos.pod_life [--events 46] [--seed 0] [--directory DIR]     (as root: it mounts a small tmpfs)

A run is preempted with notice and without, one process or both, in a step, in a save and while it starts; its disk fills up, a
checkpoint is damaged, one host has another data file, one process is stopped, and the data of one never come. Every time the
same command is given again. Each end must have its exit code and name its cause; the joined metrics, and the arrays at the end,
must be those of an undisturbed run, bit for bit. Prints a line for every event; exits with 1 if anything went wrong. 46 events
take some 25 minutes on two idle cores.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.commands import PROGRAM, Ended, digests, run, running
from tests.chaos.full_disk import DISK
from tests.chaos.kills import BOUND, SENTENCES
from tests.tiny import runs

STEPS_A_LIFE = 12  # at most, between two events
ROOM = 2**18  # bytes of a disk that is full: some metrics, no checkpoint
GRACE = 60.0  # seconds after a notice: the first step may have to be compiled
KILLED, SAVED, LOST, WRONG = -signal.SIGKILL, 75, 76, 2
# A process that waits for data that never come, and bounds by which that is noticed in seconds.
QUICK = "from rapo_jax import hangs; hangs.LEAST = dict.fromkeys(hangs.LEAST, 10.0)\n"
STUCK = """
import time
from rapo_jax.train import loop
def stuck(batches, progress, timed=loop.timed):
    for number, batch in enumerate(timed(batches, progress)):
        time.sleep(10**6 if number == 6 else 0)
        yield batch
loop.timed = stuck
"""


@dataclass(frozen=True)
class Event:
    """What happens at a moment, how the processes have to end, and what the last line of one has to say.

    moment: in a "step", in a "save", at the "start", or at "none": nothing is done to the processes.
    act: done to the processes, of which the second number is the victim.
    """

    name: str
    moment: str
    codes: tuple[set[int], set[int]]  # of the victim, of the other
    says: str = ""
    act: Callable[[list[subprocess.Popen], int], None] = lambda processes, victim: None
    second: tuple[str, ...] = ()  # more arguments of process 1
    programs: tuple[str, str] = (PROGRAM, PROGRAM)


def tell_all(processes: list[subprocess.Popen], victim: int) -> None:
    for process in processes:
        process.terminate()


def tell_one(processes: list[subprocess.Popen], victim: int) -> None:
    processes[victim].terminate()


def kill_all(processes: list[subprocess.Popen], victim: int) -> None:
    for process in processes:
        process.kill()


def kill_one(processes: list[subprocess.Popen], victim: int) -> None:
    processes[victim].kill()


def stop_one(processes: list[subprocess.Popen], victim: int) -> None:
    """Stops a process for good; what it leaves is killed when the other has ended."""
    processes[victim].send_signal(signal.SIGSTOP)
    processes[1 - victim].wait(2 * BOUND)
    processes[victim].kill()


NAMED = "|".join(SENTENCES)
PREEMPTIONS = [
    *(Event(f"notice to all in a {moment}", moment, ({SAVED}, {SAVED}), act=tell_all) for moment in ("step", "save")),
    *(Event(f"notice to one in a {moment}", moment, ({SAVED}, {SAVED}), act=tell_one) for moment in ("step", "save")),
    *(Event(f"all killed in a {moment}", moment, ({KILLED}, {KILLED}), act=kill_all) for moment in ("step", "save")),
    *(Event(f"one killed in a {moment}", moment, ({KILLED}, {LOST}), NAMED, kill_one) for moment in ("step", "save")),
    # Before a process listens for notices it simply ends; the other waits for it in vain.
    Event("notice at the start", "start", ({SAVED, LOST, 128 + 15, -15}, {SAVED, LOST, 128 + 15, -15}), act=tell_all),
    Event("all killed at the start", "start", ({KILLED}, {KILLED}), act=kill_all),
    Event("one killed at the start", "start", ({KILLED}, {LOST, 13}), NAMED, kill_one),
]
FULL = Event("disk full", "none", ({WRONG}, {WRONG}), r"^rapo train: .*disk|GiB free|no space|No space")
OTHERS = [
    FULL,
    Event("damaged checkpoint", "step", ({KILLED}, {KILLED}), act=kill_all),
    Event("one stopped", "step", ({KILLED}, {LOST}), NAMED, stop_one),
    Event(
        "data of one never come",
        "none",
        ({LOST}, {LOST}),
        r"process 1 \(host .*\) hangs at the batch after step \d+, for 1\d s now",
        programs=(
            PROGRAM.replace("start()\n", f"{QUICK}start()\n"),
            PROGRAM.replace("start()\n", f"{QUICK}{STUCK}start()\n"),
        ),
    ),
    FULL,
]


@dataclass
class Pod:
    """Where a run lives, how it is started, and what is undecided: the moments and the victims."""

    world: runs.World
    root: Path
    num_steps: int
    chance: random.Random
    seconds_to_start: float = 20.0

    @property
    def run_dir(self) -> Path:
        return self.root / "disk" / "out" / "run"

    def command(self, run_dir: Path, *more: str) -> list[str]:
        often = [f"train.max_steps={self.num_steps}", "train.save_every=4", "train.eval_every=50"]
        return self.world.train(run_dir, *often, *more)

    def last_step(self) -> int:
        return (runs.steps_of(self.run_dir) or [0])[-1]

    def log(self, process: int) -> str:
        path = self.root / f"log-{process}"
        return path.read_text() if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=46)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="NAME", help="only events that begin so")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    root = options.directory or Path(tempfile.mkdtemp(prefix="pod-life-"))
    root.mkdir(parents=True, exist_ok=True)
    chance = random.Random(options.seed)
    pod = Pod(runs.make_world(root), root, 0, chance)
    events = [event for event in events_of(pod, options.events) if event.name.startswith(options.only)]
    pod.num_steps = STEPS_A_LIFE * len(events) + 20
    (root / "disk").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(root / "disk")], check=True)
    try:
        wanted = undisturbed(pod)
        faults = [fault for number, event in enumerate(events, 1) if (fault := one_life(pod, event, number=number))]
        faults += end_of(pod, wanted)
    finally:
        subprocess.run(["umount", str(root / "disk")], check=True)
    sys.exit(f"wrong: {'; '.join(faults)}" if faults else 0)


def events_of(pod: Pod, number: int) -> list[Event]:
    """All kinds of events, the rare ones once and the preemptions over and over, in an order by chance."""
    path = pod.root / "other.jsonl"
    lines = (pod.world.directory / "pairs.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    says = r"the data \(rows, or their rewards\) is "
    wrong_file = Event("one has a wrong file", "none", ({WRONG}, {WRONG}), says, second=(f"data.path={path}",))
    rare = [*OTHERS, wrong_file]
    events = [*rare, *(PREEMPTIONS * number)[: max(0, number - len(rare))]][:number]
    pod.chance.shuffle(events)
    return sorted(events, key=lambda event: event.name == "damaged checkpoint")  # last: it needs two checkpoints


def undisturbed(pod: Pod) -> dict[str, str]:
    """What a run leaves that nothing happens to; it compiles the programs of the others."""
    out = pod.root / "undisturbed"
    shutil.rmtree(out, ignore_errors=True)
    ended = run([pod.command(out / "run")] * 2, log=pod.root / "log", cache=pod.root / "compiled")
    assert ended.codes == [0, 0], "".join(ended.said)[-3000:]
    print(f"undisturbed: {pod.num_steps} steps in {ended.seconds:.0f} s", flush=True)
    return digests(out)


def one_life(pod: Pod, event: Event, *, number: int) -> str | None:
    """One start of the run up to an event; what was wrong, if anything."""
    before, victim = pod.last_step(), pod.chance.randrange(2)
    if event.name == "damaged checkpoint" and len(runs.steps_of(pod.run_dir)) > 1:
        damage(pod.run_dir / "checkpoints" / str(before))
    if event is FULL:
        fill(pod)
    command = [pod.command(pod.run_dir), pod.command(pod.run_dir, *event.second)]
    for process in range(2):
        (pod.root / f"log-{process}").unlink(missing_ok=True)
    started = time.monotonic()
    with running(command, log=pod.root / "log", cache=pod.root / "compiled", programs=event.programs) as processes:
        fault = wait_for(event.moment, pod, processes)
        event.act(processes, victim)
        acted = time.monotonic()
        codes = [process.wait(max(GRACE, 2 * BOUND) if event.moment != "none" else 600) for process in processes]
    seconds = time.monotonic() - acted
    (pod.root / "disk" / "filler").unlink(missing_ok=True)
    ended = Ended(codes, [pod.log(process) for process in range(2)], seconds, victim)
    fault = fault or fault_of(event, ended, pod, before=before)
    last = ended.last_line(1 - victim)
    print(
        f"{number:3} {event.name:24} {f'after step {before},':16} {time.monotonic() - started:3.0f} s: {codes} "
        f"{f'WRONG: {fault}; ' if fault else ''}{last[:150]}",
        flush=True,
    )
    if fault:
        (pod.root / f"wrong-{number}").write_text("\n\n".join(ended.said))
    return f"{number} {event.name}: {fault}" if fault else None


def wait_for(moment: str, pod: Pod, processes: list[subprocess.Popen]) -> str | None:
    """Returns at a moment of the run; what kept it from coming, if anything."""
    begins, deadline = time.monotonic(), time.monotonic() + runs.PATIENCE
    if moment == "none":
        return None
    if moment == "start":
        time.sleep(pod.chance.uniform(0.1, 1.0) * pod.seconds_to_start)
        return None
    steps = pod.chance.randint(1, STEPS_A_LIFE - 2)
    first: int | None = None
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            return "it ended by itself"
        if first is None:
            shown = re.search(rf"^ +(\d+)/{pod.num_steps} ", pod.log(0), re.MULTILINE)
            first = int(shown[1]) if shown else None
            pod.seconds_to_start = time.monotonic() - begins
        elif last_record(pod.run_dir) >= first + steps - 1 and (moment == "step" or saves(pod.run_dir)):
            return None
        time.sleep(0.002)
    return f"nothing came in {runs.PATIENCE} s"


def last_record(run_dir: Path) -> int:
    with (run_dir / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        found = re.findall(rb'"step": ?(\d+)', file.read())
    return int(found[-1]) if found else 0


def saves(run_dir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not path.name.isdigit() for path in (run_dir / "checkpoints").glob("[0-9]*"))


def fault_of(event: Event, ended: Ended, pod: Pod, *, before: int) -> str | None:
    """What is wrong with how the processes ended."""
    victim = ended.killed or 0
    mine, other = ended.codes[victim], ended.codes[1 - victim]
    if mine not in event.codes[0] or other not in event.codes[1]:
        return f"ended with {mine} and {other}"
    if event.moment != "none" and ended.seconds > 2 * BOUND:
        return f"ended after {ended.seconds:.0f} s only"
    pattern = event.says.replace("{killed}", str(victim))
    if not re.search(pattern, "\n".join(ended.said) if event is FULL else ended.last_line(1 - victim)):
        return f"says {ended.last_line(1 - victim)!r}"
    if "Traceback" in "".join(ended.said) and LOST not in event.codes[1]:
        return "shows a traceback"
    if event.name == "damaged checkpoint" and before and "is damaged and was set aside" not in ended.said[0]:
        return "does not say that a checkpoint was damaged"
    if event.moment == "none" and pod.last_step() < before:
        return "lost a step"
    return None


def damage(checkpoint: Path) -> None:
    """Flips a byte of the largest file of a checkpoint's arrays."""
    path = max((p for p in (checkpoint / "state").rglob("d/*") if p.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fill(pod: Pod) -> None:
    """Leaves little room on the disk of the run."""
    disk = pod.root / "disk"
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(4096, shutil.disk_usage(disk).free - ROOM))


def end_of(pod: Pod, wanted: dict[str, str]) -> list[str]:
    """Lets the run come to its end, and compares it with the undisturbed one."""
    command = [pod.command(pod.run_dir)] * 2
    ended = run(command, log=pod.root / "log", cache=pod.root / "compiled")
    if ended.codes != [0, 0]:
        return [f"does not end: {ended.codes}: {ended.last_line(0)}"]
    found = digests(pod.run_dir.parent)
    different = [f"other {name} at the end" for name in ("metrics", "arrays") if wanted[name] != found[name]]
    print(f"the end, after {ended.seconds:.0f} s: {', '.join(different) or 'metrics and arrays are equal'}", flush=True)
    return different


if __name__ == "__main__":
    main()
