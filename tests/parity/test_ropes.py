"""Extended contexts turn positions as in transformers: every option of every kind, before and beyond the original length."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rapo_jax.models.decoder import plain_layout
from rapo_jax.models.rope import rotary_angles
from rapo_jax.models.rope_config import rope_from_config

H = 16
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 131072, "rope_theta": 1000000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SHORT, LONG = [1.0 + 0.1 * n for n in range(H // 2)], [2.0 + 3.0 * n for n in range(H // 2)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 24}
ROPES = {
    "yarn": YARN,
    "yarn without an original length": {"rope_type": "yarn", "factor": 40.0},
    "yarn that keeps few": YARN | {"original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn with its own ramp": YARN | {"beta_fast": 20, "beta_slow": 2.5},
    "yarn untruncated": YARN | {"truncate": False, "original_max_position_embeddings": 4096},
    "yarn with both mscales": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7},
    "yarn with one mscale": YARN | {"mscale": 1.2},
    "yarn with an attention factor": YARN | {"attention_factor": 0.8, "mscale": 1.2, "mscale_all_dim": 0.7},
    "yarn with an attn_factor": YARN | {"attn_factor": 0.878},
    "yarn of factor 1": YARN | {"factor": 1.0},
    "longrope": LONGROPE,
    "longrope with a factor": LONGROPE | {"factor": 32.0},
    "longrope with an attention factor": LONGROPE | {"factor": 32.0, "attention_factor": 1.25},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0, "max_position_embeddings": 24},
}


@pytest.mark.parametrize("length", [24, 25, 40])
@pytest.mark.parametrize("name", ROPES)
def test_angles_are_those_of_transformers(name, length):
    """When this fails, answers read well for a page and then do not."""
    rope = dict(ROPES[name])
    sizes = SIZES | {key: rope.pop(key) for key in ("max_position_embeddings",) if key in rope}
    config = sizes | {"rope_parameters": {"rope_theta": sizes["rope_theta"]} | rope}
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_dict(config))(torch.zeros(1), torch.arange(length)[None])
    layout = plain_layout(jnp.zeros((1, length), jnp.int32))
    ours = rotary_angles(layout, rope=rope_from_config(config), H=H)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(np.tile(mine, 2), other.numpy(), atol=1e-5)
    plain = rotary_angles(layout, rope=rope_from_config(SIZES), H=H)
    same = name == "yarn of factor 1" or (name == "dynamic" and length == 24)
    assert (np.abs(np.asarray(plain) - np.asarray(ours)).max() < 1e-6) == same
