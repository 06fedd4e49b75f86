"""Where the checkpoints of a run are: in its directory, in another one, or in a bucket. Each is marked as ours."""

from pathlib import Path

from rapo_jax.buckets import Directory, directory_at, reachable, read_marker, write_marker
from rapo_jax.distributed import is_first
from rapo_jax.errors import UserError

FORMAT = "rapo_jax checkpoint 1"
MARKER = "rapo_jax.json"


def claimed_directory(run_dir: Path, elsewhere: str | None, *, writes: bool) -> Directory:
    """Where the checkpoints of a run are: in its directory, which says so where they are `elsewhere`. Marks both as ours; raises
    UserError for one in use for something else, and for a run that began with its checkpoints in another place."""
    at_home = Path(run_dir).absolute() / "checkpoints"
    marker = at_home / MARKER
    if marker.is_file():
        recorded = read_marker(marker).get("elsewhere")
        if writes and recorded != elsewhere:
            raise UserError(
                f"run_dir={run_dir} keeps its checkpoints in {recorded or at_home}, and train.checkpoints={elsewhere or 'null'} "
                f"names another place; set it to {recorded or 'null'}, or choose another run_dir."
            )
        elsewhere = recorded
    elif not writes:
        raise UserError(f"{at_home} holds no checkpoints of rapo_jax; RUN_DIR must be the run_dir of a training run.")
    directory = at_home
    if elsewhere is not None:
        said = f"train.checkpoints={elsewhere}"
        directory = directory_at(elsewhere, said=said)
        with reachable(directory, said=said):
            claim(directory, {"format": FORMAT}, writes=writes, key="train.checkpoints")
    claim(at_home, {"format": FORMAT} | ({"elsewhere": elsewhere} if elsewhere else {}), writes=writes)
    return directory


def claim(directory: Directory, marker: dict[str, str], *, writes: bool, key: str = "run_dir") -> None:
    """Marks a directory as ours, on process 0, if it is not. Raises UserError if it is in use for something else."""
    if (directory / MARKER).is_file() or not writes:
        return
    if directory.is_dir() and any(path.name != MARKER for path in directory.iterdir()):
        raise UserError(
            f"{directory} is not empty and was not written by rapo_jax; nothing was changed. Choose another {key}."
        )
    directory.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_marker(directory / MARKER, marker)
