"""What the configuration says about itself: every key has a meaning, and says what changing it affects."""

import pytest

from rapo_jax.config.files import as_dict, from_dict
from rapo_jax.config.keys import affects, keys_of, listing
from rapo_jax.errors import UserError
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.objectives.options import papers_of


def leaves(tree, before=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield before + key


def test_every_key_of_a_resolved_configuration_says_what_it_affects():
    """When this fails, a resumed run accepts a change of its training data, or refuses one of how often it logs."""
    config = from_dict({"objective": {"name": "kto"}, "data": {"source_weights": {"web": 0.5}}})
    said = {key: affects(key) for key in leaves(as_dict(config))}
    assert said["data.source_weights.web"] == said["relabel.scale.fit"] == "tokens"
    assert said["objective.desirable_weight"] == said["optimizer.b1"] == said["lora.rank"] == "arithmetic"
    assert said["seed"] == said["train.batch_size"] == "order"
    nothing = {key for key, what in said.items() if what == "nothing"}
    assert {"run_dir", "model.path", "data.path", "rows.length", "mesh.fsdp", "reference.cache"} <= nothing
    assert not {key for key in nothing if key.startswith(("objective", "optimizer", "relabel", "lora"))}


@pytest.mark.parametrize("name", ["optimizer.rate", "optimizer", "data.columns", "seeds"])
def test_the_effect_of_a_name_that_is_not_a_key_is_an_error(name):
    with pytest.raises(KeyError):
        affects(name)


# What `rapo keys` prints.


def test_every_key_is_listed_with_its_meaning_in_80_columns():
    """When this fails, a key can be set but is documented nowhere."""
    text = listing()
    assert max(map(len, text.splitlines())) <= 80
    for key in leaves(as_dict(from_dict({}))):
        assert f"{key} = " in text, key
    assert "train.batch_size = 128  (integer > 0; affects order; read by train, plan)\n    groups" in text
    assert "data.sources[N].columns.prompt = " in text and "objective.given" not in text
    assert all(key.meaning for key in keys_of())


def test_every_loss_is_listed_with_its_options_and_its_paper():
    text = listing("objective")
    for name, spec in OBJECTIVES.items():
        assert f"\nobjective.name={name}\n" in text
        assert papers_of(spec.loss).split()[0] in text
    assert text.startswith("objective.name = dpo")


def test_a_prefix_selects_keys():
    """When this fails, someone looking for one loss has to read all of them."""
    assert listing("objective.dpo") == (
        "objective.name=dpo\n"
        "    Direct preference optimization; with label smoothing, conservative DPO.\n"
        '    Needs pairs and a reference. Rafailov et al., "Direct Preference\n'
        '    Optimization: Your Language Model is Secretly a Reward Model", 2023, eq. 7.\n'
        '    Mitchell, "A note on DPO with noisy preferences and relationship to IPO",\n'
        "    2023 (e > 0).\n"
        "    objective.beta = 0.01  (number > 0)\n"
        "        strength of the pull towards the reference\n"
        "    objective.label_smoothing = 0  (number [0, 0.5))\n"
        "        share of preferences assumed to be flipped"
    )
    assert listing("objective.odds_weight").startswith("objective.name=orpo\n")
    assert listing("lora.ra").startswith("lora.rank = null  (integer > 0 or null; affects arithmetic; ")
    assert listing("objective.dp").count("objective.name=") == 3
    with pytest.raises(UserError, match=r"no configuration key begins with 'trian'; did you mean 'train'\?"):
        listing("trian")
