"""Record which experts every token of a model really used.

Hooks read what each MoE layer executes (see `lrc.moe_layers`), so the record does not depend on how
experts are chosen or computed. Hooks never change anything.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from torch import nn

from lrc.errors import RecordError
from lrc.moe_layers import MoeLayer, find_moe_layers
from lrc.stack import StackRecorder
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
        A Mixture-of-Experts model of transformers, or any other whose forward takes ``input_ids``
        (or ``inputs_embeds``) as theirs do. Call this very module inside the block, not a part of
        it. A compiled model must be compiled after the block was entered, or not at all.
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
    A model with an encoder and a decoder gives two records, each of its own tokens. In generation
    the encoder runs once.

    Training: gradient checkpointing runs a layer again for its gradients, which is not recorded a
    second time.

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
        self.model = model
        self.mode = mode
        self.weights = weights
        self.predictions = predictions
        self.layers = find_moe_layers(model)
        for layer in self.layers:
            if mode == "paper" and layer.router is None:
                raise RecordError(f"{layer}: no router beside it; use mode='executed'")
            if weights and not layer.probe.weighted:
                raise RecordError(
                    f"{layer}: its experts are told by the rows they receive, which says nothing "
                    "of weights: use weights=False"
                )
        self._stacks = [
            StackRecorder(name, module, layers, mode, weights, predictions)
            for name, module, layers in _stacks(model, self.layers)
        ]
        self._handles: list = []

    def clear(self) -> None:
        """Forget all that was recorded so far."""
        for stack in self._stacks:
            stack.clear()

    def __enter__(self) -> Recorder:
        if self._handles:
            raise RecordError("this recorder is in use already: leave its with block first")
        try:
            for stack in self._stacks:
                self._handles += stack.attach()
                if stack.module is not self.model and stack.name == "decoder":
                    self._handles.append(self.model.register_forward_hook(stack.predict))
            if hasattr(self.model, "generate"):
                self._handles.append(_GuardedGenerate(self.model))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        while self._handles:
            self._handles.pop().remove()
        for stack in self._stacks:
            stack.leave()

    @property
    def num_sequences(self) -> int:
        """Sequences recorded so far."""
        return max(stack.num_sequences for stack in self._stacks)

    @property
    def num_ids(self) -> int:
        """Expert ids held in memory."""
        return sum(stack.num_ids for stack in self._stacks)

    def trace(self, datasets=None) -> Trace | dict[str, Trace]:
        """Return what was recorded so far, in order.

        Parameters
        ----------
        datasets : sequence of str, optional
            A label for each sequence.

        Returns
        -------
        Trace, or dict of str to Trace
            ``meta`` names the model and its revision, the MoE blocks (``layers``), how they were
            read (``rule``), what the order of slots is (``slots``) and what -1 stands for
            (``no_expert``, where it may be there), bytes of one expert, shared experts (in units of
            one routed expert), dtype and versions.

            For a model with an encoder and a decoder: ``{"encoder": …, "decoder": …}``, without a
            stack that has no MoE layer.

        Raises
        ------
        RecordError
            If no forward pass was seen.
        """
        traces = {
            stack.name: Trace(
                **stack.arrays(),
                num_experts=stack.active[0].num_experts,
                datasets=datasets,
                meta=self._meta(stack),
            )
            for stack in self._stacks
            if stack.num_sequences
        }
        if not traces:
            raise RecordError(
                f"no forward pass was recorded: call the {type(self.model).__name__} itself inside "
                "the with block (a model compiled before recording ignores hooks)"
            )
        is_whole = self._stacks[0].module is self.model
        return next(iter(traces.values())) if is_whole else traces

    def _meta(self, stack: StackRecorder) -> dict:
        config = getattr(self.model, "config", None)
        name = getattr(config, "_name_or_path", "") or ""
        first = stack.active[0]
        meta = {
            # Where a local folder lies is nobody's business but the user's.
            "model": Path(name).name if Path(name).is_dir() else name,
            "revision": getattr(config, "_commit_hash", None),
            "architecture": type(self.model).__name__,
            "mode": self.mode,
            "layers": [layer.name for layer in stack.active],
            "rule": first.probe.rule,
            "slots": _order_of_slots(stack),
            "stack": stack.name,
            "shared_experts": first.shared_experts,
            "expert_bytes": first.expert_bytes,
            "dtype": str(next(first.experts.parameters()).dtype).removeprefix("torch."),
            "versions": {name: metadata.version(name) for name in ("lrc", "torch", "transformers")},
        }
        if first.probe.no_expert:
            meta["no_expert"] = first.probe.no_expert
        silent = [layer.name for layer in stack.layers if layer not in stack.active]
        return meta | ({"silent_layers": silent} if silent else {})


def _order_of_slots(stack: StackRecorder) -> str:
    if stack.ranked:
        return "falling weight"
    by_rows = not any(layer.probe.weighted for layer in stack.active)
    return "ascending id (weights are unknown)" if by_rows else "as the router gives them"


def _stacks(model: nn.Module, layers: list[MoeLayer]):
    """Name, module and layers of each stack of a model that has MoE layers."""
    config = getattr(model, "config", None)
    is_seq2seq = getattr(config, "is_encoder_decoder", False)
    stacks = []
    for name in ("encoder", "decoder"):
        module = getattr(model, f"get_{name}", lambda: model)()
        inside = set(module.modules())
        mine = [layer for layer in layers if layer.experts in inside]
        if mine and model not in inside:
            stacks.append((name, module, mine))
    both = [layer for _, _, mine in stacks for layer in mine]
    # Some have both without saying so; most call a part for images, or themselves, an encoder.
    if len(both) == len(set(both)) == len(layers) and (is_seq2seq or len(stacks) == 2):
        return stacks
    name = "encoder" if is_seq2seq and not getattr(config, "is_decoder", False) else "decoder"
    return [(name, model, layers)]


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
