# ruff: noqa: RUF001 (DeepSeek's tokens have full-width bars)
"""config.json and generation_config.json as models are published with them: facts, key by key, whole.

The models that configs/ names, and of the kinds that people make of them: Hermes, distillations of R1, SmolLM2, and the
chat models of before them. Nothing is left out, because what opens or not is decided by the keys that seem not to matter.
"""

LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128009, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA31_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LLAMA31 = LLAMA3 | {
    "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072, "mlp_bias": False,
    "rope_scaling": LLAMA31_ROPE, "transformers_version": "4.42.3",
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": True,
    "vocab_size": 32768,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
GEMMA2_9B = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16, "num_hidden_layers": 42,
    "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
LLAMA1_7B = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip

CONFIGS = {
    "meta-llama/Meta-Llama-3-8B": LLAMA3 | {"eos_token_id": 128001},
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA3,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA31,
    "NousResearch/Hermes-3-Llama-3.1-8B": LLAMA31 | {
        "_name_or_path": "meta-llama/Meta-Llama-3.1-8B", "eos_token_id": 128040, "transformers_version": "4.44.0",
        "use_cache": False,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA31 | {
        "eos_token_id": 128001, "transformers_version": "4.43.0.dev0",
    },
    "mistralai/Mistral-7B-Instruct-v0.3": MISTRAL,
    "alignment-handbook/zephyr-7b-sft-full": MISTRAL | {
        "_name_or_path": "mistralai/Mistral-7B-v0.1", "rope_theta": 10000.0, "sliding_window": 4096,
        "transformers_version": "4.36.2", "vocab_size": 32000,
    },
    "NousResearch/Hermes-2-Pro-Mistral-7B": MISTRAL | {
        "_name_or_path": "mistralai/Mistral-7B-v0.1", "eos_token_id": 32000, "rope_theta": 10000.0,
        "sliding_window": 4096, "transformers_version": "4.38.2", "use_cache": False, "vocab_size": 32032,
    },
    "Qwen/Qwen2-7B-Instruct": QWEN2,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN2 | {
        "eos_token_id": 151643, "max_position_embeddings": 131072, "rope_theta": 10000, "sliding_window": 4096,
        "transformers_version": "4.44.0", "use_mrope": False,
    },
    "google/gemma-2-9b-it": GEMMA2_9B,
    "UCLA-AGI/Gemma-2-9B-It-SPPO-Iter3": GEMMA2_9B | {
        "_name_or_path": "google/gemma-2-9b-it", "transformers_version": "4.42.3", "use_cache": False,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "huggyllama/llama-7b": LLAMA1_7B,
}  # fmt: skip

# generation_config.json, and the tokens that end an answer.
GENERATION_CONFIGS = {
    "meta-llama/Llama-3.1-8B-Instruct": (
        {"bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009], "temperature": 0.6,
         "top_p": 0.9, "transformers_version": "4.42.3"},
        [128001, 128008, 128009],
    ),
    "Qwen/Qwen2-7B-Instruct": (
        {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
         "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0"},
        [151645, 151643],
    ),
    "google/gemma-2-9b-it": (
        {"_from_model_config": True, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
         "pad_token_id": 0, "transformers_version": "4.42.0.dev0"},
        [1],
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.42.0.dev0"},
        [2],
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (
        {"_from_model_config": True, "bos_token_id": 128000, "eos_token_id": 128001, "do_sample": True,
         "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.39.3"},
        [128001],
    ),
}  # fmt: skip

# tokenizer_config.json without its list of added tokens (which tokenizer.json holds too) and its chat template.
BYTE_LEVEL_TOKENIZERS = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": True, "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "Qwen/Qwen2-7B-Instruct": {
        "add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    },
    "NousResearch/Hermes-3-Llama-3.1-8B": {
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": True, "eos_token": "<|im_end|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072, "pad_token": "<|end_of_text|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": {
        "add_bos_token": True, "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>", "lstrip": False, "normalized": True,
                      "rstrip": False, "single_word": False},
        "clean_up_tokenization_spaces": False,
        "eos_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>", "lstrip": False, "normalized": True,
                      "rstrip": False, "single_word": False},
        "legacy": True, "model_max_length": 16384,
        "pad_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>", "lstrip": False, "normalized": True,
                      "rstrip": False, "single_word": False},
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizerFast", "unk_token": None,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>", "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "model_max_length": 8192, "pad_token": "<|im_end|>", "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>", "vocab_size": 49152,
    },
}  # fmt: skip
