"""Hits of caches of every size, as integers that add up; resampled hits for intervals.

The partial statistics behind `lrc.sch` and `lrc.hit_rates`: each sequence is replayed by itself,
so its histogram can be summed with those of others in any grouping, on any machine.
"""

import operator
from collections import Counter
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lrc import kernels
from lrc.bootstrap import Dealer, exact_product, mirrored_interval, strata_of_parts
from lrc.errors import LrcError
from lrc.shards import Corpus, is_of, labels_of

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
    def shape(self) -> tuple[int, int, int]:
        """Variants, caches, sizes."""
        if self.level == "model":
            return len(self.variants), 1, self.num_layers * self.num_experts
        return len(self.variants), self.num_layers, self.num_experts

    @property
    def shortest(self) -> int:
        """Tokens that a sequence needs to be counted, of the shortest variant."""
        return min(self.variants) if self.contract == "static" else 0

    @property
    def rules(self) -> list[tuple[int, int]]:
        """Rule of the kernel and segment length, of each variant."""
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
        there = np.broadcast_to(hits[..., -1:] > 0, hits.shape)
        g, cache, variant, size = np.nonzero(there)
        shared = self.kind.level == "model"
        active = self.kind.top_k * (self.kind.num_layers if shared else 1)
        columns = {
            "dataset": np.array(self.datasets, dtype=object)[g],
            "layer": cache,
            self.kind.column: np.array(self.kind.variants)[variant],
            "cache_size": size + 1,
            "cache_ratio": (size + 1) / active,
            "hit_rate": hits[there] / hits[g, cache, variant, -1],
        }
        if intervals is not None:
            low, high = (end.swapaxes(1, 2)[there] for end in intervals)
            columns |= {"ci_low": low, "ci_high": high}
        absent = {"dataset"} if self.datasets in (("",), ()) else set()
        absent |= {"layer"} if shared else set()
        table = pd.DataFrame({k: v for k, v in columns.items() if k not in absent})
        return table.astype({k: "str" for k in ("dataset", "policy") if k in table})


def count_corpus(corpus: Corpus, kind: HitKind, datasets) -> HitCounts:
    """Count the hits of each of the sorted datasets (``("",)`` = all pooled)."""
    arguments = (kind, tuple(datasets))
    return corpus.add_up(corpus.parts, _count, [arguments] * len(corpus.parts))


def count_and_resample(
    corpus: Corpus, kind: HitKind, datasets, bootstrap: int, confidence: float, seed: int
) -> tuple[HitCounts, np.ndarray]:
    """Count the hits, and resample the sequences.

    A sequence that does not use a cache says nothing of its hit rate, so caches draw from those
    that do: in nearly every trace all from all.

    Returns
    -------
    HitCounts
    float array [2, datasets, variants, caches, sizes]
        Lower and upper ends of the intervals of hit rates; NaN where there is no use.
    """
    new_hits = np.zeros((len(datasets), *kind.shape), np.int64)
    intervals = np.full((2, *new_hits.shape), np.nan)
    parts = corpus.parts
    census = corpus.add_up(parts, _census, [(kind, p) for p in range(len(parts))], operator.or_)
    for g, label in enumerate(datasets):
        for v, variant in enumerate(kind.variants):
            one = replace(kind, variants=(variant,))
            # For each part and cache, how many sequences of each label are drawn from.
            drawn = [[_only(label, n) for n in census[p][one.shortest]] for p in range(len(parts))]
            strata = [strata_of_parts(by_part) for by_part in zip(*drawn, strict=True)]
            used = [p for p in range(len(parts)) if any(drawn[p])]
            if not used:
                continue
            new_hits[g, v], totals = corpus.add_up(
                [parts[p] for p in used],
                _resample,
                [
                    (one, label, [(sizes, starts[p]) for sizes, starts in strata], bootstrap, seed)
                    for p in used
                ],
                _add_both,
            )
            for cache, hits in enumerate(new_hits[g, v].cumsum(axis=-1)):
                if hits[-1]:
                    resampled = totals[cache].cumsum(axis=0)
                    intervals[:, g, v, cache] = mirrored_interval(
                        hits / hits[-1], resampled / resampled[-1], confidence, axis=1
                    )
    return HitCounts(kind, tuple(datasets), new_hits), intervals


def _count(traces, kind, datasets):
    new_hits = np.zeros((len(datasets), *kind.shape), np.int64)
    for trace in traces:
        for g, label in enumerate(datasets):
            members = np.flatnonzero(is_of(trace, label))
            for v, (rule, segment_length) in enumerate(kind.rules):
                for _, counted in _blocks(trace, members, rule, segment_length, kind.level):
                    new_hits[g, v] += kernels.host(counted.sum(axis=0))
        del trace  # before the next is read
    return HitCounts(kind, datasets, new_hits)


def _census(traces, kind, part):
    """How many sequences use each cache, in a dict by part, shortest length, cache and label."""
    shortest = {replace(kind, variants=(variant,)).shortest for variant in kind.variants}
    census = {m: [Counter() for _ in range(kind.shape[1])] for m in shortest}
    for trace in traces:
        labels, used = labels_of(trace), _used(trace, kind.level)
        for m, counters in census.items():
            for cache, counter in enumerate(counters):
                counter.update(labels[used[:, cache] & (trace.lengths >= m)].tolist())
        del trace  # before the next is read
    return {part: census}


def _only(label, counter):
    return {name: n for name, n in counter.items() if label in ("", name)}


def _resample(traces, kind, label, strata, bootstrap, seed):
    """Hits [caches, sizes] in all, and in every resample: float64 [caches, sizes, bootstrap].

    `strata` are, for each cache, what `Dealer` has to know.
    """
    ((rule, segment_length),) = kind.rules
    _, num_caches, num_sizes = kind.shape
    new_hits = np.zeros((num_caches, num_sizes), np.int64)
    totals = np.zeros((num_caches, num_sizes, bootstrap))
    # Caches that have drawn from the same sequences so far, and the weights of the next.
    groups = [
        ([c for c in range(num_caches) if strata[c] == key], Dealer(*key, bootstrap, seed))
        for i, key in enumerate(strata)
        if key not in strata[:i]
    ]
    for trace in traces:
        labels, used = labels_of(trace), _used(trace, kind.level)
        used &= (trace.lengths >= kind.shortest)[:, None]
        members = np.flatnonzero(is_of(trace, label))
        for part, counted in _blocks(trace, members, rule, segment_length, kind.level):
            new_hits += kernels.host(counted.sum(axis=0))
            draws = used[members[part]]
            groups = [split for group in groups for split in _split(*group, draws)]
            for caches, dealer in groups:
                drawn = draws[:, caches[0]]
                columns = counted[drawn][:, caches].reshape(
                    int(drawn.sum()), len(caches) * num_sizes
                )
                product = exact_product(columns, dealer.deal(labels[members[part]][drawn]))
                totals[caches] += kernels.host(product).reshape(len(caches), num_sizes, bootstrap)
        del trace  # before the next is read
    return new_hits, totals


def _split(caches, dealer, draws):
    """Caches of a group that draw from the same sequences of a block: bool [sequences, caches]."""
    patterns, pattern_of = np.unique(draws[:, caches], axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        yield [c for c, q in zip(caches, pattern_of.ravel(), strict=True) if p == q], copy(dealer)


def _add_both(a, b):
    return a[0] + b[0], a[1] + b[1]


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
    for part, counted in _blocks(trace, everything, rule, segment_length, level):
        yield part, kernels.host(counted)


def _blocks(trace, sequences, rule, segment_length, level):
    """Slices of `sequences` and their histograms, [sequences, caches, sizes]."""
    step = max(1, kernels.block_bytes(trace.experts) // (8 * trace.num_layers * trace.num_experts))
    for start in range(0, len(sequences), step):
        part = slice(start, start + step)
        counted = kernels.count_new_hits(
            *(rule, segment_length, trace.experts, trace.lengths, sequences[part]),
            *(trace.num_experts, level == "model"),
        )
        yield part, counted


def _used(trace, level):
    """Which sequences have something to say of which cache: bool [sequences, caches]."""
    used = kernels.used_layers(trace.experts)
    return used.any(axis=1, keepdims=True) if level == "model" else used
