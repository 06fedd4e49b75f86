"""The families of 2024 and 2025 open with the config.json that they are published with."""

from dataclasses import replace

import pytest

from rapo_jax.models.rope_config import Rope
from rapo_jax.models.spec import FULL_ATTENTION, Spec, spec_from_config
from rapo_jax.models.text_part import text_config
from tests.models.published_families import CONFIGS


def everywhere(L: int) -> tuple[int, ...]:
    return (FULL_ATTENTION,) * L


def every_nth(n: int, window: int, L: int) -> tuple[int, ...]:
    """Every nth layer sees everything, the others a window."""
    return tuple(FULL_ATTENTION if (layer + 1) % n == 0 else window for layer in range(L))


QWEN3_8B = Spec(
    "qwen3", 151936, 4096, 36, 32, 8, 128, 12288, 1e-6, Rope(1e6), everywhere(36), False, query_scale=128**-0.5,
    qk_norm="head",
)  # fmt: skip
OLMO2_7B = Spec(
    "olmo2", 100352, 4096, 32, 32, 32, 128, 11008, 1e-6, Rope(5e5), everywhere(32), False, query_scale=128**-0.5,
    norms="after", qk_norm="projection",
)  # fmt: skip
YARN = Rope(5e5, "yarn", 8.0, original_max_positions=8192, attention_factor=1.2079441541679836)
OLMO3_7B = Spec(
    "olmo3", 100278, 4096, 32, 32, 32, 128, 11008, 1e-6, YARN, every_nth(4, 4096, 32), False, query_scale=128**-0.5,
    norms="after", qk_norm="projection", local_rope=Rope(5e5),
)  # fmt: skip
GEMMA_2B = Spec(
    "gemma", 256000, 2048, 18, 8, 1, 256, 16384, 1e-6, Rope(1e4), everywhere(18), True, activation="gelu_tanh",
    query_scale=1 / 16, zero_centered_norms=True, scaled_embeddings=True,
)  # fmt: skip
GEMMA3_1B = Spec(
    "gemma3_text", 262144, 1152, 26, 4, 1, 256, 6912, 1e-6, Rope(1e6), every_nth(6, 512, 26), True,
    activation="gelu_tanh", query_scale=1 / 16, norms="around", zero_centered_norms=True, scaled_embeddings=True,
    qk_norm="head", local_rope=Rope(1e4),
)  # fmt: skip
GEMMA3_4B = replace(
    GEMMA3_1B, V=262208, D=2560, L=34, N=8, K=4, F=10240, windows=every_nth(6, 1024, 34), rope=Rope(1e6, "linear", 8.0)
)
GRANITE31_8B = Spec(
    "granite", 49155, 4096, 40, 32, 8, 128, 12800, 1e-5, Rope(1e7), everywhere(40), True, query_scale=1 / 128,
    embedding_multiplier=12.0, residual_multiplier=0.22, logits_divisor=16.0,
)  # fmt: skip
GRANITE4_MICRO = Spec(
    "granitemoehybrid", 100352, 2560, 40, 40, 8, 64, 8192, 1e-5, Rope(1e7), everywhere(40), True, query_scale=1 / 64,
    embedding_multiplier=12.0, residual_multiplier=0.22, logits_divisor=10.0, initial_sigma=0.1,
)  # fmt: skip
SMOLLM3_3B = Spec(
    "smollm3", 128256, 2048, 36, 16, 4, 128, 11008, 1e-6, Rope(5e6), everywhere(36), True, query_scale=128**-0.5,
    unturned=tuple(range(3, 36, 4)),
)  # fmt: skip
NEMO = Spec(
    "mistral", 131072, 5120, 40, 32, 8, 128, 14336, 1e-5, Rope(1e6), everywhere(40), False, query_scale=128**-0.5
)
SPECS = {
    "Qwen/Qwen3-8B": QWEN3_8B,
    "Qwen/Qwen3-0.6B": replace(QWEN3_8B, D=1024, F=3072, N=16, L=28, windows=everywhere(28), tied=True),
    "Qwen/Qwen3-4B-Instruct-2507": replace(QWEN3_8B, D=2560, F=9728, tied=True, rope=Rope(5e6)),
    "Qwen/Qwen3-8B, as its card extends it": replace(
        QWEN3_8B, rope=Rope(1e6, "yarn", 4.0, original_max_positions=32768, attention_factor=1.138629436111989)
    ),
    "allenai/OLMo-2-1124-7B-Instruct": OLMO2_7B,
    "allenai/OLMo-2-1124-13B-Instruct": replace(OLMO2_7B, D=5120, F=13824, N=40, K=40, L=40, windows=everywhere(40)),
    "allenai/OLMo-2-0425-1B-Instruct": replace(OLMO2_7B, D=2048, F=8192, N=16, K=16, L=16, windows=everywhere(16)),
    "allenai/Olmo-3-7B-Instruct": OLMO3_7B,
    "allenai/Olmo-3-7B-Think": OLMO3_7B,
    "allenai/Olmo-3-1125-32B": replace(OLMO3_7B, D=5120, F=27648, N=40, K=8, L=64, windows=every_nth(4, 4096, 64)),
    "google/gemma-2b": GEMMA_2B,
    "google/gemma-7b-it": replace(GEMMA_2B, D=3072, F=24576, N=16, K=16, L=28, windows=everywhere(28)),
    "google/gemma-1.1-2b-it": GEMMA_2B,
    "google/gemma-3-270m": replace(GEMMA3_1B, D=640, F=2048, L=18, windows=every_nth(6, 512, 18)),
    "google/gemma-3-1b-it": GEMMA3_1B,
    "google/gemma-3-4b-it": GEMMA3_4B,
    "google/gemma-3-12b-it": replace(GEMMA3_4B, D=3840, F=15360, N=16, K=8, L=48, windows=every_nth(6, 1024, 48)),
    "ibm-granite/granite-3.0-2b-instruct": replace(
        GRANITE31_8B, D=2048, F=8192, H=64, rope=Rope(1e4), query_scale=1 / 64, logits_divisor=8.0
    ),
    "ibm-granite/granite-3.1-8b-instruct": GRANITE31_8B,
    "ibm-granite/granite-3.3-8b-instruct": replace(GRANITE31_8B, V=49159),
    "ibm-granite/granite-4.0-micro": GRANITE4_MICRO,
    "ibm-granite/granite-4.0-350m": replace(
        GRANITE4_MICRO, D=1024, F=2048, L=28, N=16, K=4, windows=everywhere(28), logits_divisor=4.0
    ),
    "ibm-granite/granite-4.0-1b": replace(
        GRANITE4_MICRO, D=2048, F=4096, N=16, K=4, H=128, query_scale=1 / 128, logits_divisor=8.0
    ),
    "HuggingFaceTB/SmolLM3-3B": SMOLLM3_3B,
    "HuggingFaceTB/SmolLM3-3B-Base": SMOLLM3_3B,
    "unsloth/SmolLM3-3B": SMOLLM3_3B,
    "mistralai/Mistral-Nemo-Instruct-2407": NEMO,
    "mistralai/Mistral-Small-24B-Instruct-2501": replace(NEMO, F=32768, rope=Rope(1e8)),
    "mistralai/Ministral-8B-Instruct-2410": replace(
        NEMO, D=4096, F=12288, L=36, rope=Rope(1e8), windows=(32768,) * 36
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_the_architecture_that_the_model_has(name):
    """When this fails, a model that people download is refused for a key that changes nothing, or computed without one
    that does."""
    assert spec_from_config(text_config(CONFIGS[name])) == SPECS[name]
