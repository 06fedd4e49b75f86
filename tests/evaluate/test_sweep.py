"""The goal sweep: every prompt at every goal, judged answer by answer."""

from dataclasses import replace

import numpy as np
import pytest

from rapo_jax.errors import UserError
from rapo_jax.evaluate.sweep import Sweep, sweep
from rapo_jax.evaluate.sweep_report import draw_sweeps, sweep_table
from rapo_jax.generate.decode import Sampling
from rapo_jax.opened import open_model
from tests import tiny
from tests.opened.exports import as_export

GOALS = (1.0, 3.0, 5.0)
RISING = Sweep(GOALS, np.array([[1.0, 2.0], [3.0, 3.0], [4.0, 5.0]]), ("a", "b", "c"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    tiny.write_model(directory / "model")
    as_export(directory / "model", directory / "exported")
    return directory


def run(model, judge, **sampling):
    sampling = Sampling(max_new_tokens=5, **sampling)
    return sweep(model, ["Hi", "And you?"], goals=GOALS, judge=judge, sampling=sampling)


def test_every_prompt_is_asked_at_every_goal_and_its_own_answer_is_judged(directory):
    """When this fails, a score is credited to another goal or another prompt."""
    judged = []

    def judge(prompt, response):
        judged.append((prompt, response))
        return float(len(judged))

    found = run(open_model(directory / "exported"), judge)
    assert [prompt for prompt, _ in judged] == ["Hi", "And you?"] * 3
    assert found.scores.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found.examples == tuple(response for _, response in judged[::2])
    assert found.by_goal.tolist() == [1.5, 3.5, 5.5]


def test_a_sweep_stops_where_every_other_generation_stops(directory):
    """When this fails, the judge reads what the model says after the end of its turn."""
    model = open_model(directory / "exported")
    assert model.tokenizer.eos_token_id in model.stop_tokens
    free = run(replace(model, stop_tokens=()), lambda _, response: len(response), temperature=1.0)
    everything = replace(model, stop_tokens=tuple(range(model.spec.V)))
    assert (free.scores > 0).all()
    assert (run(everything, lambda _, response: len(response), temperature=1.0).scores == 0).all()


def test_a_model_without_a_recorded_goal_prompt_is_refused(directory):
    """When this fails, a foreign model is swept in words it never read, and the flat line is taken for a result."""
    with pytest.raises(UserError, match=r"model was not exported by rapo; a sweep needs to know how"):
        run(open_model(directory / "model"), lambda *_: 1.0)


def test_the_rank_correlation_is_over_all_answers_and_0_if_all_scores_are_equal():
    assert RISING.rank_correlation == pytest.approx(16 / (16 * 17) ** 0.5)
    assert replace(RISING, scores=np.ones((3, 2))).rank_correlation == 0


def test_the_table_has_a_column_per_model_and_the_figure_is_drawn(tmp_path):
    sweeps = {"base": [RISING], "ours": [RISING, replace(RISING, scores=RISING.scores + 2)]}
    lines = sweep_table(sweeps).splitlines()
    assert [line.split() for line in lines[1:-1]] == [
        ["1", "1.50", "2.50"],
        ["3", "3.00", "4.00"],
        ["5", "4.50", "5.50"],
    ]
    assert lines[-1].split() == ["rank", "correlation", "+0.97", "+0.97"]
    draw_sweeps(sweeps, tmp_path / "sweep.png", title="Quality by goal")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
