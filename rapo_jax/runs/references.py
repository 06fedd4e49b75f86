"""The reference's log-probabilities of a run's groups, from a cache that outlives the run and is filled first."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, num_branches
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.config.tree import Config
from rapo_jax.distributed import is_first, say
from rapo_jax.errors import UserError
from rapo_jax.locks import claimed
from rapo_jax.passes.column import Column, Mismatch
from rapo_jax.passes.forward_pass import Weights, fill, pass_options
from rapo_jax.peers import at
from rapo_jax.runs.identity import Identity, reference_differences, reference_identity
from rapo_jax.runs.setup import Setup


def cached_references(
    setup: Setup,
    parameters: dict[str, Any],
    *,
    identity: Identity,
    plan: BatchPlan,
    data: pipeline.Dataset,
    held_out: dict[str, pipeline.Dataset],
) -> dict[str, Float[np.ndarray, "groups branches"]]:
    """Name of a data set -> its column, "train" and the evaluation sets; {} without a cache.

    Of the training set only the groups that the run visits are computed; the others may be NaN. Raises Interrupted, and
    UserError when the cache belongs to something else.
    """
    config, columns = setup.config, {}
    model = Weights(setup.spec, parameters, setup.mesh)
    options = pass_options(config, setup.spec.base, setup.mesh, scored=what_is_scored(config))
    needed = {"train": np.unique([member for rows in plan.steps for row in rows for member in row])}
    needed |= {name: np.arange(len(dataset.groups)) for name, dataset in held_out.items()}
    if not config.reference.cache:
        return {}
    place = Path(config.reference.cache)
    with ExitStack() as stack:
        if is_first() and not place.is_file():  # one fills it, and those that share it wait
            place.mkdir(parents=True, exist_ok=True)
            at("reference.cache, which another run may be filling", "elsewhere")
            stack.enter_context(claimed(place, said=f"reference.cache={place}", say=say))
            at("reference.cache")
        for name, dataset in ({"train": data} | held_out).items():
            column = open_cache(config, name, data=dataset, run=identity) if is_first() else None
            how = {"column": column, "needed": needed[name], "said": f"reference of {name}", "place": place}
            columns[name] = fill(model, dataset.groups, options, **how)
    return columns


def open_cache(config: Config, name: str, *, data: pipeline.Dataset, run: Identity) -> Column:
    """The cache's column of a data set. Raises UserError where it belongs to something else."""
    shape = (len(data.groups), num_branches(data.groups))
    belongs_to = reference_identity(run, data, config)
    directory, part = Path(config.reference.cache), "train" if name == "train" else "eval"
    if directory.exists() and not directory.is_dir():
        raise UserError(f"reference.cache={directory} is a file; it must be a directory.")
    column = Column(directory, name, shape=shape, identity=belongs_to.record())
    try:
        column.open(lambda before, _: not reference_differences(before, belongs_to, config, part))
    except Mismatch as other:
        changed = reference_differences(other.before, belongs_to, config, part)
        raise UserError(
            f"reference.cache={directory} holds log-probabilities of something else; changed: {'; '.join(changed)}. "
            f"Choose another reference.cache, or remove this directory. Nothing was overwritten."
        ) from other
    return column
