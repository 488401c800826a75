"""Checkpoints whose own code is for old versions of transformers, as native classes of today.

Some models of the paper were published with modelling code of their own that no longer runs. What
it computes, a native class computes too, once fields of the configuration and names of weights are
translated; a constant factor is multiplied into the weights. Nothing is approximated: the tests
compare with plain implementations of the originals.

Weights are renamed while `from_pretrained` reads them, key by key, so devices, dtypes and sharded
files work as they do for any model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lrc.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.configuration_utils import PretrainedConfig

# Fields that mean the same wherever they occur.
_COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Conversion:
    """How to load one checkpoint into a native class.

    Attributes
    ----------
    name : str
        Of the original architecture, for messages.
    config : PretrainedConfig
        Of the native class.
    model_class : type
        The native class.
    renames : dict of str to str
        Regular expressions for names of the checkpoint's weights, and what becomes of them; at
        most one fits a name.
    added : str
        Regular expression for weights of the native class that the original has not.
    finish : callable or None
        Sets or scales weights of the loaded model.
    """

    name: str
    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    renames: dict[str, str] = field(default_factory=dict)
    added: str = r"(?!)"  # Fits nothing.
    finish: Callable[[PreTrainedModel], None] | None = None


def find_conversion(config: dict[str, Any]) -> Conversion | None:
    """Return how to load a checkpoint natively, or None if its configuration is native already.

    Parameters
    ----------
    config : dict
        Content of its ``config.json``.

    Raises
    ------
    ModelError
        If it is a variant of a known architecture that no native class computes.
    """
    kind = config.get("model_type")
    classes = config.get("architectures") or []
    if kind == "deepseek":
        return _deepseek(config)
    if kind == "xverse" and "num_experts" in config:
        return _xverse(config)
    if "MiniCPMForCausalLM" in classes and "num_experts" in config:
        return _minicpm(config)
    if kind == "mixtral" and "scale_factor" in config:
        return _llama_moe_v2(config)
    if kind == "grinmoe":
        return _grin(config)
    if kind == "jetmoe":
        return _jetmoe(config)
    return None


def _deepseek(config):
    """DeepSeekMoE: the selected experts' softmax weights as they are, plus shared experts."""
    name = "DeepSeekMoE"
    _only(config, name, scoring_func="softmax", attention_bias=False, rope_scaling=None)
    first, every = config.get("first_k_dense_replace", 0), config.get("moe_layer_freq", 1)
    layers = range(config["num_hidden_layers"])
    return _as_qwen2_moe(
        config,
        name,
        num_experts=config["n_routed_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        norm_topk_prob=config.get("norm_topk_prob", False),
        expert_size=config["moe_intermediate_size"],
        shared_experts=config.get("n_shared_experts"),
        mlp_only_layers=[layer for layer in layers if layer < first or layer % every],
        renames={r"\.mlp\.shared_experts\.": ".mlp.shared_expert."},
    )


def _xverse(config):
    """XVERSE-MoE: weights of the selected experts sum to 1; the router computes in float32."""
    name = "XVERSE-MoE"
    _only(config, name, attention_bias=False, rope_scaling=None)
    return _as_qwen2_moe(
        config,
        name,
        num_experts=config["num_experts"],
        num_experts_per_tok=config["moe_top_k"],
        norm_topk_prob=True,
        expert_size=config["intermediate_size"],
        shared_experts=config.get("num_shared_experts"),
        renames={
            r"\.mlp\.shared_experts\.": ".mlp.shared_expert.",
            r"\.mlp\.router\.": ".mlp.gate.",
        },
        finish=_route_in_float32,
    )


def _llama_moe_v2(config):
    """LLaMA-MoE-v2: a Mixtral whose experts are multiplied by a factor, perhaps with a residual.

    transformers loads it as a Mixtral without the factor, and without a word.
    """
    name = "LLaMA-MoE-v2"
    _only(
        config,
        name,
        add_rescale_bias=False,
        moe_type="modulelist",
        num_moe_contract_layers=0,
        rope_scaling=None,
        use_attn_moe=False,
    )

    def scale(model):
        for weight in _expert_outputs(model):
            weight.mul_(config["scale_factor"])

    if config.get("intermediate_size_residual"):
        residual, expert = config["intermediate_size_residual"], config["intermediate_size"]
        parts = (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
        return _as_qwen2_moe(
            config,
            f"{name} with residual",
            num_experts=config["num_local_experts"],
            num_experts_per_tok=config["num_experts_per_tok"],
            norm_topk_prob=True,
            expert_size=expert,
            shared_experts=residual / expert,
            use_sliding_window=config.get("sliding_window") is not None,
            sliding_window=config.get("sliding_window"),
            layer_types=["sliding_attention"] * config["num_hidden_layers"]
            if config.get("sliding_window")
            else None,
            max_window_layers=0,
            renames={r"\.block_sparse_moe\.gate\.": ".mlp.gate."}
            | {rf"\.mlp_residual\.{old}\.": f".mlp.shared_expert.{new}." for old, new in parts}
            | {
                rf"\.block_sparse_moe\.experts\.(\d+)\.{old}\.": rf".mlp.experts.\1.{new}."
                for old, new in parts
            },
            finish=scale,
        )
    from transformers import MixtralConfig, MixtralForCausalLM

    native = MixtralConfig(
        **_common(config),
        intermediate_size=config["intermediate_size"],
        num_local_experts=config["num_local_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        sliding_window=config.get("sliding_window"),
    )
    return Conversion(name, native, MixtralForCausalLM, finish=scale)


def _grin(config):
    """GRIN-MoE is Phi-3.5-MoE under another name, without its long positions."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    name = "GRIN-MoE"
    _only(config, name, rope_scaling=None, num_experts_per_tok=2)
    native = PhimoeConfig(
        **_common(config),
        intermediate_size=config["intermediate_size"],
        num_local_experts=config["num_local_experts"],
        num_experts_per_tok=2,
        sliding_window=config.get("sliding_window"),
        attention_bias=config.get("attention_bias", False),
        lm_head_bias=config.get("lm_head_bias", False),
        router_jitter_noise=config.get("router_jitter_noise", 0.01),
    )
    return Conversion(name, native, PhimoeForCausalLM)


def _minicpm(config):
    """MiniCPM-MoE: Granite's multipliers are its scales of embedding, residual and logits."""
    import transformers

    name = "MiniCPM-MoE"
    if int(transformers.__version__.split(".")[0]) < 5:
        raise ModelError(
            f"{name} has a native class in transformers 5 only, and this is "
            f"{transformers.__version__}; install transformers 5, or run the repository's own "
            "code with trust_remote_code=True"
        )
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    _only(config, name, attention_bias=False, rope_scaling=None)
    native = transformers.GraniteMoeConfig(
        **_common(config, tie_word_embeddings=True),
        intermediate_size=config["intermediate_size"],
        num_local_experts=config["num_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        embedding_multiplier=config["scale_emb"],
        residual_multiplier=config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        attention_multiplier=math.sqrt(config["num_attention_heads"] / config["hidden_size"]),
        logits_scaling=config["hidden_size"] / config["dim_model_base"],
    )

    class MiniCPMMoeForCausalLM(transformers.GraniteMoeForCausalLM):
        """Granite, loaded from files of MiniCPM."""

    experts = r"mlp.experts.*.{}.weight"
    merged = "block_sparse_moe.experts.{}"
    mapping = [
        WeightConverter(
            [experts.format("w1"), experts.format("w3")],
            merged.format("gate_up_proj"),
            [MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            [experts.format("w2")], merged.format("down_proj"), [MergeModulelist(dim=0)]
        ),
    ]
    register_checkpoint_conversion_mapping(MiniCPMMoeForCausalLM.__name__, mapping, overwrite=True)
    return Conversion(
        name,
        native,
        MiniCPMMoeForCausalLM,
        renames={r"\.mlp\.gate\.weight": ".block_sparse_moe.router.weight"},
    )


def _jetmoe(config):
    """JetMoE, whose older files use other names: native code would fall back to its defaults.

    So it reads 12 of the 24 layers of jetmoe-8b-chat.
    """
    from transformers import JetMoeConfig, JetMoeForCausalLM

    names = {
        "n_layer": "num_hidden_layers",
        "n_embd": "hidden_size",
        "n_head": "num_key_value_heads",
        "n_positions": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_local_experts",
        "moe_top_k": "num_experts_per_tok",
    }
    old = {new: config[name] for name, new in names.items() if name in config}
    if not old:
        return None
    _only(config, "JetMoE", glu=True, bias=True)
    kept = {*_COMMON, "kv_channels", "activation_function"} - {"num_attention_heads", "hidden_act"}
    # Of a field that has both names, the code of these repositories reads the new one.
    fields = old | {name: config[name] for name in kept if name in config}
    native = JetMoeConfig(**fields, **_kept(config, tie_word_embeddings=True))
    return Conversion("JetMoE", native, JetMoeForCausalLM)


def _as_qwen2_moe(
    config,
    name,
    *,
    expert_size,
    shared_experts,
    renames,
    finish=None,
    mlp_only_layers=(),
    **fields,
):
    """Qwen2-MoE has all that is needed, but multiplies its shared experts by sigmoid(gate).

    A gate of zeros is a factor of one half, which doubled weights undo exactly.
    """
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    if not shared_experts:
        raise ModelError(f"{name} without shared experts is a variant that lrc cannot load")
    native = Qwen2MoeConfig(
        **_common(config),
        intermediate_size=config["intermediate_size"],
        moe_intermediate_size=expert_size,
        shared_expert_intermediate_size=round(expert_size * shared_experts),
        mlp_only_layers=list(mlp_only_layers),
        qkv_bias=False,
        **fields,
    )

    def ungate(model):
        for module_name, module in model.named_modules():
            if module_name.endswith(".shared_expert_gate"):
                module.weight.zero_()
            elif module_name.endswith(".shared_expert"):
                module.down_proj.weight.mul_(2)
        if finish is not None:
            finish(model)

    return Conversion(
        name, native, Qwen2MoeForCausalLM, renames, r"\.shared_expert_gate\.weight$", ungate
    )


def _common(config, **defaults):
    fields = {name: config[name] for name in _COMMON if name in config}
    fields.setdefault("num_key_value_heads", config["num_attention_heads"])
    return fields | _kept(config, **defaults)


def _kept(config, *, tie_word_embeddings=False):
    """Fields of every configuration; whether embeddings are tied by default, differs."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    tied = config.get("tie_word_embeddings", tie_word_embeddings)
    return {"tie_word_embeddings": tied} | ({"dtype": dtype} if dtype else {})


def _only(config, name, **allowed):
    """Refuse what the native class does not compute and nobody has compared."""
    for key, value in allowed.items():
        found = config.get(key, value)
        if found != value:
            raise ModelError(
                f"{name} with {key}={found!r} is a variant that lrc cannot load (only {value!r})"
            )


def _expert_outputs(model):
    """Yield the last matrix of each expert (transformers 4), or of all of a layer (5)."""
    pattern = re.compile(r"\.experts\.(down_proj|\d+\.(w2|down_proj)\.weight)$")
    for name, parameter in model.named_parameters():
        if pattern.search(name):
            yield parameter


def _route_in_float32(model):
    """Let routers compute in float32 in a model of any dtype, as the original's do."""
    import torch

    def widen(router, args):
        return (args[0].float(), *args[1:])

    def narrow(router, args, output):
        if isinstance(output, tuple):  # transformers 5: logits, weights, ids
            logits, weights, ids = output
            return logits, weights.to(model.dtype), ids
        return output

    for name, module in model.named_modules():
        if name.endswith(".mlp.gate") and model.dtype != torch.float32:
            module.float()
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(narrow)
