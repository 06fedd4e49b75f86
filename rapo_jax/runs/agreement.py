"""The processes of a pod compare what they were started with before any of them trains: a pod whose processes differ in a
learning rate or in a data file would train on a mixture, or wait for ever."""

from collections.abc import Iterator
from typing import Any

from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process
from rapo_jax.errors import UserError
from rapo_jax.runs.identity import HASHES, Identity

SHOWN = 5  # differences that the message lists
# Where a host keeps its copies; what they hold is compared in its place.
PLACES = ("model.path", "data.path", "data.eval_path", "data.rewards", "data.drop_prompts", "reference.cache")


def require_same_configuration(config: Config) -> None:
    """Raises UserError on every process where two were started with different settings."""
    leaves = dict(leaves_of(as_dict(config)))
    _require_same({name: value for name, value in leaves.items() if name not in PLACES})


def require_same_inputs(identity: Identity) -> None:
    """Raises UserError on every process where two read another model, tokenizer or data."""
    _require_same({f"the {name}": getattr(identity, name)[:12] for name in (*HASHES, "tokens")})


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
