"""What is said at the start of a run about its goals."""

import pytest

from rapo_jax.config.tree import Relabel
from rapo_jax.runs.announce import notes_on_goals

FINE = "12 goals have more than two decimals, so 10 is hardly ever asked for as it will be later; relabel.decimals=1 rounds them"


@pytest.mark.parametrize(
    ("goals", "relabel", "notes"),
    [
        ((0, 12), Relabel(), [FINE]),
        ((0, 12), Relabel(decimals=4), []),
        ((0, 0), Relabel(), []),
        ((3, 0), Relabel(), ["3 goals are not from 1 to 10; relabel.scale.fit maps scores"]),
    ],
)
def test_goals_that_nobody_will_ask_for_are_noted(goals, relabel, notes):
    """When this fails, a model is trained on "9.9987" and later asked for "10", which it never saw, and nobody knows."""
    counts = dict(zip(("outside_scale", "finer_than_two_decimals"), goals, strict=True))
    assert list(notes_on_goals(counts, relabel)) == notes
