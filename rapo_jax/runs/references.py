"""The reference's log-probabilities of a run's groups, from a cache that outlives the run and is filled first."""

from pathlib import Path

import jax
import numpy as np

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, num_branches
from rapo_jax.config.tree import Config
from rapo_jax.distributed import say
from rapo_jax.parallel import matmul_precision
from rapo_jax.reference_pass import fill
from rapo_jax.runs.identity import Identity, reference_differences, reference_identity
from rapo_jax.runs.setup import Setup
from rapo_jax.train.reference import Column


def cached_references(
    setup: Setup,
    parameters: dict,
    identity: Identity,
    plan: BatchPlan,
    data: pipeline.Dataset,
    held_out: dict[str, pipeline.Dataset],
) -> dict[str, np.ndarray]:
    """Name of a data set -> float32 [groups, branches], "train" and the evaluation sets; {} without a cache.

    Of the training set only the groups that the run visits are computed; the others may be NaN. Raises Interrupted, and
    UserError when the cache belongs to something else.
    """
    config, columns = setup.config, {}
    needed = {"train": np.unique([member for rows in plan.steps for row in rows for member in row])}
    needed |= {name: np.arange(len(dataset.groups)) for name, dataset in held_out.items()}
    for name, dataset in ({"train": data} | held_out).items() if config.reference.cache else ():
        column = open_column(config, name, dataset, identity) if jax.process_index() == 0 else None
        with matmul_precision(config.model.dtype):
            columns[name] = fill(
                column,
                dataset.groups,
                needed[name],
                parameters,
                config=config,
                spec=setup.spec,
                mesh=setup.mesh,
                what=f"reference of {name}",
                where=config.reference.cache,
                say=say,
            )
    return columns


def open_column(config: Config, name: str, data: pipeline.Dataset, identity: Identity) -> Column:
    """The cache's column of a data set. Raises UserError where it belongs to something else."""
    shape = (len(data.groups), num_branches(data.groups))
    belongs_to = reference_identity(identity, data, config)
    column = Column(Path(config.reference.cache), name, shape=shape, identity=belongs_to.record())
    part = "train" if name == "train" else "eval"
    column.open(lambda before, _: reference_differences(before, belongs_to, config, part))
    return column
