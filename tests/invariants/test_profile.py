"""The speed that the training loop reports, and the trace that it can write."""

import json

import numpy as np
import pytest

from rapo_jax.accounting import real_work, step_flops
from rapo_jax.batching import pipeline
from rapo_jax.parallel import num_row_shards
from rapo_jax.runs.setup import open_run_dir, read_training_data, set_up
from rapo_jax.runs.train import step_costs
from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profiled(world, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("profiled") / "run"
    assert tiny.rapo(*world.train(run_dir, "train.max_steps=6", "train.profile_steps=2")) == runs.DONE
    return run_dir


def test_the_trace_of_the_requested_steps_is_written(profiled):
    """When this fails, train.profile_steps is an option that nothing reads, or the profiler never stops."""
    traces = list((profiled / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


def test_the_reported_speeds_are_consistent(profiled):
    """When this fails, pairs/s, tokens/s and the time of a step contradict each other."""
    lines = (profiled / "metrics.jsonl").read_text().splitlines()
    setup = set_up(open_run_dir(profiled))
    data = read_training_data(setup)
    plan = pipeline.plan_training(data.groups, setup.config, num_row_shards=num_row_shards(setup.mesh))
    costs = step_costs(data, plan, setup)
    for record in map(json.loads, lines[1:]):
        cost = costs(record["step"] - 1)
        assert record["pairs_per_s"] * record["time/step_s"] == pytest.approx(8)
        assert record["real_tokens_per_s"] * record["time/step_s"] == pytest.approx(cost.real_tokens)
        assert record["real_token_fraction"] == pytest.approx(cost.real_tokens / cost.positions)
        assert 0 <= record["time/waiting_for_data_s"] <= record["time/step_s"] * 2
        assert 0 <= record["time/saving_s"] <= record["time/step_s"]


def test_the_cost_of_all_steps_is_that_of_their_groups(profiled):
    """When this fails, MFU counts tokens that were not there, or omits the reference."""
    setup = set_up(open_run_dir(profiled))
    data = read_training_data(setup)
    plan = pipeline.plan_training(data.groups, setup.config, num_row_shards=num_row_shards(setup.mesh))
    members = [data.groups[i] for rows in plan.steps for row in rows for i in row]
    by_group = 0.0
    for group in members:
        prompt, responses = np.array([len(group.prompt)]), np.array([[len(y) for y in group.responses]])
        by_group += step_flops(setup.spec, real_work(prompt, responses, setup.spec.windows), reference=True)
    total = sum(step_costs(data, plan, setup)(step).useful_flops for step in range(len(plan.steps)))
    assert total == pytest.approx(by_group, rel=1e-9)
