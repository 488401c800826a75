"""A tiny random model of every Mixture-of-Experts architecture of the installed transformers.

`tiny_model` makes one, from fields that most configurations share and the few that an architecture
needs beside them. Routing is made clear (no near ties) and correction biases are random, so that
the top-k of a router's scores is not what runs where a bias takes part in the selection.
"""

import inspect
import re

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

import lrc

VOCABULARY = 97
NUM_EXPERTS = 8

ARCHITECTURES = (
    "afmoe",
    "aria",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "beam",
    "cohere2_moe",
    "dbrx",
    "deepseek_ocr2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "diffusion_gemma",
    "doge",
    "dots1",
    "dots3_note",
    "ernie4_5_moe",
    "ernie4_5_vl_moe",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "gemma4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "glm5_next",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling",
    "inkling2",
    "jamba",
    "jetmoe",
    "kimi_linear",
    "kolibri1",
    "laguna",
    "lfm2_moe",
    "llama4",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl",
    "mistral4",
    "mistral_large4",
    "mixtral",
    "muse_spark",
    "nemotron_h",
    "nllb_moe",
    "olmoe",
    "openai_privacy_filter",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_omni_moe",
    "qwen3_vl_moe",
    "qwen4_exp",
    "solar_open",
    "step3p7",
    "switch_transformers",
    "unlimited_ocr",
    "zaya",
)
"""Folders of transformers 5.23 with a Mixture-of-Experts language model."""

NO_LANGUAGE_MODEL = {
    "vitpose_backbone": "experts by data set, not by token, in a model for images",
}
"""Folders with experts that are none of a language model, and why."""

# Set wherever a configuration, or a part of it, has such a field.
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 3,
    "top_k_experts": 3,
    "moe_top_k": 3,
    "moe_topk": 3,
    "moe_k": 3,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "share_expert_dim": 16,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    # Latent, sparse and linear attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_d_conv": 2,
    # Parts for images and sound.
    "depth": 1,
    "num_heads": 2,
    "embed_dim": 32,
    "patch_size": 4,
    "image_size": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

# What an architecture needs beside the common fields; nested for parts of its configuration.
_TOP_1 = {"num_experts_per_tok": 1}
_LINEAR = ["linear_attention", "full_attention", "linear_attention"]
_FULL = ["full_attention"] * 3
_MOE = ["dense", "sparse", "sparse"]
_KDA = {"linear_head_dim": 16, "linear_num_heads": 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict] = {
    "aria": {"vision_config": _SIGLIP | {"model_type": "idefics3_vision"}},
    "beam": {"mlp_layer_types": _MOE},
    "bailing_hybrid": {"layer_types": _LINEAR, "num_mtp_layers": 0},
    "dbrx": {
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 3,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 3},
    },
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"]},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": _MOE}},
    "diffusion_gemma": {
        "vision_config": _SIGLIP | {"model_type": "gemma4_vision", "position_embedding_size": 16}
    },
    # Product keys: experts are the pairs of two lists.
    "doge": {"is_moe": True, "num_experts": 9},
    "dots3_note": {
        "text_config": {
            "layer_types": ["indexed_attention"] * 3,
            "mlp_layer_types": _MOE,
            "shared_experts_intermediate_size": 16,
        },
        "vision_config": {"mlp_layer_types": _MOE, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {
            "adapter_input_size": 32,
            "adapter_out_dim": 32,
            "downsample_hidden_size": 16,
        },
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 8],
            "mlp_layer_types": _MOE,
            "rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]},
        }
    },
    "gemma4": {
        "text_config": {
            "enable_moe_block": True,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
        "vision_config": {"position_embedding_size": 16},
        "audio_config": {"output_proj_dims": 32},
    },
    "glm4v_moe": {
        "text_config": {
            "rope_parameters": _ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
        }
    },
    "glm5_next": {
        "text_config": _KDA
        | {
            "qk_rope_head_dim": 0,
            "index_kpool": 2,
            "mlp_layer_types": _MOE,
            "layer_types": _LINEAR,
        }
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0},
    "kimi_linear": _KDA | {"layer_types": _LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4": {
        "text_config": {"intermediate_size_mlp": 16, "moe_layers": [1, 2]},
        "vision_config": {"projector_input_dim": 32, "projector_output_dim": 32},
    },
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 4, "head_dim": 8},
    "mimo_v2_flash": {"num_key_value_heads": 1},
    "mistral_large4": {"vision_config": _SIGLIP | {"model_type": "pixtral"}},
    "mixtral": {"num_experts_per_tok": 2},
    "muse_spark": {
        "audio_config": {
            "patch_sizes": [2],
            "hidden_sizes": [32],
            "depths": [1],
            "num_hidden_layers": 1,
        },
        "text_config": {"moe_hidden_size": 16},
        "projector_hidden_size": 32,
    },
    "nllb_moe": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    },
    "qwen2_moe": {"mlp_only_layers": [0]},
    "qwen3_next": {"layer_types": _LINEAR},
    "qwen3_5_moe": {"text_config": {"layer_types": _LINEAR}},
    "qwen4_exp": {
        "text_config": {
            "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
            "hc_lowrank": 8,
        }
    },
    "step3p7": {"text_config": {"mlp_layer_types": _MOE}},
    "switch_transformers": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 16,
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 4,
        "num_sparse_decoder_layers": 2,
        "expert_capacity": 2,
    },
    "zaya": _TOP_1 | {"router_hidden_size": 16},
}

# Where the model type is not the name of the folder in transformers.
_MODEL_TYPES = {
    "nllb_moe": "nllb-moe",
    "inkling": "inkling_mm_model",
    # The whole of it has no forward: its thinker reads and writes text.
    "qwen3_omni_moe": "qwen3_omni_moe_thinker",
}

_AUTO = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
)


def config_of(name: str, **changes) -> PretrainedConfig:
    """Configuration of a tiny model; `changes` are fields like those in `SPECIAL`."""
    cls = CONFIG_MAPPING[_MODEL_TYPES.get(name, name)]
    special = _merged(SPECIAL.get(name, {}), changes)
    common = {
        field: value
        for field, value in _fields(cls).items()
        if cls.attribute_map.get(field) not in special
    }
    return cls(**_merged(common, special))


def _fields(cls) -> dict:
    written = set(inspect.signature(cls.__init__).parameters)  # so in transformers 4
    known = set(getattr(cls, "__dataclass_fields__", ())) | set(cls.attribute_map) | written
    fields = {name: value for name, value in _COMMON.items() if name in known}
    for part, part_class in cls.sub_configs.items():
        if getattr(part_class, "model_type", None):
            fields[part] = _fields(part_class) | {"model_type": part_class.model_type}
    return fields


def _merged(fields: dict, changes: dict) -> dict:
    merged = dict(fields)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def class_of(name: str):
    """Class with a language head that transformers' auto classes choose."""
    model_type = _MODEL_TYPES.get(name, name)
    for mapping in _AUTO:
        if model_type in getattr(modeling_auto, mapping):
            return getattr(transformers, getattr(modeling_auto, mapping)[model_type])
    raise LookupError(name)


def tiny_model(
    name: str = "mixtral", *, seed: int = 0, dtype=torch.float32, bias: float = 0.3, **changes
):
    """A tiny random model whose routing decisions are clear, not near ties.

    `bias` is the spread of the biases that only selection sees, large enough to change it;
    `changes` are fields of the configuration.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # some tell of kernels that are not installed
    torch.manual_seed(seed)
    model = class_of(name)._from_config(config_of(name, **changes))
    transformers.logging.set_verbosity(verbosity)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor_name, tensor in tensors(model):
            if is_selection_bias(tensor_name):
                tensor.normal_(0, bias, generator=generator) if bias else tensor.zero_()
                if name == "zaya":  # the last one is that of skipping all experts
                    tensor[-1] = bias
            elif tensor_name.endswith("tid2eid"):
                tensor.copy_(torch.rand(len(tensor), NUM_EXPERTS).argsort()[:, : tensor.shape[1]])
            elif (
                tensor.ndim > 1
                and tensor.is_floating_point()
                and not re.search("A_log|inv_freq", tensor_name)
            ):
                tensor.normal_(0, 0.25, generator=generator)
    return model.to(dtype).eval()


def tensors(model) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name."""
    return [*model.named_parameters(), *model.named_buffers()]


def is_selection_bias(name: str) -> bool:
    """Whether a parameter or buffer of this name is added to scores in order to select experts."""
    return bool(re.search(r"(correction|expert|balancing|score)_bias(es)?$", name))


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
