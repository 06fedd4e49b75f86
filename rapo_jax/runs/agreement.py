"""The processes of a pod compare what they were started with before any of them trains: a pod whose processes differ in a
learning rate or in a data file would train on a mixture, or wait for ever."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from rapo_jax.batching import pipeline
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process
from rapo_jax.errors import UserError
from rapo_jax.runs.identity import Identity

SHOWN = 5  # differences that the message lists
# Where a host keeps its copies. Of the model a sample of its bytes is compared in its place, of data and template the tokens.
PLACES = ("model.path", "data.path", "data.eval_path", "data.rewards", "data.eval_rewards", "data.drop_prompts",
          "data.chat_template", "relabel.scale.file")  # fmt: skip
SAMPLE = 2**20  # bytes of the end of every file of weights


def require_same_configuration(config: Config) -> None:
    """Raises UserError on every process where two were started with different settings."""
    leaves = dict(leaves_of(as_dict(config)))
    _require_same({name: value for name, value in leaves.items() if name not in PLACES})


def require_same_model(directory: Path) -> None:
    """Raises UserError on every process where two have other files of config and weights under model.path."""
    if jax.process_count() == 1:
        return
    files = sorted(file for file in directory.iterdir() if file.name == "config.json" or file.suffix == ".safetensors")
    _require_same({f"{file.name} of the model": digest_of(file) for file in files})


def digest_of(file: Path) -> str:
    """The beginning of a SHA-256 of a file's size and end: reading all weights twice would take as long as loading them."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - SAMPLE))
        return hashlib.sha256(str(size).encode() + opened.read()).hexdigest()[:12]


def require_same_inputs(identity: Identity, held_out: dict[str, pipeline.Dataset]) -> None:
    """Raises UserError on every process where two read another tokenizer or other data."""
    read = {f"the {name}": getattr(identity, name)[:12] for name in ("tokenizer", "data", "tokens")}
    _require_same(read | {f"the data of {name}": data.fingerprint[:12] for name, data in held_out.items()})


def leaves_of(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested dicts and lists; the paths of data.sources are left out."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            if not (name.startswith("data.sources.") and key == "path"):
                yield from leaves_of(value, f"{name}.{key}" if name else key)
    elif isinstance(tree, list) and tree:
        for number, value in enumerate(tree):
            yield from leaves_of(value, f"{name}.{number}")
    else:
        yield name, tree


def _require_same(mine: dict[str, Any]) -> None:
    first, *others = each_process(mine)
    differing = [
        f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {process}"
        for process, other in enumerate(others, 1)
        for name in dict.fromkeys((*first, *other))
        if first.get(name) != other.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"the processes were not started with the same: {'; '.join(differing[:SHOWN])}{more}. Start all of them with "
            "one configuration and the same files. Nothing was trained."
        )
