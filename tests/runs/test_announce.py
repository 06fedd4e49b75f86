"""What a run says before its first step."""

import pytest

from rapo_jax.config.tree import Relabel
from rapo_jax.data.notes import notes_on_goals
from rapo_jax.runs.announce import tell

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


def test_a_line_is_wrapped_under_its_label_and_a_long_path_is_whole(capsys):
    """When this fails, the path of a model loses its beginning, or a screen of 80 columns breaks lines anywhere."""
    path = "/mnt/disks/persistent/teams/alignment/checkpoints/2026-11-27/llama-3.1-8b-instruct-hf:"
    tell("model", path)
    tell("note", "59% of all tokens are cut; data.max_length=512 and data.max_prompt_length=128 set how much is kept")
    assert capsys.readouterr().out.splitlines() == [
        f"  model  {path}",
        "  note   59% of all tokens are cut; data.max_length=512 and",
        "         data.max_prompt_length=128 set how much is kept",
    ]
