"""`rapo plan`: what it reads from a compiled program, what it reports, and what it refuses. Only the last tests need
libtpu or a GPU's plugin, and are skipped without."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from rapo_jax.config.files import load_config
from rapo_jax.errors import UserError
from rapo_jax.parallel import make_mesh
from rapo_jax.plan import assess, suggest, targets, verb
from rapo_jax.plan.compile import Memory, compile_step, needed_bytes
from rapo_jax.plan.hlo import parse_hlo
from rapo_jax.plan.least import least_between_slices
from rapo_jax.plan.lengths import Lengths
from rapo_jax.plan.program import link_bytes, read_program, sent_bytes
from rapo_jax.plan.targets import GiB, gpu_description, split_topology
from tests.plan.conftest import PLAN, SHAPE
from tests.test_parallel import TWO_SLICES
from tests.tiny import rapo, tiny_spec, write_model, write_rows


@pytest.fixture(autouse=True)
def same_environment():
    """The verb sets variables for the compiler; other tests must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr("rapo_jax.plan.lengths.NUM_RECORDS", 200)


def arguments(place, *more):
    return ["plan", place / "config.yaml", f"model.path={place / 'shape'}", *more]


QUICK = "model.attention=einsum"  # compiles in half the time


# Reading a program.

LOOP = """\
HloModule step

%body (x: (s32[], f32[4,8], bf16[2])) -> (s32[], f32[4,8], bf16[2]) {
  %x = (s32[]{:T(128)}, f32[4,8]{1,0:T(4,128)S(1)}, bf16[2]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%x), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %a = f32[4,8]{1,0:T(4,128)S(1)} get-tuple-element(%x), index=1
  %y = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %g = bf16[2]{0} get-tuple-element(%x), index=2
  %h = bf16[8]{0} all-gather(%g), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[4,8], bf16[2]) tuple(%next, %a, %g)
}

%condition (x: (s32[], f32[4,8], bf16[2])) -> pred[] {
  %x = (s32[], f32[4,8], bf16[2]) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %ten = s32[] constant(10)
  ROOT %more = pred[] compare(%i, %ten), direction=LT
}

ENTRY %main (a: f32[4,8], g: bf16[2]) -> (s32[], f32[4,8], bf16[2]) {
  %a = f32[4,8]{1,0} parameter(0)
  %g = bf16[2]{0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8], bf16[2]) tuple(%zero, %a, %g)
  ROOT %w = (s32[], f32[4,8], bf16[2]) while(%start), condition=%condition, body=%body
}
"""


def test_a_loops_body_counts_as_often_as_it_runs():
    """When this fails, a scanned model of 32 layers is planned as one layer, as in XLA's own analysis. The counter is
    0, 2, 4, 6, 8: five products of 2 * 4 * 4 * 8 FLOPs, five gathers of 8 bfloat16 among 4."""
    program = read_program(parse_hlo(LOOP), bounds=(99.0,), num_devices=8)
    assert program.matmul_flops == 5 * 256
    (((kind, group), each),) = program.collectives.items()
    assert (kind, group, each.number, each.num_bytes) == ("all-gather", 4, 5, 5 * 16)
    assert program.memory_bytes == 5 * (64 + 12)  # the product is written; what it reads is on the chip; the counter


def test_a_loop_bound_that_is_not_a_constant_is_taken_from_the_plan():
    text = LOOP.replace("%ten = s32[] constant(10)", "%ten = s32[] get-tuple-element(%x), index=0")
    assert read_program(parse_hlo(text), bounds=(3.5,), num_devices=8).matmul_flops == 3.5 * 256


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # [6, 8] x [8, 5] with the contraction as input features
        ("f32[6,5] convolution(%p, %q), dim_labels=bf_io->bf", 2 * 6 * 8 * 5),
        # a batch of 6 as a window that meets one real input at every output: 6 products of [1, 8] x [8, 5]
        (
            "f32[6,1,5] convolution(%r, %s), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf",
            2 * 6 * 8 * 5,
        ),
    ],
)
def test_a_convolution_counts_only_products_with_real_inputs(line, flops):
    """TPU programs write batched matrix products this way; multiplying padding is not work."""
    given = "%p = f32[6,8] parameter(0)\n %q = f32[8,5] parameter(1)\n"
    given += " %r = f32[6,1,8] parameter(2)\n %s = f32[6,8,5] parameter(3)\n"
    text = f"ENTRY %main (p: f32[]) -> f32[] {{\n {given} ROOT %c = {line}\n}}"
    assert read_program(parse_hlo(text), bounds=(1.0,), num_devices=1).matmul_flops == flops


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1},{2,3}}", 2), ("[2,4]<=[4,2]T(1,0)", 4), ("mesh['x'=4,'y'=2] {'x'}", 4), ("{}", 8)],
)
def test_how_many_devices_take_part(groups, size):
    text = LOOP.replace("[2,4]<=[8]", groups)
    assert list(read_program(parse_hlo(text), bounds=(1,), num_devices=8).collectives) == [("all-gather", size)]


def test_the_bytes_that_collectives_send():
    assert link_bytes("all-gather", 4, 100.0) == 75.0
    assert link_bytes("all-reduce", 4, 100.0) == 150.0
    assert link_bytes("collective-permute", 4, 100.0) == 100.0


SCATTER = """\
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce = f32[8,4]{1,0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%all-reduce, %at, %at), dynamic_slice_sizes={2,4}
}

ENTRY %main (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %f = f32[2,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


BETWEEN = """\
HloModule step

ENTRY %main (x: f32[2,128]) -> f32[2,128] {
  %x = f32[2,128]{1,0:T(2,128)} parameter(0)
  %token = token[] after-all()
  %send = (f32[2,128]{1,0:T(2,128)}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[2,128]{1,0:T(2,128)}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %got = (f32[2,128]{1,0:T(2,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  %twice = (f32[2,128]{1,0:T(2,128)}, u32[], token[]) send(%x, %sent), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = f32[2,128]{1,0:T(2,128)} get-tuple-element(%got), index=0
}
"""


def test_what_slices_exchange_is_counted_once_apart_from_links():
    program = read_program(parse_hlo(BETWEEN), bounds=(1,), num_devices=8, num_slices=2)
    assert {key: vars(each) for key, each in program.between_slices.items()} == {
        ("all-reduce", 2): {"number": 2, "num_bytes": 2 * 256 * 4}
    }
    assert program.collectives == {}


def test_an_all_reduce_of_which_a_device_keeps_its_slice_is_a_reduce_scatter():
    """This is how the TPU compiler writes it. When this fails, a plan says that gradients send twice the bytes they do."""
    (((kind, group), each),) = read_program(parse_hlo(SCATTER), bounds=(1,), num_devices=4).collectives.items()
    assert (kind, group, each.num_bytes) == ("reduce-scatter", 4, 8 * 4 * 4)
    whole = SCATTER.replace("ROOT %slice", "%slice").replace(
        "dynamic_slice_sizes={2,4}",
        "dynamic_slice_sizes={2,4}\n  ROOT %both = (f32[8,4]{1,0}, f32[2,4]{1,0}) tuple(%all-reduce, %slice)",
    )
    assert list(read_program(parse_hlo(whole), bounds=(1,), num_devices=4).collectives) == [("all-reduce", 4)]


def test_the_needed_memory_is_read_from_out_of_memory_errors_only():
    used = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert needed_bytes(used) == 20.5 * GiB
    assert needed_bytes("RESOURCE_EXHAUSTED: HLO temporaries (32.34G) exceeds available HBM (15.75G)") == 32.34 * GiB
    assert needed_bytes("INTERNAL: Mosaic failed to compile") is None
    assert needed_bytes("RESOURCE_EXHAUSTED: Allocation would exceed memory (size=134217728) :: space=vmem") is None


# The report.


@pytest.mark.slow
def test_a_plan_for_virtual_devices(place, tmp_path, capsys):
    """The parts add up to the compiler's peak, and the compiled program's FLOPs are those counted by hand."""
    assert rapo(*arguments(place, "mesh.tensor=2", "--devices", "cpu:8", "--json", tmp_path / "plan.json")) == 0
    printed, tree = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "8 cpu (1 data x 4 fsdp x 2 tensor)" in printed
    assert "lengths like UltraFeedback's" in printed and "real tokens; planned in" in printed
    assert "the speed of this kind of device is not known" in printed
    memory = tree["memory"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=8)
    assert memory["reference"] == memory["gradients"] == memory["parameters"]
    assert memory["peak"] > 4 * memory["parameters"]
    assert 0.85 < tree["flops"]["compiled_over_by_hand"] < 1.15
    assert tree["target"]["mesh"] == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert {each["kind"] for each in tree["collectives"]} & {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.slow
def test_a_plan_whose_devices_share_rows(place, tmp_path, capsys):
    """When this fails, attention among the keys of other devices is counted as if each device had all queries, or none."""
    out = tmp_path / "plan.json"
    assert rapo(*arguments(place, QUICK, "mesh.context=2", "--devices", "cpu:4", "--json", out)) == 0
    printed, tree = capsys.readouterr().out, json.loads(out.read_text())
    assert "4 cpu (1 data x 2 fsdp x 2 context x 1 tensor)" in printed
    assert tree["target"]["mesh"] == {"data": 1, "fsdp": 2, "context": 2, "tensor": 1}
    assert 0.85 < tree["flops"]["compiled_over_by_hand"] < 1.15


@pytest.mark.slow
def test_remat_is_counted_separately(place, tmp_path):
    """When this fails, a plan counts work that is done twice as useful."""
    trees = {}
    settings = {level: [f"model.remat={level}"] for level in ("none", "full")}
    settings["unrolled"] = [*settings["full"], "model.scan_layers=false"]
    for name, more in settings.items():
        out = tmp_path / f"{name}.json"
        assert rapo(*arguments(place, QUICK, *more, "--devices", "cpu:2", "--json", out)) == 0
        trees[name] = json.loads(out.read_text())["flops"]
    assert trees["none"]["useful"] == trees["full"]["useful"]
    assert trees["none"]["recomputed"] < trees["full"]["recomputed"] == trees["unrolled"]["recomputed"]
    assert all(0.85 < flops["compiled_over_by_hand"] < 1.15 for flops in trees.values())


def test_a_cached_reference_is_not_resident_and_costs_nothing(place, tmp_path):
    out = tmp_path / "plan.json"
    assert rapo(*arguments(place, QUICK, "reference.cache=never/written", "--devices", "cpu:2", "--json", out)) == 0
    tree = json.loads(out.read_text())
    assert tree["memory"]["reference"] == 0
    assert 0.85 < tree["flops"]["compiled_over_by_hand"] < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_adapters_have_moments_and_gradients_and_the_weights_have_none(place, tmp_path, capsys, remat):
    """When this fails, LoRA is planned (or computed) at the cost of full training. The weight gradients of frozen
    matrices would be a quarter of the compiled FLOPs."""
    out = tmp_path / "plan.json"
    more = [QUICK, "lora.rank=4", f"model.remat={remat}", "--devices", "cpu:2", "--json", out]
    assert rapo(*arguments(place, *more)) == 0
    assert "lora    rank 4 on q, k, v, o, gate, up, down" in capsys.readouterr().out
    tree = json.loads(out.read_text())
    memory = tree["memory"]
    assert memory["parameters"] == memory["gradients"] < memory["reference"] / 4
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=8)
    assert 0.93 < tree["flops"]["compiled_over_by_hand"] < 1.07


def test_the_runs_own_data_is_planned_where_it_exists(place, tmp_path, capsys):
    model = write_model(tmp_path / "model")
    pairs = write_rows(tmp_path / "pairs.jsonl")
    more = [QUICK, f"model.path={model}", f"data.path={pairs}", "--devices", "cpu:1"]
    assert rapo("plan", place / "config.yaml", *more) == 0
    assert f"24 pairs from {pairs}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_that_does_not_fit_suggests_one_that_does(place, tmp_path, capsys, monkeypatch):
    """The nearest change is compiled too, and fits. Exit code 1."""
    out = tmp_path / "plan.json"
    command = arguments(place, QUICK, "rows.per_shard=4", "--devices", "cpu:2", "--json", out)
    assert rapo(*command) == 0
    peak = json.loads(out.read_text())["memory"]["peak"]
    real = targets.here
    chip = targets.Chip(memory=peak - 1)
    monkeypatch.setattr(verb, "here", lambda devices: dataclasses.replace(real(devices), chip=chip))
    assert rapo(*command) == verb.DOES_NOT_FIT == 1
    printed, tree = capsys.readouterr().out, json.loads(out.read_text())
    assert "DOES NOT FIT" in printed and "the nearest change that fits: rows.per_shard=1" in printed
    assert not tree["fits"] and tree["nearest_that_fits"]["fits"]
    assert tree["nearest_that_fits"]["changes"] == ["rows.per_shard=1"]
    assert tree["nearest_that_fits"]["memory"]["peak"] < peak


def test_what_cannot_fit_is_not_compiled(place, capsys, monkeypatch):
    """Weights and moments alone are too large: every candidate is refused by arithmetic."""
    real = targets.here
    chip, compiled = targets.Chip(memory=1000), []
    monkeypatch.setattr(verb, "here", lambda devices: dataclasses.replace(real(devices), chip=chip))
    monkeypatch.setattr(assess, "compile_step", lambda *a, **k: compiled.append(1) or compile_step(*a, **k))
    assert rapo(*arguments(place, QUICK, "--devices", "cpu:2")) == 1
    assert "no change that was tried makes it fit" in capsys.readouterr().out
    assert len(compiled) == 1


def test_larger_slices_are_listed_by_size():
    target = targets.Target("v5e:4x8", "v5e", "4x8", (), targets.CHIPS["v5e"], 32)
    assert targets.larger(target) == ["8x8", "8x16", "16x16"]
    assert suggest.TENSOR == (2, 4, 8)


@pytest.mark.parametrize(
    ("num_devices", "sizes", "expected"),
    [
        (8, {"fsdp": 1, "context": -1, "data": 2}, {(1, 2, 4, 1), (1, 1, 8, 1), (1, 1, 4, 2)}),
        (8, {"fsdp": 1, "tensor": -1, "data": 2}, {(1, 2, 1, 4), (1, 1, 2, 4)}),
        (8, {"context": 4, "tensor": 2, "fsdp": 1}, set()),
        (6, {"context": 3, "fsdp": 2}, {(1, 1, 3, 2)}),
    ],
)
def test_a_suggested_mesh_uses_all_devices(place, num_devices, sizes, expected):
    """When this fails, a plan that does not fit ends with a sentence about sizes that nobody typed."""
    config = load_config(place / "config.yaml", [f"mesh.{axis}={size}" for axis, size in sizes.items()])
    config = dataclasses.replace(config, rows=dataclasses.replace(config.rows, length=None))
    devices = tuple(jax.devices()[:num_devices])
    mesh = dict(make_mesh(**vars(config.mesh), devices=devices).shape)
    target = targets.Target("here", "", "", devices, targets.CHIPS["v5e"], num_devices)
    question = assess.Question(config, dataclasses.replace(tiny_spec("llama3"), K=4), Lengths([], ""), target)
    packing = assess.Packing({"T": suggest.LONG_ROW, "B": 1}, 1, 1, 1, 1.0, 1.0, 0.0, 0.0)
    failed = assess.Assessment(question, mesh, packing, Memory(0, 0, 0, 0, 0, 0), None)
    found = {
        tuple(make_mesh(**vars(assess.changed(config, each.changes).mesh), devices=devices).shape.values())
        for each in suggest.candidates(failed)
    }
    assert found - {tuple(mesh.values())} == expected


# What is refused.


def message(capsys, *command):
    capsys.readouterr()
    assert rapo(*command) == 2
    return capsys.readouterr().err.strip().split("rapo plan: ")[-1]


def test_a_misspelt_schema_is_refused(place, capsys):
    """When this fails, the plan cannot read the data and silently packs lengths other than the run's."""
    said = message(capsys, *arguments(place, "data.path=pairs.jsonl", "data.schema=pair", "--devices", "cpu:1"))
    assert said == "data.schema='pair' is unknown; did you mean 'pairs'?"


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:4", "v5p:4x4", "h100:8", "v5e:0x4", "v5litepod-16"])
def test_an_unknown_topology_is_answered_with_the_known_ones(place, capsys, topology):
    said = message(capsys, *arguments(place, "--topology", topology))
    assert said.startswith(
        f"--topology {topology} is unknown; write KIND:SLICE, such as v5e:4x4, or NUMBERxKIND:SLICE for "
    )
    assert "Known: v4: 2x2x1, " in said
    assert "v5e: 1x1, 2x2, 2x4, 4x4" in said and "h100: 1x1" in said


def test_an_unknown_kind_is_answered_with_the_known_ones(place, capsys):
    said = message(capsys, *arguments(place, "--smallest", "v9"))
    assert said == "--smallest v9 is unknown; known kinds: v4, v5e, v5p, v6e, tpu7x, a100, h100, h200."


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5e:4x4", ["--topology v5e:4x4 needs the TPU compiler, and libtpu is not installed", "'rapo_jax[tpu]'"]),
        (
            "h100:1x8",
            ["--topology h100:1x8 needs the GPU compiler, and jax-cuda12-plugin is not", "'rapo_jax[plan-gpu]'"],
        ),
    ],
)
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(place, capsys, monkeypatch, topology, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = message(capsys, *arguments(place, "--topology", topology))
    assert all(word in said for word in words)


def test_a_mesh_that_does_not_divide_is_refused(place, capsys):
    assert message(capsys, *arguments(place, "mesh.tensor=3", "--devices", "cpu:8")).startswith(
        "mesh.data=1, mesh.fsdp=-1, mesh.tensor=3 cannot use 8 devices: the product of the sizes must equal"
    )


@pytest.mark.parametrize("devices", ["8", "cpu", "cpu:0", "gpu:8"])
def test_devices_are_spelt_one_way(place, capsys, devices):
    said = message(capsys, *arguments(place, "--devices", devices))
    assert said == f"--devices {devices}: write cpu:N, such as cpu:8; other targets are given by --topology."


def test_a_plan_needs_a_model(place, capsys):
    assert message(capsys, "plan", place / "config.yaml", "--devices", "cpu:2").startswith("model.path is not set;")


# Targets.


def test_a_topology_is_split_into_kind_and_shape():
    assert split_topology("v5p:2x2x4") == ("v5p", "2x2x4", 1)
    assert split_topology("h200:2x8") == ("h200", "2x8", 1)
    assert split_topology("16xv5e:4x4") == ("v5e", "4x4", 16)


@pytest.mark.parametrize("topology", ["0xv5e:4x4", "v5e:4x4x", "2x", "x2v5e:4x4", "2xv5e:4x4\n", ""])
def test_what_is_no_topology_is_answered_with_the_forms(topology):
    with pytest.raises(UserError, match=r"is unknown; write KIND:SLICE, such as v5e:4x4, or NUMBERxKIND:SLICE"):
        split_topology(topology)


def test_gpus_have_no_slices():
    with pytest.raises(UserError, match="GPUs have no slices; their hosts come first, as in h100:2x8"):
        split_topology("2xh100:1x8")


def test_a_sum_over_slices_takes_the_time_of_the_network():
    """When this fails, a plan promises the speed of one slice for what waits for the network."""
    target = targets.Target("2xv5e:2x2", "v5e", "2x2", TWO_SLICES, targets.CHIPS["v5e"], 4)
    program = read_program(parse_hlo(BETWEEN), bounds=(3,), num_devices=8, num_slices=2)
    assert program.link_bytes == 0 and program.network_bytes == 2 * 256 * 4
    flops = assess.Flops(compiled=1.0, useful=1.0, padding=0.0, recomputed=0.0)
    seconds = assess.roofline(target, program, flops)
    assert seconds is not None and seconds.step == seconds.network == pytest.approx(2 * 256 * 4 / 3.125e9)
    unknown = dataclasses.replace(target, chip=targets.CHIPS["v4"])
    assert assess.roofline(unknown, program, flops) is None, "the network of v4 is not known"


def test_the_least_to_send_is_less_where_replicas_share_a_slice():
    spec = tiny_spec("llama3")
    one, two, four = (
        sent_bytes(least_between_slices(spec, {"data": data, "fsdp": 4 // data, "tensor": 1}, num_slices=slices))
        for data, slices in ((1, 1), (2, 2), (4, 2))
    )
    assert one == 0 and two == four > 0, "the gradients of a slice, however it is split, divided by its devices"


def test_every_kind_has_a_chip_and_a_peak():
    for kind in targets.SLICES:
        assert targets.CHIPS[kind].memory > 15 * GiB
        assert targets.peak_flops(targets.DEVICE_KINDS[kind]) > 1e14


def test_a_gpus_description_has_its_memory():
    assert "core_count: 132" in gpu_description("h100") and f"device_memory_size: {81559 * 2**20}" in gpu_description(
        "h100"
    )


def planned(place, *more):
    """The plan's JSON from a process of its own, whose compiler is its only one."""
    out = place / "elsewhere.json"
    command = [sys.executable, "-m", "rapo_jax", *map(str, arguments(place, *more, "--json", out))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (the extra tpu)")
def test_planning_for_a_tpu_that_is_not_here(place):
    tree, printed = planned(place, "--topology", "v5e:2x2", "model.dtype=bfloat16", "model.remat=full")
    assert tree["target"]["device_kind"] == "TPU v5 lite" and tree["target"]["num_chips"] == 4
    assert tree["fits"] and tree["hours"] > 0 and "of 15.75: fits" in printed
    assert 0.85 < tree["flops"]["compiled_over_by_hand"] < 1.15


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (the extra tpu)")
def test_planning_for_two_slices_that_are_not_here(place):
    tree, printed = planned(place, "--topology", "2xv5e:2x2", "mesh.data=2", "model.dtype=bfloat16")
    assert tree["target"]["num_slices"] == 2 and tree["target"]["mesh"]["data"] == 2
    assert tree["sent_to_slices_bytes"] >= tree["least_sent_to_slices_bytes"] > 0
    assert "GB that it sends to other slices" in printed and "network between slices" in printed


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="no CUDA plugin (the extra plan-gpu)")
def test_planning_for_a_gpu_that_is_not_here(place):
    (place / "shape64").mkdir()
    (place / "shape64" / "config.json").write_text(json.dumps(SHAPE | {"head_dim": 64}))
    more = ["--topology", "h100:1x8", "model.dtype=bfloat16", f"model.path={place / 'shape64'}"]
    tree, _ = planned(place, *more)
    assert tree["target"]["num_devices"] == 8 and tree["fits"] and tree["hours"] > 0
    assert 0.85 < tree["flops"]["compiled_over_by_hand"] < 1.15


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="no CUDA plugin (the extra plan-gpu)")
def test_unrolled_layers_keep_no_more_than_scanned_ones(place):
    """When this fails, remat saves nothing: see test_unrolled_layers_keep_recomputation_apart_from_the_forward_pass."""
    (place / "deep").mkdir()
    (place / "deep" / "config.json").write_text(json.dumps(SHAPE | {"head_dim": 64, "num_hidden_layers": 12}))
    more = ["--topology", "h100:1x1", "model.dtype=bfloat16", f"model.path={place / 'deep'}", "rows.per_shard=8"]
    settings = {"scanned": "model.remat=full", "kept": "model.remat=none"}
    trees = {name: planned(place, *more, setting)[0]["memory"] for name, setting in settings.items()}
    out = planned(place, *more, "model.remat=full", "model.scan_layers=false")[0]["memory"]
    assert out["peak"] - trees["scanned"]["peak"] < (trees["kept"]["peak"] - trees["scanned"]["peak"]) / 3


def test_a_mistyped_column_is_no_reason_to_invent_data(tmp_path, capsys):
    """When this fails, a plan for 122,000 invented pairs hides that the run would be refused."""
    (tmp_path / "config.yaml").write_text(PLAN)
    data = [f"model.path={write_model(tmp_path / 'model')}", f"data.path={write_rows(tmp_path / 'pairs.jsonl')}"]
    assert rapo("plan", tmp_path / "config.yaml", *data, "data.columns.chosen=choosen") == 2
    printed, message = capsys.readouterr()
    assert "not data.columns.chosen='choosen'; did you mean 'chosen'?" in message and "UltraFeedback" not in printed
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert rapo("plan", tmp_path / "config.yaml", *data) == 2
    assert "has no tokenizer (tokenizer.json) that can be read" in capsys.readouterr().err
