"""What a checkpoint or a reference cache belongs to: hashes of model, tokenizer and data, and the settings that matter.

A run resumes only where its identity is that of its checkpoint; the message names every difference.
"""

import hashlib
import json

from rapo_jax import __version__
from rapo_jax.batching import pipeline
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.checkpoint import fingerprint
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError
from rapo_jax.models.spec import identity_fields
from rapo_jax.runs.setup import Setup

# What may differ between a run and its resumption: it changes no update, or the fingerprints decide.
MAY_CHANGE = ("run_dir", "mesh.", "rows.", "reference.cache")
MAY_CHANGE += tuple(f"model.{key}" for key in ("path", "remat", "scan_layers", "attention"))
MAY_CHANGE += tuple(f"data.{key}" for key in ("path", "eval_path", "eval_split", "eval_rewards", "split", "revision"))
MAY_CHANGE += tuple(
    f"train.{key}" for key in ("log_every", "eval_every", "save_every", "keep_", "wandb", "max_skipped", "profile")
)


def identify(setup: Setup, parameters: dict, data: pipeline.Dataset) -> dict:
    """What a checkpoint of this run belongs to: hashes of model, tokenizer and data, and the settings."""
    tokenizer = setup.tokenizer.backend_tokenizer.to_str() + str(setup.tokenizer.chat_template)
    return {
        "model": model_identity(setup, parameters),
        "tokenizer": sha256(tokenizer),
        "data": data.source_fingerprint,
        "tokens": data.fingerprint,
        "settings": settings(setup.config),
    }


def reference_identity(identity: dict, data: pipeline.Dataset, config: Config) -> dict:
    """What log-probabilities of these groups depend on: weights, tokens, and the arithmetic. Of the settings, those that
    make tokens, to say what changed when the tokens did."""
    makes_tokens = ("data.max_", "data.chat_template", "relabel.", "model.dtype")
    kept = {key: value for key, value in identity["settings"].items() if key.startswith(makes_tokens)}
    kept["scored"] = what_is_scored(config)
    return identity | {"data": data.source_fingerprint, "tokens": data.fingerprint, "settings": kept}


def model_identity(setup: Setup, parameters: dict) -> str:
    """A hash of the model that a run starts from, whether its weights or adapters over them are trained."""
    return sha256(json.dumps([fingerprint(parameters), identity_fields(setup.spec.base)]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def settings(config: Config) -> dict:
    """The configuration by dotted key, without what may change, and without `lora` where there is none."""
    leaves = {}

    def walk(tree: dict, where: str) -> None:
        for key, value in tree.items():
            walk(value, f"{where}{key}.") if isinstance(value, dict) else leaves.update({where + key: value})

    walk(as_dict(config), "")
    unread = MAY_CHANGE if config.lora.rank is not None else (*MAY_CHANGE, "lora.")
    return {key: value for key, value in leaves.items() if not key.startswith(unread)}


def refuse_changes(before: dict, step: int, identity: dict, setup: Setup) -> None:
    """Raises UserError naming everything that differs from what the checkpoint was trained with."""
    changed = differences(before, identity, origins(setup.config, "train"))
    if changed:
        raise UserError(
            f"{setup.run_dir} was trained up to step {step} with something else; changed: {'; '.join(changed)}. "
            f"Undo the change, or choose another run_dir. Nothing was overwritten."
        )


def origins(config: Config, name: str) -> dict[str, str]:
    """Where the parts of an identity come from."""
    data = config.data.path if name == "train" else config.data.eval_path
    return {"model": config.model.path, "tokenizer": config.model.path, "data": data}


def differences(before: dict, identity: dict, places: dict[str, str]) -> list[str]:
    """In words, what differs between two identities."""
    changed = [f"the {what} ({path})" for what, path in places.items() if before[what] != identity[what]]
    old, new = before["settings"], identity["settings"]
    changed += [
        f"{key} ({old.get(key)!r} -> {new.get(key)!r})" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if not changed and before["tokens"] != identity["tokens"]:
        changed = [f"the tokenization (another version of rapo_jax? this is {__version__})"]
    return changed
