"""Metrics: each is one entry, and one from outside the package is reported like any other."""

import numpy as np
import pytest

from rapo_jax.config.files import from_dict
from rapo_jax.train.metrics import METRICS, Metric, Microbatch, Values, register_metric
from tests import tiny


def response_tokens(groups: Microbatch) -> Values:
    return groups.logps.num_tokens.sum(-1), groups.everywhere


@pytest.fixture
def outsider():
    register_metric("tokens/responses", Metric(response_tokens))
    yield
    del METRICS["tokens/responses"]


def test_a_metric_from_outside_is_reported_by_every_step(outsider):
    """When this fails, whoever adds a metric has to change the step, or the loop, as well."""
    groups, config = tiny.random_groups(4), tiny.tiny_config(train={"batch_size": 4})
    trained = tiny.train_steps(config, tiny.tiny_spec("llama3"), tiny.mesh_of(1, 1, 1), groups, num_steps=1)
    expected = np.mean([sum(map(len, group.responses)) for group in groups])
    assert trained.metrics[0]["tokens/responses"] == pytest.approx(expected)
    assert "goal_chosen/tokens/responses" in trained.metrics[0]


def test_a_metric_name_can_be_registered_only_once():
    with pytest.raises(ValueError, match="'loss' exists"):
        register_metric("loss", Metric(response_tokens))


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("dpo", {"logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}),
        ("orpo", {"logps/chosen", "logps/rejected"}),
        ("sft", {"logps/chosen"}),
        ("bradley_terry", {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}),
    ],
)  # fmt: skip
def test_an_objective_reports_only_metrics_that_apply_to_it(name, reported):
    """When this fails, a reward model reports likelihoods, or a loss without beta meaningless implicit rewards."""
    objective = from_dict({"objective": {"name": name}, "relabel": {"goals": []}}).objective
    assert {key for key, metric in METRICS.items() if metric.applies_to(objective)} == {"loss"} | reported


def test_kto_and_dro_report_what_they_compare_with():
    for name, extra in {"kto": "kl", "dro_pointwise": "rewards/prompt"}.items():
        objective = from_dict({"objective": {"name": name}}).objective
        others = {key for key, metric in METRICS.items() if metric.applies_to(objective)}
        assert extra in others and len(others & {"kl", "rewards/prompt"}) == 1
