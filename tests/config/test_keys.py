"""What the configuration says about itself: every key has a meaning, and says what a change of it affects."""

import dataclasses

import pytest

from rapo_jax.config.fields import description
from rapo_jax.config.files import as_dict, from_dict
from rapo_jax.config.keys import affects
from rapo_jax.config.tree import Config


def leaves(tree, before=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield before + key


def test_every_key_of_a_resolved_configuration_says_what_it_affects():
    """Breaks: a resumed run would accept a change of what it trains on, or refuse one of how often it logs."""
    config = from_dict({"objective": {"name": "kto"}, "data": {"source_weights": {"web": 0.5}}})
    said = {key: affects(key) for key in leaves(as_dict(config))}
    assert said["data.source_weights.web"] == said["relabel.scale.fit"] == "tokens"
    assert said["objective.desirable_weight"] == said["optimizer.b1"] == said["lora.rank"] == "arithmetic"
    assert said["seed"] == said["train.batch_size"] == "order"
    nothing = {key for key, what in said.items() if what == "nothing"}
    assert {"run_dir", "model.path", "data.path", "rows.length", "mesh.fsdp", "reference.cache"} <= nothing
    assert not {key for key in nothing if key.startswith(("objective", "optimizer", "relabel", "lora"))}


@pytest.mark.parametrize("name", ["optimizer.rate", "optimizer", "data.columns", "seeds"])
def test_only_a_key_affects_anything(name):
    with pytest.raises(KeyError):
        affects(name)


def test_every_field_of_the_configuration_has_a_meaning():
    """Breaks: `rapo keys` prints a key and leaves its reader to guess."""

    def fields(cls):
        for field in dataclasses.fields(cls):
            yield cls, field
            if field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory):
                yield from fields(field.default_factory)

    for cls, field in fields(Config):
        if field.metadata or cls.__name__ != "Objective":
            assert description(field).meaning, (cls, field.name)
