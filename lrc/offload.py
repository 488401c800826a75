"""Run a model whose experts lie in slow memory, through a cache of experts in fast memory.

What `lrc.replay` predicts, an `Offloader` does: same policies, same contract "engine", same hits.
It serves to measure, and to show how little an engine needs; it loads on demand and hides nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lrc.arguments import check_level
from lrc.cache_replay import LEVELS, checked_capacities, checked_options, rules_of
from lrc.errors import LrcError
from lrc.expert_cache import ExpertCache
from lrc.moe_layers import find_moe_layers
from lrc.probes import IndexArgument
from lrc.throughput import Device


class Offloader:
    """Keep a model's experts out of fast memory, but for a cache of them, inside a ``with`` block.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model whose experts of a layer are one module with stacked parameters
        ``[experts, …]`` (nearly all of transformers 5; see the table of architectures).
    policy : str
        Of `lrc.replay`, but those that know the future.
    cache_size, budget_bytes : int, optional
        Capacity, as in `lrc.replay`.
    level : {"model", "layer"}
        One cache shared by all layers, whose experts must then have the same shapes, or one for
        each layer.
    folder : path, optional
        Where the file of all experts is put (default: a temporary folder). On a GPU they lie in
        pinned memory instead.
    link : lrc.throughput.Device, optional
        Load no faster than over a link of its `bandwidth` and `latency_ms`, by waiting: slow memory
        that was just read or written is often in memory already.
    **options
        Parameters of the policy.

    Attributes
    ----------
    hits : list of bool array [uses]
        Of each request so far, in the order of `lrc.requests`.
    load_seconds : list of float
        Time that loading took, of each request.
    load_bytes : list of int

    Raises
    ------
    LrcError
        As `lrc.replay`; layers that cannot be offloaded, or not share a cache.

    Notes
    -----
    The parameters of an experts module become a buffer of as many slots as the cache has, and ids
    are translated to slots, so the model's own code computes as before; sums may run in another
    order. A request larger than the cache is computed from a buffer of its own.

    Examples
    --------
    >>> model, tokenizer = lrc.load_model("toy:baseline")  # doctest: +SKIP
    >>> with lrc.Offloader(model, cache_size=64) as offloader:  # doctest: +SKIP
    ...     model.generate(**tokenizer(["def "], return_tensors="pt"), max_new_tokens=32)
    >>> offloader.hit_rate  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str = "lru",
        *,
        cache_size=None,
        budget_bytes=None,
        level: str = "model",
        folder=None,
        link: Device | None = None,
        **options,
    ):
        check_level(level, LEVELS)
        options = checked_options(policy, options, weighted=True)
        self.model = model
        self.layers = [layer for layer in find_moe_layers(model) if not layer.optional]
        for layer in self.layers:
            self._check(layer)
        sizes = np.array([layer.expert_bytes for layer in self.layers])
        capacities, in_bytes = checked_capacities(
            len(self.layers), cache_size, budget_bytes, level, sizes
        )
        taken = sizes if in_bytes else np.ones_like(sizes)
        num_experts = self.layers[0].num_experts
        shapes = {tuple(_shapes(layer.experts).items()) for layer in self.layers}
        if level == "model" and len(shapes) > 1:
            raise LrcError(
                "experts of different layers have different shapes, so they cannot share a cache: "
                "use level='layer'"
            )
        groups = [range(len(self.layers))]
        if level == "layer":
            groups = [range(at, at + 1) for at in range(len(self.layers))]
        self._folder = folder
        self._link = link
        self._caches = []
        for layers, capacity in zip(groups, capacities, strict=True):
            id_sizes = np.repeat(taken[layers.start : layers.stop], num_experts)
            rules = rules_of(policy, options, capacity, id_sizes, layers)
            cache = ExpertCache(rules, options.get("alpha"), options.get("seed", 0))
            slots = min(int(capacity // taken[layers.start : layers.stop].min()), len(id_sizes))
            self._caches.append((cache, slots, layers))
        self._restore: list = []
        self.clear()

    def clear(self) -> None:
        """Forget what was counted; the caches stay as they are."""
        self.hits: list[np.ndarray] = []
        self.load_seconds: list[float] = []
        self.load_bytes: list[int] = []

    def forget(self) -> None:
        """Empty the caches, as before a new text."""
        for cache, _, _ in self._caches:
            cache.forget()
        for memory in self._memories:
            memory.drop(np.ones_like(memory.slot_of, bool))

    @property
    def hit_rate(self) -> float:
        """Hits over uses."""
        return float(np.concatenate(self.hits).mean()) if self.hits else 0.0

    def __enter__(self) -> Offloader:
        if self._restore:
            raise LrcError("this offloader is in use already: leave its with block first")
        self._clock = 0
        self._temporary = tempfile.TemporaryDirectory(prefix="lrc-", dir=self._folder)
        self._memories = []
        try:
            for cache, slots, layers in self._caches:
                experts = [self.layers[at].experts for at in layers]
                path = Path(self._temporary.name) / f"experts-{layers.start}.bin"
                memory = _Memory(experts, self.layers[0].num_experts, slots, path)
                self._memories.append(memory)
                for at, module in enumerate(experts):
                    probe = self.layers[layers.start + at].probe
                    self._restore.append((memory, at, module, module.num_experts))
                    module.forward = self._offloaded(probe, cache, memory, at, module)
            handle = self.model.register_forward_pre_hook(self._step)
            self._handle = handle
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for memory, at, module, num_experts in self._restore:
            vars(module).pop("forward", None)
            module.num_experts = num_experts
            for name, tensor in memory.whole(at).items():
                module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        self._restore.clear()
        if hasattr(self, "_handle"):
            self._handle.remove()
        self._memories.clear()
        self._temporary.cleanup()

    def _step(self, module, args):
        self._clock += 1

    def _offloaded(self, probe, cache, memory, at, module):
        forward, num_experts = module.forward, module.num_experts
        names = list(probe.places)

        def offloaded(*args, **kwargs):
            given = dict(zip(names, args, strict=False)) | kwargs
            ids, weights = given[probe.index], given.get(probe.weights)
            place = names.index(probe.index)
            asked, asked_weights = _request(ids, weights)
            asked = asked + at * num_experts
            hits = cache.serve(asked, asked_weights, self._clock)
            begin = time.perf_counter()
            slot_of, parameters, num_bytes = memory.provide(asked, cache.resident)
            if self._link is not None:
                _wait(begin + self._link.loading_ms(num_bytes // memory.bytes, num_bytes) / 1e3)
            self.load_seconds.append(time.perf_counter() - begin)
            self.load_bytes.append(num_bytes)
            self.hits.append(hits)
            slot_of = torch.from_numpy(slot_of[at * num_experts : (at + 1) * num_experts])
            ids = slot_of.to(ids.device)[ids]
            if place < len(args):  # as it was given: implementations name it differently
                args = (*args[:place], ids, *args[place + 1 :])
            else:
                kwargs = kwargs | {probe.index: ids}
            for name, tensor in parameters.items():
                module._parameters[name] = tensor
            module.num_experts = len(tensor)
            return forward(*args, **kwargs)

        return offloaded

    @staticmethod
    def _check(layer):
        if type(layer.probe) is not IndexArgument or layer.probe.convert is not None:
            raise LrcError(
                f"{layer} is no module of stacked experts that is handed their ids, so it cannot "
                "be offloaded"
            )
        for name, parameter in layer.experts.named_parameters(recurse=True):
            if "." in name or len(parameter) != layer.num_experts:
                raise LrcError(
                    f"{layer}: parameter {name} is not stacked by expert, so it cannot be offloaded"
                )


def _wait(until):
    """Wait for a time of `time.perf_counter`; a sleep may last longer, so the end is watched."""
    time.sleep(max(until - time.perf_counter() - 5e-4, 0))
    while time.perf_counter() < until:
        pass


def _shapes(experts):
    return {name: tuple(p.shape[1:]) for name, p in experts.named_parameters()}


def _request(ids, weights):
    """Experts of a request, each once, as `lrc.requests` orders them; and their summed weights."""
    ids = ids.detach().reshape(-1, ids.shape[-1]).cpu()
    weights = torch.zeros(ids.shape) if weights is None else weights.detach().float().cpu()
    weights = weights.reshape(ids.shape)
    order = weights.argsort(dim=-1, descending=True, stable=True)
    flat = ids.gather(-1, order).flatten().numpy()
    heavy = weights.gather(-1, order).flatten().numpy()
    experts, first, back = np.unique(flat, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return experts[order], np.bincount(back, heavy, len(experts))[order]


class _Memory:
    """Experts of one cache: all of them in slow memory, some in the slots of a fast buffer.

    Parameters
    ----------
    modules : list of torch.nn.Module
        Experts modules of alike shapes; their parameters move into the slow memory.
    num_experts, slots : int
    path : Path
        Of the file of slow memory (not on a GPU).
    """

    def __init__(self, modules, num_experts, slots, path):
        self.num_experts = num_experts
        first = dict(modules[0].named_parameters())
        self.slow, self.buffer = {}, {}
        for name, parameter in first.items():
            shape = (len(modules) * num_experts, *parameter.shape[1:])
            self.slow[name] = _slow(shape, parameter, path.with_suffix(f".{name}"))
            for at, module in enumerate(modules):
                part = self.slow[name][at * num_experts : (at + 1) * num_experts]
                part.copy_(module._parameters[name].detach())
            self.buffer[name] = nn.Parameter(
                parameter.new_zeros((slots, *parameter.shape[1:])), requires_grad=False
            )
        for module in modules:
            for name in first:
                module._parameters[name] = self.buffer[name]
        self.slot_of = np.full(len(modules) * num_experts, -1, np.int64)
        self.free = list(range(slots - 1, -1, -1))
        self.bytes = sum(p[0].numel() * p.element_size() for p in self.buffer.values())

    def drop(self, which):
        """Free the slots of experts: bool array [ids]."""
        gone = np.flatnonzero(which & (self.slot_of >= 0))
        self.free += self.slot_of[gone].tolist()
        self.slot_of[gone] = -1

    def provide(self, asked, resident):
        """Slot of every expert, the parameters with those slots, and how many bytes were loaded."""
        before = self.slot_of >= 0
        self.drop(~resident)
        new = np.flatnonzero(resident & (self.slot_of < 0))
        for x in new.tolist():
            self.slot_of[x] = slot = self.free.pop()
            for name, buffer in self.buffer.items():
                buffer.data[slot].copy_(self.slow[name][x], non_blocking=True)
        loaded = len(new)
        slot_of, parameters = self.slot_of, self.buffer
        if (slot_of[asked] < 0).any():
            # More than the cache holds: a buffer for this request alone.
            loaded = int((~before[asked]).sum())
            slot_of = np.full_like(self.slot_of, -1)
            slot_of[asked] = np.arange(len(asked))
            rows = torch.from_numpy(asked.astype(np.int64))
            parameters = {
                name: nn.Parameter(slow[rows].to(self.buffer[name].device), requires_grad=False)
                for name, slow in self.slow.items()
            }
        return slot_of, parameters, loaded * self.bytes

    def whole(self, at):
        """All parameters of one module, in fast memory."""
        part = slice(at * self.num_experts, (at + 1) * self.num_experts)
        return {
            name: slow[part].clone().to(self.buffer[name].device)
            for name, slow in self.slow.items()
        }


def _slow(shape, like, path):
    """A tensor in slow memory: pinned beside a GPU, else in a file that is mapped."""
    if like.device.type == "cuda":
        return torch.empty(shape, dtype=like.dtype, pin_memory=True)
    numel = int(np.prod(shape))
    return torch.from_file(str(path), shared=True, size=numel, dtype=like.dtype).reshape(shape)
