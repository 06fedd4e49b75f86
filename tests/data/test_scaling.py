"""Rewards of any range are mapped to the goals' scale, by a map that is fitted once."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.borders import write_json
from rapo_jax.config.tree import Relabel, ScaleFit
from rapo_jax.data.scaling import Scales, fit_scales, read_scales
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record
from rapo_jax.relabel import Scale, fit_range

HI = (Message("user", "Hi"),)


def records(*rewards):
    return [Record(n, HI, ("A", "B"), pair) for n, pair in enumerate(rewards, 1)]


def scaled(rewards, **options):
    found = records(*rewards)
    scales = fit_scales(found, Relabel(**options))
    return [scales.record(record).rewards for record in found]


def test_without_a_scale_rewards_stay_what_they_are():
    assert fit_scales(records((9, 6)), Relabel()) == Scales()
    assert scaled([(12, -6.25)]) == [(12, -6.25)]


def test_extreme_rewards_become_the_ends_of_the_scale():
    fit = ScaleFit(fit="minmax")
    assert scaled([(0.2, 0.1), (0.0, 0.05)], scale=fit) == [(10, 5.5), (1, 3.2)]
    assert scaled([(0.2, 0.1), (0.0, 0.05)], scale=fit, goal_max=100.0) == [(100, 50.5), (1, 25.8)]
    assert scaled([(4, 0), (2, 3)], scale=fit, goal_min=0.0, goal_max=1.0, decimals=2) == [(1, 0), (0.5, 0.75)]


@pytest.mark.parametrize(("top", "expected"), [(5.0, (3.9, 4.1)), (10.0, (7.5, 8.0)), (100.0, (72.5, 78.0))])
def test_the_scales_of_the_papers_ablation(top, expected):
    fit = ScaleFit(fit="range", source_min=1.0, source_max=10.0)
    assert scaled([(7.5, 8.0)], scale=fit, goal_max=top) == [expected]


def test_rewards_beyond_the_ends_are_clipped_or_extrapolated():
    fit = {"fit": "range", "source_min": 0.0, "source_max": 4.0}
    assert scaled([(-1, 6)], scale=ScaleFit(**fit)) == [(1, 10)]
    assert scaled([(-1, 6)], scale=ScaleFit(**fit, clip=False)) == [(-1.2, 14.5)]


def test_outliers_do_not_squeeze_the_rest_with_quantiles_or_deviations():
    pairs = [(n / 100, n / 100) for n in range(101)] + [(1000.0, 0.5)]
    by_quantile = scaled(pairs, scale=ScaleFit(fit="quantile", quantile=0.02))
    assert by_quantile[0][0] == 1 and 5.3 < by_quantile[50][0] < 5.7 and by_quantile[-1][0] == 10
    by_extremes = scaled(pairs, scale=ScaleFit(fit="minmax"))
    assert by_extremes[50][0] == by_extremes[0][0] == 1
    mean = scaled([(0.0, 2.0), (1.0, 1.0)], scale=ScaleFit(fit="zscore", deviations=2.0), decimals=6)
    assert mean[1] == (5.5, 5.5)


def test_rounding_alone_does_not_rescale():
    assert scaled([(7.5955, 1.0712)], decimals=1) == [(7.6, 1.1)]
    assert scaled([(12.34, 7.5)], decimals=0) == [(12, 8)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.sampled_from(["minmax", "quantile", "zscore"]))
def test_a_scale_keeps_the_order_and_stays_within_its_ends(rewards, how):
    """When this fails, a map reverses a pair, or a goal is off the scale that the sentence names."""
    low, high = fit_range(rewards, how)
    if not high > low:
        return
    mapped = [Scale(low, high)(reward) for reward in sorted(rewards)]
    assert mapped == sorted(mapped)
    assert all(1 - 1e-9 <= goal <= 10 + 1e-9 for goal in mapped)


@pytest.mark.parametrize("how", ["minmax", "quantile", "zscore"])
def test_a_scale_of_zero_width_is_one_clear_error(how):
    with pytest.raises(UserError) as caught:
        scaled([(0.5, 0.5)], scale=ScaleFit(fit=how))
    assert str(caught.value) == (
        f"relabel.scale.fit={how}: the scale of the 2 rewards goes from 0.5 to 0.5, a width of zero, which "
        "maps all responses to one score. Choose another relabel.scale.fit, or check the scores."
    )


def test_every_attribute_has_a_map_of_its_own(tmp_path):
    marks = ({"wit": 4, "truth": 100, "other": 7}, {"wit": 0, "truth": 50, "other": 7})
    record = Record(1, HI, ("A", "B"), (0.3, 0.1), marks)
    scales = fit_scales([record], Relabel(attributes=("wit", "truth"), scale=ScaleFit(fit="minmax")))
    assert scales.record(record).attributes == (
        {"wit": 10, "truth": 10, "other": 7},
        {"wit": 1, "truth": 1, "other": 7},
    )
    assert scales.record(record).rewards == (0.3, 0.1)


def test_sources_of_different_ranges_have_maps_of_their_own(tmp_path):
    """When this fails, a judge's scores of 0 to 0.2 all become the lowest goal in a mixture with scores of 1 to 10."""
    mixed = [replace(record, source=name) for record, name in zip(records((0.2, 0.0), (8, 4)), "ab", strict=True)]
    scales = fit_scales(mixed, Relabel(scale=ScaleFit(fit="minmax", by="source")))
    assert [scales.record(record).rewards for record in mixed] == [(10, 1), (10, 1)]
    write_json(tmp_path / "scale.json", scales.tree())
    assert read_scales(str(tmp_path / "scale.json")) == scales
    with pytest.raises(
        UserError, match=r"row 1 is of source 'c', for which relabel.scale.by=source has no map; known: 'a', 'b'"
    ):
        scales.record(replace(mixed[0], source="c"))


def test_a_later_round_shares_the_map_of_the_first(tmp_path):
    """When this fails, the same reward is another goal in the second round."""
    first = fit_scales(records((0.2, 0.0)), Relabel(scale=ScaleFit(fit="minmax")))
    write_json(tmp_path / "scale.json", first.tree())
    assert json.loads((tmp_path / "scale.json").read_text())["reward"]["high"] == 0.2
    assert read_scales(str(tmp_path / "scale.json")) == first
    assert scaled([(0.1, 0.3)], scale=ScaleFit(file=str(tmp_path / "scale.json"))) == [(5.5, 10)]


@pytest.mark.parametrize(
    "text", [None, "not JSON", "[]", '{"reward": {"low": 1}}', '{"reward": {"low": 1, "high": 1}}']
)
def test_a_file_that_is_not_a_map_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "scale.json").write_text(text)
    with pytest.raises(UserError, match=r"scale\.json.*; relabel\.scale\.file must be a scale\.json"):
        read_scales(str(tmp_path / "scale.json"))


def test_scores_too_far_apart_for_a_number_are_one_clear_error():
    """When this fails, one score of 1e308 makes every goal NaN, or ends the report in a traceback."""
    with pytest.raises(
        UserError, match=r"goes from -1e\+308 to 1e\+308, further than a number goes; correct the scores"
    ):
        scaled([(1e308, -1e308)], scale=ScaleFit(fit="minmax"))
