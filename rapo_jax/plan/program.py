"""Counts what a compiled program does in one step on one device: FLOPs of matrix products, memory traffic, collectives.

XLA's own cost analysis counts a loop's body once. Here every loop body of the optimized HLO counts as often as it runs.
The trip count is the bound in the loop's condition or, if that depends on data, one of `bounds`, outermost loop first:
the microbatches of a step, then the visible tiles of attention without a kernel. Kernels (custom calls) are only
listed, because HLO does not show their FLOPs; rapo_jax/plan/kernels.py counts them by hand.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from rapo_jax.plan.hlo import Computation, Instruction, Module

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNEL_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu", "mosaic_gpu_v2", "triton_kernel_call")
MATMUL_CALLS = ("__cublas$gemm", "__cublas$lt$matmul", "__onednn$matmul")
# Opcodes without memory traffic of their own: views, bookkeeping, and those counted at their start or in their callees.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all iota partition-id replica-id "
    "opt-barrier copy-done all-gather-done all-reduce-done collective-permute-done async-done async-update "
    "send-done recv-done add-dependency".split()
)


@dataclass
class Collective:
    """All instances of one kind among `group_size` devices; `num_bytes` are the larger side's, per device."""

    number: float = 0.0
    num_bytes: float = 0.0


@dataclass(frozen=True)
class KernelCall:
    """A custom call: its name with its call site, how often it runs, the shapes of its floating-point operands, and the
    number of arrays it returns."""

    name: str
    number: float
    shapes: tuple[tuple[int, ...], ...]
    num_results: int


@dataclass
class Program:
    """One step on one device."""

    matmul_flops: float = 0.0
    memory_bytes: float = 0.0
    collectives: dict[tuple[str, int], Collective] = field(default_factory=dict)
    between_slices: dict[tuple[str, int], Collective] = field(default_factory=dict)
    kernel_calls: list[KernelCall] = field(default_factory=list)

    @property
    def link_bytes(self) -> float:
        return sent_bytes(self.collectives)

    @property
    def network_bytes(self) -> float:
        """Bytes that a device sends to other slices."""
        return sent_bytes(self.between_slices)


def sent_bytes(collectives: Mapping[tuple[str, int], Collective]) -> float:
    return sum(link_bytes(kind, group, each.num_bytes) for (kind, group), each in collectives.items())


def link_bytes(kind: str, group: int, num_bytes: float) -> float:
    """Bytes that a device sends in a collective by the ring algorithms (Thakur et al., 2005, section 4)."""
    share = (group - 1) / group if group else 1.0
    return num_bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def read_program(module: Module, *, bounds: tuple[float, ...], num_devices: int, num_slices: int = 1) -> Program:
    """Counts everything that the entry computation runs; `bounds` are the trip counts of data-dependent loops, by depth."""
    program, seen = Program(), set()
    for times, computation, inside_fusion in running(module, bounds):
        for instruction in computation.values():
            program.matmul_flops += times * matmul_flops(instruction, computation)
            count_collective(program, instruction, computation, times, seen, num_devices)
            count_between_slices(program, instruction, times, num_slices)
            count_kernel(program, instruction, computation, times)
            if not inside_fusion:
                program.memory_bytes += times * memory_bytes(instruction, computation, module)
    return program


def running(module: Module, bounds: tuple[float, ...]) -> Iterator[tuple[float, Computation, bool]]:
    """(how often it runs, a computation, whether it is inside a fusion), for every computation that runs."""
    todo: list[tuple[float, str, bool, tuple[float, ...]]] = [(1.0, module.entry, False, bounds)]
    while todo:
        times, name, inside, bounds = todo.pop()
        computation = module.computations[name]
        yield times, computation, inside
        for instruction in computation.values():
            if instruction.opcode == "while":
                body = instruction.required(r"body=%([\w.\-]+)")
                trips = trip_count(instruction, computation, module)
                if trips is None:
                    trips, below = bounds[0], bounds[1:] or bounds
                else:
                    below = bounds
                todo.append((times * trips, body, inside, below))
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                fused = inside or instruction.opcode == "fusion"
                todo += [(times, called, fused, bounds) for called in instruction.called]


def trip_count(loop: Instruction, computation: Computation, module: Module) -> float | None:
    """The trip count of a loop that counts up to a constant, or None if its bound depends on data."""
    known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
    if known:
        return float(known)
    condition = module.computations[loop.required(r"condition=%([\w.\-]+)")]
    bounds = [i for i in condition.values() if i.opcode == "constant"]
    counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
    if len(bounds) != 1 or len(counters) != 1 or not bounds[0].attributes.isdigit():
        return None
    counter = int(counters[0].required(r"index=(\d+)"))
    body = module.computations[loop.required(r"body=%([\w.\-]+)")]
    root = next(i for i in body.values() if i.is_root)
    stride = constant_in(body.get(root.operands[counter]), body, module) or 1
    first = computation[loop.operands[0]]
    start = constant_in(computation.get(first.operands[counter]), computation, module) if first.opcode == "tuple" else 0
    return float(max(0, -(-(int(bounds[0].attributes) - (start or 0)) // stride)))


def constant_in(instruction: Instruction | None, computation: Computation, module: Module) -> int | None:
    """A constant's value, or the constant that an instruction adds: a loop's start, or its stride."""
    if instruction is None:
        return None
    if instruction.opcode == "constant":
        return int(instruction.attributes) if instruction.attributes.isdigit() else None
    if instruction.opcode in ("add", "copy", "fusion"):
        inside = module.computations[instruction.called[0]] if instruction.opcode == "fusion" else {}
        values = [*(computation[name] for name in instruction.operands), *inside.values()]
        constants = [int(i.attributes) for i in values if i.opcode == "constant" and i.attributes.isdigit()]
        return constants[0] if len(constants) == 1 else None
    return None


def matmul_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a matrix product, be it a dot, a convolution or a library call; 0 for everything else."""
    if instruction.opcode == "convolution":
        return convolution_flops(instruction, computation)
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if instruction.opcode != "dot" and not target.startswith(MATMUL_CALLS):
        return 0.0
    left = computation[instruction.operands[0]].results[0].shape
    dims = instruction.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([^\]}]*)')
    contracted = [left[int(d.strip('" '))] for d in dims.split(",") if d.strip('" ')] if dims else [left[-1]]
    return 2.0 * instruction.results[0].size * prod(contracted)


def convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a convolution. On TPUs these are matrix products whose batch dimensions are padded windows, so only
    pairs of an output and a kernel position that meet an input element count, not those that meet padding."""
    left, right = (computation[name].results[0].shape for name in instruction.operands[:2])
    lhs, rhs, out = re.split("_|->", instruction.required(r"dim_labels=(\w+_\w+->\w+)"))
    window = window_of(instruction, num_spatial=len(lhs) - 2)
    taps = 1.0
    for d, (stride, low, base_dilation, window_dilation) in enumerate(window):
        number_in, number_out = left[lhs.index(str(d))], instruction.results[0].shape[out.index(str(d))]
        taken = np.arange(number_out)[:, None] * stride
        taken = taken + np.arange(right[rhs.index(str(d))])[None, :] * window_dilation - low
        real = (taken >= 0) & (taken % base_dilation == 0) & (taken // base_dilation < number_in)
        taps *= real.sum()
    features = instruction.results[0].shape[out.index("f")] * instruction.results[0].shape[out.index("b")]
    return 2.0 * taps * features * right[rhs.index("i")]


def window_of(instruction: Instruction, *, num_spatial: int) -> list[tuple[int, int, int, int]]:
    """(stride, padding before, dilation of the input, dilation of the kernel) of each spatial dimension."""
    text = instruction.attribute(r"window=\{([^}]*)\}") or ""

    def field_of(name: str, default: int) -> list[int]:
        found = re.search(rf"\b{name}=([\d_x\-]+)", text)
        return [int(part.split("_")[0]) for part in found[1].split("x")] if found else [default] * num_spatial

    return list(
        zip(
            *(field_of(n, d) for n, d in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))), strict=True
        )
    )


def count_collective(
    program: Program, instruction: Instruction, computation: Computation, times: float, seen: set, num_devices: int
) -> None:
    """Adds a collective once, although a fused asynchronous one appears in every fusion that it overlaps with."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return
    channel = instruction.attribute(r"channel_id=(\d+)")
    if channel is not None and (kind, channel) in seen:
        return
    seen.add((kind, channel))
    group = group_size(instruction, num_devices)
    if kind == "all-reduce" and keeps_own_slice(instruction, computation):
        kind = "reduce-scatter"
    taken = [result for name in instruction.operands for result in computation[name].results]
    sides = [sum(a.num_bytes for a in arrays) for arrays in (taken, instruction.results)]
    if instruction.opcode.endswith("-start"):  # results: operands, results, and the hardware's bookkeeping
        sides[1] = max((a.num_bytes for a in instruction.results), default=0.0) if len(taken) == 1 else sides[0]
    each = program.collectives.setdefault((kind, group), Collective())
    each.number += times
    each.num_bytes += times * (max(sides) if kind in ("all-gather", "reduce-scatter") else sides[0])


def count_between_slices(program: Program, instruction: Instruction, times: float, num_slices: int) -> None:
    """Adds what a device hands to the host for a collective over the network: the TPU compiler writes it as a send."""
    kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    if instruction.opcode == "send" and kind:
        each = program.between_slices.setdefault((kind.lower().replace("_", "-"), num_slices), Collective())
        each.number += times
        each.num_bytes += times * instruction.results[0].num_bytes


def keeps_own_slice(instruction: Instruction, computation: Computation) -> bool:
    """Whether nothing of an all-reduce is read but one slice by a device: how the TPU compiler writes a reduce-scatter, in a
    fusion named all-reduce-scatter."""
    names, slices = {instruction.name}, 0
    for user in computation.values():  # in order: a name's users come after it
        if not names & set(user.operands):
            continue
        if user.opcode in ("bitcast", "convert", "copy", "reshape", "transpose") and not user.is_root:
            names.add(user.name)
        elif user.opcode == "dynamic-slice" and user.operands[0] in names:
            slices += 1
        else:
            return False
    return slices > 0


def group_size(instruction: Instruction, num_devices: int) -> int:
    """How many devices take part. {{0,1},{2,3}}, [2,4]<=[8] and mesh['x'=4,'y'=2] {'x'} are 2, 4 and 4."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[([\d,]+)\]", text):
        return int(found[1].split(",")[-1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    return num_devices


def count_kernel(program: Program, instruction: Instruction, computation: Computation, times: float) -> None:
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if instruction.opcode == "custom-call" and target in KERNEL_TARGETS:
        name = instruction.attribute(r'op_name="([^"]*)"') or instruction.name
        given = [array for operand in instruction.operands for array in computation[operand].results]
        shapes = tuple(array.shape for array in given if array.dtype.startswith(("f", "bf")))
        program.kernel_calls.append(KernelCall(name, times, shapes, len(instruction.results)))


def memory_bytes(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Memory traffic of one instruction outside fusions: the bytes it reads and the bytes it writes, once each."""
    if instruction.opcode in FREE or instruction.opcode.removesuffix("-start") in COLLECTIVES:
        return 0.0
    if instruction.opcode == "copy-start":
        return sum(a.num_bytes for a in instruction.results[:2] if a.in_memory)
    if instruction.opcode == "fusion":
        return fusion_bytes(instruction, computation, module.computations[instruction.called[0]])
    operands = [a for name in instruction.operands for a in computation[name].results]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written(instruction.results)
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * written(operands[1:])
    return written(operands) + written(instruction.results)


def fusion_bytes(instruction: Instruction, computation: Computation, inside: Computation) -> float:
    """A fusion reads only the slices that it takes from a stacked operand, and writes only the slices that it updates."""
    total, updated = 0.0, set()
    root = next(i for i in inside.values() if i.is_root)
    roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, made in zip(instruction.results, roots, strict=False):
        made = through_views(made, inside)
        if made.opcode == "dynamic-update-slice":
            updated.add(through_views(inside[made.operands[0]], inside).name)
            total += written(inside[made.operands[1]].results) if result.in_memory else 0.0
        else:
            total += written([result])
    parameters = {int(i.attributes): i for i in inside.values() if i.opcode == "parameter"}
    for at, name in enumerate(instruction.operands):
        given, parameter = computation[name].results, parameters.get(at)
        if parameter is None or parameter.name in updated:
            continue
        users = [i for i in inside.values() if parameter.name in i.operands]
        if users and all(
            user.opcode in ("dynamic-slice", "gather") and user.operands[0] == parameter.name for user in users
        ):
            slices = sum(written(user.results) for user in users)
            total += slices if all(a.in_memory for a in given) else 0.0
        else:
            total += written(given)
    return total


def through_views(instruction: Instruction, inside: Computation) -> Instruction:
    while instruction.opcode in ("bitcast", "convert", "copy") and instruction.operands[0] in inside:
        instruction = inside[instruction.operands[0]]
    return instruction


def written(arrays) -> float:
    return sum(a.num_bytes for a in arrays if a.in_memory)
