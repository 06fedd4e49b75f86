"""What an export comes from, by the names that others know: base model, licence and data sets on the hub.

Directories of this machine are never among them.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from rapo_jax.borders import read_text
from rapo_jax.config.tree import Config
from rapo_jax.config.yaml_text import parse_yaml
from rapo_jax.data.configured import sources_of_part
from rapo_jax.data.files import SUFFIXES, kind_of
from rapo_jax.distributed import say
from rapo_jax.errors import UserError
from rapo_jax.models.spec import read_config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CACHED = re.compile(r"models--([^/]+?)--([^/]+)")  # a folder of the hub's cache, which holds snapshots
LICENCE_KEYS = ("license", "license_name", "license_link")
CARD = "README.md"


@dataclass(frozen=True)
class Origins:
    """What a model card says about its model's past; None and empty where no name is known."""

    base_model: str | None = None
    licence: dict[str, str] = field(default_factory=dict)  # under the keys of LICENCE_KEYS
    datasets: tuple[str, ...] = ()


def origins(config: Config, model_dir: Path) -> Origins:
    """The origins of a run that started from `model_dir`, the directory of model.path."""
    try:
        card = card_data(model_dir)
    except UserError as error:
        say(f"note: {error} The model card will name no licence.")
        card = {}
    licence = {key: card[key] for key in LICENCE_KEYS if isinstance(card.get(key), str)}
    paths = [source.options.path for source in sources_of_part(config, "train")]
    datasets = tuple(dict.fromkeys(name for path in paths if (name := dataset_name(path))))
    return Origins(ancestor(config.model.path, model_dir, card), licence, datasets)


def hub_name(path: str, directory: Path) -> str | None:
    """The hub id whose weights are in `directory`, which is where `path` was found; None for what only this machine has."""
    if not Path(path).expanduser().exists() and HUB_ID.fullmatch(path):
        return path
    cached = [CACHED.fullmatch(part) for part in directory.resolve().parts]
    return next((f"{found[1]}/{found[2]}" for found in cached if found), None)


def ancestor(path: str, directory: Path, card: dict[str, Any]) -> str | None:
    """The nearest model on the hub that these weights go back to.

    A directory of this machine names its own: in its card, or where transformers noted what it was loaded from, which may
    be a directory, too.
    """
    name = hub_name(path, directory)
    if name is not None:
        return name
    above = card.get("base_model")
    above = above[0] if isinstance(above, list) and above else above
    if isinstance(above, str) and is_hub_id(above):
        return above
    loaded_from = read_config(directory).get("_name_or_path")
    return loaded_from if isinstance(loaded_from, str) and is_cached(loaded_from, "model") else None


def dataset_name(path: str) -> str | None:
    """The hub id of a data set; None for files and directories, also those that are no longer there."""
    return path if kind_of(Path(path)) not in SUFFIXES and is_cached(path, "dataset") else None


def is_cached(text: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether a text is a hub id and no directory: this machine once loaded it from the hub."""
    return is_hub_id(text) and Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=text, repo_type=kind)).is_dir()


def is_hub_id(text: str) -> bool:
    return bool(HUB_ID.fullmatch(text)) and not Path(text).exists()


def card_data(directory: Path) -> dict[str, Any]:
    """The front matter of a directory's model card; {} where there is none. Raises UserError for one that is not YAML."""
    path = directory / CARD
    if not path.is_file():
        return {}
    matter = re.match(r"\s*---\r?\n(.*?)\r?\n---", read_text(path), flags=re.DOTALL)
    data = parse_yaml(matter[1], said=f"the front matter of {path}") if matter else {}
    return data if isinstance(data, dict) else {}
