"""Configurations of the paper's models: real in whatever shapes the routing, tiny in all sizes.

Real: layers and which of them have experts, numbers of experts, top-k and shared experts, scoring,
normalisation and groups, multipliers, capacity, tied embeddings, sliding windows (shortened, so
that short texts feel them). The facts are those of the published ``config.json`` files.
"""

VOCABULARY = 97
HIDDEN = 32

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_LLAMA = {"hidden_act": "silu", "initializer_range": 0.02, "attention_dropout": 0.0}
_OLMOE = {
    "model_type": "olmoe",
    "num_hidden_layers": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "clip_qkv": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_QWEN_MOE = {
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 8,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_PHI = {
    "num_hidden_layers": 32,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "lm_head_bias": True,
    "router_jitter_noise": 0.01,
    "input_jitter_noise": 0.01,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

NATIVE = {
    "powermoe": {
        "model_type": "granitemoe",
        "num_hidden_layers": 32,
        "num_local_experts": 40,
        "num_experts_per_tok": 8,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
        "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    },
    "olmoe": _OLMOE,
    "olmoesft": _OLMOE,
    "olmoedpo": _OLMOE,
    "olmoeins": _OLMOE | {"use_cache": False},
    "switch": {
        "model_type": "switch_transformers",
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_sparse_encoder_layers": 6,
        "num_sparse_decoder_layers": 6,
        "num_experts": 128,
        "expert_capacity": 64,
        "router_dtype": "float32",
        "router_type": "tokens_masked",
        "router_jitter_noise": 0.01,
        "router_ignore_padding_tokens": False,
        "add_router_probs": False,
        "router_bias": False,
        "d_model": HIDDEN,
        "d_ff": 32,  # With 8, none might pass the ReLU.
        "d_kv": 8,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "qwen": _QWEN_MOE
    | {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 24,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 32,
    },
    "deepseek2": {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 8,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "rope_theta": 10000,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "max_position_embeddings": 163840,
    },
    "qwen3": _QWEN_MOE
    | {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "head_dim": 8,
    },
    "phi": _PHI
    | {
        "model_type": "phimoe",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 131072,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.04, 1.15, 2.79],
            "long_factor": [1.02, 4.3, 43.0, 64.96],
            "short_mscale": 1.243163121016122,
            "long_mscale": 1.243163121016122,
            "original_max_position_embeddings": 4096,
        },
    },
    "mixtral": {
        "model_type": "mixtral",
        "num_hidden_layers": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "jamba": {
        "model_type": "jamba",
        "num_hidden_layers": 32,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "use_mamba_kernels": True,
        "tie_word_embeddings": False,
    },
    "nllb": {
        "model_type": "nllb-moe",
        "encoder_layers": 24,
        "decoder_layers": 24,
        "encoder_sparse_step": 4,
        "decoder_sparse_step": 4,
        "num_experts": 128,
        "expert_capacity": 64,
        "second_expert_policy": "all",
        "batch_prioritized_routing": False,
        "normalize_router_prob_before_dropping": False,
        "moe_eval_capacity_token_fraction": 1.0,
        "moe_token_dropout": 0.2,
        "router_dtype": "float32",
        "router_ignore_padding_tokens": False,
        "scale_embedding": True,
        "d_model": HIDDEN,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "decoder_start_token_id": 2,
        "encoder_layerdrop": 0,
        "decoder_layerdrop": 0,
    },
    "qwen2": _QWEN_MOE
    | {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 28,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 64,
    },
}
"""Fields that differ from the sizes above, of the models that transformers has a class for."""

_LLAMA_MOE_V2 = {
    "architectures": ["MixtralForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_mixtral.MixtralForCausalLM"},
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "add_rescale_bias": False,
    "moe_type": "modulelist",
    "num_moe_contract_layers": 0,
    "output_router_logits": True,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "scale_factor": 4.0,
    "sliding_window": 6,
    "tie_word_embeddings": False,
    "transformers_version": "4.42.4",
    "use_attn_moe": False,
    "use_cache": False,
}
_JETMOE = {
    "architectures": ["JetMoEForCausalLM"],
    "model_type": "jetmoe",
    "activation_function": "silu",
    "ffn_hidden_size": 8,
    "kv_channels": 16,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "n_positions": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "glu": True,
}

CONVERTED = {
    "deepseek": {
        "architectures": ["DeepseekForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
        "model_type": "deepseek",
        "num_hidden_layers": 28,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "moe_intermediate_size": 8,
        "intermediate_size": 24,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "transformers_version": "4.36.0",
    },
    "minicpm": {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
        "num_hidden_layers": 40,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "scale_emb": 12,
        "dim_model_base": 8,
        "scale_depth": 1.4,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "transformers_version": "4.36.0",
    },
    "xverse": {
        "architectures": ["XverseForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_xverse.XverseForCausalLM"},
        "model_type": "xverse",
        "num_hidden_layers": 28,
        "num_experts": 64,
        "num_shared_experts": 2,
        "moe_top_k": 6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "transformers_version": "4.38.2",
    },
    "llamamoe2": _LLAMA_MOE_V2
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size_residual": None},
    "llamamoe2s": _LLAMA_MOE_V2
    | {"num_local_experts": 7, "num_experts_per_tok": 1, "intermediate_size_residual": 8},
    "grin": _PHI
    | {
        "architectures": ["GRIN-MoE"],
        "auto_map": {"AutoModelForCausalLM": "modeling_grinmoe.GRINMoEForCausalLM"},
        "model_type": "grinmoe",
        "sliding_window": 6,
        "transformers_version": "4.40.2",
    },
    "jetmoe": _JETMOE | {"num_hidden_layers": 24},
    "jetmoesft": _JETMOE | {"num_hidden_layers": 24},
    "jetmoechat": _JETMOE | {"n_layer": 24, "n_head": 2, "n_embd": HIDDEN, "bias": True},
}
"""The same as the files of models whose names and weights lrc translates."""


def configuration(model: str) -> dict:
    """Content of a tiny ``config.json``."""
    shape = NATIVE.get(model) or CONVERTED[model]
    sizes = dict(_SIZES | _LLAMA)
    if model == "jetmoechat":  # Its file has the old names only.
        for name in ("hidden_size", "num_key_value_heads", "num_attention_heads"):
            del sizes[name]
    if model == "xverse":
        del sizes["num_key_value_heads"]
    if shape.get("model_type") in ("switch_transformers", "nllb-moe"):
        sizes = {name: _SIZES[name] for name in ("vocab_size", "torch_dtype")}
    if shape.get("model_type") == "jetmoe":
        for name in ("hidden_act", "intermediate_size", "max_position_embeddings"):
            del sizes[name]
    return sizes | shape
