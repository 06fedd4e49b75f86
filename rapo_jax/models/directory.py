"""Finding a model: a local directory or a hub id, and the stop tokens that it declares. Weights are in files.py."""

from pathlib import Path
from typing import Any

from rapo_jax.borders import path_of, read_object
from rapo_jax.errors import UserError, shown

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "tokenizer*", "README.md"]


def model_directory(path: str, *, option: str = "model.path", weights: bool = True) -> Path:
    """The local directory of a model; a hub id is downloaded (safetensors, configs and tokenizer only, never code).

    `option` is what the user calls `path`. With weights=False a download skips the safetensors.
    """
    local = path_of(path, said=f"{option}={path}")
    if path and local.is_dir():
        refuse_other_directories(local, said=f"{option}={path}")
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


def refuse_other_directories(directory: Path, *, said: str) -> None:
    """Raises UserError for a directory of LoRA adapters and for a run directory, with the way to a model."""
    if (directory / "config.json").exists():
        return
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{said} holds LoRA adapters and no model; give the merged model: `rapo export RUN_DIR OUT_DIR` without "
            "--adapter, or merge_and_unload() of peft."
        )
    if (directory / "config.yaml").is_file() and (directory / "checkpoints").is_dir():
        raise UserError(
            f"{said} is a run directory; export it first: rapo export {directory} OUT_DIR, and give OUT_DIR."
        )


def read_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json, {} where there is none. Raises UserError for a damaged one."""
    path = Path(directory) / "generation_config.json"
    return read_object(path, remedy="correct it, or remove it to do without") if path.is_file() else {}


def declared_stop_tokens(directory: Path) -> list[int]:
    """The eos_token_id of generation_config.json, or else of config.json; [] where neither declares any."""
    declared = read_generation_config(directory).get("eos_token_id")
    path = Path(directory) / "config.json"
    if declared is None and path.is_file():
        declared = read_object(path).get("eos_token_id")
    stops = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if any(type(token) is not int for token in stops):
        raise UserError(
            f"{directory}: eos_token_id={shown(declared)} must be a token id or a list of them; correct it."
        )
    return list(stops)
