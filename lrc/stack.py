"""Record one stack of layers: a whole model, or the encoder or the decoder of one that has both."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from lrc.errors import RecordError
from lrc.forward_pass import ForwardPass, inputs_by_name
from lrc.moe_layer import MoeLayer

_ARRAYS = (("experts", -1), ("weights", 0), ("token_ids", -1), ("predicted_ids", -1))


class StackRecorder:
    """Records every forward pass of one module.

    Parameters
    ----------
    name : {"decoder", "encoder"}
    module : torch.nn.Module
        Called with the tokens of the stack.
    layers : list of MoeLayer
        Those inside it.
    mode, weights, predictions
        As for `lrc.Recorder`.

    Attributes
    ----------
    active : list of MoeLayer or None
        Layers that fired; None before the first pass.
    ranked : bool
        Whether slots are in falling order of weight, or of logits.
    num_ids : int
        Expert ids held in memory.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layers: list[MoeLayer],
        mode: str,
        weights: bool,
        predictions: bool,
    ):
        self.name = name
        self.module = module
        self.layers = layers
        self.mode = mode
        self.weights = weights
        self.predictions = predictions
        self._slots = 1
        self._signature = inspect.signature(module.forward)
        self.clear()

    def clear(self) -> None:
        """Forget all that was recorded so far."""
        self._batches: list[_Batch] = []
        self.num_ids = 0
        self._by_cache: WeakKeyDictionary = WeakKeyDictionary()
        self.active: list[MoeLayer] = None  # type: ignore[assignment]  # until the first pass
        self.ranked = False
        self._seen: ForwardPass | None = None
        self.leave()

    def leave(self) -> None:
        """Forget the pass that is under way, or was when an error ended it."""
        self._pass: ForwardPass | None = None

    @property
    def num_sequences(self) -> int:
        """Sequences recorded so far."""
        return sum(batch.size for batch in self._batches)

    def attach(self) -> list:
        """Hook into the module and its layers; return the handles that remove the hooks."""
        # Before and after the whole pass; the first pre-hook and the last hook there are.
        handles = [
            self.module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            self.module.register_forward_hook(self._after),
        ]
        try:
            for position, layer in enumerate(self.layers):
                handles += layer.probe.attach(self._see(position, layer))
                if self.mode == "paper" and layer.router is not None:
                    hook = self._router_hook(position)
                    handles.append(layer.router.register_forward_hook(hook))
        except BaseException:
            for handle in handles:
                handle.remove()
            raise
        return handles

    def arrays(self) -> dict:
        """Everything recorded so far, as `lrc.Trace` takes it: a sequence after the other."""
        sequences = [one for batch in self._batches for one in batch.sequences(self._slots)]
        lengths = [len(one["experts"]) for one in sequences]
        arrays = {
            name: _padded([one[name] for one in sequences], max(lengths), fill)
            for name, fill in _ARRAYS
        }
        return arrays | {"lengths": lengths}

    # --- hooks: all return None, for a returned value would replace what the model computes -----

    @torch.compiler.disable
    def _before(self, module, args, kwargs):
        self._pass = None  # what may be left of a pass that ended in an error
        if _in_backward():
            return
        inputs = inputs_by_name(self._signature, args, kwargs)
        given = (inputs.get(name) for name in ("input_ids", "decoder_input_ids", "inputs_embeds"))
        tokens = next((value for value in given if value is not None), None)
        if not isinstance(tokens, torch.Tensor) or tokens.ndim < 2:
            raise RecordError(
                "cannot see the tokens of this forward pass: give input_ids or inputs_embeds of "
                "shape [sequences, tokens, …]"
            )
        size, length = tokens.shape[:2]
        cache = inputs.get("past_key_values")
        self._batch = self._batch_of(cache, size)
        self._cached = (cache, self._batch.end)
        self._pass = ForwardPass(self.layers, inputs, size, length, start=self._batch.end)

    def _see(self, position: int, layer: MoeLayer):
        def see(ids, weights=None, tokens=None):
            if self._pass is not None:
                self._pass.see_experts(position, ids, weights, tokens)
            elif not _in_backward():
                raise RecordError(
                    f"{layer} fired outside a forward pass of the recorded model: call that model "
                    "itself, not a part of it"
                )

        return see

    def _router_hook(self, position: int):
        def hook(module, args, output):
            if self._pass is not None:
                self._pass.see_router(position, output)

        return hook

    @torch.compiler.disable
    def _after(self, module, args, output):
        forward, self._pass = self._pass, None
        if forward is None:  # a pass that is only repeated to get its gradients
            return
        self.active = forward.check_coverage(self.active)
        experts, weights = forward.routes(self.mode)
        self.ranked = self.mode == "paper" or weights is not None
        if self.weights and weights is None:
            raise RecordError(f"{self.active[0]} is handed no router weights: use weights=False")
        valid, tokens = forward.valid(), forward.token_ids
        if self._batch.is_empty:
            self._batches.append(self._batch)
        self._batch.add(
            valid,
            experts=experts,
            weights=weights.astype(np.float16) if self.weights else None,
            token_ids=None if tokens is None else tokens.cpu().numpy().astype(np.int32),
            predicted_ids=forward.predicted(output) if self.predictions else None,
        )
        self._slots = max(self._slots, experts.shape[-1])
        self.num_ids += experts.size
        self._seen = forward
        cache = getattr(output, "past_key_values", None)
        cache, before = self._cached if cache is None else (cache, 0)
        # A cache that is only read (by a decoder that refines a whole block) has no continuation.
        if hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > before:
            self._by_cache[cache] = self._batch

    @torch.compiler.disable
    def predict(self, module, args, output):
        """Hook of the model around this stack: take the predictions for the stack's last pass."""
        if self._seen is not None and self.predictions:
            self._batch.predict(self._seen.predicted(output))
        self._seen = None

    def _batch_of(self, cache, size: int) -> _Batch:
        """Return the batch that a pass belongs to: the one that filled its cache, or a new one."""
        if cache is None:
            return _Batch(size)
        if not hasattr(cache, "get_seq_length"):
            raise RecordError(
                f"past_key_values is a {type(cache).__name__}, but must be a transformers Cache"
            )
        cached = int(cache.get_seq_length())
        batch = self._by_cache.get(cache) if cached else None
        if batch is None:
            # Empty, or filled before recording: then the record starts where the cache ends.
            return _Batch(size, end=cached)
        if batch.size != size or batch.end != cached:
            raise RecordError(
                f"past_key_values holds {cached} tokens, but {batch.end} tokens of {batch.size} "
                f"sequences were recorded with it (now {size}): tokens were taken back or rows "
                "added, as in assisted decoding; generate first, then record the finished text"
            )
        return batch


def _in_backward() -> bool:
    """Whether autograd is running: gradient checkpointing then repeats forward passes."""
    return torch._C._current_graph_task_id() != -1


def _padded(arrays: list[np.ndarray | None], length: int, fill) -> np.ndarray | None:
    """Arrays [tokens, …] as one [sequences, tokens, …]; a missing one is all fill."""
    known = next((array for array in arrays if array is not None), None)
    if known is None:
        return None
    padded = np.full((len(arrays), length, *known.shape[1:]), fill, known.dtype)
    for row, array in zip(padded, arrays, strict=True):
        if array is not None:
            row[: len(array)] = array
    return padded


class _Batch:
    """Sequences that run together: one forward pass, or a pass and its continuations.

    Parameters
    ----------
    size : int
        Sequences.
    end : int
        Tokens in their KV cache once all passes so far are over.
    """

    def __init__(self, size: int, end: int = 0):
        self.size = size
        self.end = end
        self._passes: list[dict] = []

    def add(
        self, valid: np.ndarray | None, experts: np.ndarray, **arrays: np.ndarray | None
    ) -> None:
        """Append a pass: arrays [sequences, tokens, …] or None, padding included."""
        self.end += experts.shape[1]
        self._passes.append({"valid": valid, "experts": experts, **arrays})

    def predict(self, predicted_ids: np.ndarray | None) -> None:
        """Add the predictions of the last pass."""
        self._passes[-1]["predicted_ids"] = predicted_ids

    @property
    def is_empty(self) -> bool:
        """Whether no pass was added yet."""
        return not self._passes

    def sequences(self, slots: int) -> Iterator[dict]:
        """Yield each sequence as a dict of arrays [tokens, …] without padding, or None."""
        for i in range(self.size):
            sequence: dict[str, np.ndarray | None] = {}
            for name, fill in _ARRAYS:
                parts = [one[name] for one in self._passes]
                if any(part is None for part in parts):
                    sequence[name] = None
                    continue
                parts = [
                    part[i] if one["valid"] is None else part[i][one["valid"][i]]
                    for part, one in zip(parts, self._passes, strict=True)
                ]
                if parts[0].ndim == 3:  # where rows tell, a pass may happen to use fewer slots
                    parts = [
                        np.pad(
                            part,
                            ((0, 0), (0, 0), (0, slots - part.shape[2])),
                            constant_values=fill,
                        )
                        for part in parts
                    ]
                sequence[name] = np.concatenate(parts)
            yield sequence
