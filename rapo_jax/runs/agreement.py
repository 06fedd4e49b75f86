"""The processes of a pod compare what they were started with before any of them trains: a pod whose processes differ in a
learning rate or in a data file would train on a mixture, or wait for ever."""

import hashlib
import re
from pathlib import Path

import jax

from rapo_jax.batching import pipeline
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.distributed import require_same
from rapo_jax.models.directory import model_files
from rapo_jax.runs.identity import Identity
from rapo_jax.runs.settings import dotted

# Where a host keeps its copies. Of the model a sample of its bytes is compared in its place, of data and template the tokens.
PLACES = re.compile(
    r"model\.path|data\.(path|sources\[\d+\]\.path|eval_path|rewards|eval_rewards|drop_prompts|chat_template|cache)"
    r"|relabel\.scale\.file"
)
# What is compared by its content, by the name of its hash in the identity.
READ = {
    "tokenizer": "the tokenizer or its chat template",
    "data": "the data (rows, or their rewards)",
    "tokens": "the tokens of the data",
}
SAMPLE = 2**20  # bytes of the end of every file of weights


def require_same_configuration(config: Config) -> None:
    """Raises UserError on every process where two were started with different settings."""
    require_same({key: value for key, value in dotted(as_dict(config)) if not PLACES.fullmatch(key)})


def require_same_model(directory: Path) -> None:
    """Raises UserError on every process where two have other files of config and weights under model.path."""
    if jax.process_count() == 1:
        return
    own = {True: "the model", False: "its base model"}
    require_same(
        {f"{file.name} of {own[file.parent == directory]}": digest_of(file) for file in model_files(directory)}
    )


def digest_of(file: Path) -> str:
    """The beginning of a SHA-256 of a file's size and end: reading all weights twice would take as long as loading them."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - SAMPLE))
        return hashlib.sha256(str(size).encode() + opened.read()).hexdigest()[:12]


def require_same_inputs(identity: Identity, held_out: dict[str, pipeline.Dataset]) -> None:
    """Raises UserError on every process where two read another tokenizer or other data."""
    read = {said: getattr(identity, name)[:12] for name, said in READ.items()}
    require_same(read | {f"the held-out data ({name})": data.fingerprint[:12] for name, data in held_out.items()})
