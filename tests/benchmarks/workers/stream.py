"""One process of streaming.py: loads a model, or loads it and saves a checkpoint of its weights as a run's.

Its last line says, in MiB, what it had before, what the arrays take and the most that it had at any time between; and the
bytes of tensors that it asked the files for.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np

from rapo_jax.checkpoint import Store
from rapo_jax.config.files import as_dict, from_dict, to_yaml
from rapo_jax.distributed import Pod, barrier, is_first, join
from rapo_jax.models import files
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.parallel import make_mesh

MIB = 2**20


def memory(field: str) -> int:
    """MiB, from /proc."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def count_bytes(asked: list[int]) -> None:
    """Notes what is read from files of safetensors from now on."""
    read = files.Checkpoint.read

    def counted(self, name, slices):
        tensor = read(self, name, slices)
        asked.append(tensor.nbytes)
        return tensor

    files.Checkpoint.read = counted


def save(directory: Path, weights: dict) -> None:
    """A run directory whose checkpoint has the weights, without moments, which an export does not read."""
    run_dir = directory / "run"
    data = directory / "pairs.jsonl"
    data.write_text('{"prompt": "?", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 1}\n')
    config = from_dict({
        "model": {"path": str(directory / "model")},
        "data": {"path": str(data)},
        "run_dir": str(run_dir),
    })  # fmt: skip
    if is_first():
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir()
        (run_dir / "config.yaml").write_text(to_yaml(config))
    barrier("the run directory exists")
    store = Store(run_dir)
    store.save(1, {"parameters": weights}, identity={"model": "none"}, config=as_dict(config))
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["load", "save"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mesh", required=True)
    for name in ("coordinator", "num-processes", "process-id"):
        parser.add_argument(f"--{name}", type=str if name == "coordinator" else int)
    given = parser.parse_args()
    if given.coordinator:
        join(Pod(given.coordinator, given.num_processes, given.process_id))
        barrier("all are there")  # they connect to each other, before one of them reads for longer than that may take
    mesh = make_mesh(
        **{"fsdp": 1} | {axis: int(size) for axis, _, size in (one.partition("=") for one in given.mesh.split(","))}
    )
    asked: list[int] = []
    count_bytes(asked)
    model = given.directory / "model"
    before = memory("RssAnon")
    weights = files.load_parameters(model, spec_from_config(read_config(model)), mesh=mesh)
    jax.block_until_ready(weights)
    held = sum(part.data.nbytes for array in jax.tree.leaves(weights) for part in array.addressable_shards)
    after = memory("RssAnon")
    if given.what == "save":
        save(given.directory, weights)
    barrier("done")
    figures = {"before": before, "arrays": held // MIB, "after": after, "asked_for": int(np.sum(asked)) // MIB}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
