"""A family is one entry; adding one from outside the package is enough to train it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from rapo_jax.models.families import FAMILIES, Family
from rapo_jax.models.parameters import parameter_letters
from rapo_jax.models.spec import identity_fields, read_config, spec_from_config
from rapo_jax.models.table import table
from tests import tiny
from tests.tiny import families


@pytest.fixture
def toy_family(monkeypatch):
    """A family with norms after its branches alone, a key of its own, and a tensor with a name of its own."""
    toy = Family(
        "toy",
        "Toy",
        keys=frozenset({"embedding_scaling"}),
        switches={"norms": "after"},
        fields=lambda config: {"scaled_embeddings": bool(config.get("embedding_scaling"))},
        tensors={"attention_out_norm": "norm_after_attention.weight", "embed": "model.tokens.weight"},
    )
    monkeypatch.setitem(FAMILIES, "toy", toy)
    for key, value in {"model_type": "toy", "architectures": ["ToyForCausalLM"], "embedding_scaling": True}.items():
        monkeypatch.setitem(tiny.CONFIG, key, value)
    return toy


@pytest.mark.slow
def test_a_family_from_outside_opens_trains_and_exports(toy_family, tmp_path):
    """When this fails, a family needs edits all over the package, or training ignores its norm placement."""
    model = tiny.write_model(tmp_path / "model")
    spec = spec_from_config(read_config(model))
    assert (spec.norms, spec.scaled_embeddings) == ("after", True)
    assert ("blocks", "attention_norm") not in parameter_letters(spec)
    (tmp_path / "run.yaml").write_text(tiny.RUN)
    data, run = tiny.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    overrides = (f"model.path={model}", f"data.path={data}", f"run_dir={run}", "optimizer.warmup_ratio=0")
    assert tiny.rapo("train", tmp_path / "run.yaml", *overrides) == 0
    assert tiny.rapo("export", run, tmp_path / "out") == 0
    before, after = (load_file(directory / "model.safetensors") for directory in (model, tmp_path / "out"))
    assert before.keys() == after.keys() == {row.name for row in table(spec)}
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert {"model.layers.1.norm_after_attention.weight", "model.tokens.weight"} <= moved
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert spec_from_config(exported) == spec


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (families.LLAMA, {}),
        (families.QWEN2, {"norm_eps": "1e-06", "qkv_bias": "True"}),
        (
            families.GEMMA2,
            {
                "norm_eps": "1e-06",
                "windows": "(8, 1073741824, 8, 1073741824)",
                "H": "16",
                "L": "4",
                "tied": "True",
                "activation": "'gelu_tanh'",
                "query_scale": "0.2041241452319315",
                "attention_softcap": "5.0",
                "final_softcap": "3.0",
                "gemma": "True",
            },
        ),
    ],
    ids=["llama", "qwen2", "gemma2"],
)
def test_the_identity_of_a_model_is_written_as_earlier_versions_wrote_it(config, expected):
    """When this fails, a run directory of an earlier version is refused as "trained with another model". The values are
    literal because they are hashed on disk; their order counts as well."""
    theta = "1000000.0" if config is families.QWEN2 else "10000.0"
    historic = {
        "family": repr(config["model_type"]),
        "V": "96",
        "D": "32",
        "L": "3",
        "N": "4",
        "K": "2",
        "H": "8",
        "F": "48",
        "norm_eps": "1e-05",
        "rope": f"Rope(theta={theta}, kind='default', factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, "
        "original_max_positions=8192)",
        "windows": "(1073741824, 1073741824, 1073741824)",
        "tied": "False",
        "query_scale": "0.3535533905932738",
    } | expected
    order = [
        *list(historic)[:12],
        "activation",
        "qkv_bias",
        "query_scale",
        "attention_softcap",
        "final_softcap",
        "gemma",
    ]
    found = identity_fields(spec_from_config(config))
    assert found == historic
    assert list(found) == [name for name in order if name in historic]


def test_another_mix_of_switches_has_an_identity_of_its_own(toy_family):
    """When this fails, two models that compute different things are taken for the same one."""
    spec = spec_from_config(families.LLAMA | {"model_type": "toy"})
    assert {k: v for k, v in identity_fields(spec).items() if k == "norms" or k == "gemma"} == {"norms": "'after'"}
