"""Tiny configurations of every supported family and variant, as transformers writes them."""

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MISTRAL = {k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias")} | {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": None,
}
QWEN2 = MISTRAL | {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 8,
    "max_window_layers": 1,
}
GEMMA2 = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
PHI3 = MISTRAL | {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "original_max_position_embeddings": 256,
    "pad_token_id": 0,
}
# Of the 6 of 8 dimensions that turn under a partial_rotary_factor of 0.75.
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.5, 4.0, 12.0]}
QWEN3 = {key: value for key, value in QWEN2.items() if key != "max_window_layers"} | {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 16,
    "attention_bias": False,
    "sliding_window": None,
}
OLMO2 = {key: value for key, value in LLAMA.items() if key != "mlp_bias"} | {
    "model_type": "olmo2",
    "architectures": ["Olmo2ForCausalLM"],
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
}
OLMO3 = OLMO2 | {
    "model_type": "olmo3",
    "architectures": ["Olmo3ForCausalLM"],
    "num_hidden_layers": 4,
    "sliding_window": 8,
}
GEMMA = {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
GEMMA3 = {
    key: value for key, value in GEMMA2.items() if key not in ("attn_logit_softcapping", "final_logit_softcapping")
} | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 1000.0,
    "sliding_window_pattern": 3,
}
GRANITE = LLAMA | {
    "model_type": "granite",
    "architectures": ["GraniteForCausalLM"],
    "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.5,
    "tie_word_embeddings": True,
}
GRANITE4 = {key: value for key, value in GRANITE.items() if key != "mlp_bias"} | {
    "model_type": "granitemoehybrid",
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "layer_types": ["attention"] * 3,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "intermediate_size": 64,
    "shared_intermediate_size": 48,
    "position_embedding_type": "rope",
    "mamba_n_heads": 8,
}
SMOLLM3 = LLAMA | {
    "model_type": "smollm3",
    "architectures": ["SmolLM3ForCausalLM"],
    "rope_theta": 5000000.0,
    "no_rope_layer_interval": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
MINISTRAL = MISTRAL | {
    "model_type": "ministral",
    "architectures": ["MinistralForCausalLM"],
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
}
FAMILIES = {
    "llama2": LLAMA | {"num_key_value_heads": 4},
    "llama3": LLAMA | {"rope_theta": 500000.0},
    "llama3.1": LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE},
    "llama3.2-tied": LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE, "tie_word_embeddings": True},
    "llama-linear-rope": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-dynamic-rope": LLAMA
    | {
        "max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": LLAMA | {"head_dim": 16},
    "mistral-v0.1-window": MISTRAL | {"sliding_window": 8},
    "mistral-v0.3": MISTRAL | {"rope_theta": 1000000.0},
    "qwen2": QWEN2,
    "qwen2.5-tied": QWEN2 | {"tie_word_embeddings": True},
    "qwen2.5-yarn": QWEN2
    | {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "qwen2-window": QWEN2 | {"use_sliding_window": True},
    "phi3-window": PHI3 | {"sliding_window": 8},
    "phi3-longrope": PHI3
    | {
        "original_max_position_embeddings": 24,
        "partial_rotary_factor": 0.75,
        "rope_scaling": LONGROPE,
        "tie_word_embeddings": True,
    },
    "gemma2": GEMMA2,
    "gemma2-uncapped": GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "mistral-nemo": MISTRAL | {"head_dim": 16, "rope_theta": 1000000.0},
    "ministral": MINISTRAL,
    "qwen3": QWEN3,
    "qwen3-tied-biases": QWEN3 | {"tie_word_embeddings": True, "attention_bias": True},
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "olmo3-yarn": OLMO3
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "gemma": GEMMA,
    "gemma3": GEMMA3,
    "gemma3-linear-rope": GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "granite": GRANITE,
    "granite4": GRANITE4,
    "granite4-unturned": GRANITE4 | {"position_embedding_type": None},
    "smollm3": SMOLLM3,
    "smollm3-listed": SMOLLM3 | {"no_rope_layers": [0, 1, 0]},
}
