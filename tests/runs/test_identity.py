"""A run's identity: which changes stop it from resuming, in words, and which do not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rapo_jax.config.files import from_dict
from rapo_jax.runs.identity import Identity, in_words, origins, recorded, reference_differences, reference_identity
from rapo_jax.runs.settings import changes, not_default, settings_of

DATA = {"path": "pairs.jsonl", "eval_fraction": 0.1}
IDENTITY = Identity(model="m", tokenizer="t", data="d", tokens="k", settings={})


def settings(**sections):
    return settings_of(from_dict({"data": DATA} | sections))


def said(before, now, *, given=None):
    return [str(change) for change in changes(before, now, given=given)]


def test_a_run_of_a_version_with_fewer_keys_resumes():
    """When this fails, every new key ends every run that is under way."""
    now = settings()
    before = {key: value for key, value in now.items() if key not in ("data.pairs", "optimizer.b2", "objective.beta")}
    assert said(before, now) == []


def test_another_day_in_the_chat_template_is_named():
    """When this fails, whoever resumes a run of a dated template tomorrow is told of another version of rapo_jax."""
    before, now = (settings(data=DATA | {"date": day}) for day in ("2026-11-27", "2026-11-28"))
    assert said(before, now) == ["data.date ('2026-11-27' -> '2026-11-28')"]
    older = {key: value for key, value in before.items() if key != "data.date"}
    assert said(older, now) == []
    runs = replace(IDENTITY, settings=older), replace(IDENTITY, tokens="other", settings=now)
    (words,) = in_words(*runs, [], {})
    assert words.startswith(
        "the tokenization (another day in the chat template, which now writes data.date=2026-11-28, or another version"
    )


def test_a_new_key_that_is_set_is_a_change():
    """When this fails, half a run is trained without a setting that the other half has."""
    before = {key: value for key, value in settings().items() if key != "optimizer.b2"}
    assert said(before, settings(optimizer={"b2": 0.95})) == ["optimizer.b2 (0.999 -> 0.95)"]


def test_a_run_of_a_later_version_resumes_unless_a_key_of_its_own_is_set():
    """When this fails, whoever goes back one version cannot resume, or resumes with something else."""
    later = settings() | {"optimizer.b3": 0.5, "data.colour": "blue"}
    given = [*not_default(settings()), "data.colour"]
    assert said(later, settings(), given=given) == ["data.colour ('blue' -> None)"]


def test_a_record_of_all_settings_with_its_nulls_and_lists_is_the_same_run():
    """When this fails, runs of the first version, whose records hold every option of every loss, cannot resume."""
    added = {"name": "sft", "weight": 0.5, "plus": [], "beta": None, "best_goal_weight": 0.0, "gamma": None}
    before = settings(objective={"name": "simpo", "gamma": 0.3}) | {
        "objective.plus": [added],
        "objective.delta": None,
        "objective.label_smoothing": None,
        "data.sources": [],
        "objective.length_weight": None,
    }
    now = settings(objective={"name": "simpo", "gamma": 0.3, "plus": [{"name": "sft", "weight": 0.5}]})
    assert said(before, now) == []
    other = settings(objective={"name": "simpo", "gamma": 0.3, "plus": [{"name": "sft", "weight": 0.7}]})
    assert said(before, other) == ["objective.plus[0].weight (0.5 -> 0.7)"]


def test_a_default_that_another_version_changed_is_a_change():
    """When this fails, a run silently continues with another version's default."""
    assert said(settings() | {"optimizer.b2": 0.9}, settings(), given=[]) == ["optimizer.b2 (0.9 -> 0.999)"]


@pytest.mark.parametrize(
    "changed",
    [
        {"run_dir": "elsewhere", "mesh": {"tensor": 2}, "rows": {"length": 64}, "train": {"log_every": 7}},
        {"model": {"path": "elsewhere", "remat": "none"}, "data": DATA | {"path": "elsewhere.jsonl"}},
    ],
)
def test_settings_that_do_not_affect_training_are_not_part_of_the_identity(changed):
    """When this fails, a run cannot be moved to another directory, mesh or machine."""
    assert settings(**changed) == settings()


def test_data_may_move_whether_it_is_one_source_or_several():
    """When this fails, a run on several sources, unlike one on a single source, is tied to their directories."""
    here, there = (
        settings(data={"sources": [{"path": f"{place}/a.jsonl", "weight": 2.0}, {"path": f"{place}/b.jsonl"}]})
        for place in ("here", "there")
    )
    assert said(here, there) == []
    other = settings(data={"sources": [{"path": "a.jsonl", "weight": 3.0}, {"path": "b.jsonl"}]})
    assert said(here, other) == ["data.sources[0].weight (2.0 -> 3.0)"]


def test_lora_counts_only_where_adapters_are_trained():
    """When this fails, an unused section stops a run, or adapters of another rank do not."""
    assert not [key for key in settings() if key.startswith("lora.")]
    assert said(settings(lora={"rank": 4}), settings(lora={"rank": 8})) == ["lora.rank (4 -> 8)"]
    assert said(settings(lora={"rank": 4}), settings()) == ["lora.rank (4 -> None)"]


@pytest.mark.parametrize(
    ("data", "part", "place"),
    [
        (DATA, "train", "pairs.jsonl"),
        (DATA, "eval", "pairs.jsonl"),
        ({"path": "pairs.jsonl", "eval_path": "held_out.jsonl"}, "eval", "held_out.jsonl"),
        ({"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]}, "train", "a.jsonl, b.jsonl"),
    ],
)
def test_a_message_names_where_the_changed_data_comes_from(data, part, place):
    """When this fails, a user reads that "the data ()" changed."""
    places = origins(from_dict({"data": data}), part)
    assert in_words(IDENTITY, replace(IDENTITY, data="other"), [], places) == [f"the data ({place})"]


def test_a_record_that_lacks_a_hash_is_damaged():
    """When this fails, users get a traceback instead of a sentence."""
    with pytest.raises(ValueError, match="lacks data, settings; it is damaged"):
        recorded({"model": "m", "tokenizer": "t", "tokens": "k"})
    assert recorded(IDENTITY.record() | {"of_a_later_version": 1}).model == "m"


def test_cached_log_probabilities_belong_to_weights_tokens_and_arithmetic_alone():
    """When this fails, a sweep over the loss recomputes its reference, or a cache serves other texts or dtypes."""
    run, config = replace(IDENTITY, settings=settings()), from_dict({"data": DATA})
    data = SimpleNamespace(source_fingerprint="d", fingerprint="k")
    before = reference_identity(run, data, config).record()

    def differences(config, **hashes):
        now = reference_identity(replace(run, settings=settings_of(config)), data, config)
        return reference_differences(before, replace(now, **hashes), config, "train")

    sweep = {"objective": {"name": "ipo", "beta": 0.3}, "optimizer": {"learning_rate": 1e-3}, "seed": 3}
    assert differences(from_dict({"data": DATA | {"schema": "pairs"}} | sweep)) == []
    shorter = from_dict({"data": DATA | {"max_length": 900}})
    assert differences(shorter) == differences(shorter, tokens="other") == ["data.max_length (1024 -> 900)"]
    assert differences(from_dict({"data": DATA, "model": {"dtype": "float32"}})) == [
        "model.dtype ('bfloat16' -> 'float32')"
    ]
    prompts_too = from_dict(
        {"data": DATA, "relabel": {"goals": []}, "objective": {"name": "dro_pointwise", "beta": 0.1}}
    )
    assert "scored ('responses' -> 'prompt_too')" in differences(prompts_too)
    assert differences(config, tokens="other")[0].startswith("the tokenization (another version")
    assert differences(from_dict({"data": DATA, "seed": 3}), tokens="other") == ["seed (0 -> 3)"], "other rows held out"
    best = from_dict({"data": DATA | {"pairs": "best_worst"}})
    assert differences(best, tokens="other") == ["data.pairs ('auto' -> 'best_worst')"]
