"""Plain PyTorch implementations of the paper's models that have no class in transformers.

Written from the definition of each architecture, a token at a time, in terms of the names that the
weights have in its published files. They serve to check that lrc loads these files rightly.
"""

import math

import torch
from torch.nn.functional import layer_norm, linear, silu

Weights = dict[str, torch.Tensor]


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in files of this configuration."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv = config.get("num_key_value_heads", heads) * (hidden // heads)
    inner = config["intermediate_size"]
    vocabulary = (config["vocab_size"], hidden)
    found = {"model.embed_tokens.weight": vocabulary, "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", True):
        found["lm_head.weight"] = vocabulary
    grin = config.get("model_type") == "grinmoe"
    if grin:
        found |= {"model.norm.bias": (hidden,), "lm_head.bias": (config["vocab_size"],)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, out, into in (
            ("q_proj", hidden, hidden),
            ("k_proj", kv, hidden),
            ("v_proj", kv, hidden),
            ("o_proj", hidden, hidden),
        ):
            found[f"{at}.self_attn.{name}.weight"] = (out, into)
            if grin:
                found[f"{at}.self_attn.{name}.bias"] = (out,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{name}.weight"] = (hidden,)
            if grin:
                found[f"{at}.{name}.bias"] = (hidden,)
        router, experts, others = _block(config, layer)
        if router:
            found[f"{at}.{router[0]}.weight"] = (router[1], hidden)
        for name, size, parts in experts + others:
            up = (size or inner, hidden)
            for part, shape in zip(parts, (up, up, up[::-1]), strict=True):
                found[f"{at}.{name}.{part}.weight"] = shape
    return found


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL = ("w1", "w3", "w2")


def _block(config, layer):
    """Router, experts and what else every token passes, of a layer: names, sizes, parts."""
    kind = config.get("model_type")
    inner = config["intermediate_size"]
    if kind == "deepseek":
        if layer < config["first_k_dense_replace"]:
            return None, [], [("mlp", inner, _PROJECTIONS)]
        count, inner = config["n_routed_experts"], config["moe_intermediate_size"]
        shared = [("mlp.shared_experts", inner * config["n_shared_experts"], _PROJECTIONS)]
        experts = [(f"mlp.experts.{e}", inner, _PROJECTIONS) for e in range(count)]
        return ("mlp.gate", count), experts, shared
    if kind == "xverse":
        count = config["num_experts"]
        shared = [("mlp.shared_experts", inner * config["num_shared_experts"], _PROJECTIONS)]
        experts = [(f"mlp.experts.{e}", inner, _PROJECTIONS) for e in range(count)]
        return ("mlp.router", count), experts, shared
    if kind is None:  # MiniCPM's file has none.
        count = config["num_experts"]
        return (
            ("mlp.gate", count),
            [(f"mlp.experts.{e}", inner, _MIXTRAL) for e in range(count)],
            [],
        )
    count, block = config["num_local_experts"], "block_sparse_moe"
    residual = config.get("intermediate_size_residual")
    return (
        (f"{block}.gate", count),
        [(f"{block}.experts.{e}", inner, _MIXTRAL) for e in range(count)],
        [("mlp_residual", residual, _MIXTRAL)] if residual else [],
    )


def random_weights(config: dict, seed: int = 0) -> Weights:
    """Weights under which routing decisions are clear, and rounding is not amplified by layers."""
    generator = torch.Generator().manual_seed(seed)
    depth = math.sqrt(2 * config["num_hidden_layers"])
    weights = {}
    for name, shape in shapes(config).items():
        value = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            value = 0.1 * value + ("norm.weight" in name)
        elif "embed" not in name:
            value *= 1 / math.sqrt(shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
                value /= depth
        weights[name] = value
    return weights


def logits_and_experts(config: dict, weights: Weights, tokens: list[int]):
    """Logits [tokens, vocabulary] of one text, and the experts of each MoE layer and token.

    Returns
    -------
    logits : torch.Tensor
    experts : list of list of set of int
    """
    depth = config.get("scale_depth")
    residual = depth / math.sqrt(config["num_hidden_layers"]) if depth else 1.0
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[torch.tensor(tokens)] * config.get("scale_emb", 1)
    chosen = []
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        x = x + residual * _attention(
            config, weights, at, _norm(config, weights, f"{at}.input_layernorm", x)
        )
        y = _norm(config, weights, f"{at}.post_attention_layernorm", x)
        outputs, users = zip(
            *(_feed_forward(config, weights, layer, row) for row in y), strict=True
        )
        x = x + residual * torch.stack(outputs)
        if users[0] is not None:
            chosen.append(list(users))
    x = _norm(config, weights, "model.norm", x)
    if config.get("dim_model_base"):
        x = x / (config["hidden_size"] / config["dim_model_base"])
    head = weights.get("lm_head.weight", embedding)
    return linear(x, head, weights.get("lm_head.bias")), chosen


def _norm(config, weights, name, x):
    weight = weights[f"{name}.weight"]
    if f"{name}.bias" in weights:
        return layer_norm(x, x.shape[-1:], weight, weights[f"{name}.bias"], config["rms_norm_eps"])
    return weight * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()


def _attention(config, weights, at, x):
    """Causal attention with rotary positions; each position sees at most a window of tokens."""

    def project(name, x):
        bias = weights.get(f"{at}.self_attn.{name}.bias")
        return linear(x, weights[f"{at}.self_attn.{name}.weight"], bias)

    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads
    q, k, v = (
        project(name, x).unflatten(-1, (-1, size)) for name in ("q_proj", "k_proj", "v_proj")
    )
    angles = torch.outer(
        torch.arange(len(x)).float(),
        float(config.get("rope_theta", 10000)) ** (-torch.arange(0, size, 2).float() / size),
    )
    q, k = (_rotate(each, angles) for each in (q, k))
    window = config.get("sliding_window") or len(x)
    output = torch.zeros(len(x), heads, size)
    for head in range(heads):
        shared = head // (heads // k.shape[1])  # Query heads share keys and values.
        for i in range(len(x)):
            seen = slice(max(0, i - window + 1), i + 1)
            scores = k[seen, shared] @ q[i, head] / math.sqrt(size)
            output[i, head] = scores.softmax(-1) @ v[seen, shared]
    return project("o_proj", output.flatten(1))


def _rotate(x, angles):
    """Turn each pair (i, i + size / 2) of a head's components by its position's angle."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _feed_forward(config, weights, layer, x):
    """Output for one token, and the set of its routed experts (None of a dense layer)."""
    at = f"model.layers.{layer}"
    router, experts, others = _block(config, layer)

    def mlp(name, parts):
        gate, up, down = (weights[f"{at}.{name}.{part}.weight"] for part in parts)
        return linear(silu(linear(x, gate)) * linear(x, up), down)

    output = torch.zeros_like(x)
    for name, _, parts in others:
        output = output + mlp(name, parts)
    if router is None:
        return output, None
    logits = linear(x, weights[f"{at}.{router[0]}.weight"])
    for expert, weight in _choose(config, logits).items():
        name, _, parts = experts[expert]
        output = output + weight * config.get("scale_factor", 1.0) * mlp(name, parts)
    return output, set(_choose(config, logits))


def _choose(config, logits):
    """Weight of each expert that a token with these router logits uses."""
    if config.get("model_type") == "grinmoe":
        return _sparse_mixer(logits, config["router_jitter_noise"])
    top_k = config.get("moe_top_k") or config["num_experts_per_tok"]
    scores = logits.softmax(-1)
    experts = scores.argsort(descending=True)[:top_k].tolist()
    total = 1 if config.get("norm_topk_prob") is False else scores[experts].sum()
    return {expert: scores[expert] / total for expert in experts}


def _sparse_mixer(logits, noise):
    """The two largest logits, one after the other, each with a softmax over its near rivals."""
    chosen = {}
    left = logits.clone()
    for _ in range(2):
        best = left.max()
        expert = int(left.argmax())
        # Rivals: at most 2 * noise below, relative to the larger magnitude of the two.
        scale = logits.abs().clamp(min=best)
        rivals = (best - logits) / scale <= 2 * noise
        masked = left.masked_fill(~rivals, -math.inf)
        chosen[expert] = masked.softmax(-1)[expert]
        left[expert] = -math.inf
    return chosen
