"""Tiny random models of native transformers classes, for tests that record."""

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import lrc

VOCABULARY = 97

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 4,
    "topk_group": 2,
}
# Fields beside the common ones; layers that are Mixture-of-Experts; shared experts.
ARCHITECTURES = {
    "mixtral": ({"num_local_experts": 8, "num_experts_per_tok": 2}, (0, 1, 2), 0),
    "qwen2_moe": (
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [0],
        },
        (1, 2),
        2,
    ),
    "qwen3_moe": (
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 16},
        (0, 1, 2),
        0,
    ),
    "olmoe": ({"num_experts": 8, "num_experts_per_tok": 3}, (0, 1, 2), 0),
    "deepseek_v2": (_DEEPSEEK | {"topk_method": "group_limited_greedy"}, (1, 2), 1),
    "deepseek_v3": (_DEEPSEEK, (1, 2), 1),
    "phimoe": ({"num_local_experts": 8, "num_experts_per_tok": 2}, (0, 1, 2), 0),
    "granitemoe": ({"num_local_experts": 8, "num_experts_per_tok": 3}, (0, 1, 2), 0),
    "jamba": (
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_d_conv": 2,
        },
        (1,),
        0,
    ),
    "gpt_oss": (
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        (0, 1, 2),
        0,
    ),
}


def tiny_config(name: str = "mixtral", **changes):
    """Configuration of a tiny model; `changes` override its fields."""
    return CONFIG_MAPPING[name](**(_BASE | ARCHITECTURES[name][0] | changes))


def tiny_model(name: str = "mixtral", *, seed: int = 0, dtype=torch.float32, **changes):
    """A tiny random model whose routing decisions are clear, not near ties."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # Jamba tells of kernels that are not installed
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes))
    transformers.logging.set_verbosity(verbosity)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "correction_bias" in parameter_name:
                # Large enough to change which experts are selected.
                tensor.normal_(0, 0.3, generator=generator)
            elif (
                tensor.ndim > 1
                and "A_log" not in parameter_name
                and "inv_freq" not in parameter_name
            ):
                tensor.normal_(0, 0.25, generator=generator)
    return model.to(dtype).eval()


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, shape, generator=generator)


def hook_count(model):
    """Hooks of this package (transformers keeps some of its own)."""
    return sum(
        hook.__module__.startswith("lrc")
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    )


def record_pass(model, *, mode="executed", weights=False, **inputs):
    """Trace of one forward pass."""
    with lrc.Recorder(model, mode, weights) as recorder, torch.no_grad():
        model(**inputs)
    return recorder.trace()


def tiny_switch(seed: int = 0):
    """A tiny random encoder-decoder whose second layer in each stack is Mixture-of-Experts."""
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=4,
        expert_capacity=64,
        decoder_start_token_id=0,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 0.25, generator=generator)
    return model.eval()
