"""Hits of caches of every size, as integers that add up.

The partial statistics behind `lrc.sch` and `lrc.hit_rates`: each sequence is replayed by itself,
so its histogram can be summed with those of others in any grouping, on any machine.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrc import kernels
from lrc.errors import LrcError
from lrc.request_counts import request_counts
from lrc.requests import requests
from lrc.shards import Corpus, is_of

POLICIES = {"lru": kernels.LRU, "lfu": kernels.LFU, "belady": kernels.BELADY}
DEFINITIONS = {"lookahead": kernels.LOOKAHEAD, "static": kernels.STATIC}


@dataclass(frozen=True)
class HitKind:
    """What is counted, and of which model.

    Attributes
    ----------
    column : {"policy", "segment_length"}
        What the variants are.
    variants : tuple
        Policies, or segment lengths of SCH.
    contract : str
        Replay contract of policies, definition of SCH.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each.
    num_layers, num_experts, top_k : int
    """

    column: str
    variants: tuple
    contract: str
    level: str
    num_layers: int
    num_experts: int
    top_k: int

    @property
    def num_sizes(self) -> int:
        """Cache sizes: as many as experts."""
        return self.num_experts * (self.num_layers if self.level == "model" else 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Variants, caches, sizes; "engine" has one more, for uses that no cache hits."""
        num_caches = 1 if self.level == "model" else self.num_layers
        return len(self.variants), num_caches, self.num_sizes + (self.contract == "engine")

    @property
    def shortest(self) -> int:
        """Tokens that a sequence needs to be counted, of the shortest variant."""
        return min(self.variants) if self.contract == "static" else 0

    @property
    def rules(self) -> list[tuple[int, int]]:
        """Rule of the kernel ("engine": name of the policy) and segment length, by variant."""
        if self.contract == "engine":
            return [(policy, 0) for policy in self.variants]
        if self.column == "policy":
            return [(POLICIES[policy], 0) for policy in self.variants]
        return [(DEFINITIONS[self.contract], m) for m in self.variants]


@dataclass(frozen=True)
class HitCounts:
    """Everything a table of hit rates needs to know of a trace.

    Attributes
    ----------
    kind : HitKind
    datasets : tuple of str
        Sorted; ``("",)`` when pooled.
    new_hits : int64 array [datasets, variants, caches, sizes]
        Uses that hit from ``size + 1`` slots on, so that the hits of a cache of ``size + 1`` slots
        are the cumulative sum, and its end all uses.
    """

    kind: HitKind
    datasets: tuple[str, ...]
    new_hits: np.ndarray

    def __add__(self, other: "HitCounts") -> "HitCounts":
        if self.kind != other.kind:
            raise LrcError(
                "hit counts of different kinds cannot be added: "
                f"{self.kind} and {other.kind}".replace("HitKind", "")
            )
        datasets = tuple(sorted({*self.datasets, *other.datasets}))
        new_hits = np.zeros((len(datasets), *self.kind.shape), np.int64)
        for part in (self, other):
            new_hits[[datasets.index(label) for label in part.datasets]] += part.new_hits
        return HitCounts(self.kind, datasets, new_hits)

    def table(self, intervals=None) -> pd.DataFrame:
        """Table that `lrc.sch` and `lrc.hit_rates` return.

        Parameters
        ----------
        intervals : float array [2, datasets, variants, caches, sizes], optional
            Lower and upper ends, from a bootstrap.
        """
        # [datasets, caches, variants, sizes]: rows of the table in that order.
        hits = self.new_hits.cumsum(axis=-1).swapaxes(1, 2)
        uses, hits = hits[..., -1], hits[..., : self.kind.num_sizes]
        there = np.broadcast_to(uses[..., None] > 0, hits.shape)
        g, cache, variant, size = np.nonzero(there)
        shared = self.kind.level == "model"
        active = self.kind.top_k * (self.kind.num_layers if shared else 1)
        columns = {
            "dataset": np.array(self.datasets, dtype=object)[g],
            "layer": cache,
            self.kind.column: np.array(self.kind.variants)[variant],
            "cache_size": size + 1,
            "cache_ratio": (size + 1) / active,
            "hit_rate": hits[there] / uses[g, cache, variant],
        }
        if intervals is not None:
            low, high = (end.swapaxes(1, 2)[..., : self.kind.num_sizes][there] for end in intervals)
            columns |= {"ci_low": low, "ci_high": high}
        absent = {"dataset"} if self.datasets in (("",), ()) else set()
        absent |= {"layer"} if shared else set()
        table = pd.DataFrame({k: v for k, v in columns.items() if k not in absent})
        return table.astype({k: "str" for k in ("dataset", "policy") if k in table})


def count_corpus(corpus: Corpus, kind: HitKind, datasets) -> HitCounts:
    """Count the hits of each of the sorted datasets (``("",)`` = all pooled)."""
    arguments = (kind, tuple(datasets))
    return corpus.add_up(corpus.parts, _count, [arguments] * len(corpus.parts))


def _count(traces, kind, datasets):
    new_hits = np.zeros((len(datasets), *kind.shape), np.int64)
    for trace in traces:
        for g, label in enumerate(datasets):
            members = np.flatnonzero(is_of(trace, label))
            for v, (rule, segment_length) in enumerate(kind.rules):
                for _, counted in counted_blocks(trace, members, rule, segment_length, kind.level):
                    new_hits[g, v] += kernels.host(counted.sum(axis=0))
        del trace  # before the next is read
    return HitCounts(kind, datasets, new_hits)


def sequence_counts(trace, policy: str, *, level: str = "model", segment_length: int = 0):
    """Histogram of every single sequence, in blocks that fit into memory.

    Parameters
    ----------
    trace : Trace
    policy : str
        A policy of `lrc.hit_rates` or a definition of `lrc.sch`.
    level : {"model", "layer"}
    segment_length : int
        For definitions of `lrc.sch`.

    Yields
    ------
    slice
        Sequences of the block.
    int64 array [sequences, caches, sizes]
        As in `HitCounts`.
    """
    rule = {**POLICIES, **DEFINITIONS}[policy]
    everything = np.arange(trace.num_sequences)
    for part, counted in counted_blocks(trace, everything, rule, segment_length, level):
        yield part, kernels.host(counted)


def block_sequences(trace) -> int:
    """How many sequences are counted at a time."""
    size = 8 * trace.num_layers * trace.num_experts
    return max(1, kernels.block_bytes(trace.experts) // size)


def counted_blocks(trace, sequences, rule, segment_length, level):
    """Slices of `sequences` and their histograms, [sequences, caches, sizes]."""
    step = block_sequences(trace)
    for start in range(0, len(sequences), step):
        part = slice(start, start + step)
        if isinstance(rule, str):
            some = trace.select(sequences[part])
            yield part, request_counts(requests(some), rule, level, some.num_sequences)
            continue
        counted = kernels.count_new_hits(
            *(rule, segment_length, trace.experts, trace.lengths, sequences[part]),
            *(trace.num_experts, level == "model"),
        )
        yield part, counted


def used_caches(trace, level):
    """Which sequences have something to say of which cache: bool [sequences, caches]."""
    used = kernels.used_layers(trace.experts)
    return used.any(axis=1, keepdims=True) if level == "model" else used
