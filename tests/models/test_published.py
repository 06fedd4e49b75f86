"""Models open with the files that they are published with, whole: keys without effect are accepted, all others computed."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from rapo_jax.chat.templates import load_tokenizer
from rapo_jax.export.older_readers import save_tokenizer
from rapo_jax.models.directory import declared_stop_tokens
from rapo_jax.models.rope_config import Rope
from rapo_jax.models.spec import FULL_ATTENTION, Spec, spec_from_config
from tests.models.published import BYTE_LEVEL_TOKENIZERS, CONFIGS, GENERATION_CONFIGS, PHI4_MINI_ROPE, PHI35_MINI_ROPE

LLAMA3_ROPE = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def llama_8b(rope: Rope = LLAMA3_ROPE) -> Spec:
    return Spec("llama", 128256, 4096, 32, 32, 8, 128, 14336, 1e-5, rope, (FULL_ATTENTION,) * 32, False,
                query_scale=128**-0.5)  # fmt: skip


def mistral_7b(V: int, theta: float, window: int) -> Spec:
    return Spec("mistral", V, 4096, 32, 32, 8, 128, 14336, 1e-5, Rope(theta), (window,) * 32, False,
                query_scale=128**-0.5)  # fmt: skip


def qwen2_7b(theta: float) -> Spec:
    return Spec("qwen2", 152064, 3584, 28, 28, 4, 128, 18944, 1e-6, Rope(theta), (FULL_ATTENTION,) * 28, False,
                qkv_bias=True, query_scale=128**-0.5)  # fmt: skip


def phi_mini(V: int, N: int, K: int, window: int, rope: Rope, *, tied: bool = False) -> Spec:
    return Spec("phi3", V, 3072, 32, N, K, 3072 // N, 8192, 1e-5, rope, (window,) * 32, tied,
                query_scale=(3072 // N) ** -0.5)  # fmt: skip


def longrope(factors: dict, turning: float) -> Rope:
    """From 4,096 to 131,072 positions: attention is sharpened by sqrt(1 + ln 32 / ln 4096)."""
    return Rope(
        1e4, "longrope", 32.0, original_max_positions=4096, attention_factor=1.1902380714238083, turning=turning,
        short_factors=tuple(map(float, factors["short_factor"])), long_factors=tuple(map(float, factors["long_factor"])),
    )  # fmt: skip


GEMMA2_9B = Spec(
    "gemma2", 256000, 3584, 42, 16, 8, 256, 14336, 1e-6, Rope(10000.0), (4096, FULL_ATTENTION) * 21, True,
    activation="gelu_tanh", query_scale=1 / 16, attention_softcap=50.0, final_softcap=30.0, norms="around",
    zero_centered_norms=True, scaled_embeddings=True,
)  # fmt: skip
SPECS = {
    "meta-llama/Meta-Llama-3-8B": llama_8b(Rope(500000.0)),
    "meta-llama/Meta-Llama-3-8B-Instruct": llama_8b(Rope(500000.0)),
    "meta-llama/Llama-3.1-8B-Instruct": llama_8b(),
    "NousResearch/Hermes-3-Llama-3.1-8B": llama_8b(),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": llama_8b(),
    "mistralai/Mistral-7B-Instruct-v0.3": mistral_7b(32768, 1e6, FULL_ATTENTION),
    "alignment-handbook/zephyr-7b-sft-full": mistral_7b(32000, 1e4, 4096),
    "NousResearch/Hermes-2-Pro-Mistral-7B": mistral_7b(32032, 1e4, 4096),
    "Qwen/Qwen2-7B-Instruct": qwen2_7b(1e6),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": qwen2_7b(1e4),
    "Qwen/Qwen2.5-7B-Instruct, as its card extends it": replace(
        qwen2_7b(1e6), rope=Rope(1e6, "yarn", 4.0, original_max_positions=32768, attention_factor=1.1386294361119891)
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Spec(
        "qwen2", 151936, 1536, 28, 12, 2, 128, 8960, 1e-6, Rope(1e4), (FULL_ATTENTION,) * 28, False, qkv_bias=True,
        query_scale=128**-0.5,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": Spec(
        "llama", 128256, 8192, 80, 64, 8, 128, 28672, 1e-5, LLAMA3_ROPE, (FULL_ATTENTION,) * 80, False,
        query_scale=128**-0.5,
    ),
    "microsoft/Phi-3-mini-4k-instruct": phi_mini(32064, 32, 32, 2047, Rope(1e4)),
    "microsoft/Phi-3.5-mini-instruct": phi_mini(32064, 32, 32, 262144, longrope(PHI35_MINI_ROPE, 1.0)),
    "microsoft/phi-4": Spec(
        "phi3", 100352, 5120, 40, 40, 10, 128, 17920, 1e-5, Rope(250000.0), (FULL_ATTENTION,) * 40, False,
        query_scale=128**-0.5,
    ),
    "microsoft/Phi-4-mini-instruct": phi_mini(200064, 24, 8, 262144, longrope(PHI4_MINI_ROPE, 0.75), tied=True),
    "google/gemma-2-9b-it": GEMMA2_9B,
    "UCLA-AGI/Gemma-2-9B-It-SPPO-Iter3": GEMMA2_9B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": Spec(
        "llama", 49152, 576, 30, 9, 3, 64, 1536, 1e-5, Rope(100000.0), (FULL_ATTENTION,) * 30, True,
        query_scale=1 / 8, initial_sigma=0.041666666666666664,
    ),
    "huggyllama/llama-7b": Spec(
        "llama", 32000, 4096, 32, 32, 32, 128, 11008, 1e-6, Rope(10000.0), (FULL_ATTENTION,) * 32, False,
        query_scale=128**-0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_the_architecture_that_the_model_has(name):
    """When this fails, a model that our own configurations name is refused for a key that changes nothing, or computed
    without one that does."""
    assert spec_from_config(CONFIGS[name]) == SPECS[name]


@pytest.mark.parametrize("name", GENERATION_CONFIGS)
def test_published_settings_of_generation_tell_where_answers_end(name, tmp_path):
    """When this fails, answers run on past the token that ends a turn."""
    config, stops = GENERATION_CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert declared_stop_tokens(tmp_path) == stops


@pytest.mark.parametrize("name", BYTE_LEVEL_TOKENIZERS)
def test_a_published_tokenizer_config_opens_and_is_exported_under_its_class(name, tmp_path):
    """When this fails, texts lose their spaces, as a byte-level vocabulary under Llama's class once did, or an export has a
    class that older readers do not know."""
    declared = BYTE_LEVEL_TOKENIZERS[name]
    named = [declared.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")]
    special = [token["content"] if isinstance(token, dict) else token for token in named if token]
    special = list(dict.fromkeys([*special, *declared.get("additional_special_tokens", [])]))
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he"]
    core = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, [("Ġ", "t"), ("h", "e")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(special)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    core.save(str(source / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps(declared | {"chat_template": template}))
    tokenizer = load_tokenizer(str(source), chat_template=None)
    text = f"the tree:\n\n  {special[0]}the é {special[-1]}"
    ids = core.encode(text, add_special_tokens=False).ids
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert tokenizer.decode(ids) == text
    save_tokenizer(tokenizer, out, source=source)
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == declared["tokenizer_class"] and written["chat_template"] == template
    assert AutoTokenizer.from_pretrained(out)(text, add_special_tokens=False).input_ids == ids
