"""`rapo plan --fastest`: estimates against compiled programs, what the search may leave out, what it prints and refuses."""

import dataclasses
import itertools
import json
import random
from types import SimpleNamespace

import pytest

from rapo_jax import accounting
from rapo_jax.config.files import load_config
from rapo_jax.plan import fastest, settings, targets, verb
from rapo_jax.plan.assess import Question, Seconds, assess, changed
from rapo_jax.plan.compile import resident_memory
from rapo_jax.plan.estimate import resident, rows_of, sampled
from rapo_jax.plan.fastest import ALLOWANCE, MARGIN, Search, search_fastest, try_setting
from rapo_jax.plan.fastest_report import fastest_screen
from rapo_jax.plan.settings import BFLOAT16_MOMENT, CACHE, settings_for
from rapo_jax.plan.targets import GiB
from tests.plan.test_verb import QUICK, message
from tests.tiny import rapo

CHIP = targets.Chip(memory=2 * GiB, memory_bandwidth=1e11, link=1e9)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """Few records, and a CPU whose speed is known, so that it has a roofline."""
    monkeypatch.setattr("rapo_jax.plan.lengths.NUM_RECORDS", 60)
    monkeypatch.setitem(accounting.PEAK_FLOPS, "cpu", 1e11)


def question(place, *more, number=4, memory=2 * GiB):
    config = load_config(str(place / "config.yaml"), [f"model.path={place / 'shape'}", QUICK, *more])
    target = dataclasses.replace(targets.here(f"cpu:{number}"), chip=dataclasses.replace(CHIP, memory=memory))
    return Question(config, *verb.read_run(config), target)


@dataclasses.dataclass(frozen=True)
class Pretended:
    """An assessment whose memory and seconds are made up."""

    question: Question
    memory: object
    took: Seconds
    compile_seconds: float = 1.0
    flops: None = None
    packing: object = dataclasses.field(default_factory=lambda: SimpleNamespace(shape={"B": 4, "T": 512}))

    @property
    def fits(self):
        return self.memory.peak <= self.question.target.chip.memory

    @property
    def seconds(self):
        return self.took if self.fits else None


def pretend(monkeypatch, all_settings, *, seed, spread):
    """In place of compiling: temporaries and seconds that miss their estimates at random, never below a lower bound.

    Returns the truth: (peak, cost) of every setting."""
    draw, truth, off = random.Random(seed), {}, {}
    for setting in all_settings:
        least, memory = setting.estimate.seconds, setting.estimate.memory
        certain = memory.resident + memory.gradients
        alike = off.setdefault((setting.config.model.remat, setting.mesh["tensor"] > 1), draw.uniform(1, spread))
        peak = certain + (memory.peak - certain) * alike * draw.uniform(0.96, 1.04)
        took = Seconds(
            least.compute * draw.uniform(ALLOWANCE, 1.02),
            least.memory * draw.uniform(1, 4),
            least.links * draw.uniform(1, 2),
        )
        truth[setting.changes] = dataclasses.replace(memory, peak=peak), took

    monkeypatch.setattr(fastest, "settings_for", lambda asked: all_settings)
    monkeypatch.setattr(fastest, "assess", lambda asked, *, temporaries: Pretended(asked, *truth[asked.changes]))
    return {s.changes: (truth[s.changes][0].peak, s.cost(truth[s.changes][1])) for s in all_settings}


# Estimates.


def test_resident_bytes_follow_from_letters_alone(place):
    """When this fails, settings are left out for memory that they do not need."""
    asked = question(place)
    for changes in ((), ("mesh.tensor=2",), (BFLOAT16_MOMENT, CACHE), ("lora.rank=4",)):
        config = changed(asked.config, changes)
        spec = verb.spec_of(config, place / "shape")
        mesh = settings.make_mesh(**vars(config.mesh), devices=asked.target.devices)
        shards = settings.num_row_shards(mesh)
        shape = rows_of(config, spec, asked.lengths.groups, num_row_shards=shards, kernel="einsum").shape
        exact, ours = (function(config, spec, mesh, shape) for function in (resident_memory, resident))
        assert (ours.parameters, ours.reference, ours.batch) == (exact.parameters, exact.reference, exact.batch)
        assert ours.optimizer == pytest.approx(exact.optimizer, abs=16)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_estimated_memory_is_near_the_compiled_one(place, remat):
    """And the times are lower bounds. When this fails, the search compiles what cannot fit or leaves out what could."""
    asked = question(place, f"model.remat={remat}", "rows.per_shard=2", number=2)
    own = settings_for(asked)[0]
    found = assess(asked)
    assert 0.5 < own.estimate.memory.peak / found.memory.peak < 1.5
    least = own.estimate.seconds
    assert ALLOWANCE * least.compute <= found.seconds.compute * 1.01
    assert least.memory <= found.seconds.memory and least.links <= found.seconds.links * 1.01


def test_the_sample_keeps_the_longest_groups(place):
    groups = question(place).lengths.groups
    some = sampled(groups * 40, 16)
    assert len(some) < len(groups) * 40
    assert max(g.num_tokens for g in some) == max(g.num_tokens for g in groups)


# The search.


def test_settings_leave_the_batch_alone_and_start_with_the_configurations_own(place):
    asked = question(place)
    found = settings_for(asked)
    assert found[0].changes == () and len({s.changes for s in found}) == len(found) > 50
    keys = {change.partition("=")[0] for s in found for change in s.changes}
    searched = {"rows.length", "rows.per_shard", "rows.split", "model.remat", "reference.cache", "optimizer.mu_dtype"}
    assert keys <= searched | {"mesh.data", "mesh.fsdp", "mesh.tensor"}
    assert all(changed(asked.config, s.changes) == s.config for s in found[::7])
    assert all(s.once > 0 for s in found if CACHE in s.changes) and not any(
        s.once for s in found if CACHE not in s.changes
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_the_best_of_all_without_compiling_all(place, monkeypatch, seed):
    """Against the truth of every setting. When this fails, pruning throws away the answer."""
    asked = question(place)
    found = settings_for(asked)
    peaks = sorted(s.estimate.memory.peak for s in found)
    asked = dataclasses.replace(
        asked, target=dataclasses.replace(asked.target, chip=dataclasses.replace(CHIP, memory=peaks[len(peaks) // 2]))
    )
    truth = pretend(monkeypatch, found, seed=seed, spread=1.3)
    search = search_fastest(asked, most_compiles=10_000, progress=lambda text: None)
    room = asked.target.chip.memory * (1 - MARGIN)
    best = min(cost for changes, (peak, cost) in truth.items() if peak <= room)
    assert fastest.rounded(search.best.cost) <= fastest.rounded(best)
    assert len(search.tried) < len(found)


def test_a_bounded_search_is_never_slower_than_the_configuration(place, monkeypatch):
    asked = question(place)
    found = settings_for(asked)
    for seed in range(5):
        truth = pretend(monkeypatch, found, seed=seed, spread=1.3)
        search = search_fastest(asked, most_compiles=2, progress=lambda text: None)
        assert search.best.cost <= truth[()][1] and len(search.tried) == 2


def test_equal_settings_are_told_apart_by_what_they_change(place, monkeypatch):
    """A rounded first moment has to earn its place."""
    asked = question(place)
    own = settings_for(asked)[0]
    twin = dataclasses.replace(own, changes=(BFLOAT16_MOMENT,))
    pretend(monkeypatch, [own, twin], seed=0, spread=1.0)
    same = Pretended(asked, own.estimate.memory, own.estimate.seconds)
    search = Search(asked, [own, twin], [fastest.Tried(twin, same), fastest.Tried(own, same)])
    assert search.best.setting is own and not search.promising()


def test_interrupted_it_prints_what_it_has(place, monkeypatch):
    asked = question(place)
    found = settings_for(asked)
    pretend(monkeypatch, found, seed=0, spread=1.0)
    real, count = fastest.try_setting, itertools.count()

    def tried(search, setting):
        if next(count) == 2:
            raise KeyboardInterrupt
        real(search, setting)

    monkeypatch.setattr(fastest, "try_setting", tried)
    search = search_fastest(asked, most_compiles=9, progress=lambda text: None)
    printed = fastest_screen(search, name="mine.yaml")
    assert search.interrupted and len(search.tried) == 2
    assert printed.startswith("interrupted: what follows is what was found so far")
    assert "rapo train mine.yaml" in printed


def test_what_goes_wrong_in_a_compilation_is_said(place, monkeypatch):
    """A compiler's refusal is one line of the table; a mistake of ours is not swallowed."""
    asked = question(place)
    search = Search(asked, settings_for(asked))

    def refused(asked, *, temporaries):
        raise fastest.jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nmore")

    monkeypatch.setattr(fastest, "assess", refused)
    try_setting(search, search.settings[0])
    assert search.tried[0].error == "INTERNAL: Mosaic failed" and search.best is None
    monkeypatch.setattr(fastest, "assess", lambda asked, *, temporaries: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        try_setting(search, search.settings[1])


# The command.


@pytest.mark.slow
def test_the_command_prints_overrides_and_what_it_compiled(place, tmp_path, monkeypatch, capsys):
    """Compiled for real, and no slower than the configuration as it is."""
    real = targets.here
    monkeypatch.setattr(verb, "here", lambda devices: dataclasses.replace(real(devices), chip=CHIP))
    command = [
        "plan",
        place / "config.yaml",
        f"model.path={place / 'shape'}",
        QUICK,
        "model.remat=full",
        "--devices",
        "cpu:2",
    ]
    out = tmp_path / "fastest.json"
    assert rapo(*command, "--fastest", "--most-compiles", "2", "--json", out) == 0
    printed, tree = capsys.readouterr(), json.loads(out.read_text())
    assert max(len(line) for line in printed.out.splitlines() if str(place) not in line) <= 80
    assert " ".join(tree["overrides"]) in printed.out and "as it is" in printed.out
    assert "at most 1 program more" in printed.err
    steps = [each["step_seconds"] for each in tree["tried"]]
    assert len(steps) == 2 and tree["fastest"]["seconds"]["step"] <= steps[0]


def test_where_nothing_fits_the_nearest_is_named_with_what_it_lacks(place, monkeypatch, capsys):
    real = targets.here
    chip = dataclasses.replace(CHIP, memory=100_000.0)
    monkeypatch.setattr(verb, "here", lambda devices: dataclasses.replace(real(devices), chip=chip))
    command = ["plan", place / "config.yaml", f"model.path={place / 'shape'}", QUICK, "--devices", "cpu:2", "--fastest"]
    assert rapo(*command) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "no setting fits cpu:2: the nearest, " in said and "so it lacks" in said


def test_what_the_search_needs_is_said(place, monkeypatch, capsys):
    monkeypatch.delitem(accounting.PEAK_FLOPS, "cpu")
    plan = ["plan", place / "config.yaml", f"model.path={place / 'shape'}"]
    assert message(capsys, *plan, "--devices", "cpu:2", "--fastest").startswith(
        "--fastest compares the times of steps, and the speed of cpu:2 is not known; name a target by --topology"
    )
    assert (
        message(capsys, *plan, "--devices", "cpu:2", "--most-compiles", "3") == "--most-compiles belongs to --fastest."
    )
    assert message(capsys, *plan, "--smallest", "v5e", "--fastest").startswith("--fastest searches on one target;")


def test_rows_that_hold_the_sample_hold_all_groups(place):
    """When this fails, the search proposes rows that the longest groups, which a few steps hold only in parts, do not fit."""
    asked = question(place, "rows.length=null", "data.max_length=512", "mesh.data=8", "mesh.fsdp=1", number=8)
    found = {s.config.rows: s for s in settings_for(asked) if s.config.mesh == asked.config.mesh}
    explicit = [rows for rows in found if rows.length is not None]
    assert any(rows.split == "always" for rows in explicit)
    for rows in explicit:
        rows_of(found[rows].config, asked.spec, asked.lengths.groups, num_row_shards=8, kernel="einsum")
