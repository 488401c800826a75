"""The paper's twenty models and their seven post-trained variants, and how each one is loaded."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from lrc import published

NATIVE = "native"
CONVERTED = "converted"
OWN_CODE = "own code"
REFUSED = "refused"


class Route(NamedTuple):
    """How `lrc.load_model` loads one of the paper's models.

    Attributes
    ----------
    native_class : str or None
        Class of transformers that computes it.
    transformers_5, transformers_4 : str
        ``"native"``; ``"converted"``: fields and weights of the files are translated for the
        native class; ``"own code"``: the repository's modelling code, which runs if
        ``trust_remote_code=True``; or ``"refused"``. For transformers 5, and for 4.57.
    reason : str
        Why a version is refused, or what is converted.
    """

    native_class: str | None
    transformers_5: str
    transformers_4: str
    reason: str = ""


_OLD_CODE = "its own code is for transformers 4 and no native class computes the same"

_GRANITE = Route("GraniteMoeForCausalLM", NATIVE, NATIVE)
_OLMOE = Route("OlmoeForCausalLM", NATIVE, NATIVE)
_QWEN2 = Route("Qwen2MoeForCausalLM", NATIVE, NATIVE)
_JETMOE = Route(
    "JetMoeForCausalLM", CONVERTED, CONVERTED, "old names of fields, which native code overlooks"
)
_OWN = Route(None, REFUSED, OWN_CODE, _OLD_CODE)

ROUTES: dict[str, Route] = {
    "powermoe": _GRANITE,
    "llamamoe": _OWN,
    "llamamoes": _OWN,
    "olmoe": _OLMOE,
    "olmoesft": _OLMOE,
    "olmoedpo": _OLMOE,
    "olmoeins": _OLMOE,
    "switch": Route("SwitchTransformersForConditionalGeneration", NATIVE, NATIVE),
    "llamamoe2": Route(
        "MixtralForCausalLM",
        CONVERTED,
        CONVERTED,
        "without its factor of the experts it loads as a Mixtral and is wrong",
    ),
    "llamamoe2s": Route(
        "Qwen2MoeForCausalLM",
        CONVERTED,
        CONVERTED,
        "without factor and residual it loads as a Mixtral and is wrong",
    ),
    "jetmoe": _JETMOE,
    "jetmoesft": _JETMOE,
    "jetmoechat": _JETMOE._replace(
        reason="old names of fields: native code would read 12 of its 24 layers"
    ),
    "openmoe": _OWN,
    "minicpm": Route(
        "GraniteMoeForCausalLM",
        CONVERTED,
        OWN_CODE,
        "scales become multipliers of Granite, whose class in transformers 4 takes other weights",
    ),
    "qwen": _QWEN2,
    "deepseek2": Route("DeepseekV2ForCausalLM", NATIVE, NATIVE),
    "deepseek": Route(
        "Qwen2MoeForCausalLM", CONVERTED, CONVERTED, "shared experts behind a gate of one half"
    ),
    "xverse": Route(
        "Qwen2MoeForCausalLM",
        CONVERTED,
        CONVERTED,
        "shared experts behind a gate of one half, router in float32",
    ),
    "qwen3": Route("Qwen3MoeForCausalLM", NATIVE, NATIVE),
    "yuan": _OWN,
    "phi": Route("PhimoeForCausalLM", NATIVE, NATIVE),
    "grin": Route("PhimoeForCausalLM", CONVERTED, CONVERTED, "Phi-3.5-MoE under another name"),
    "mixtral": Route("MixtralForCausalLM", NATIVE, NATIVE),
    "jamba": Route("JambaForCausalLM", NATIVE, NATIVE),
    "nllb": Route(
        "NllbMoeForConditionalGeneration",
        REFUSED,
        NATIVE,
        "in transformers 5 every token runs experts 0 and 1",
    ),
    "qwen2": _QWEN2,
}
"""Route of each model, by its key in all published tables."""

# Published without the name of its repository.
_HUB_IDS = {"llamamoe2s": "llama-moe/LLaMA-MoE-v2-3_8B-residual-sft"}

# What only the repository's own code computes, by the model_type of its configuration.
OWN_CODE_TYPES = {
    "llama_moe": "LLaMA-MoE-v1",
    "openmoe": "OpenMoE",
    "yuan": "Yuan2.0-M32",
}


def paper_models() -> pd.DataFrame:
    """The paper's models, how they are built, and how `lrc.load_model` loads them.

    Returns
    -------
    DataFrame
        A row per model, the twenty of the paper and seven post-trained variants:

        - ``model``: key in all published tables; ``name``; ``hub_id``; ``main``: one of the twenty;
        - ``layers`` (of an encoder-decoder: of both stacks), ``moe_layers``, ``experts`` (routed,
          of a layer), ``top_k``, ``shared_experts``;
        - ``native_class``, ``transformers_5``, ``transformers_4``, ``reason``: see `Route`.

    Examples
    --------
    >>> table = lrc.models.paper_models().set_index("model")
    >>> table.loc["nllb", ["moe_layers", "experts", "top_k", "transformers_5"]].tolist()
    [12, 128, 2, 'refused']
    """
    table = published.table("models").rename(columns={"key": "model", "hf_repo": "hub_id"})
    table["main"] = table["main"] == 1
    table["hub_id"] = table["hub_id"].fillna(table["model"].map(_HUB_IDS))
    routes = pd.DataFrame(ROUTES.values(), index=ROUTES.keys(), columns=Route._fields)
    shape = ["layers", "moe_layers", "experts", "top_k", "shared_experts"]
    table = table[["model", "name", "hub_id", "main", *shape]].set_index("model")
    return table.join(routes).reset_index()
