"""Adapters of models that stack several of our matrices in one module (Phi-3's qkv_proj and gate_up_proj) are peft's."""

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
from rapo_jax.models.lora import adapted_spec, with_adapters
from rapo_jax.models.peft import load_adapters, save_adapters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.parallel import make_mesh
from tests.parity.test_transformers import random_checkpoint
from tests.tiny import assert_same_trees, random_trained
from tests.tiny.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # from other libraries
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 40))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("phi3")
    random_checkpoint(FAMILIES["phi3-longrope"], directory)
    return directory


def their_model(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()


def their_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def our_logits(parameters, spec) -> np.ndarray:
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def forward(parameters, tokens):
        decoder = nnx.merge(graph, parameters)
        return decoder.logits(decoder(tokens, plain_layout(tokens)))

    return np.asarray(forward(parameters, jnp.asarray(TOKENS)))


@pytest.mark.parametrize(
    ("targets", "rslora", "ranks"),
    [
        (["q", "k", "v", "o", "gate", "up", "down"], False, {"qkv_proj": 9, "o_proj": 3, "gate_up_proj": 6, "down_proj": 3}),
        (["q", "v", "up"], True, {"qkv_proj": 6, "gate_up_proj": 3}),
    ],
)  # fmt: skip
def test_adapters_of_parts_of_a_module_open_in_peft_as_one(base, targets, rslora, ranks, tmp_path):
    """When this fails, adapters that were trained here compute something else wherever they are used."""
    import peft  # here because it takes seconds

    mesh = make_mesh(fsdp=-1)
    spec = adapted_spec(spec_from_config(read_config(base)), rank=3, alpha=5.0, targets=targets, rslora=rslora)
    trained = jax.tree.map(jnp.asarray, random_trained(spec, seed=1))
    save_adapters(trained, spec, tmp_path, base=str(base))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".")[-3]: len(tensor) for name, tensor in tensors.items() if "lora_A" in name} == ranks
    theirs = their_logits(peft.PeftModel.from_pretrained(their_model(base), tmp_path).eval())
    assert np.abs(theirs - their_logits(their_model(base))).max() > 0.1
    ours = our_logits(with_adapters(load_parameters(base, spec, mesh=mesh), trained), spec)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(
        our_logits(load_parameters(tmp_path, spec.base, mesh=mesh), spec.base), theirs, atol=1e-4
    )
    assert_same_trees(load_adapters(tmp_path, spec, mesh=mesh), trained, atol=0)


def test_adapters_that_peft_trained_on_whole_modules_are_merged_as_peft_merges_them(base, tmp_path):
    """When this fails, what others trained on qkv_proj opens as another model."""
    import peft

    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["qkv_proj", "gate_up_proj"], alpha_pattern={"gate_up_proj": 10},
        rank_pattern={r"layers\.1\.self_attn\.qkv_proj": 2}, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = peft.get_peft_model(their_model(base), config).eval()
    model.save_pretrained(tmp_path)
    theirs = their_logits(model)
    spec = spec_from_config(read_config(tmp_path))
    ours = our_logits(load_parameters(tmp_path, spec, mesh=make_mesh(fsdp=4, tensor=2)), spec)
    assert np.abs(theirs - their_logits(their_model(base))).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
