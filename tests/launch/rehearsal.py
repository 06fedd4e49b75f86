"""The scripts of launch/ with clouds, clusters and hosts that are directories of this machine."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"


@dataclass(frozen=True)
class Ran:
    """What a script did."""

    code: int
    out: str
    errors: str
    called: list[str]  # the programs of the cloud, with their arguments

    def count(self, text: str) -> int:
        """How many calls hold the text, what they do on other hosts apart."""
        return sum(text in call.partition(" --command ")[0] for call in self.called)


@dataclass(frozen=True)
class Cloud:
    """A place for the fakes."""

    directory: Path

    def script(self, name: str, *words: str, **more: str) -> Ran:
        """Runs launch/NAME; `more` is added to the environment."""
        called = self.directory / "called"
        called.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", ROOT / "launch" / name, *words],
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=100,
        )
        lines = called.read_text().splitlines() if called.exists() else []
        return Ran(done.returncode, done.stdout, done.stderr, lines)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAPO_", "OMPI_"))}
        return kept | {"PATH": f"{FAKES}:{kept['PATH']}", "CLOUD": str(self.directory), "RAPO_POLL": "0.1"}

    def plans(self, *actions: object) -> None:
        """What rapo does, start after start."""
        (self.directory / "plan").write_text("".join(f"{action}\n" for action in actions))

    def heard(self, host: str) -> list[str]:
        """The words of each start of rapo there."""
        path = self.directory / f"heard-{host}"
        return path.read_text().splitlines() if path.exists() else []


def cloud(directory: Path) -> Cloud:
    (directory / "venv" / "bin").mkdir(parents=True)
    shutil.copy(FAKES / "rapo", directory / "venv" / "bin" / "rapo")
    return Cloud(directory)


def assert_one_sentence(ran: Ran, said: str) -> None:
    """Refused: exit code 2, a few lines of at most 80 columns, nothing called."""
    assert ran.code == 2, ran
    assert ran.called == []
    assert said in " ".join(ran.errors.split()), ran.errors
    lines = ran.errors.splitlines()
    assert len(lines) <= 4 and all(len(line) <= 80 for line in lines) and ".sh: line" not in ran.errors
