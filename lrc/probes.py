"""How the experts that a layer executes are read while it runs.

A probe hooks into one layer and hands over the ids of each of its forward passes. Hooks return
None: a returned value would replace what the model computes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from lrc.errors import RecordError
from lrc.expert_rows import ids_of_pairs, match_rows

See = Callable[..., None]
"""Takes ``(ids, weights, tokens)``: ids [rows, slots], -1 for no expert; weights alike, or None;
``tokens``, boolean over the tokens of the pass, where rows are only some of them, or None."""


class Probe(ABC):
    """Reads one layer; the base of all that do.

    Attributes
    ----------
    rule : str
        How, in a few words, for the record and the table of architectures.
    weighted : bool
        Whether weights can be known too, so that slots are in their order; else ids ascend.
    no_expert : str
        What a slot without an expert means in this layer, or "".
    label : str
        Name of the layer in messages.
    """

    rule = ""
    weighted = True
    no_expert = ""
    label = "a layer"

    @abstractmethod
    def attach(self, see: See) -> list:
        """Hook into the layer; return the handles that remove the hooks."""


class IndexArgument(Probe):
    """Reads the ids that the experts are called with.

    Parameters
    ----------
    experts : torch.nn.Module
    index, weights : str or None
        Arguments of its forward; without `index`, the one argument that can be ids is taken.
    num_experts : int
    convert : callable, optional
        Turns ids and weights, as they are handed over, into those that were executed.
    """

    rule = "index argument"

    def __init__(self, experts, index, weights, num_experts, convert=None, no_expert=""):
        self.experts = experts
        self.index, self.weights = index, weights
        self.num_experts = num_experts
        self.convert = convert
        self.no_expert = no_expert
        self.places = {name: at for at, name in enumerate(argument_names(experts))}
        if index is None:
            self.rule = "index argument, found by its kind"

    def attach(self, see: See) -> list:
        def hook(module, args, kwargs):
            if self.index is None:
                ids, weights = self._by_kind((*args, *kwargs.values()))
            else:
                ids = self._argument(self.index, args, kwargs)
                weights = self._argument(self.weights, args, kwargs)
            if self.convert is not None:
                ids, weights = self.convert(ids, weights)
            see(ids, weights)

        return [self.experts.register_forward_pre_hook(hook, with_kwargs=True)]

    def _argument(self, name, args, kwargs):
        if name is None:
            return None
        at = self.places[name]
        return kwargs[name] if name in kwargs else args[at] if at < len(args) else None

    def _by_kind(self, values):
        """The ids, and the weights, among arguments whose names say nothing."""
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        ids = [
            tensor
            for tensor in tensors
            if tensor.dtype in (torch.int16, torch.int32, torch.int64)
            and tensor.ndim in (2, 3)
            and tensor.shape[-1] < self.num_experts
        ]
        if len(ids) != 1:
            raise RecordError(
                f"{self.label} is called with {len(ids)} arguments that can be expert ids "
                "[tokens, top_k], so lrc cannot tell what it executes: its class needs an adapter"
            )
        weights = [
            tensor
            for tensor in tensors
            if tensor.is_floating_point() and tensor.shape == ids[0].shape
        ]
        return ids[0], weights[0] if len(weights) == 1 else None


class ExpertRows(Probe):
    """Compares the rows that each expert is called with to the rows of the layer's input.

    Parameters
    ----------
    layer : torch.nn.Module
        Called with all tokens.
    experts : dict of int to torch.nn.Module
        Modules of the experts, by id.
    num_experts : int
    top_k : int or None
        Slots of a token, where the layer says so; a pass may happen to use fewer.
    """

    rule = "rows of experts in a list"
    weighted = False
    no_expert = "dropped: no expert received the token"

    def __init__(
        self,
        layer: nn.Module,
        experts: dict[int, nn.Module],
        num_experts: int,
        top_k: int | None = None,
    ):
        self.layer = layer
        self.experts = experts
        self.num_experts = num_experts
        self.top_k = top_k or 1

    def attach(self, see: See) -> list:
        # References only: rows are compared once the layer is done, and are gone after that.
        tokens: list[torch.Tensor] = []
        received: list[tuple[int, torch.Tensor]] = []

        @torch.compiler.disable
        def before(module, args, kwargs):
            received.clear()
            tokens[:] = [self._rows(args, kwargs)]

        def hook(expert):
            @torch.compiler.disable
            def take(module, args, kwargs):
                received.append((expert, self._rows(args, kwargs)))

            return take

        @torch.compiler.disable
        def after(module, args, output):
            rows = tokens.pop().flatten(0, -2)
            if len(rows) and not any(part.numel() for _, part in received):
                raise RecordError(
                    f"{self.label}: none of its experts was called, so the layer computes them by "
                    "a way of its own (a fused kernel, or their weights alone)"
                )
            try:
                pairs = match_rows(rows, received)
                ids = ids_of_pairs(*pairs, len(rows), self.num_experts, self.top_k)
            except RecordError as error:
                raise RecordError(f"{self.label}: {error}") from None
            received.clear()
            see(ids, None)

        handles = [
            self.layer.register_forward_pre_hook(before, with_kwargs=True),
            self.layer.register_forward_hook(after),
        ]
        for expert, module in self.experts.items():
            handles.append(module.register_forward_pre_hook(hook(expert), with_kwargs=True))
        return handles

    def _rows(self, args, kwargs) -> torch.Tensor:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1:
                return value.detach()
        raise RecordError(f"{self.label} is called without rows [tokens, width]")


def argument_names(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward; empty if they cannot be told."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return []


class OutputOf(Probe):
    """Reads what a module returns, such as a router or an experts module that returns its ids.

    Parameters
    ----------
    module : torch.nn.Module
    read : callable
        Turns the module's output into ids and weights (or None).
    rule : str
    """

    def __init__(self, module: nn.Module, read: Callable, rule: str):
        self.module = module
        self.read = read
        self.rule = rule

    def attach(self, see: See) -> list:
        def hook(module, args, output):
            see(*self.read(output))

        return [self.module.register_forward_hook(hook)]


class OfSomeTokens(Probe):
    """Reads a layer that gets only some of the tokens, such as those of one modality.

    Parameters
    ----------
    probe : Probe
        Reads the layer itself.
    block : torch.nn.Module
        Called with all tokens, before the layer is.
    choose : callable
        From the arguments of the block (by name) to boolean [tokens], or None for all.
    """

    def __init__(self, probe: Probe, block: nn.Module, choose: Callable, no_expert: str):
        self.probe = probe
        self.block = block
        self.choose = choose
        self.rule = probe.rule
        self.weighted = probe.weighted
        self.no_expert = no_expert
        self.names = argument_names(block)

    def attach(self, see: See) -> list:
        tokens: list[torch.Tensor | None] = [None]

        def before(module, args, kwargs):
            tokens[0] = self.choose({**dict(zip(self.names, args, strict=False)), **kwargs})

        handle = self.block.register_forward_pre_hook(before, with_kwargs=True)
        return [handle, *self.probe.attach(lambda ids, weights: see(ids, weights, tokens[0]))]
