"""One forward pass of a model, as hooks see it: which tokens count, and which experts they used."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import nn

from lrc.errors import RecordError
from lrc.moe_layer import MoeLayer

_PACKED = (
    "several texts are packed into one row (position_ids start anew), so windows would cross "
    "their ends: give each text a row of its own"
)


class ForwardPass:
    """Collects what the hooks of one forward pass see.

    Tensors stay on the model's devices until the pass is over, so that hooks never wait for a GPU.

    Parameters
    ----------
    layers : list of MoeLayer
        All that were found in the model; hooks name them by position.
    inputs : dict
        Arguments of the pass, by name.
    size, length : int
        Sequences and tokens of the pass.
    start : int
        Tokens in the KV cache before it.
    """

    def __init__(self, layers: list[MoeLayer], inputs: dict, size: int, length: int, start: int):
        self.layers = layers
        self.size, self.length = size, length
        if inputs.get("cu_seq_lens_q") is not None:
            raise RecordError(_PACKED)
        tokens = inputs.get("input_ids", inputs.get("decoder_input_ids"))
        self.token_ids = None if tokens is None else tokens.detach()
        self.mask = valid_tokens(inputs.get("attention_mask"), start, size, length)
        self.positions = inputs.get("position_ids")
        self.ids: dict[int, torch.Tensor] = {}
        self.weights: dict[int, torch.Tensor] = {}
        self.logits: dict[int, torch.Tensor] = {}

    def see_experts(
        self,
        position: int,
        ids: torch.Tensor,
        weights: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
    ) -> None:
        """Take the ids (and weights) that a layer executes, as its probe hands them over."""
        layer = self.layers[position]
        if position in self.ids:
            raise RecordError(
                f"{layer} fired twice in one forward pass: the model runs it several times "
                "(a layer shared between depths, or a pass repeated inside the model), and lrc "
                "cannot tell which run counts"
            )
        if not isinstance(ids, torch.Tensor) or (
            ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim > 3
        ):
            found = (
                f"{ids.dtype} {list(ids.shape)}" if hasattr(ids, "dtype") else type(ids).__name__
            )
            raise RecordError(
                f"{layer} is handed {found} where ids [tokens, top_k] are needed: lrc does not "
                "know this class"
            )
        top_k = ids.shape[-1] if ids.ndim > 1 else 1
        # Copies: small, and safe from whatever the model does to its tensors afterwards.
        self.ids[position] = _scattered(ids.reshape(-1, top_k), tokens, -1).to(
            torch.int16, copy=True
        )
        if weights is not None:
            self.weights[position] = _scattered(weights.reshape(-1, top_k), tokens, 0).to(
                torch.float32, copy=True
            )

    def see_router(self, position: int, output) -> None:
        """Take the logits, in bfloat16, from what a router returns."""
        layer = self.layers[position]
        for value in output if isinstance(output, tuple) else (output,):
            if (
                isinstance(value, torch.Tensor)
                and value.is_floating_point()
                and value.shape[-1] == layer.num_experts
            ):
                self.logits[position] = value.detach().flatten(0, -2).to(torch.bfloat16)
                return
        raise RecordError(
            f"router of {layer} returns no logits of {layer.num_experts} experts; use "
            "mode='executed'"
        )

    def check_coverage(self, active: list[MoeLayer] | None) -> list[MoeLayer]:
        """Return the layers that fired, or raise if one is missing or saw only some tokens.

        Parameters
        ----------
        active : list of MoeLayer or None
            Those that fired in earlier passes; None in the first.
        """
        for position, layer in enumerate(self.layers):
            if layer.partial and active is not None and layer in active:
                # It has tokens of its own kind only, and there are none in this pass.
                nothing = torch.full((self.size * self.length, 1), -1, dtype=torch.int16)
                self.ids.setdefault(position, nothing)
                if layer.probe.weighted:
                    self.weights.setdefault(position, torch.zeros(nothing.shape))
        fired = [self.layers[position] for position in sorted(self.ids)]
        for layer in active or [layer for layer in self.layers if not layer.optional]:
            if layer not in fired:
                raise RecordError(
                    f"{layer} did not fire in this forward pass: the model was compiled before "
                    "recording, runs fused kernels, or skips this layer (record before compiling, "
                    "with use_kernels=False and without quantized kernels)"
                )
        if active is not None and fired != active:
            raise RecordError(
                f"{next(layer for layer in fired if layer not in active)} fired in this forward "
                "pass, but not in earlier ones: record such inputs apart"
            )
        rows = self.size * self.length
        for position, ids in self.ids.items():
            if len(ids) != rows:
                raise RecordError(
                    f"{self.layers[position]} saw {len(ids)} rows for {rows} tokens "
                    f"({self.size} sequences of {self.length}): it routes only some tokens, or "
                    "some twice, and lrc cannot tell which"
                )
        counts = sorted({layer.num_experts for layer in fired})
        if len(counts) > 1:
            raise RecordError(f"layers with different numbers of experts {counts}: not supported")
        return fired

    def routes(self, mode: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids and weights, arrays [sequences, tokens, layers, top_k] on the CPU.

        Slots are in falling order of weight, or of logits for mode "paper"; weights (float32) are
        None where the experts are handed none. Layers with fewer slots than others have -1 there.
        """
        positions = sorted(self.ids)
        shape = (self.size, self.length, len(positions), -1)
        if mode == "paper":
            return _stack([self._ranked(position) for position in positions], -1).reshape(
                shape
            ), None
        experts = _stack([self.ids[position] for position in positions], -1)
        if len(self.weights) < len(positions):
            return experts.reshape(shape), None
        weights = _stack([self.weights[position] for position in positions], -np.inf)
        broken = np.isnan(weights).any(axis=(0, 2))
        if broken.any():
            raise RecordError(
                f"{self.layers[positions[int(broken.argmax())]]} got NaN router weights: the "
                "model's numbers overflow; try another dtype"
            )
        _sort_slots(experts, weights)
        return experts.reshape(shape), weights.reshape(shape)

    def valid(self) -> np.ndarray | None:
        """Return which tokens count, boolean [sequences, tokens], or None for all."""
        mask = None if self.mask is None else self.mask.cpu().numpy()
        positions = self.positions
        if isinstance(positions, torch.Tensor) and positions.ndim == 2 and self.length > 1:
            positions = positions.detach().cpu().numpy()
            falls = positions[:, 1:] < positions[:, :-1]
            if mask is not None:
                falls = falls & mask[:, 1:] & mask[:, :-1]
            if falls.any():
                raise RecordError(_PACKED)
        return mask

    def predicted(self, output) -> np.ndarray | None:
        """Return predicted ids [sequences, tokens], -1 where no logits are; None without any."""
        logits = getattr(output, "logits", None)
        if (
            not isinstance(logits, torch.Tensor)
            or logits.ndim != 3
            or logits.shape[0] != self.size
            or not 1 <= logits.shape[1] <= self.length
        ):
            return None
        predicted = np.full((self.size, self.length), -1, np.int32)
        # In generation only the last tokens of a pass get logits.
        predicted[:, -logits.shape[1] :] = logits.detach().argmax(dim=-1).cpu().numpy()
        return predicted

    def _ranked(self, position: int) -> torch.Tensor:
        """Ids of the top-k bfloat16 logits [tokens, top_k]; of equal ones the higher id first."""
        top_k = self.ids[position].shape[1]
        logits = self.logits.get(position)
        if logits is None or len(logits) != len(self.ids[position]):
            raise RecordError(
                f"router of {self.layers[position]} gave no logits for each token; use "
                "mode='executed'"
            )
        ascending = logits.sort(dim=-1, stable=True).indices
        return ascending[:, -top_k:].flip(-1).to(torch.int16)


def inputs_by_name(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict:
    """Arguments of a forward pass by name, also through a wrapper's ``*args, **kwargs``."""
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and named.get(parameter.name):
            named.setdefault("input_ids", named[parameter.name][0])
    return named


def valid_tokens(mask, start: int, size: int, length: int) -> torch.Tensor | None:
    """Return this pass's part, boolean [sequences, tokens], of a mask that covers the cache too.

    Parameters
    ----------
    mask : torch.Tensor or None
        The ``attention_mask`` of the pass; None stands for "all tokens count" and is returned.
    start : int
        Tokens in the KV cache before the pass.
    size, length : int
        Sequences and tokens of the pass.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        raise RecordError(
            "attention_mask is not of shape [sequences, tokens], so padding cannot be told from "
            "text: give the 2-D mask of the tokenizer (and no static KV cache)"
        )
    if mask.shape == (size, length):
        return mask.detach() != 0
    if mask.shape[0] != size or mask.shape[1] < start + length:
        raise RecordError(
            f"attention_mask has shape {list(mask.shape)}, but there are {size} sequences of "
            f"{start + length} tokens"
        )
    return mask.detach()[:, start : start + length] != 0


def _scattered(values: torch.Tensor, tokens: torch.Tensor | None, fill) -> torch.Tensor:
    """Rows of some tokens as rows of all tokens."""
    values = values.detach()
    if tokens is None:
        return values
    whole = values.new_full((len(tokens), values.shape[1]), fill)
    whole[tokens] = values
    return whole


def _stack(tensors: list[torch.Tensor], fill) -> np.ndarray:
    """Tensors [rows, top_k] of all layers as one array [rows, layers, top_k], in one transfer."""
    top_k = max(tensor.shape[1] for tensor in tensors)
    padded = [
        nn.functional.pad(tensor.to(tensors[0].device), (0, top_k - tensor.shape[1]), value=fill)
        for tensor in tensors
    ]
    return torch.stack(padded, dim=1).cpu().numpy()


def _sort_slots(experts: np.ndarray, weights: np.ndarray) -> None:
    """Sort slots, in place, by falling weight; equal weights stay as they were."""
    unsorted = (weights[..., 1:] > weights[..., :-1]).any(axis=-1)
    if unsorted.any():
        order = np.argsort(-weights[unsorted], axis=-1, kind="stable")
        experts[unsorted] = np.take_along_axis(experts[unsorted], order, axis=-1)
        weights[unsorted] = np.take_along_axis(weights[unsorted], order, axis=-1)
    weights[experts < 0] = 0
