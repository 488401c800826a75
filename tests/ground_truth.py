"""Which experts a model really executes, found without its router: whose output changes?"""

import numpy as np
import torch


def executed_experts(model, block_names, inputs, num_experts):
    """Which experts each token used, boolean [layers, tokens of the batch, experts].

    It knows nothing of routers, ids or hooks on experts: each block runs again on the input it had,
    with changed weights of experts. Of many experts at a time, since of each only that row of the
    last matrix is changed that makes one number of the output, and of each another one. Exactly the
    tokens that used the expert come out different in this number.
    """
    captured = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda block, args, kwargs, name=name: captured.update({name: (args, kwargs)}),
            with_kwargs=True,
        )
        for name in block_names
    ]
    with torch.no_grad():
        model(**inputs)
        for handle in handles:
            handle.remove()
        return np.stack(
            [_users(model.get_submodule(name), captured[name], num_experts) for name in block_names]
        )


def _users(block, call, num_experts):
    args, kwargs = call

    def run():
        output = block(*args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        return output.reshape(-1, output.shape[-1]).clone()

    before = run()
    width = before.shape[-1]
    users = []
    for first in range(0, num_experts, width):
        experts = range(first, min(first + width, num_experts))
        rows = [last_matrix(block, expert)[row] for row, expert in enumerate(experts)]
        saved = [weights.clone() for weights in rows]
        for weights in rows:
            weights += 100  # Seen in bfloat16 too, and by a token that hardly uses the expert.
        users.append((run() != before)[:, : len(experts)].numpy())
        for weights, old in zip(rows, saved, strict=True):
            weights.copy_(old)
    return np.concatenate(users, axis=-1)


def last_matrix(block, expert) -> torch.Tensor:
    """View of the last weights [width of the output, inner width] of one expert."""
    if hasattr(block, "output_linear"):
        return block.output_linear.weight[expert]
    if isinstance(block.experts, torch.nn.ModuleList):
        experts = block.experts[expert]
    elif isinstance(block.experts, torch.nn.ModuleDict):
        experts = block.experts[f"expert_{expert}"]
    else:
        return block.experts.down_proj[expert]
    names = ("w2", "down_proj", "wo", "fc2")
    return next(getattr(experts, name).weight for name in names if hasattr(experts, name))


def used(trace) -> np.ndarray:
    """Which experts each token used by the record: boolean [layers, tokens, experts]."""
    one_hot = (trace.experts[..., None] == np.arange(trace.num_experts)).any(axis=3)
    return one_hot.transpose(2, 0, 1, 3).reshape(trace.num_layers, -1, trace.num_experts)
