"""Every family computes what transformers computes, and its weights survive the way in and out bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.files import load_parameters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.models.weights import Held
from rapo_jax.models.writing import save_parameters
from rapo_jax.parallel import make_mesh
from tests.tiny.families import FAMILIES
from tests.tiny.parameters import file_tensors


def random_checkpoint(config: dict, directory, *, dtype=torch.float32, shard_size="5GB"):
    """A transformers model with weights large enough that every flag shows in the logits, saved to `directory`."""
    torch.manual_seed(0)
    cls = getattr(transformers, config["architectures"][0])
    model = cls._from_config(transformers.AutoConfig.for_model(**config), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name or "bias" in name else 0.15
            parameter.add_(spread * torch.randn_like(parameter))
    model = model.to(dtype)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model


def our_logits(directory, tokens_BT):
    spec = spec_from_config(read_config(directory))
    parameters = load_parameters(directory, spec, mesh=make_mesh(fsdp=-1))
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def forward(parameters, tokens_BT):
        decoder = nnx.merge(graph, parameters)
        hidden_BTD = decoder(tokens_BT, plain_layout(tokens_BT))
        return decoder.logits(hidden_BTD)

    return np.asarray(forward(parameters, jnp.asarray(tokens_BT)))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_with_transformers_beyond_every_window(family, tmp_path):
    model = random_checkpoint(FAMILIES[family], tmp_path)
    tokens_BT = np.random.default_rng(0).integers(0, 96, (2, 40))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens_BT)).logits.numpy()
    ours = our_logits(tmp_path, tokens_BT)
    assert np.abs(theirs).max() > 1.0
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "olmo3-yarn", "gemma", "gemma3", "granite", "smollm3"])
@pytest.mark.slow
def test_gradients_agree_with_torch(family, tmp_path):
    """When this fails, a norm of queries and keys, a multiplier or a layer without rotary embedding is right in the forward pass
    and trains on another gradient. The families are those of every switch that trajectories of whole runs leave out."""
    model = random_checkpoint(FAMILIES[family], tmp_path)
    tokens_BT = np.random.default_rng(0).integers(2, 96, (2, 40))  # torch gives padding tokens (0, 1) no gradient
    weights_BTV = np.random.default_rng(1).standard_normal((2, 40, 96)).astype(np.float32)
    (torch.log_softmax(model(torch.tensor(tokens_BT)).logits, -1) * torch.tensor(weights_BTV)).sum().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    spec = spec_from_config(read_config(tmp_path))
    parameters, (graph, _) = load_parameters(tmp_path, spec, mesh=make_mesh(fsdp=-1)), abstract_decoder(spec)

    def loss(parameters):
        decoder = nnx.merge(graph, parameters)
        logits_BTV = decoder.logits(decoder(jnp.asarray(tokens_BT), plain_layout(jnp.asarray(tokens_BT))))
        return (jax.nn.log_softmax(logits_BTV) * weights_BTV).sum()

    ours = file_tensors(jax.jit(jax.grad(loss))(parameters), spec, dtype=np.dtype("float32"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert np.abs(expected).max() > 1e-3, name
        np.testing.assert_allclose(ours[name], expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_as_it_was_published_means_the_same_as_the_config_transformers_saved(family, tmp_path):
    transformers.AutoConfig.for_model(**FAMILIES[family]).save_pretrained(tmp_path)
    assert spec_from_config(FAMILIES[family]) == spec_from_config(read_config(tmp_path))


WHOLE, SHARDED = "5GB", "20KB"
KINDS_OF_TENSORS = ["llama3.2-tied", "qwen2", "gemma2", "llama-biases", "olmo2", "qwen3", "gemma3", "phi3-longrope"]
WRITTEN = [(family, WHOLE, torch.float32) for family in FAMILIES]
WRITTEN += [(family, SHARDED, torch.float32) for family in KINDS_OF_TENSORS]
WRITTEN += [(family, size, torch.bfloat16) for family in KINDS_OF_TENSORS for size in (WHOLE, SHARDED)]


@pytest.mark.parametrize(("family", "shard_size", "dtype"), WRITTEN)
def test_weights_come_back_bit_for_bit(family, shard_size, dtype, tmp_path):
    (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    random_checkpoint(FAMILIES[family], tmp_path / "in", dtype=dtype, shard_size=shard_size)
    spec = spec_from_config(read_config(tmp_path / "in"))
    parameters = load_parameters(tmp_path / "in", spec, mesh=make_mesh(fsdp=-1))
    numpy_dtype = jnp.float32 if dtype == torch.float32 else jnp.bfloat16
    shard_bytes = 5 * 10**9 if shard_size == WHOLE else 20_000
    save_parameters(Held(parameters), spec, tmp_path / "out", dtype=numpy_dtype, shard_bytes=shard_bytes)
    before, after = (
        {k: v for f in sorted((tmp_path / d).glob("*.safetensors")) for k, v in load_file(f).items()}
        for d in ("in", "out")
    )
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and before[name].tobytes() == after[name].tobytes(), name
    if shard_size == SHARDED:
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(after)
