"""Forward passes of a model over a corpus, or over the share of it that one process has."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch

from lrc.batches import labelled_batches, num_sequences
from lrc.errors import RecordError
from lrc.recorder import Recorder
from lrc.trace import Trace

# Ids that must be routed as they were recorded: a model of the same name with other weights agrees
# far less, the same model on another device nearly always.
SAME_MODEL = 0.95

ALONE = "trace"
"""Name of the only trace of a model without stacks."""


@dataclass(frozen=True)
class Note:
    """How far a run had come at the end of a part.

    Attributes
    ----------
    batches : int
        Of the whole corpus, from its beginning.
    fingerprint : str
        Hash of all their inputs and labels.
    sizes : list of int
        Sequences of this process's own batches within the part.
    """

    batches: int
    fingerprint: str
    sizes: list[int] = field(default_factory=list)


class Keeper(Protocol):
    """What becomes of the traces that a run records."""

    notes: list[Note]
    """Parts that an earlier run has finished."""
    place: object
    """Where it is kept, for errors."""
    finished: bool
    """Whether there is nothing to add to them."""

    def compare(self, traces: dict[str, Trace]) -> None:
        """Refuse a first batch that is not routed as in the earlier run."""

    def wants(self, recorder: Recorder) -> bool:
        """Whether it is time to keep what is in the recorder."""

    def keep(self, traces: dict[str, Trace], note: Note) -> None:
        """Take the traces of a part, one for each stack."""


class CorpusRun:
    """Forward passes over a corpus, every batch of which is seen once.

    Parameters
    ----------
    recorder : Recorder
        Of the model to run.
    batches, datasets, batch_size
        As in `lrc.record`.
    shard : tuple of int
        Number of this process, and how many share the corpus.
    progress : bool
        Show a progress bar.
    """

    def __init__(
        self,
        recorder: Recorder,
        batches,
        datasets: str | Iterable[str] | None,
        batch_size: int,
        shard: tuple[int, int],
        progress: bool,
    ):
        if batch_size < 1:
            raise RecordError(f"batch_size is {batch_size}, but must be at least 1")
        self.recorder = recorder
        self.model = recorder.model
        self.rank, self.world = shard
        config = getattr(self.model, "config", None)
        targets = bool(getattr(config, "is_encoder_decoder", False))
        self._batches = labelled_batches(batches, batch_size, datasets, targets=targets)
        self._total = num_sequences(batches)
        self._progress = progress and self.rank == 0
        takes_cache = "use_cache" in inspect.signature(self.model.forward).parameters
        self._options = {"use_cache": False} if takes_cache else {}
        self._vocabulary = _vocabulary(self.model)
        self._device = device_of(self.model)
        self._seen = Fingerprint()
        # Of the batches that are in the recorder.
        self._labels: list[str] = []
        self._sizes: list[int] = []
        self._note: Note | None = None

    def run(self, keeper: Keeper) -> Note:
        """Run what is not recorded yet, and return a note of the whole corpus."""
        from tqdm.auto import tqdm

        was_training = self.model.training
        name = "Recording" if self.world == 1 else f"Recording, 1 of {self.world} processes"
        bar = tqdm(total=self._total, unit=" sequences", disable=not self._progress, desc=name)
        with bar:
            self.model.eval()
            try:
                with self.recorder, torch.no_grad():
                    self._run(keeper, bar)
            finally:
                self.model.train(was_training)
        return Note(self._seen.batches, self._seen.hexdigest())

    def _run(self, keeper, bar):
        earlier = list(keeper.notes)
        start = earlier[-1].batches if earlier else 0
        compared, done = not earlier, 0
        try:
            for number, (inputs, labels) in enumerate(self._batches):
                mine = number % self.world == self.rank
                self._seen.add(inputs, labels)
                if number >= start and keeper.finished:
                    raise RecordError(
                        f"{keeper.place}: is finished, but batches go on after the {done} "
                        "sequences recorded there; remove it or name another file"
                    )
                if number >= start and mine:
                    self._forward(inputs, labels, done)
                    if keeper.wants(self.recorder):
                        keeper.keep(*self._take())
                elif mine and not compared:
                    self._forward(inputs, labels, done)
                    keeper.compare(self._take()[0])
                    compared = True
                if earlier and number + 1 == earlier[0].batches:
                    self._check(earlier.pop(0), keeper.place)
                done += len(inputs["input_ids"])
                bar.update(len(inputs["input_ids"]))
        except BaseException:
            # Passes that are over are worth keeping, and the first error the one to tell.
            with suppress(Exception):
                if compared and self.recorder.num_sequences == sum(self._sizes) > 0:
                    keeper.keep(*self._take())
            raise
        if earlier:
            raise RecordError(
                f"{keeper.place}: batches end after {self._seen.batches} of {start} recorded there "
                "before; continue with the same texts and batch_size, or remove what was recorded"
            )
        if self._sizes:
            keeper.keep(*self._take())
        if not keeper.notes:
            raise RecordError(
                "batches is empty: there is nothing to record"
                if self.world == 1
                else f"there are {self._seen.batches} batches for {self.world} processes, and "
                f"none is left for process {self.rank}: start fewer, or lower batch_size"
            )

    def _forward(self, inputs, labels, done):
        _check_vocabulary(inputs["input_ids"], self._vocabulary, done)
        self.model(
            **{name: value.to(self._device) for name, value in inputs.items()}, **self._options
        )
        self._labels += labels
        self._sizes.append(len(inputs["input_ids"]))
        self._note = Note(self._seen.batches, self._seen.hexdigest(), self._sizes)

    def _take(self):
        """Empty the recorder: traces by stack, and a note of their end."""
        traces = self.recorder.trace(self._labels or None)
        self.recorder.clear()
        self._labels, self._sizes = [], []
        return {ALONE: traces} if isinstance(traces, Trace) else traces, self._note

    def _check(self, note, place):
        if note.fingerprint != self._seen.hexdigest():
            raise _other_batches(place, f"the first {note.batches} of them")


def _other_batches(place, where):
    return RecordError(
        f"{place}: batches are not those recorded there before ({where}); continue with the same "
        "texts, labels, order and batch_size, or remove what was recorded to start anew"
    )


def check_same(anew: dict[str, Trace], recorded: dict[str, Trace], where) -> None:
    """Refuse to continue a recording with other batches, or with a model that routes otherwise.

    Parameters
    ----------
    anew, recorded : dict of str to Trace
        The first batch, by stack; `recorded` may hold fewer or more sequences.
    where : path
        Named in errors.
    """
    if anew.keys() != recorded.keys():
        raise RecordError(f"{where}: was recorded with a model of other stacks")
    for stack, trace in anew.items():
        n = min(trace.num_sequences, recorded[stack].num_sequences)
        one, two = trace.select(slice(n)), recorded[stack].select(slice(n))
        check_same_kind(one, two, where)
        if not np.array_equal(one.lengths, two.lengths):
            raise _other_batches(where, "the first sequences have other lengths")
        if one.token_ids is not None and not np.array_equal(
            one.token_ids[one.valid], two.token_ids[two.valid]
        ):
            raise _other_batches(where, "the first sequences have other tokens")
        pair = (np.sort(t.experts[t.valid], axis=-1) for t in (one, two))
        same = np.mean(np.equal(*pair)) if one.num_tokens else 1.0
        if same < SAME_MODEL:
            raise RecordError(
                f"{where}: the model routes only {same:.0%} of the first sequences' tokens as was "
                "recorded, so its weights are others; continue with the same model, or remove "
                "what was recorded to start anew"
            )


def check_meta(meta: dict, recorded: dict, where) -> None:
    """Refuse another model, another mode, or other versions of what runs it."""
    for key in sorted((meta.keys() | recorded.keys()) - {"batches", "shard"}):
        now, then = meta.get(key), recorded.get(key)
        if now != then:
            raise RecordError(
                f"{where}: was recorded with {key}={_brief(then)}, which is now {_brief(now)}; "
                "continue with the same, or remove what was recorded to start anew"
            )


def check_same_kind(trace: Trace, recorded: Trace, where) -> None:
    """Refuse a trace of another model, of other settings, or with other layers."""
    check_meta(trace.meta, recorded.meta, where)
    shapes = [(t.num_experts, *t.shape[2:]) for t in (trace, recorded)]
    if shapes[0] != shapes[1]:
        raise RecordError(
            f"{where}: holds (experts, layers, top-k) = {shapes[1]}, but {shapes[0]} is recorded "
            "now; continue with the same model, or remove what was recorded to start anew"
        )
    now, then = ({name for name, _ in t._arrays()} for t in (trace, recorded))
    for name in sorted(now ^ then):
        raise RecordError(
            f"{where}: was recorded {'with' if name in then else 'without'} {name}; continue with "
            "the same arguments, or remove what was recorded to start anew"
        )


class Fingerprint:
    """Running hash of batches: names, shapes and values of all inputs, and labels."""

    def __init__(self):
        self.batches = 0
        self._hash = blake2b(digest_size=16)

    def add(self, inputs: dict[str, torch.Tensor], labels: list[str]) -> None:
        """Take the next batch."""
        self.batches += 1
        for name in sorted(inputs):
            tensor = inputs[name].detach().cpu().contiguous()
            self._hash.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            self._hash.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        self._hash.update(repr(labels).encode())

    def hexdigest(self) -> str:
        """Hash of all batches so far."""
        return self._hash.hexdigest()


def _brief(value, longest=60):
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def device_of(model) -> torch.device:
    """Where a model takes its inputs."""
    device = getattr(model, "device", None) or next(model.parameters()).device
    # Weights that are offloaded have none; accelerate then moves the inputs itself.
    return torch.device("cpu") if device.type == "meta" else device


def _vocabulary(model) -> int | None:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(embeddings, "num_embeddings", None)


def _check_vocabulary(tokens, vocabulary, done):
    """Refuse ids that the embedding would only answer with an assertion deep inside."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise RecordError(
            f"token id {low if low < 0 else high} after sequence {done} is not in the model's "
            f"vocabulary of {vocabulary}: tokenize with the model's own tokenizer"
        )
