"""Record which experts every token of a model really used.

Hooks read the expert ids that each experts module is handed (see `lrc.moe_layers`), so the record
holds whatever ran, and does not depend on how experts are computed. Hooks never change anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from lrc.forward_pass import ForwardPass, inputs_by_name
from lrc.moe_layers import MoeLayer, RecordError, find_moe_layers
from lrc.trace import Trace


class Recorder:
    """Record the routing of every forward pass inside a ``with`` block.

    A forward pass of `model` records a sequence for each row of its batch. A pass that continues
    from a KV cache filled in an earlier pass (as in ``model.generate``) lengthens the sequences
    of that pass instead. Tokens that the 2-D ``attention_mask`` of the pass sets to 0 are left
    out, wherever they stand; without a mask every token counts, padding too.

    Parameters
    ----------
    model : torch.nn.Module
        A native transformers (version 5) Mixture-of-Experts model. Call this very module inside
        the block, not a part of it. A compiled model must be compiled after the block was entered,
        or not at all.
    mode : {"executed", "paper"}
        ``"executed"``: the experts that were really executed, whatever the selection rule.
        ``"paper"``: top-k of the router's logits in bfloat16, ties to the higher id, as in the
        paper's own measurement. It differs where selection has a correction bias or groups, and
        for logits that are close.
    weights : bool
        Also record the router's weights (``mode="executed"`` only).
    predictions : bool
        Also record the token predicted at each position (argmax of the logits), where the model
        returns logits.

    Attributes
    ----------
    layers : list of MoeLayer
        The MoE layers found.

    Raises
    ------
    RecordError
        If the model has no MoE layer that can be recorded. Inside the block, from the forward
        pass itself: if a layer did not fire, fired twice, or saw another number of rows than
        there are tokens, so that a record is never silently incomplete.

    Notes
    -----
    Generation: the last token that was sampled is never routed, so it is not in the record. Beam
    search, assisted decoding and generation without KV cache are refused, because they route
    tokens that are not part of the text; generate first, then record the finished text.

    Examples
    --------
    >>> model, tokenizer = lrc.load_model("toy:baseline")  # doctest: +SKIP
    >>> with lrc.Recorder(model) as recorder:  # doctest: +SKIP
    ...     model(**tokenizer(["local routing consistency"], return_tensors="pt"))
    >>> recorder.trace()  # doctest: +SKIP
    <lrc.Trace: 1 sequence, 4 tokens, 4 layers, top-8 of 64 experts>
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "executed",
        weights: bool = False,
        *,
        predictions: bool = True,
    ):
        if mode not in ("executed", "paper"):
            raise RecordError(f"mode is {mode!r}, but must be 'executed' or 'paper'")
        if mode == "paper" and weights:
            raise RecordError("mode='paper' ranks logits and has no weights: use mode='executed'")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise RecordError(
                f"{type(model).__name__} is an encoder-decoder, whose two stacks this version of "
                "lrc cannot record; use a decoder-only model"
            )
        self.model = model
        self.mode = mode
        self.weights = weights
        self.predictions = predictions
        self.layers = find_moe_layers(model)
        if mode == "paper":
            for layer in self.layers:
                if layer.router is None:
                    raise RecordError(f"{layer}: no router beside it; use mode='executed'")
        self._signature = inspect.signature(model.forward)
        self._handles: list = []
        self.clear()

    def clear(self) -> None:
        """Forget all that was recorded so far."""
        self._batches: list[_Batch] = []
        self._num_ids = 0
        self._by_cache: WeakKeyDictionary = WeakKeyDictionary()
        self._pass: ForwardPass | None = None
        self._active: list[MoeLayer] | None = None

    def __enter__(self) -> Recorder:
        if self._handles:
            raise RecordError("this recorder is in use already: leave its with block first")
        add = self._handles.append
        try:
            # Before and after the whole pass; the first pre-hook and the last hook there are.
            add(self.model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True))
            add(self.model.register_forward_hook(self._after))
            for position, layer in enumerate(self.layers):
                hook = self._experts_hook(position, layer)
                add(layer.experts.register_forward_pre_hook(hook, with_kwargs=True))
                if self.mode == "paper":
                    add(layer.router.register_forward_hook(self._router_hook(position)))
            if hasattr(self.model, "generate"):
                add(_GuardedGenerate(self.model))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._pass = None

    @property
    def num_sequences(self) -> int:
        """Sequences recorded so far."""
        return sum(batch.size for batch in self._batches)

    @property
    def num_ids(self) -> int:
        """Expert ids held in memory."""
        return self._num_ids

    def trace(self, datasets=None) -> Trace:
        """Return what was recorded so far, in order.

        Parameters
        ----------
        datasets : sequence of str, optional
            A label for each sequence.

        Returns
        -------
        Trace
            ``meta`` names the model and its revision, the MoE blocks (``layers``), bytes of one
            expert, shared experts (in units of one routed expert), dtype and versions.

        Raises
        ------
        RecordError
            If no forward pass was seen.
        """
        if not self._batches:
            raise RecordError(
                f"no forward pass was recorded: call the {type(self.model).__name__} itself inside "
                "the with block (a model compiled before recording ignores hooks)"
            )
        sequences = [one for batch in self._batches for one in batch.sequences()]
        lengths = [len(one["experts"]) for one in sequences]
        arrays = {
            name: _padded([one[name] for one in sequences], max(lengths), fill)
            for name, fill in (
                ("experts", -1),
                ("weights", 0),
                ("token_ids", -1),
                ("predicted_ids", -1),
            )
        }
        return Trace(
            arrays.pop("experts"),
            self._active[0].num_experts,
            lengths=lengths,
            datasets=datasets,
            meta=self._meta(),
            **arrays,
        )

    def _meta(self) -> dict:
        config = getattr(self.model, "config", None)
        name = getattr(config, "_name_or_path", "") or ""
        meta = {
            # Where a local folder lies is nobody's business but the user's.
            "model": Path(name).name if Path(name).is_dir() else name,
            "revision": getattr(config, "_commit_hash", None),
            "architecture": type(self.model).__name__,
            "mode": self.mode,
            "layers": [layer.name for layer in self._active],
            "stack": "decoder",
            "shared_experts": self._active[0].shared_experts,
            "expert_bytes": self._active[0].expert_bytes,
            "dtype": str(next(self._active[0].experts.parameters()).dtype).removeprefix("torch."),
            "versions": {name: metadata.version(name) for name in ("lrc", "torch", "transformers")},
        }
        silent = [layer.name for layer in self.layers if layer not in self._active]
        return meta | ({"silent_layers": silent} if silent else {})

    # --- hooks: all return None, for a returned value would replace what the model computes -----

    @torch.compiler.disable
    def _before(self, module, args, kwargs):
        self._pass = None  # what may be left of a pass that ended in an error
        inputs = inputs_by_name(self._signature, args, kwargs)
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, torch.Tensor) or tokens.ndim < 2:
            raise RecordError(
                "cannot see the tokens of this forward pass: give input_ids or inputs_embeds of "
                "shape [sequences, tokens, …]"
            )
        size, length = tokens.shape[:2]
        self._batch = self._batch_of(inputs.get("past_key_values"), size)
        self._pass = ForwardPass(self.layers, inputs, size, length, start=self._batch.end)

    def _experts_hook(self, position: int, layer: MoeLayer):
        def hook(module, args, kwargs):
            if self._pass is None:
                raise RecordError(
                    f"{layer} fired outside a forward pass of the recorded model: call that model "
                    "itself, not a part of it, and turn gradient checkpointing off"
                )
            self._pass.see_experts(position, args, kwargs)

        return hook

    def _router_hook(self, position: int):
        def hook(module, args, output):
            if self._pass is not None:
                self._pass.see_router(position, output)

        return hook

    @torch.compiler.disable
    def _after(self, module, args, output):
        forward, self._pass = self._pass, None
        self._active = forward.check_coverage(self._active)
        experts, weights = forward.routes(self.mode)
        if self.weights and weights is None:
            raise RecordError(f"{self._active[0]} is handed no router weights: use weights=False")
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
        self._num_ids += experts.size
        cache = getattr(output, "past_key_values", None)
        if hasattr(cache, "get_seq_length"):
            self._by_cache[cache] = self._batch

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
            batch = self._by_cache[cache] = _Batch(size, end=cached)
        if batch.size != size or batch.end != cached:
            raise RecordError(
                f"past_key_values holds {cached} tokens, but {batch.end} tokens of {batch.size} "
                f"sequences were recorded with it (now {size}): tokens were taken back or rows "
                "added, as in assisted decoding; generate first, then record the finished text"
            )
        return batch


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

    def add(self, valid: np.ndarray | None, **arrays: np.ndarray | None) -> None:
        """Append a pass: arrays [sequences, tokens, …] or None, padding included."""
        self.end += arrays["experts"].shape[1]
        self._passes.append({"valid": valid, **arrays})

    @property
    def is_empty(self) -> bool:
        """Whether no pass was added yet."""
        return not self._passes

    def sequences(self) -> Iterator[dict]:
        """Yield each sequence as a dict of arrays [tokens, …] without padding, or None."""
        for i in range(self.size):
            sequence = {}
            for name in ("experts", "weights", "token_ids", "predicted_ids"):
                parts = [one[name] for one in self._passes]
                if any(part is None for part in parts):
                    sequence[name] = None
                    continue
                sequence[name] = np.concatenate(
                    [
                        part[i] if one["valid"] is None else part[i][one["valid"][i]]
                        for part, one in zip(parts, self._passes, strict=True)
                    ]
                )
            yield sequence


class _GuardedGenerate:
    """`generate` of a model, refusing what would route tokens that are not part of the text.

    Beams cannot be seen from a forward pass: their rows change places between passes.
    """

    def __init__(self, model):
        self.model = model
        self.before = vars(model).get("generate")
        generate = model.generate

        def guarded(*args, **kwargs):
            config = kwargs.get("generation_config") or model.generation_config
            beams = kwargs.get("num_beams") or getattr(config, "num_beams", None)
            use_cache = kwargs.get("use_cache", getattr(config, "use_cache", True))
            if (beams or 1) > 1 or use_cache is False:
                what = "beam search" if (beams or 1) > 1 else "generation without a KV cache"
                raise RecordError(
                    f"{what} routes tokens several times or in vain: generate first, then record "
                    "the finished text"
                )
            return generate(*args, **kwargs)

        model.generate = guarded

    def remove(self):
        if self.before is None:
            del self.model.generate
        else:
            self.model.generate = self.before
