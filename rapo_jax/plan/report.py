"""The report of `rapo plan`: an assessment as text for one screen, and as JSON."""

from dataclasses import asdict
from typing import Any

from rapo_jax.errors import axes_in_words, counted
from rapo_jax.parallel import CONTEXT
from rapo_jax.plan.assess import MATMUL_SHARE, Assessment, Packing, changed
from rapo_jax.plan.least import least_between_slices, least_collectives
from rapo_jax.plan.program import link_bytes, sent_bytes
from rapo_jax.plan.targets import GPU_SHARE, GPUS, GiB
from rapo_jax.runs.announce import parameter_count, trained_count

MOSTLY_REAL = 0.9  # share of real tokens below which the report says what would raise it
SMALLEST_SHARE = 0.001  # kinds of collectives with less than this share of the largest kind's bytes are not shown


def screen(assessment: Assessment, *, name: str) -> str:
    """The report of one configuration on one target."""
    blocks = [heading(assessment, name), memory_table(assessment)]
    if assessment.program is not None:
        blocks += [work_table(assessment), estimate(assessment)]
    return "\n\n".join(blocks)


def line(assessment: Assessment) -> str:
    """The report in one line, for a search over targets."""
    said = f"  {assessment.question.target.name:<14}{assessment.memory.peak / GiB:>9.2f} GiB{verdict(assessment)}"
    if assessment.seconds is None:
        return said
    return f"{said}; {assessment.hours:,.1f} hours, MFU {assessment.mfu:.0%} by roofline"


def heading(assessment: Assessment, name: str) -> str:
    question, packing = assessment.question, assessment.packing
    target, config, shape = question.target, changed(question.config, question.changes), assessment.packing.shape
    axes = axes_in_words(assessment.mesh)
    took = "" if assessment.compile_seconds is None else f"; compiled in {assessment.compile_seconds:.0f} s"
    attention = f", attention by {assessment.attention.name}" if assessment.attention else ""
    layers = "" if config.model.scan_layers else ", layers unrolled"
    return "\n".join(
        [
            f"{name} on {target.name}: {len(target.devices)} {target.devices[0].device_kind} ({axes}){took}",
            *[f"  with    {', '.join(question.changes)}"] * bool(question.changes),
            f"  model   {config.model.path}: {question.spec.family}, {parameters(assessment):,} parameters, "
            f"{config.model.dtype}, remat {config.model.remat}{layers}{attention}",
            *adapters(assessment),
            f"  data    {packing.num_groups:,} {config.objective.unit} from {question.lengths.source}",
            f"  packed  {counted(packing.num_steps, 'step')} of {packing.batch_size}; {counted(shape['B'], 'row')} of {shape['T']} a microbatch, "
            f"{packing.mean_microbatches:.1f} of at most {shape['M']} microbatches a step; "
            f"{packing.real_token_fraction:.1%} real tokens; planned in {packing.seconds:.1f} s",
            *splits(packing),
        ]
    )


def splits(packing: Packing) -> list[str]:
    """What was split so that rows can be short and, where they still are mostly padding, why."""
    if not packing.mean_moved:
        return []
    said = [
        f"          {packing.mean_moved:.1f} times a step responses stand apart, after a copy of their prompt (rows.split)"
    ]
    if packing.real_token_fraction < MOSTLY_REAL:
        said.append(
            f"          a row must hold the longest prompt with one response; fewer row shards (such as by mesh.tensor=2) "
            f"or a larger train.batch_size than {packing.batch_size} leave less padding"
        )
    return said


def parameters(assessment: Assessment) -> int:
    return parameter_count(assessment.question.spec)


def adapters(assessment: Assessment) -> list[str]:
    spec = assessment.question.spec
    if spec.lora is None:
        return []
    return [
        f"  lora    rank {spec.lora.rank} on {', '.join(spec.lora.targets)}: {trained_count(spec):,} parameters trained"
    ]


def memory_table(assessment: Assessment) -> str:
    memory, config = assessment.memory, changed(assessment.question.config, assessment.question.changes)
    lora = assessment.question.spec.lora is not None
    rows = {
        "adapters (float32)" if lora else "parameters (float32)": memory.parameters,
        f"optimizer (moments {config.optimizer.mu_dtype}, float32)": memory.optimizer,
        f"{'frozen weights' if lora else 'reference'} ({config.model.dtype})": memory.reference,
        "batch": memory.batch,
        "gradients (float32)": memory.gradients,
        "activations and other temporaries": memory.temporaries,
    }
    lines = [
        f"  {what:<44}{size / GiB:>9.2f}"
        for what, size in rows.items()
        if size >= GiB / 200 or assessment.memory.peak < GiB / 10
    ]
    return "\n".join(
        ["memory of a device, GiB", *lines, f"  {'peak':<44}{memory.peak / GiB:>9.2f}{verdict(assessment)}"]
    )


def verdict(assessment: Assessment) -> str:
    if assessment.limit is None:
        return "   (how much there is, is not known)"
    of = f" of {assessment.limit / GiB:.2f}"
    if assessment.question.target.kind in GPUS:
        of += f" ({GPU_SHARE:.0%} of it, XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE})"
    if assessment.fits:
        return f"{of}: fits, {assessment.memory.peak / assessment.limit:.0%} full"
    least = " at least" if assessment.program is None else ""
    return f"{least}{of}: DOES NOT FIT"


def work_table(assessment: Assessment) -> str:
    flops, program = assessment.flops, assessment.program
    assert flops is not None and program is not None, "only a compiled step has a table of work"
    unit, name = (1e12, "TFLOP") if flops.compiled > 1e13 else (1e9, "GFLOP")
    parts = {"useful": flops.useful, "padding and masked pairs": flops.padding, "recomputed": flops.recomputed}
    lines = [
        "work of a step",
        f"  {name + ', all devices, compiled program':<44}{flops.compiled / unit:>9,.0f}   "
        f"{flops.compiled / flops.by_hand:.2f} of the count by hand:",
        *[f"    {what:<42}{number / unit:>9,.0f}   {number / flops.by_hand:.0%}" for what, number in parts.items()],
        f"  {'GB of memory traffic, a device':<44}{program.memory_bytes / 1e9:>9,.1f}",
    ]
    most = max((each.num_bytes for each in program.collectives.values()), default=0.0)
    for (kind, group), each in sorted(program.collectives.items(), key=lambda item: -item[1].num_bytes):
        if each.num_bytes > SMALLEST_SHARE * most:
            what = f"{kind} among {group}, {each.number:,.0f} times, GB"
            lines.append(
                f"  {what:<44}{each.num_bytes / 1e9:>9,.2f}   {link_bytes(kind, group, each.num_bytes) / 1e9:,.2f} sent"
            )
    sent, least = program.link_bytes, least_sent(assessment)
    if least:
        lines.append(
            f"  {'GB that a device sends':<44}{sent / 1e9:>9,.2f}   {sent / least:.2f} times the {least / 1e9:,.2f} that "
            "the mesh needs"
        )
    return "\n".join([*lines, *between_slices(assessment)])


def between_slices(assessment: Assessment) -> list[str]:
    program, least = assessment.program, least_sent_to_slices(assessment)
    if program is None or not program.between_slices:
        return []
    number = sum(each.number for each in program.between_slices.values())
    what = f"GB that it sends to other slices, {number:,.0f} times"
    sent = program.network_bytes
    return [f"  {what:<44}{sent / 1e9:>9,.2f}   {sent / least:.2f} times the {least / 1e9:,.2f} that the mesh needs"]


def least_sent_to_slices(assessment: Assessment) -> float:
    """The bytes that a device has to send to other slices in a step: its gradients, once, in float32."""
    question = assessment.question
    return sent_bytes(least_between_slices(question.spec, assessment.mesh, num_slices=question.target.num_slices))


def least_sent(assessment: Assessment) -> float:
    """The bytes that a device has to send in a step on this mesh: weights gathered once a pass, gradients scattered once a
    microbatch in float32. 0 where nothing has to be sent, and where rows are shared, whose keys and values are not counted."""
    question, mesh, packing = assessment.question, assessment.mesh, assessment.packing
    if mesh.get(CONTEXT, 1) > 1:
        return 0.0
    config = changed(question.config, question.changes)
    tokens = packing.shape["B"] // (mesh["data"] * mesh["fsdp"]) * packing.shape["T"]
    work = {"microbatches": packing.mean_microbatches, "tokens": tokens, "num_slices": question.target.num_slices}
    return sent_bytes(least_collectives(config, question.spec, mesh, **work))


def estimate(assessment: Assessment) -> str:
    seconds, target, packing = assessment.seconds, assessment.question.target, assessment.packing
    if seconds is None:
        return "no estimate of time: the speed of this kind of device is not known."
    chip, peak, hours = target.chip, target.peak_flops, assessment.hours
    assert peak is not None and hours is not None and chip.memory_bandwidth is not None and chip.link is not None
    network = f", {chip.network / 1e9:.0f} GB/s between hosts" if target.kind in GPUS and chip.network else ""
    slices = (
        f"  {'network between slices':<44}{seconds.network:>9.3f}   at {(chip.network or 0) / 1e9:,.1f} GB/s a device"
    )
    step = seconds.step
    return "\n".join(
        [
            "time of a step by roofline, s (the longest, if the others hide behind it; nothing here was measured)",
            f"  {'matrix products':<44}{seconds.compute:>9.3f}   at {MATMUL_SHARE:.0%} of {peak / 1e12:,.0f} TFLOP/s a device",
            f"  {'memory':<44}{seconds.memory:>9.3f}   at {chip.memory_bandwidth / 1e9:,.0f} GB/s",
            f"  {'links':<44}{seconds.links:>9.3f}   at {chip.link / 1e9:,.0f} GB/s{network}",
            *[slices] * (target.num_slices > 1),
            f"  {'step':<44}{step:>9.3f}   {packing.batch_size / step:,.1f} pairs/s, MFU {assessment.mfu:.0%} on unique real tokens",
            f"  the run: {counted(packing.num_steps, 'step')}, {hours:,.2f} hours, {hours * target.num_chips:,.1f} chip-hours, "
            f"without evaluation and checkpoints",
        ]
    )


def as_json(assessment: Assessment, *, nearest: Assessment | None = None) -> dict[str, Any]:
    """Everything on the screen, in bytes, FLOPs and seconds."""
    question, target = assessment.question, assessment.question.target
    tree: dict[str, Any] = {
        "target": {
            "name": target.name,
            "device_kind": target.devices[0].device_kind,
            "num_devices": len(target.devices),
            "num_chips": target.num_chips,
            "num_slices": target.num_slices,
            "mesh": assessment.mesh,
            "memory_bytes": target.chip.memory,
        },
        "changes": list(question.changes),
        "model": {"path": question.config.model.path, "parameters": parameters(assessment)}
        | {"trained_parameters": trained_count(question.spec)},
        "lengths": question.lengths.source,
        "packing": asdict(assessment.packing),
        "memory": asdict(assessment.memory),
        "fits": assessment.fits,
        "compile_seconds": assessment.compile_seconds,
    }
    if assessment.program is not None:
        program, flops, attention = assessment.program, assessment.flops, assessment.attention
        assert flops is not None and attention is not None, "they come with the compiled program"
        tree["attention"] = attention.name
        tree["flops"] = asdict(flops) | {"compiled_over_by_hand": flops.compiled / flops.by_hand}
        tree["memory_traffic_bytes"] = program.memory_bytes
        tree["collectives"] = [
            {"kind": kind, "group": group, "number": each.number, "bytes": each.num_bytes}
            for (kind, group), each in sorted(program.collectives.items())
        ]
        tree["sent_bytes"], tree["least_sent_bytes"] = program.link_bytes, least_sent(assessment)
        if program.between_slices:
            tree["sent_to_slices_bytes"] = program.network_bytes
            tree["least_sent_to_slices_bytes"] = least_sent_to_slices(assessment)
    if assessment.seconds is not None and assessment.hours is not None:
        seconds, hours = assessment.seconds, assessment.hours
        tree["seconds"] = asdict(seconds) | {"step": seconds.step}
        tree["assumptions"] = {"matmul_share_of_peak": MATMUL_SHARE, "peak_flops": target.peak_flops}
        tree["assumptions"] |= asdict(target.chip)
        tree["pairs_per_s"] = assessment.packing.batch_size / seconds.step
        tree["mfu"] = assessment.mfu
        tree["hours"], tree["chip_hours"] = hours, hours * target.num_chips
    if nearest is not None:
        tree["nearest_that_fits"] = as_json(nearest)
    return tree
