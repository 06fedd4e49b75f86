"""Which evaluation is the best, and how long ago it was."""

import math

import pytest

from rapo_jax.checkpoint import NONE_BEST, Best
from rapo_jax.train.best import aim_of


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eval_loss", "lowest eval_loss"),
        ("eval_goal_chosen/loss", "lowest eval_goal_chosen/loss"),
        ("eval_kl", "lowest eval_kl"),
        ("eval_rewards/accuracies", "highest eval_rewards/accuracies"),
        ("lowest eval_rewards/accuracies", "lowest eval_rewards/accuracies"),
        (" highest  eval_loss ", "highest eval_loss"),
    ],
)
def test_a_metric_has_a_best_end(text, said):
    assert aim_of(text).said == said


def test_evaluations_are_counted_since_the_best():
    """0.5 betters 0.6; an equal one, a worse one, one that is no number and an absent one do not; 0.4 does."""
    aim, best, seen = aim_of("eval_loss"), NONE_BEST, []
    for step, metrics in enumerate(
        [{"eval_loss": x} for x in (0.6, 0.5, 0.5, 0.7, math.nan)] + [{}, {"eval_loss": 0.4}], start=1
    ):
        best = aim.after(best, metrics, step=step)
        seen.append((best.value, best.step, best.since))
    assert seen == [(0.6, 1, 0), (0.5, 2, 0), (0.5, 2, 1), (0.5, 2, 2), (0.5, 2, 3), (0.5, 2, 4), (0.4, 7, 0)]


def test_the_highest_is_the_best_of_a_share_and_another_metric_begins_anew():
    aim = aim_of("eval_rewards/accuracies")
    best = aim.after(Best("lowest eval_loss", 0.1, 3, 2), {"eval_rewards/accuracies": 0.6}, step=4)
    assert best == Best("highest eval_rewards/accuracies", 0.6, 4, 0)
    assert aim.after(best, {"eval_rewards/accuracies": 0.5}, step=5).since == 1
    assert aim.after(best, {"eval_rewards/accuracies": 0.7}, step=5).step == 5
    assert aim_of("eval_loss").after(NONE_BEST, {"eval_loss": math.inf}, step=1) == Best("lowest eval_loss", None, 0, 1)
