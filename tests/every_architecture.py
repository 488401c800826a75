"""A tiny random model of every Mixture-of-Experts architecture of the installed transformers.

`build` makes one, from fields that most configurations share and the few that an architecture needs
beside them. Routing is made clear (no near ties) and correction biases are random, so that the
top-k of a router's scores is not what runs where a bias takes part in the selection.
"""

import copy
import csv
import re
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

import lrc
from lrc.moe_layers import find_moe_layers

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

_WRITES_EXPERTS = re.compile(
    r"^class \w*(Experts?|MoE|Moe|MoeBlock|MoEBlock|SparseMLP|MoeMLP)\(|self\.experts = ",
    re.MULTILINE,
)


def folders_with_experts() -> set[str]:
    """Folders of the installed transformers whose own code has experts."""
    models = Path(transformers.__file__).parent / "models"
    return {
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if _WRITES_EXPERTS.search(path.read_text(encoding="utf-8"))
    }


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
    known = set(getattr(cls, "__dataclass_fields__", ())) | set(cls.attribute_map)
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


def build(name: str, *, seed: int = 0, bias: float = 0.3, **changes):
    """A tiny random model; `bias` is the spread of biases that only selection sees."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
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
    return model.eval()


def tensors(model) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name."""
    return [*model.named_parameters(), *model.named_buffers()]


def is_selection_bias(name: str) -> bool:
    """Whether a parameter or buffer of this name is added to scores in order to select experts."""
    return bool(re.search(r"(correction|expert|balancing|score)_bias(es)?$", name))


def inputs_for(model, size=3, length=14, seed=0) -> dict:
    """Random tokens for a forward pass without images, sound or cache."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY - 7, (size, length), generator=generator)
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder or hasattr(model.config, "canvas_length"):
        inputs["decoder_input_ids"] = tokens.flip(-1)[:, : length - 3]
    return inputs


# --- ground truth: whose output changes when an expert's weights change --------------------------


def executed_experts(model, block_names, inputs, num_experts=NUM_EXPERTS):
    """Which experts each token used, boolean [layers, tokens of the batch, experts].

    It knows nothing of routers, ids or hooks on experts: each block runs again on the input it had,
    with the weights of one expert changed. Exactly the tokens that used it come out different.
    """
    captured = {}
    handles = [
        _around(model, name).register_forward_pre_hook(
            lambda block, args, kwargs, name=name: captured.update(
                {name: (args, _with_own_cache(kwargs))}
            ),
            with_kwargs=True,
        )
        for name in block_names
    ]
    with torch.no_grad():
        model(**inputs)
        for handle in handles:
            handle.remove()
        return np.stack(
            [
                _users(_around(model, name), captured[name], model.get_submodule(name), num_experts)
                for name in block_names
            ]
        )


def _with_own_cache(kwargs):
    """Arguments of a block that is a whole layer: a run must not lengthen the next one's cache."""
    cache = kwargs.get("past_key_values")
    return kwargs if cache is None else {**kwargs, "past_key_values": copy.deepcopy(cache)}


def _around(model, name):
    """The block to run: experts of one modality run inside a block of both."""
    modality = name.endswith((".text_moe", ".vision_moe"))
    return model.get_submodule(name.rpartition(".")[0] if modality else name)


def _users(block, call, holder, num_experts):
    args, kwargs = call

    def run():
        output = block(*args, **_with_own_cache(kwargs))
        output = output[0] if isinstance(output, tuple) else output
        return output.reshape(-1, output.shape[-1]).clone()

    before = run()
    users = []
    generator = torch.Generator().manual_seed(1)
    for expert in range(num_experts):
        weights = expert_weights(holder, expert, num_experts)
        saved = [weight.clone() for weight in weights]
        for weight in weights:
            weight += torch.randn(weight.shape, generator=generator)
        users.append((run() != before).any(dim=-1).numpy())
        for weight, old in zip(weights, saved, strict=True):
            weight.copy_(old)
    return np.stack(users, axis=-1)


def expert_weights(block, expert, num_experts) -> list[torch.Tensor]:
    """Views of all weights of one expert."""
    kind = type(block).__name__
    if kind == "JetMoeMoE":
        return [block.input_linear.weight[expert], block.output_linear.weight[expert]]
    if kind == "DogeCDMoE":
        return [block.down_embed.weight[expert], block.up_embed.weight[expert]]
    experts = block.experts
    if isinstance(experts, torch.nn.ModuleDict):
        return list(experts[f"expert_{expert}"].parameters())
    if kind == "DbrxFFN":  # [experts * width, hidden]
        return [p.unflatten(0, (num_experts, -1))[expert] for p in experts.parameters()]
    return [p[expert] for p in experts.parameters() if p.ndim > 1]


# --- what the table says of each -----------------------------------------------------------------

TABLE = Path(__file__).resolve().parent.parent / "book" / "architectures.csv"

HEADINGS = {
    "architecture": "Architecture",
    "read_by": "How its experts are read",
    "selection": "Selected by",
    "plain_share": "Plain top-k",
    "shared_experts": "Shared",
    "no_expert": "What −1 stands for",
    "result": "Record",
}


@dataclass(frozen=True)
class Row:
    """One architecture; `plain_share` is the share of tokens that use the top-k of raw scores."""

    architecture: str
    read_by: str
    selection: str
    plain_share: str
    shared_experts: str
    no_expert: str
    result: str


@cache
def measure(name: str) -> Row:
    """Record a tiny model, compare it with what it executed, and find out how it selects."""
    model = build(name)
    blank = Row(name, "", "", "", "", "", "")
    try:
        traces = recorded(model)
    except lrc.RecordError as error:
        reason = str(error).partition("): ")[2] or str(error)
        return replace(blank, result=f"refused: {reason}")
    exact = all(is_exact(model, trace) for trace in traces)
    selections = [_selection(name, stack) for stack in range(len(traces))]
    metas = [trace.meta for trace in traces]
    return replace(
        blank,
        read_by=_joined(meta["rule"] for meta in metas),
        selection=_joined(selection for selection, _ in selections),
        plain_share=f"{min(share for _, share in selections):.0%}",
        shared_experts=_joined(str(meta["shared_experts"]) for meta in metas),
        no_expert=_joined(meta.get("no_expert", "") for meta in metas),
        result="exact" if exact else "wrong",
    )


def recorded(model, **inputs) -> list[lrc.Trace]:
    """A trace for each stack of a model, from one forward pass."""
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(**(inputs or inputs_for(model)))
    traces = recorder.trace()
    return list(traces.values()) if isinstance(traces, dict) else [traces]


def is_exact(model, trace, **inputs) -> bool:
    """Whether a record of `inputs` holds exactly the experts that were executed."""
    truth = executed_experts(
        model, trace.meta["layers"], inputs or inputs_for(model), trace.num_experts
    )
    return np.array_equal(used(trace), truth)


def used(trace) -> np.ndarray:
    """Which experts each token used by the record: boolean [layers, tokens, experts]."""
    one_hot = (trace.experts[..., None] == np.arange(trace.num_experts)).any(axis=3)
    return one_hot.transpose(2, 0, 1, 3).reshape(trace.num_layers, -1, trace.num_experts)


def _selection(name, stack) -> tuple[str, float]:
    """How experts are selected, by what has to be taken away until the top-k of scores is used."""
    variants = {
        "scores": {},
        "scores + bias": {"bias": 0},
        "groups": {"bias": 0} | _ungrouped(name),
    }
    found, share = {}, None
    for rule, changes in variants.items():
        model = build(name, **changes)
        shares = _plain_shares(model, stack)
        share = min(shares) if share is None else share
        for layer, agreed in enumerate(shares):
            if agreed == 1:
                found.setdefault(layer, rule)
    has_bias = any(is_selection_bias(tensor_name) for tensor_name, _ in tensors(model))
    names = {"groups": "groups + bias" if has_bias else "groups"}
    layers = range(len(shares))
    return _joined(
        names.get(found.get(i), found.get(i, _OTHER.get(name, "other"))) for i in layers
    ), share


# Where selection does not start from a score for each expert.
_OTHER = {"doge": "product keys", "deepseek_v4": "table by token id"}


def _ungrouped(name) -> dict:
    config = config_of(name)
    if getattr(config.get_text_config(), "n_group", None) is None:
        return {}
    fields = {"n_group": 1, "topk_group": 1}
    return {"text_config": fields} if "text_config" in type(config).sub_configs else fields


def _plain_shares(model, stack) -> list[float]:
    """Of each layer: the share of tokens whose experts are the top-k of the router's output."""
    scores = {}

    def keep(layer):
        def hook(module, args, output):
            outputs = output if isinstance(output, tuple) else (output,)
            for value in outputs:
                if _is_scores(value, layer.num_experts):
                    scores[layer.name] = value.flatten(0, -2)
                    return

        return hook

    layers = find_moe_layers(model)
    handles = [layer.router.register_forward_hook(keep(layer)) for layer in layers if layer.router]
    trace = recorded(model)[stack]
    for handle in handles:
        handle.remove()
    return [
        _agreement(scores.get(name), experts)
        for name, experts in zip(trace.meta["layers"], used(trace), strict=True)
    ]


def _is_scores(value, num_experts) -> bool:
    """Whether it holds a number for each expert; some have a few that are no experts behind."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and num_experts <= value.shape[-1] <= num_experts + 4
    )


def _agreement(scores, experts) -> float:
    """Share of tokens that use the top-k of their scores, of those that use any expert."""
    if scores is None:
        return 0.0
    top_k = int(experts.sum(axis=1).max())
    top = np.zeros(scores.shape, bool)
    np.put_along_axis(top, scores.topk(top_k).indices.numpy(), True, axis=1)
    routed = experts.any(axis=1)
    return float((top[:, : experts.shape[1]] == experts).all(axis=1)[routed].mean())


def _joined(texts) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def table() -> list[Row]:
    """All rows, by name."""
    return [measure(name) for name in ARCHITECTURES]


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADINGS.values())
        writer.writerows(astuple(row) for row in table())
    print(f"wrote {len(ARCHITECTURES)} rows to {TABLE.name}")
