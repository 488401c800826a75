"""The trace: which experts every token used, and what is known about the tokens.

A trace is validated once, when it is built; everything that measures one may rely on it.
"""

from collections.abc import Iterable
from os import PathLike

import numpy as np

from lrc.errors import TraceError
from lrc.trace_checks import (
    checked_array,
    checked_datasets,
    checked_experts,
    checked_lengths,
    checked_meta,
    checked_num_experts,
    checked_tokens,
    checked_weights,
)


class Trace:
    """Routing of a Mixture-of-Experts model over a corpus.

    Parameters
    ----------
    experts : array_like of int, shape [sequences, tokens, layers, top_k]
        0-based ids of the routed experts that were really executed, slots in falling router
        weight; -1 = no expert (dropped by capacity, padding, zero expert).
    num_experts : int
        Routed experts of one layer; all layers have as many.
    lengths : array_like of int, shape [sequences], optional
        Valid tokens of each sequence (default: all). Tokens past it are never counted: their
        experts, token ids and predicted ids become -1, their weights 0.
    datasets : sequence of str, length [sequences], optional
        Domain label of each sequence.
    token_ids, predicted_ids : array_like of int, shape [sequences, tokens], optional
        The input token, and the token that the model predicts after it; -1 = unknown.
    weights : array_like of float, shape of `experts`, optional
        Router weights of the executed experts, kept as float16; 0 where there is no expert.
    meta : dict, optional
        Anything JSON can hold: model name and revision, ``layers`` (names of the MoE modules in
        order), ``stack`` ("encoder" or "decoder"), ``expert_bytes``, dtype, versions, ...

    Attributes
    ----------
    experts : int16 array [sequences, tokens, layers, top_k]
        Of numpy; a torch tensor if the trace was sent to a GPU with `to`.
    lengths : int64 array [sequences]
    datasets : str array [sequences] or None
    token_ids, predicted_ids : int32 array [sequences, tokens] or None
    weights : float16 array [sequences, tokens, layers, top_k] or None
    num_experts : int
    meta : dict

    Raises
    ------
    TraceError
        Wrong shape or dtype, id out of range, an expert twice in one token, weight that is
        negative or no number; the message names the place.

    Notes
    -----
    The arrays are copies and read-only: the compiled kernels trust ids to be in range.

    Examples
    --------
    >>> trace = Trace([[[[0, 2]], [[1, 2]]]], num_experts=4, datasets=["code"])
    >>> trace
    <lrc.Trace: 1 sequence, 2 tokens, 1 layer, top-2 of 4 experts, 1 dataset>
    """

    __slots__ = (
        "datasets",
        "experts",
        "lengths",
        "meta",
        "num_experts",
        "predicted_ids",
        "token_ids",
        "weights",
    )

    def __init__(
        self,
        experts,
        num_experts,
        *,
        lengths=None,
        datasets=None,
        token_ids=None,
        predicted_ids=None,
        weights=None,
        meta=None,
    ):
        self.num_experts = checked_num_experts(num_experts)
        given = checked_array(experts, "experts", kinds="iu", ndim=4)
        num_sequences, num_tokens, num_layers, top_k = given.shape
        if num_layers < 1 or not 1 <= top_k <= self.num_experts:
            raise TraceError(
                f"experts has shape {list(given.shape)}, but [sequences, tokens, layers, top_k] "
                f"needs at least one layer and top_k from 1 to num_experts = {self.num_experts}"
            )
        self.lengths = checked_lengths(lengths, num_sequences, num_tokens)
        self.experts = checked_experts(given, self.lengths, self.num_experts)
        self.datasets = checked_datasets(datasets, num_sequences)
        self.token_ids = checked_tokens(token_ids, "token_ids", self.lengths, num_tokens)
        self.predicted_ids = checked_tokens(
            predicted_ids, "predicted_ids", self.lengths, num_tokens
        )
        self.weights = checked_weights(weights, self.experts, self.lengths)
        self.meta = checked_meta(meta)
        self._freeze()

    @classmethod
    def _adopt(cls, experts, num_experts, **parts):
        """Build a trace of arrays that are valid already: no checks, no copies."""
        trace = object.__new__(cls)
        trace.experts, trace.num_experts = experts, num_experts
        for name in ("lengths", "datasets", "token_ids", "predicted_ids", "weights", "meta"):
            setattr(trace, name, parts.get(name))
        trace._freeze()
        return trace

    def _freeze(self):
        for _, array in self._arrays():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def _arrays(self):
        """Names and arrays that are there, all with sequences as their first axis."""
        names = ("experts", "lengths", "datasets", "token_ids", "predicted_ids", "weights")
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sequences, tokens (padded), layers, top_k."""
        return tuple(self.experts.shape)

    @property
    def device(self) -> str:
        """Where the experts lie, and so what measures them: "cpu", "cuda:0", ..."""
        if isinstance(self.experts, np.ndarray):
            return "cpu"
        from lrc.kernels.gpu_arrays import device_name

        return device_name(self.experts)

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return self.experts.shape[0]

    @property
    def num_layers(self) -> int:
        """Number of MoE layers."""
        return self.experts.shape[2]

    @property
    def top_k(self) -> int:
        """Slots of one token in one layer."""
        return self.experts.shape[3]

    @property
    def num_tokens(self) -> int:
        """Valid tokens of all sequences together."""
        return int(self.lengths.sum())

    @property
    def valid(self) -> np.ndarray:
        """Boolean [sequences, tokens]: the tokens that count."""
        return np.arange(self.experts.shape[1]) < self.lengths[:, None]

    @property
    def dataset_names(self) -> list[str]:
        """Distinct dataset labels, sorted; empty without labels."""
        return [] if self.datasets is None else sorted(set(self.datasets.tolist()))

    @property
    def layer_names(self) -> list[str]:
        """Names of the MoE layers in ``meta["layers"]``, or their numbers as text."""
        names = (self.meta or {}).get("layers")
        if isinstance(names, list) and len(names) == self.num_layers:
            return [str(name) for name in names]
        return [str(layer) for layer in range(self.num_layers)]

    def to(self, device: str) -> "Trace":
        """The trace with its experts on a device, where the measures that can will use it.

        `lrc.srp`, `lrc.sch` and `lrc.hit_rates` give the same numbers on a GPU, sooner; the other
        measures need the trace on the CPU and say so. Lengths, labels, tokens and weights stay on
        the host. Saving and comparing work anywhere; what is pickled arrives on the CPU.

        Parameters
        ----------
        device : str
            "cuda", "cuda:1", ... or "cpu". "interpreter" stands for Triton's interpreter, in which
            the GPU kernels run on a CPU, far slower: for tests.

        Returns
        -------
        Trace
            The same object if it is there already.

        Raises
        ------
        LrcError
            A device that is not there, or PyTorch or Triton missing.

        Examples
        --------
        >>> trace.to("cuda")  # doctest: +SKIP
        <lrc.Trace: 512 sequences, 262,144 tokens, 48 layers, top-8 of 128 experts on cuda:0>
        """
        if str(device) == self.device:
            return self
        from lrc.kernels import gpu_arrays, host

        experts = host(self.experts).astype(np.int16, copy=False)
        if str(device) != "cpu":
            experts = gpu_arrays.to_device(experts, device)
        parts = {name: getattr(self, name) for name in self.__slots__}
        return _rebuild(parts | {"experts": experts})

    def select(self, sequences=None, *, layers=None, datasets=None) -> "Trace":
        """Part of the trace, as a trace of its own.

        Parameters
        ----------
        sequences, layers : int, slice, sequence of int or boolean mask, optional
            What to keep, in that order (default: all). Lists in ``meta`` that have an entry for
            each sequence (``prompt_tokens``) or layer (``layers``, ``expert_bytes``) follow.
        datasets : str or sequence of str, optional
            Keep only sequences of these datasets (after `sequences`).

        Returns
        -------
        Trace

        Raises
        ------
        TraceError
            An index out of range, an unknown dataset, or datasets of a trace without labels.
        """
        rows = _index(sequences, self.num_sequences, "sequences")
        if datasets is not None:
            wanted = [datasets] if isinstance(datasets, str) else list(datasets)
            unknown = [name for name in wanted if name not in self.dataset_names]
            if unknown:
                known = ", ".join(self.dataset_names) or "none: the trace has no labels"
                raise TraceError(f"dataset {unknown[0]!r} is not in the trace (it has {known})")
            rows = rows[np.isin(self.datasets[rows], wanted)]
        columns = _index(layers, self.num_layers, "layers")
        parts = {name: array[rows] for name, array in self._arrays()}
        meta = dict(self.meta)
        if layers is not None:
            if not len(columns):
                raise TraceError("select would keep no layer: name at least one")
            for name in {"experts", "weights"} & parts.keys():
                chosen = parts[name][:, :, columns]
                on_host = isinstance(chosen, np.ndarray)
                parts[name] = np.ascontiguousarray(chosen) if on_host else chosen.contiguous()
            follow(meta, ("layers", "expert_bytes"), columns, self.num_layers)
        follow(meta, ("prompt_tokens",), rows, self.num_sequences)
        return self._adopt(parts.pop("experts"), self.num_experts, meta=meta, **parts)

    def equals(self, other: "Trace") -> bool:
        """Whether another trace holds exactly the same (shape, routing, labels, meta)."""
        if not isinstance(other, Trace) or self.num_experts != other.num_experts:
            return False
        mine, theirs = (dict(trace.to("cpu")._arrays()) for trace in (self, other))
        return (
            self.meta == other.meta
            and mine.keys() == theirs.keys()
            and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        )

    def save(self, path: str | PathLike) -> None:
        """Write the trace to a Parquet file, whole or not at all.

        The same trace gives the same bytes (with the same version of pyarrow).

        Parameters
        ----------
        path : path
            An existing file is replaced.

        See Also
        --------
        lrc.load_trace : read it back. `lrc.trace_file` describes the columns.
        """
        from lrc.trace_file import save_trace

        save_trace(self.to("cpu"), path)

    def __repr__(self) -> str:
        parts = [
            _plural(self.num_sequences, "sequence"),
            _plural(self.num_tokens, "token"),
            _plural(self.num_layers, "layer"),
            f"top-{self.top_k} of {_plural(self.num_experts, 'expert')}",
        ]
        if self.datasets is not None:
            parts.append(_plural(len(self.dataset_names), "dataset"))
        place = "" if self.device == "cpu" else f" on {self.device}"
        return f"<lrc.Trace: {', '.join(parts)}{place}>"

    def __reduce__(self):
        # For processes and machines that share the work; files are never pickled.
        # A trace on a GPU goes through the host's memory, since the other side may have none.
        there = self.to("cpu")
        return _rebuild, ({name: getattr(there, name) for name in self.__slots__},)


def _rebuild(parts):
    return Trace._adopt(parts.pop("experts"), parts.pop("num_experts"), **parts)


def concat_traces(traces: Iterable[Trace]) -> Trace:
    """Sequences of several traces of one model, one after the other.

    Parameters
    ----------
    traces : iterable of Trace
        With the same layers, top_k and num_experts; shorter ones are padded. An optional array
        (labels, token ids, weights) must be in all of them or in none. `meta` is the first's, but
        for ``prompt_tokens`` of each sequence, which are kept where all traces have them.

    Returns
    -------
    Trace
        On the CPU.

    Raises
    ------
    TraceError
        Nothing to join, or traces that do not fit together.
    """
    traces = [trace.to("cpu") for trace in traces]
    if not traces:
        raise TraceError("no traces to join: give at least one")
    first = traces[0]
    names = [name for name, _ in first._arrays()]
    for i, trace in enumerate(traces):
        if trace.shape[2:] != first.shape[2:] or trace.num_experts != first.num_experts:
            raise TraceError(f"trace {i} does not fit trace 0: {trace!r} against {first!r}")
        if [name for name, _ in trace._arrays()] != names:
            raise TraceError(
                f"trace {i} and trace 0 differ in what they hold (datasets, token_ids, "
                "predicted_ids, weights): give each array to all traces or to none"
            )
    num_tokens = max(trace.shape[1] for trace in traces)
    parts = {}
    for name in names:
        arrays = [getattr(trace, name) for trace in traces]
        if arrays[0].ndim > 1:
            fill = 0 if name == "weights" else -1
            arrays = [_padded(array, num_tokens, fill) for array in arrays]
        parts[name] = np.concatenate(arrays)
    meta = dict(first.meta)
    if isinstance(meta.get("prompt_tokens"), list):
        prompts = [trace.meta.get("prompt_tokens") for trace in traces]
        meta.pop("prompt_tokens")
        if all(isinstance(prompt, list) for prompt in prompts):
            meta["prompt_tokens"] = [count for prompt in prompts for count in prompt]
    return Trace._adopt(parts.pop("experts"), first.num_experts, meta=meta, **parts)


def _padded(array, num_tokens, fill):
    if array.shape[1] == num_tokens:
        return array
    widths = [(0, 0), (0, num_tokens - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=fill)


def follow(meta, names, kept, size):
    """Keep of lists with `size` entries those that are kept of what they tell of."""
    for name in names:
        if isinstance(meta.get(name), list) and len(meta[name]) == size:
            meta[name] = [meta[name][place] for place in kept.tolist()]


def _plural(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _index(choice, size, name):
    """Positions along an axis, for any way of choosing them."""
    try:
        positions = np.arange(size)[slice(None) if choice is None else choice]
    except (IndexError, TypeError) as error:
        raise TraceError(f"cannot select {name}: {error}") from error
    return np.atleast_1d(positions)
