"""Our training step as `rapo train` runs it: packed rows with shared prompts, one compiled step.

On a CPU every core is a device in a data-parallel mesh, as with `rapo train --cpu-devices N mesh.data=-1 mesh.fsdp=1`. Rows
and microbatches have the shapes of a run over all of the data: those that its batch plan chooses, unless --set overrides
the configuration (`--set rows.length=2048`).
"""

import argparse
import os
from dataclasses import replace

import jax
import numpy as np
import yaml
from turns import Turns, lengths, pairs, settings, worker_parser

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import BatchPlan, Group
from rapo_jax.batching.groups import fingerprint_of_groups
from rapo_jax.config.files import load_config
from rapo_jax.config.tree import Config
from rapo_jax.parallel import matmul_precision, my_rows, num_row_shards, to_device
from rapo_jax.runs.identity import identify
from rapo_jax.runs.references import cached_references
from rapo_jax.runs.setup import set_up, starting_parameters
from rapo_jax.train.optim import adamw
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import first_state, trainable
from rapo_jax.train.step import make_train_step

NAN = float("nan")


def configuration(options: argparse.Namespace, *, num_pairs: int) -> Config:
    common = settings(options.directory)
    tree = {
        "model": {"path": str(options.directory / "model"), "dtype": options.dtype, "remat": "none"},
        "objective": {"beta": common.pop("beta")},
        "optimizer": common | {"warmup_ratio": 0.0, "schedule": "constant"},
        "train": {"batch_size": num_pairs, "max_steps": options.steps},
        "mesh": {"data": -1, "fsdp": 1},
    }
    name = "cached" if options.cached else "resident"
    if options.cached:
        tree["reference"] = {"cache": str(options.directory / "reference-cache")}
    path = options.directory / f"ours-{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_config(path, options.set)


def as_group(number: int, pair: dict) -> Group:
    prompt, *responses = (np.array(pair[name], np.int32) for name in ("prompt", "chosen", "rejected"))
    return Group(prompt, tuple(responses), rewards=(NAN, NAN), side=pair["side"], row=number)


def as_in_a_run(groups: list[Group], all_lengths: list[list[int]], config: Config, *, num_row_shards: int) -> BatchPlan:
    """The batch plan of one step of `groups`, in shapes that fit every step of an epoch over groups of these lengths."""
    zeros = [[np.zeros(length, np.int32) for length in each] for each in all_lengths]
    every = [Group(p, tuple(r), rewards=(NAN, NAN), side=0, row=row) for row, (p, *r) in enumerate(zeros)]
    epoch = replace(config, train=replace(config.train, max_steps=len(every) // len(groups)))
    run = pipeline.plan_training(every, epoch, num_row_shards=num_row_shards).shape
    rows = replace(config.rows, length=run.T, per_shard=run.B // num_row_shards)
    step = pipeline.pack_steps(
        groups, [np.arange(len(groups))], replace(config, rows=rows), num_row_shards=num_row_shards
    )
    largest = {name: max(getattr(run, name), getattr(step.shape, name)) for name in "MSP"}
    return replace(step, shape=replace(step.shape, **largest))


def main(options: argparse.Namespace) -> None:
    turns = Turns()
    jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    groups = [as_group(number, pair) for number, pair in enumerate(pairs(options.directory))]
    fingerprint = fingerprint_of_groups(groups)
    data = pipeline.Dataset(groups, report={}, source_fingerprint=fingerprint, fingerprint=fingerprint)
    setup = set_up(configuration(options, num_pairs=len(groups)))
    config, spec, mesh = setup.config, setup.spec, setup.mesh
    plan = as_in_a_run(groups, lengths(options.directory), config, num_row_shards=num_row_shards(mesh))
    parameters = starting_parameters(setup)
    columns = cached_references(
        setup, parameters, identity=identify(setup, parameters, data), plan=plan, data=data, held_out={}
    )
    reference = resident_reference(parameters, config, spec, mesh)
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=options.steps)
    batch = next(pipeline.batches(groups, plan, my_rows(mesh, plan.shape.B), reference=columns.get("train"))(0))
    trained = trainable(parameters, spec, mesh, seed=config.seed)
    state = first_state(trained, spec, mesh, adamw(config.optimizer, spec))
    facts = {
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "plan": vars(plan.shape) | {"real_token_fraction": plan.real_token_fraction},
    }
    for _ in range(options.steps):
        turns.begin()
        with jax.set_mesh(mesh), matmul_precision(config.model.dtype):
            state, metrics = step(state, reference, to_device(batch, mesh, plan.shape.B))
            jax.block_until_ready((state, metrics))
        turns.end()
        logps = {name: float(metrics[f"logps/{name}"]) for name in ("chosen", "rejected")}
        turns.answer(loss=float(metrics["loss"]), logps=logps, **facts)


if __name__ == "__main__":
    parser = worker_parser(__doc__)
    parser.add_argument(
        "--cached", action="store_true", help="read the reference's log-probabilities from a cache filled before"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of our configuration")
    parser.add_argument("--cpu-devices", type=int, default=os.cpu_count(), metavar="N", help="default: one per core")
    main(parser.parse_args())
