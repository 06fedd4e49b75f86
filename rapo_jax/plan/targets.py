"""Chips and slices that a step can be compiled for; they need not be present.

A TPU slice is described by libtpu, a GPU by a description of its device, both through jax.experimental.topologies.
"""

import importlib.util
import math
import re
from dataclasses import dataclass

import jax

from rapo_jax.accounting import peak_flops
from rapo_jax.errors import UserError, counted
from rapo_jax.parallel import Devices, number_of_slices

GiB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Chip:
    """One JAX device. `link` is the bandwidth of a collective: for a TPU both directions of one torus dimension, for a GPU one
    direction of NVLink; `network` is a device's share of the network, between the slices of TPUs and the hosts of GPUs."""

    memory: float | None = None  # bytes that a program may use
    memory_bandwidth: float | None = None  # bytes / s
    link: float | None = None  # bytes / s
    network: float | None = None  # bytes / s
    devices_per_chip: int = 1


# Memory: what libtpu's compiler reports as available for each kind. Bandwidths: the Cloud TPU pages of each version
# (HBM bandwidth; bidirectional interconnect bandwidth per chip / ports = a torus dimension's share).
# Their network: a host's cards by its chips (v5e 2 x 100 Gb/s by 8, v5p 200 Gb/s by 4, v6e 4 x 200 Gb/s by 8).
# GPUs: the data sheets (HBM, NVLink one way, 400 Gb/s of network a GPU); a program gets 92 % of the memory with
# XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
GPU_SHARE = 0.92
CHIPS = {
    "v4": Chip(30.75 * GiB, 1228 * GB, 100 * GB),
    "v5e": Chip(15.75 * GiB, 819 * GB, 100 * GB, 3.125 * GB),
    "v5p": Chip(95.74 * GiB, 2765 * GB, 200 * GB, 6.25 * GB),
    "v6e": Chip(31.25 * GiB, 1638 * GB, 200 * GB, 12.5 * GB),
    "tpu7x": Chip(94.75 * GiB, 7380 / 2 * GB, 200 / 2 * GB, devices_per_chip=2),
    "a100": Chip(GPU_SHARE * 81920 * 2**20, 2039 * GB, 300 * GB, 25 * GB),
    "h100": Chip(GPU_SHARE * 81559 * 2**20, 3352 * GB, 450 * GB, 50 * GB),
    "h200": Chip(GPU_SHARE * 143771 * 2**20, 4800 * GB, 450 * GB, 50 * GB),
}
DEVICE_KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
DEVICE_KINDS |= {"a100": "NVIDIA A100", "h100": "NVIDIA H100", "h200": "NVIDIA H200"}

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
HOSTS = ("1x1", "1x2", "1x4", "1x8", "2x8", "4x8", "8x8", "16x8", "32x8")
SLICES = {
    "v4": CUBIC,
    "v5e": FLAT,
    "v5p": CUBIC,
    "v6e": FLAT,
    "tpu7x": CUBIC,
    "a100": HOSTS,
    "h100": HOSTS,
    "h200": HOSTS,
}
GPUS = {  # compute capability, streaming multiprocessors, shared memory of one and of a block (bytes), L2 (bytes), GHz
    "a100": ("NVIDIA A100-SXM4-80GB", 8, 108, 167936, 166912, 41943040, 1.41),
    "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 233472, 232448, 52428800, 1.98),
    "h200": ("NVIDIA H200", 9, 132, 233472, 232448, 62914560, 1.98),
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for. `slice_name` is "" for the devices of this machine. `linked` is the number of devices that links
    join: those of a TPU slice or of a GPU host."""

    name: str
    kind: str
    slice_name: str
    devices: Devices
    chip: Chip
    linked: int

    @property
    def peak_flops(self) -> float | None:
        return peak_flops(self.devices[0].device_kind)

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.devices_per_chip

    @property
    def num_slices(self) -> int:
        return number_of_slices(self.devices)


def known() -> str:
    return "; ".join(f"{kind}: {', '.join(slices)}" for kind, slices in SLICES.items())


def split_topology(topology: str) -> tuple[str, str, int]:
    """Splits "v5e:4x4" into ("v5e", "4x4", 1) and "2xv5e:4x4" into ("v5e", "4x4", 2). Raises UserError, listing the known
    slices, for any other form."""
    number, of_one = re.fullmatch(r"(?:([1-9]\d*)x)?(.*)", topology, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess] (matches anything)
    kind, _, slice_name = of_one.partition(":")
    dimensions = (3,) if SLICES.get(kind) == CUBIC else (2,)
    shaped = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", slice_name) and slice_name.count("x") + 1 in dimensions
    if kind not in SLICES or not shaped:
        raise UserError(
            f"--topology {topology} is unknown; write KIND:SLICE, such as v5e:4x4, or NUMBERxKIND:SLICE for several slices of "
            f"TPUs, such as 2xv5e:4x4. Known: {known()}."
        )
    if number and kind in GPUS:
        raise UserError(f"--topology {topology}: GPUs have no slices; their hosts come first, as in {kind}:2x8.")
    return kind, slice_name, int(number or 1)


def slice_target(kind: str, slice_name: str, num_slices: int = 1) -> Target:
    """The target of one slice, or of several over a network, from its description. Raises UserError if its compiler is absent or
    does not know it."""
    name = f"{num_slices}x{kind}:{slice_name}" if num_slices > 1 else f"{kind}:{slice_name}"
    try:
        devices = gpu_devices(kind, slice_name) if kind in GPUS else tpu_devices(kind, slice_name, num_slices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        fact = str(error).splitlines()[0]
        raise UserError(
            f"--topology {name} is not one that its compiler knows ({fact:.200}). Known: {known()}."
        ) from error
    linked = int(slice_name.split("x")[1]) if kind in GPUS else len(devices) // num_slices
    return Target(name, kind, slice_name, devices, CHIPS[kind], linked)


def tpu_devices(kind: str, slice_name: str, num_slices: int) -> Devices:
    from jax.experimental import topologies

    if not importlib.util.find_spec("libtpu"):
        raise UserError(
            f"--topology {kind}:{slice_name} needs the TPU compiler, and libtpu is not installed: "
            f"pip install 'rapo_jax[tpu]' (no TPU is needed to compile for one)."
        )
    options: dict = {"num_slices": num_slices} | ({"chip_config_name": "megacore"} if kind == "v4" else {})
    if slice_name == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{slice_name}", **options).devices


def gpu_devices(kind: str, slice_name: str) -> Devices:
    from jax.experimental import topologies

    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"--topology {kind}:{slice_name} needs the GPU compiler, and jax-cuda12-plugin is not installed: "
            f"pip install 'rapo_jax[plan-gpu]' (no GPU or driver is needed to compile for one)."
        )
    options = {"target_config": gpu_description(kind), "topology": f"1x{slice_name}"}
    return topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices


def gpu_description(kind: str) -> str:
    """XLA's GpuTargetConfigProto as text."""
    name, major, cores, shared_core, shared_block, l2_cache, clock = GPUS[kind]
    chip = CHIPS[kind]
    assert chip.memory is not None and chip.memory_bandwidth is not None, "data sheets give both"
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared_core,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": 128 if major >= 9 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "l2_cache_size": l2_cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(chip.memory / GPU_SHARE),
        "shared_memory_per_block_optin": shared_block,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{field}: {value}" for field, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } '
        f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{name}"'
    )


def here(devices: str | None = None) -> Target:
    """The devices of this machine: all of them, or "cpu:8", which the command line requested before JAX started."""
    if devices is None:
        found = jax.devices()
        kind = next((k for k, name in DEVICE_KINDS.items() if found[0].device_kind.startswith(name)), "")
        linked = jax.local_device_count() if kind in GPUS else len(found) // number_of_slices(found)
        return Target("the devices here", kind, "", found, CHIPS.get(kind, Chip()), linked)
    found = jax.devices("cpu")
    number = cpu_count(devices)
    if number > len(found):
        raise UserError(
            f"--devices {devices}: JAX has already started with {counted(len(found), 'CPU device')}; ask for fewer."
        )
    return Target(devices, "cpu", "", found[:number], Chip(), number)


def cpu_count(devices: str) -> int:
    """The number in "cpu:8". Raises UserError for any other form."""
    match = re.fullmatch(r"cpu:([1-9]\d{0,3})", devices)
    if not match:
        raise UserError(f"--devices {devices}: write cpu:N, such as cpu:8; other targets are given by --topology.")
    return int(match[1])


def larger(target: Target) -> list[str]:
    """The known slices of the target's kind with more devices, smallest first."""
    return [name for name in SLICES.get(target.kind, ()) if target.slice_name and size(name) > size(target.slice_name)]


def size(slice_name: str) -> int:
    return math.prod(map(int, slice_name.split("x")))
