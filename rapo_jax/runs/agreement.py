"""The processes of a pod compare what they were started with before any of them trains: a pod whose processes differ in a
learning rate or in a data file would train on a mixture, or wait for ever."""

import hashlib
import re
from pathlib import Path
from typing import Any

import jax

from rapo_jax.batching import pipeline
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process
from rapo_jax.errors import UserError
from rapo_jax.runs.identity import Identity
from rapo_jax.runs.settings import dotted

SHOWN = 5  # differences that the message lists
# Where a host keeps its copies. Of the model a sample of its bytes is compared in its place, of data and template the tokens.
PLACES = re.compile(
    r"model\.path|data\.(path|sources\[\d+\]\.path|eval_path|rewards|eval_rewards|drop_prompts|chat_template)"
    r"|relabel\.scale\.file"
)
SAMPLE = 2**20  # bytes of the end of every file of weights


def require_same_configuration(config: Config) -> None:
    """Raises UserError on every process where two were started with different settings."""
    _require_same({key: value for key, value in dotted(as_dict(config)) if not PLACES.fullmatch(key)})


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
