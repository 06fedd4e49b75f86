"""A group that is split over rows gives its loss the numbers that it gives whole."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.batching.batch_plan import make_plan, materialise
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.batching.splitting import GroupLengths, Moved, pack_split
from rapo_jax.batching.steps import shuffled_steps
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.passes.column import Column
from rapo_jax.passes.forward_pass import Weights, fill, pass_options, plan_pass
from rapo_jax.plan import lengths as plan_lengths
from rapo_jax.plan.kernels import NUM_SAMPLED_ROWS, mean_visible_tiles
from rapo_jax.runs.setup import begun_with
from rapo_jax.train import losses as losses_module
from rapo_jax.train.forward import at_home, sums_by_branch
from rapo_jax.train.losses import make_losses
from tests import tiny
from tests.invariants.test_objectives_in_steps import CASES, NUM_GROUPS, config_of, groups_of

WHOLE, PARTS = {"row_length": 80, "split": "never"}, {"row_length": 38, "split": "always"}
WIDTHS = {
    "one": [(1,)],
    "pair": [(1, 1)],
    "labelled": [(1, 0, 1), (0, 1, 1), (1, 1, 1)],  # the last answers another prompt
    "all": [(1, 1, 1, 1), (1, 1, 1, 0), (1, 1, 0, 0)],
}


def planned(groups, config, *, row_length, split, rows_per_shard=48):
    rows = {"row_length": row_length, "rows_per_shard": rows_per_shard, "num_row_shards": 1}
    return make_plan(groups, [np.arange(len(groups))], **rows, scored=what_is_scored(config), split=split)


def microbatch(groups, plan, shape):
    batch = materialise(groups, plan.steps[0], shape, mine=range(shape.B), moved=plan.moved.get(0, ()))
    return jax.tree.map(lambda x: jnp.asarray(x[0]) if np.ndim(x) else x, batch)


def values_of_tokens(graph, parameters, rows, **_):
    """Log-probabilities that depend on the scored token, its position and its prompt alone, in place of a model's."""
    at = functools.partial(jnp.take_along_axis, indices=rows.source, axis=1)
    values_BS = -jnp.abs(parameters["table_V"][rows.target]) * (1 + 0.1 * at(rows.position).astype(jnp.float32))
    return tuple(at_home(sums, rows) for sums in sums_by_branch(values_BS, rows))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_the_same_loss_gradient_and_metrics_whole_and_split(name, monkeypatch):
    """When this fails, a loss misses a response that stands in another row, counts one twice, or reads its prompt twice."""
    monkeypatch.setattr(losses_module, "response_logps", values_of_tokens)
    spec = OBJECTIVES[name]
    rewards = [] if not spec.needs_rewards else ["chosen"]
    config = replace(
        tiny.tiny_config(), objective=from_dict({"objective": {"name": name}, "relabel": {"goals": rewards}}).objective
    )
    unrelated = config.objective.needs("divergence")
    groups = groups_of(WIDTHS[spec.responses], [0, 1, 2], seed=3, unrelated=unrelated)
    losses = make_losses(config, tiny.tiny_spec("llama3"), tiny.mesh_of(1, 1, 1))
    divergence = jnp.float32(0.3) if unrelated else None

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(table_V, rows):
        models = {"table_V": table_V}, {"table_V": jnp.sin(table_V)}
        return losses(*models, rows, remat="none", divergence=divergence)

    table_V = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, tiny.V), jnp.float32)
    whole, parts = (planned(groups, config, **how) for how in (WHOLE, PARTS))
    assert not whole.shape.split and (parts.shape.split or spec.responses == "one")
    most = {letter: max(getattr(plan.shape, letter) for plan in (whole, parts)) for letter in "TSP"}
    shape = replace(whole.shape, **most, split=True)  # of both, so that they share a compiled program
    (loss, sums), gradient = loss_of(table_V, microbatch(groups, whole, shape))
    (split_loss, split_sums), split_gradient = loss_of(table_V, microbatch(groups, parts, shape))
    assert float(jnp.abs(gradient).max()) > 1e-4
    np.testing.assert_allclose(split_loss, loss, rtol=2e-5)
    np.testing.assert_allclose(split_gradient, gradient, rtol=1e-3, atol=1e-5 * float(jnp.abs(gradient).max()))
    tiny.assert_same_trees(split_sums, sums, atol=1e-4, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("kto", (1, 1, 1)), ("dro_pointwise", (1, 2, 1)), ("best goal", (1, 2, 1)), ("dpo and sft", (1, 8, 1))],
)
def test_steps_of_split_groups_are_those_of_whole_groups(name, sizes):
    """When this fails, the gradient of a response that stands on another device than its group is lost, or summed twice."""
    section, groups = CASES[name]
    spec = tiny.tiny_spec("llama3")
    whole = tiny.train_steps(config_of(section, per_shard=4), spec, tiny.mesh_of(1, 1, 1), groups, row_length=80)
    config = config_of(section, per_shard=-(-4 // sizes[1]), split="always")
    plan = tiny.plan_of(groups, config, num_steps=3, row_length=40, num_shards=sizes[1])
    assert plan.shape.split and (plan.shape.M > 1 or sizes[1] == 8)
    parts = tiny.train_steps(config, spec, tiny.mesh_of(*sizes), groups, row_length=40)
    tiny.assert_same_metrics(whole.metrics, parts.metrics, atol=5e-6, rtol=3e-5)
    tiny.assert_same_trees(whole.state.parameters, parts.state.parameters, atol=2e-5)


@pytest.mark.slow
def test_a_pass_over_split_groups_gives_the_numbers_of_whole_groups(tmp_path):
    """When this fails, a cached reference or a score depends on the number of chips that computed it."""
    _, groups = CASES["nca of three"]
    spec, mesh = tiny.tiny_spec("llama3"), tiny.mesh_of(1, 2, 1)
    weights = Weights(spec, tiny.on_mesh(tiny.random_parameters(spec), spec, mesh), mesh)
    needed, known = np.arange(1, NUM_GROUPS), []
    for length, split in ((80, "never"), (40, "always")):
        config = config_of({"name": "nca", "temperature": 1.0}, length=length, per_shard=2, split=split)
        options = pass_options(config, spec, mesh, scored="prompt_too")
        plan = plan_pass(groups, needed, options, num_row_shards=2)
        assert plan.shape.split == (len(plan.moved) > 1) == (split == "always")
        column = Column(tmp_path, split, shape=(NUM_GROUPS, 4), identity={})
        column.open()
        known.append(fill(weights, groups, options, column=column, needed=needed, said=split, place=tmp_path)[1:])
    whole, parts = known
    assert (np.abs(whole) > 1).any(0).all()
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


# The plan.


def test_a_long_pass_is_planned_a_part_at_a_time(monkeypatch):
    """When this fails, the reference of a large data set is planned for hours, or a batch reads what was moved to another."""
    monkeypatch.setattr("rapo_jax.passes.forward_pass.PACKED_AT_ONCE", 10)
    groups = tiny.random_groups(35, seed=2)
    config = tiny.tiny_config(rows={"length": 48, "split": "always"})
    options = pass_options(config, tiny.tiny_spec("llama3"), tiny.mesh_of(1, 1, 1), scored="responses")
    plan = plan_pass(groups, np.arange(35), options, num_row_shards=2)
    assert sorted(member for rows in plan.steps for row in rows for member in row) == list(range(35))
    assert plan.moved and len(plan.steps) > 4
    for number, rows in enumerate(plan.steps):
        moved = plan.moved.get(number, ())
        assert all(
            part.row < len(rows) and part.to < plan.shape.B and part.place < len(rows[part.row]) for part in moved
        )
        materialise(groups, rows, plan.shape, mine=range(plan.shape.B), moved=moved)  # raises where a row overflows
    whole = plan_pass(
        groups, np.arange(35), replace(options, rows=replace(options.rows, length=None, split="auto")), num_row_shards=2
    )
    assert not whole.moved, "a pass has rows enough to fill with whole groups"


def test_the_tiles_of_a_plan_with_split_groups_are_counted():
    """When this fails, `rapo plan` ends with a traceback on many chips, where a group stands in rows beyond the sampled ones."""
    groups = tiny.random_groups(100, seed=0, prompt=(9, 20))
    plan = make_plan(groups, [np.arange(100)], row_length=48, rows_per_shard=96, num_row_shards=1, split="always")
    crossing = [part for part in plan.moved[0] if part.row < NUM_SAMPLED_ROWS <= part.to]
    assert crossing, "the point is a group on both sides of the sample's end"
    tiles = mean_visible_tiles(tiny.tiny_spec("llama3"), groups, plan=plan, tile=(16, 16), length=48)
    assert 3 <= tiles <= 6, "of 9, those below the diagonal are hidden"


def test_a_group_that_fits_no_row_is_split_between_its_responses():
    lengths = GroupLengths(np.array([3, 2]), np.array([[6, 4], [2, 1]]))
    packed = pack_split(lengths, capacity=12, rows_per_block=2)
    assert packed.rows == [[0], [1]]
    assert packed.moved == (Moved(row=0, place=0, branches=(2,), to=1),)


def random_lengths(num, *, seed, num_responses):
    random = np.random.default_rng(seed)
    responses = random.integers(1, 60, (num, num_responses)) * (random.random((num, num_responses)) < 0.9)
    responses[:, 0] = np.maximum(responses[:, 0], 1)
    return GroupLengths(random.integers(3, 40, num), responses)


@pytest.mark.parametrize("num_responses", [1, 2, 4])
@pytest.mark.parametrize("rows_per_block", [4, 6, 32])
def test_every_branch_stands_in_one_row_and_the_parts_of_a_group_in_one_microbatch(num_responses, rows_per_block):
    """When this fails, a response is trained on twice or never, or a loss waits for another microbatch."""
    for seed in range(5):
        lengths = random_lengths(70, seed=seed, num_responses=num_responses)
        packed = pack_split(lengths, capacity=100, rows_per_block=rows_per_block)
        assert sorted(item for row in packed.rows for item in row) == list(range(70))
        used = [[int(lengths.groups[item]) for item in row] for row in packed.rows]
        seen = set()
        for part in packed.moved:
            item = packed.rows[part.row][part.place]
            moved = sum(int(lengths.branches[item][branch - 1]) for branch in part.branches)
            assert moved and part.to != part.row and part.row // rows_per_block == part.to // rows_per_block
            assert not seen & {(item, branch) for branch in part.branches}
            seen |= {(item, branch) for branch in part.branches}
            used[part.row][part.place] -= moved
            used[part.to].append(int(lengths.prompts[item]) + moved)
        assert all(sum(row) <= 100 for row in used)
        assert (len(packed.moved) > 0) == (num_responses > 1)
        assert any(len(row) for row in packed.rows[-rows_per_block:])


@pytest.fixture
def like_ultrafeedback(monkeypatch):
    """Groups with lengths like UltraFeedback's, in at most 512 tokens of prompt and 1,024 of prompt and response, in 16 steps."""
    monkeypatch.setattr(plan_lengths, "NUM_RECORDS", 1024)
    groups = plan_lengths.like_ultrafeedback(from_dict({}))
    return groups, shuffled_steps(np.array([g.num_tokens for g in groups]), batch_size=128, num_steps=16, seed=0)


# With 128 shards a step of 97,400 tokens is 74 % of 128 rows that hold data.max_length: no packing can do better.
@pytest.mark.parametrize(("num_row_shards", "whole_share", "share"), [(64, 0.8, 0.95), (128, 0.4, 0.74)])
def test_few_positions_are_padding_however_many_shards_there_are(
    num_row_shards, whole_share, share, like_ultrafeedback
):
    """When this fails, two of three chips of a large slice compute padding."""
    limits = {"row_length": None, "rows_per_shard": None, "num_row_shards": num_row_shards}
    whole, parts = (make_plan(*like_ultrafeedback, **limits, split=split) for split in ("never", "auto"))
    assert whole.real_token_fraction < whole_share and parts.real_token_fraction >= share
    assert parts.shape.M == 1 and parts.shape.split and (num_row_shards == 64 or parts.shape.T == 1024)


def test_groups_are_split_only_where_that_is_a_clear_gain(like_ultrafeedback):
    """When this fails, runs on few chips copy prompts for nothing."""
    for num_row_shards in (1, 8, 32):
        limits = {"row_length": None, "rows_per_shard": None, "num_row_shards": num_row_shards}
        assert make_plan(*like_ultrafeedback, **limits, split="auto") == make_plan(*like_ultrafeedback, **limits)


@pytest.mark.parametrize(("recorded", "split"), [(None, "auto"), ("{}", "never"), ("rows: {split: auto}", "auto")])
def test_a_run_goes_on_with_the_rows_that_it_began_with(recorded, split, tmp_path):
    """When this fails, a run that an earlier version began has other rows from its next start on."""
    if recorded:
        (tmp_path / "config.yaml").write_text(recorded)
    assert begun_with(tmp_path) == split


def test_a_microbatch_that_cannot_hold_the_parts_of_a_group_is_refused():
    groups = groups_of(WIDTHS["all"], [0])
    with pytest.raises(
        UserError, match=r"need 3 rows of one microbatch, which has 2 rows; raise rows.length or rows.per_sh"
    ):
        planned(groups, tiny.tiny_config(), row_length=38, split="always", rows_per_shard=2)
    with pytest.raises(
        UserError, match=r"prompts? with one response do(es)? not fit rows of 20 tokens; the longest, from row"
    ):
        planned(groups, tiny.tiny_config(), row_length=20, split="always")
