"""Rotary embeddings are read from both spellings, and what does not fit is refused."""

import pytest

from rapo_jax.errors import UserError
from rapo_jax.models.rope_config import Rope, rope_from_config
from rapo_jax.models.spec import spec_from_config
from tests.tiny.families import LLAMA

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0,
        "original_max_position_embeddings": 16}  # fmt: skip


def read(**rope) -> Rope:
    return rope_from_config(LLAMA | {"rope_scaling": rope})


def test_a_rope_of_an_earlier_version_is_written_into_identities_as_it_was():
    """When this fails, run directories of earlier versions are refused as trained with another model."""
    assert repr(Rope()) == (
        "Rope(theta=10000.0, kind='default', factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, "
        "original_max_positions=8192)"
    )
    assert repr(Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 16)) == (
        "Rope(theta=500000.0, kind='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, "
        "original_max_positions=16)"
    )
    assert repr(read(**YARN)).endswith("original_max_positions=16, attention_factor=1.138629436111989)")
    names = {name.split("=")[0] for name in repr(read(**LONG)).removeprefix("Rope(").split(", ") if "=" in name}
    assert {"short_factors", "long_factors", "attention_factor"} <= names


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (YARN, Rope(1e4, "yarn", 4.0, original_max_positions=16, attention_factor=1.138629436111989)),
        ({"type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 8, "attention_factor": 2},
         Rope(1e4, "yarn", 4.0, original_max_positions=256, attention_factor=2.0, beta_fast=8, truncate=False)),
        (YARN | {"mscale": 0.707, "mscale_all_dim": 0.707, "beta_slow": None},
         Rope(1e4, "yarn", 4.0, original_max_positions=16)),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5},
         Rope(5e5, "dynamic", 2.0, original_max_positions=256)),
        (YARN | {"attn_factor": 0.8782488562869419},
         Rope(1e4, "yarn", 4.0, original_max_positions=16, attention_factor=1.138629436111989)),
        (LONG, Rope(1e4, "longrope", 4.0, original_max_positions=16, attention_factor=1.5**0.5,
                    short_factors=(1.0, 1.1, 1.2, 1.3), long_factors=(2.0, 3.0, 4.0, 5.0))),
    ],
)  # fmt: skip
def test_both_spellings_of_every_kind_are_read_alike(rope, expected):
    """When this fails, a model with an extended context depends on which version of transformers saved it."""
    found = rope_from_config(LLAMA | {"rope_scaling": rope})
    assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-12)
    assert repr(found).partition("attention_factor")[0] == repr(expected).partition("attention_factor")[0]
    assert found == rope_from_config(LLAMA | {"rope_parameters": {"rope_theta": 1e4} | rope})
    assert found == rope_from_config(LLAMA | {"rope_parameters": rope, "rope_scaling": rope})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": YARN | {"factor": None}}, "rope_type='yarn' has unknown keys none, lacks factor."),
        ({"rope_scaling": YARN | {"low_freq_factor": 1.0}}, "rope_type='yarn' has unknown keys low_freq_factor, lacks none."),
        ({"rope_scaling": YARN | {"truncate": 1}}, "must be an object whose rope_type is a text and whose factors are"),
        ({"rope_scaling": LONG | {"long_factor": 3.0}}, "must be an object whose rope_type is a text and whose factors are"),
        ({"rope_scaling": LONG | {"long_factor": [1.0, 2.0, 3.0, 0.0]}}, "whose factors are positive"),
        ({"rope_scaling": LONG | {"short_factor": [1.0, 2.0]}},
         "config.json: short_factor has 2 numbers for 4 pairs of dimensions that turn."),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}},
         "config.json: partial_rotary_factor=0.5 is not computed for this model_type."),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None},
         "config.json lacks max_position_embeddings, from which its rotary embedding follows."),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2},
         "rope_type='dynamic' needs more than 2 dimensions that turn"),
    ],
)  # fmt: skip
def test_a_rope_that_does_not_fit_is_refused(change, message):
    """When this fails, positions are slightly wrong, and answers read well for a page and then do not."""
    with pytest.raises(UserError) as caught:
        spec_from_config(LLAMA | change)
    assert message in str(caught.value)
