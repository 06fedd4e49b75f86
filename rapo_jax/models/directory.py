"""Where a model is: a local directory or a hub id, and what a directory says about stopping."""

import json
from pathlib import Path

from rapo_jax.errors import UserError

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "tokenizer*"]


def model_directory(path: str, *, option: str = "model.path", weights: bool = True) -> Path:
    """The local directory of a model; a hub id is downloaded (safetensors, configs and tokenizer only, never code).

    `option` is what the user calls `path`, for messages. Without `weights` a download has none.
    """
    local = Path(path).expanduser()
    if path and local.is_dir():
        return local
    if not path or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{option}={path!r}: no such directory; give a Hugging Face model directory or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(path, allow_patterns=WANTED, ignore_patterns=[] if weights else ["*.safetensors"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{option}={path!r} is neither a directory nor a hub id that can be reached ({type(error).__name__})."
        ) from error


def read_generation_config(directory: Path) -> dict:
    path = Path(directory) / "generation_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); correct it, or remove it to do without.") from error


def eos_tokens(directory: Path, config: dict) -> list[int]:
    """The stop tokens that a checkpoint declares, in generation_config.json before config.json."""
    declared = read_generation_config(directory).get("eos_token_id", config.get("eos_token_id"))
    return [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
