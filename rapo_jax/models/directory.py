"""Finding a model: a local directory or a hub id, and the stop tokens that it declares. Weights are in files.py."""

from pathlib import Path
from typing import Any

from rapo_jax.borders import path_of, read_object
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, shown
from rapo_jax.models.adapted import CONFIG as ADAPTER_CONFIG
from rapo_jax.models.adapted import read_adapter_config
from rapo_jax.models.text_part import is_multimodal

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "tokenizer*", "README.md"]


def model_directory(
    path: str, *, option: str = "model.path", weights: bool = True, revision: str | None = None
) -> Path:
    """The local directory of a model; a hub id is downloaded (safetensors, configs and tokenizer only, never code).

    `option` is what the user calls `path`. With weights=False a download skips the safetensors. A directory of LoRA
    adapters is a model too: the one that they make of their base model. So is the text part of a multimodal model.
    """
    found = located(path, said=option, weights=weights, revision=revision)
    if is_adapter(found):
        say(f"{option}={path}: LoRA adapters, merged in float32 into {base_directory(found)}")
    if is_multimodal(base_directory(found)):
        say(f"{option}={path}: only the text part is read; vision_tower and multi_modal_projector are left out")
    return found


def located(path: str, *, said: str, weights: bool, revision: str | None) -> Path:
    """The local directory of a model; `said` is what the user calls `path`."""
    local = path_of(path, said=f"{said}={path}")
    if path and local.is_dir():
        refuse_other_directories(local, said=f"{said}={path}")
        return local
    if not path or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{said}={path!r}: no such directory; give a Hugging Face model directory or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unwanted = [] if weights else ["*.safetensors"]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=WANTED, ignore_patterns=unwanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{said}={path!r} is neither a directory nor a hub id that can be reached ({type(error).__name__})."
        ) from error


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds LoRA adapters and no model of its own."""
    return (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").exists()


def base_directory(directory: Path, *, weights: bool = False) -> Path:
    """The directory of the base model of LoRA adapters; of any other model, its own."""
    directory = Path(directory)
    if not is_adapter(directory):
        return directory
    config = read_adapter_config(directory)
    base, said = config.get("base_model_name_or_path"), f"base_model_name_or_path of {directory / ADAPTER_CONFIG}"
    if not isinstance(base, str) or not base:
        raise UserError(f"{said} is {base!r}; write there where the base model is.")
    beside = directory / base
    found = located(
        str(beside) if beside.is_dir() else base, said=said, weights=weights, revision=config.get("revision")
    )
    if is_adapter(found):
        raise UserError(f"{said} is {base}, which holds adapters too; merge those first: merge_and_unload() of peft.")
    return found


def model_files(directory: Path) -> list[Path]:
    """The files that say what a model computes, configuration and weights; for LoRA adapters also those of their base model."""
    directories = dict.fromkeys((Path(directory), base_directory(directory, weights=True)))
    return [file for each in directories for file in sorted(each.iterdir()) if is_of_the_model(file)]


def is_of_the_model(file: Path) -> bool:
    return file.suffix == ".safetensors" or file.name in ("config.json", ADAPTER_CONFIG)


def tokenizer_directory(directory: Path) -> Path:
    """Where the tokenizer of a model is: adapters may come without one, and then have that of their base model."""
    own = any((Path(directory) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return Path(directory) if own else base_directory(directory)


def is_run_directory(directory: Path) -> bool:
    """Whether a directory holds the checkpoints of a run and no model."""
    is_run = (directory / "config.yaml").is_file() and (directory / "checkpoints").is_dir()
    return is_run and not (directory / "config.json").exists()


def refuse_other_directories(directory: Path, *, said: str) -> None:
    """Raises UserError for a run directory, with the way to a model."""
    if is_run_directory(directory):
        raise UserError(
            f"{said} is a run directory; export it first: rapo export {directory} OUT_DIR, and give OUT_DIR."
        )


def read_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json, {} where there is none. Raises UserError for a damaged one."""
    path = base_directory(directory) / "generation_config.json"
    return read_object(path, remedy="correct it, or remove it to do without") if path.is_file() else {}


def declared_stop_tokens(directory: Path) -> list[int]:
    """The eos_token_id of generation_config.json, or else of config.json; [] where neither declares any."""
    declared = read_generation_config(directory).get("eos_token_id")
    path = base_directory(directory) / "config.json"
    if declared is None and path.is_file():
        config = read_object(path)
        text = config.get("text_config")  # of a model that also sees
        declared = config.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    stops = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if any(type(token) is not int for token in stops):
        raise UserError(
            f"{directory}: eos_token_id={shown(declared)} must be a token id or a list of them; correct it."
        )
    return list(stops)
