"""What a host needs in memory and reads from disk to load a model, and to export a checkpoint of it.

    python tests/benchmarks/streaming.py make /tmp/stream --size 6
    python tests/benchmarks/streaming.py load /tmp/stream --processes 4 --limit 2
    python tests/benchmarks/streaming.py save /tmp/stream --processes 4
    python tests/benchmarks/streaming.py export /tmp/stream --processes 4 --limit 2

`make` writes a Llama of random weights in several files of safetensors, `save` a run directory with a checkpoint of its
weights on a mesh of one CPU device a process. `load` and `export` are what is measured. Each process
stands for a host. Its limit, in GiB, is one on private writable memory (RLIMIT_DATA): more than it touches, and no file
that is mapped. What it touches is its anonymous memory (RssAnon), which the driver reads every 5 ms.
"""

import argparse
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rapo_jax.models.spec import spec_from_config
from rapo_jax.models.table import table
from tests.tiny.directories import build_tokenizer

GIB, MIB, GB = 2**30, 2**20, 10**9
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
MEMORY, READ = ("RssAnon", "VmData"), ("rchar", "read_bytes")  # of /proc/PID/status in KiB, of /proc/PID/io in bytes
WORKER = Path(__file__).parent / "workers" / "stream.py"
# Llama 3.2's with 1B parameters, whose head is untied here; `--size` is reached by its number of layers.
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def make(directory: Path, *, size: float, dtype: str) -> None:
    """A model directory of at least `size` GB, in files of about an eighth of it."""
    item, config = np.dtype(DTYPES[dtype]).itemsize, LLAMA | {"dtype": dtype}
    if size < 3:  # the vocabulary alone would be larger
        config |= {"vocab_size": 8192}
    config["num_hidden_layers"] = next(
        layers for layers in range(1, 200) if size_of(config | {"num_hidden_layers": layers}, item) >= size * GB * 0.995
    )
    model = directory / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(model)
    config["eos_token_id"] = tokenizer.eos_token_id
    (model / "config.json").write_text(json.dumps(config))
    pool = (0.02 * np.random.default_rng(0).standard_normal(2**24 + 2**20, np.float32)).astype(DTYPES[dtype])
    shapes = {row.name: row.file_shape(spec_from_config(config)) for row in table(spec_from_config(config))}
    shard_bytes, files, pending, used = size * GB / 8, [], {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        pending[name] = np.resize(pool[number * 977 % 2**20 :][: 2**24], shape)
        used += pending[name].nbytes
        if used >= shard_bytes or number == len(shapes) - 1:
            files.append((f"model-{len(files) + 1:05d}.safetensors", list(pending)))
            save_file(pending, model / files[-1][0], metadata={"format": "pt"})
            pending, used = {}, 0
    weight_map = {name: file for file, names in files for name in names}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    print(
        f"{model}: {size_of(config, item) / GB:.2f} GB of {dtype} in {len(files)} files, {config['num_hidden_layers']} layers"
    )


def size_of(config: dict, item: int) -> int:
    return item * sum(prod(row.file_shape(spec_from_config(config))) for row in table(spec_from_config(config)))


def status(pid: int) -> dict[str, int]:
    """MiB of a process by kind of memory, and the MiB that it read through system calls and from the disk; {} when it has ended."""
    with suppress(OSError):
        memory, io = (Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "io"))
        found = {name: re.search(rf"{name}:\s+(\d+)", memory + io) for name in (*MEMORY, *READ)}
        return {name: int(each[1]) // (1024 if name in MEMORY else MIB) for name, each in found.items() if each}
    return {}


def run(arguments: list[list[str]], *, limit: float | None, devices: int) -> list[dict]:
    """Runs one process for each list of arguments. Of each its highest memory in MiB, what it read, and its last line."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "MALLOC_ARENA_MAX": "2"}

    def bounded() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_STACK, (2 * MIB,) * 2)  # of each thread, all of which counts
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GIB),) * 2)

    started = [
        subprocess.Popen(
            [sys.executable, *each], env=environment, preexec_fn=bounded, stdout=subprocess.PIPE, text=True
        )
        for each in arguments
    ]
    peaks: list[dict] = [{} for _ in started]
    begin = time.monotonic()
    while any(process.poll() is None for process in started):
        for process, peak in zip(started, peaks, strict=True):
            for name, value in status(process.pid).items():
                peak[name] = max(value, peak.get(name, 0))
        time.sleep(0.005)
    for process, peak in zip(started, peaks, strict=True):
        lines = process.stdout.read().splitlines()
        peak |= {"code": process.returncode, "seconds": round(time.monotonic() - begin, 1)}
        peak |= json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"said": lines[-3:]}
    return peaks


def joined(arguments: list[str], *, processes: int) -> list[list[str]]:
    """The arguments of each process of a pod."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    together = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes)]
    return (
        [[*arguments, *together, "--process-id", str(each)] for each in range(processes)]
        if processes > 1
        else [arguments]
    )


def forget(directory: Path) -> None:
    """Drops the files of a directory from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "load", "save", "export"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=float, default=6, help="GB of weights in the files (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the files (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="each with the devices below (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="of each process (default: %(default)s)")
    parser.add_argument("--limit", type=float, help="GiB of private writable memory of each process (default: none)")
    parser.add_argument("--mesh", default="fsdp=-1", help="such as data=2,fsdp=-1 (default: %(default)s)")
    given = parser.parse_args()
    if given.what == "make":
        make(given.directory, size=given.size, dtype=given.dtype)
        return
    forget(given.directory)
    if given.what == "export":
        out = given.directory / "export"
        shutil.rmtree(out, ignore_errors=True)
        arguments = ["-m", "rapo_jax", "export", str(given.directory / "run"), str(out)]
    else:
        arguments = [str(WORKER), given.what, str(given.directory), "--mesh", given.mesh]
    for number, found in enumerate(
        run(joined(arguments, processes=given.processes), limit=given.limit, devices=given.devices)
    ):
        print(f"process {number}: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
