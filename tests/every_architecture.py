"""What was executed, and what was recorded, of every architecture: a ground truth and a table.

The ground truth knows nothing of routers and ids: it changes the weights of one expert and looks
whose output changes. ``python tests/every_architecture.py`` writes the table of the book anew.
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
from tiny_models import (
    ARCHITECTURES,
    NUM_EXPERTS,
    VOCABULARY,
    config_of,
    is_selection_bias,
    tensors,
    tiny_model,
)

import lrc
from lrc.moe_layers import find_moe_layers

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
    model = tiny_model(name)
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
        model = tiny_model(name, **changes)
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
