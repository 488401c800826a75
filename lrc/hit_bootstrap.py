"""Bootstrap intervals of hit rates at every cache size.

The hits of a resample are those of its sequences, each as often as it is drawn: one product of
whole numbers for all resamples. Of a trace in memory the product is made some sizes at a time,
which are boiled down to the two ends of their intervals while they are in the processor's cache.
Where sequences come in several blocks, their products are added up first.
"""

import operator
from collections import Counter
from copy import copy
from dataclasses import replace

import numpy as np

from lrc import kernels
from lrc.bootstrap import Dealer, exact_product, mirrored, strata_of_parts, tails
from lrc.hit_counts import HitCounts, HitKind, block_sequences, counted_blocks, used_caches
from lrc.shards import Corpus, is_of, labels_of

# Sizes in a row that a thread works on, and numbers of a product that is made at a time for all.
SIZES = 64
PRODUCT = 1 << 21


def count_and_resample(
    corpus: Corpus, kind: HitKind, datasets, bootstrap: int, confidence: float, seed: int
) -> tuple[HitCounts, np.ndarray]:
    """Count the hits, and resample the sequences.

    A sequence that does not use a cache says nothing of its hit rate, so caches draw from those
    that do ("engine": from all): in nearly every trace all from all.

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
            alone = len(used) == 1 and _is_one_block(parts[used[0]].trace)
            new_hits[g, v], products = corpus.add_up(
                [parts[p] for p in used],
                _resample,
                [
                    (one, label, [(n, starts[p]) for n, starts in strata], bootstrap, seed, alone)
                    for p in used
                ],
                _add_both,
            )
            if not alone:
                products = [(list(range(kind.shape[1])), products, None)]
            for caches, counts, weights in products:
                hits = new_hits[g, v, caches].cumsum(axis=-1)
                ends = _tails_of_rates(counts, weights, confidence)
                intervals[:, g, v, caches] = mirrored(hits / np.maximum(hits[:, -1:], 1), *ends)
    return HitCounts(kind, tuple(datasets), new_hits), intervals


def _is_one_block(trace):
    """Whether a trace in memory is counted in one block, by the CPU."""
    if trace is None or not kernels.on_host(trace.experts):
        return False
    return trace.num_sequences <= block_sequences(trace)


def _census(traces, kind, part):
    """How many sequences use each cache, in a dict by part, shortest length, cache and label."""
    shortest = {replace(kind, variants=(variant,)).shortest for variant in kind.variants}
    census = {m: [Counter() for _ in range(kind.shape[1])] for m in shortest}
    for trace in traces:
        labels, used = labels_of(trace), _drawn(trace, kind)
        for m, counters in census.items():
            for cache, counter in enumerate(counters):
                counter.update(labels[used[:, cache] & (trace.lengths >= m)].tolist())
        del trace  # before the next is read
    return {part: census}


def _drawn(trace, kind):
    """Which sequences are drawn for which cache: bool [sequences, caches]."""
    if kind.contract == "engine":
        return np.ones((trace.num_sequences, kind.shape[1]), bool)
    return used_caches(trace, kind.level)


def _only(label, counter):
    return {name: n for name, n in counter.items() if label in ("", name)}


def _resample(traces, kind, label, strata, bootstrap, seed, alone):
    """Hits of some sequences, in all and in every resample.

    Parameters
    ----------
    strata : list of tuple
        For each cache, what `Dealer` has to know.
    alone : bool
        All sequences are one block: leave its products to be made.

    Returns
    -------
    new_hits : int64 array [caches, sizes]
    products : float64 array [caches, sizes, bootstrap]
        New hits of every resample. If `alone`, a list of caches that draw from the same sequences,
        the counts of these [sequences, caches, sizes], and how often each is drawn.
    """
    ((rule, segment_length),) = kind.rules
    _, num_caches, num_sizes = kind.shape
    new_hits = np.zeros((num_caches, num_sizes), np.int64)
    products = [] if alone else np.zeros((num_caches, num_sizes, bootstrap))
    # Caches that have drawn from the same sequences so far, and the weights of the next.
    groups = [
        ([c for c in range(num_caches) if strata[c] == key], Dealer(*key, bootstrap, seed))
        for i, key in enumerate(strata)
        if key not in strata[:i]
    ]
    for trace in traces:
        labels, used = labels_of(trace), _drawn(trace, kind)
        used &= (trace.lengths >= kind.shortest)[:, None]
        members = np.flatnonzero(is_of(trace, label))
        for part, counted in counted_blocks(trace, members, rule, segment_length, kind.level):
            new_hits += kernels.host(counted.sum(axis=0))
            draws = used[members[part]]
            groups = [split for group in groups for split in _split(*group, draws)]
            for caches, dealer in groups:
                drawn = draws[:, caches[0]]
                columns = counted
                if len(caches) < num_caches or not drawn.all():
                    columns = counted[drawn][:, caches]
                weights = dealer.deal(labels[members[part]][drawn])
                if alone:
                    products.append((caches, columns, weights))
                else:
                    flat = columns.reshape(len(columns), len(caches) * num_sizes)
                    product = kernels.host(exact_product(flat, weights))
                    products[caches] += product.reshape(len(caches), num_sizes, bootstrap)
        del trace  # before the next is read
    return new_hits, products


def _split(caches, dealer, draws):
    """Caches of a group that draw from the same sequences of a block: bool [sequences, caches]."""
    patterns, pattern_of = np.unique(draws[:, caches], axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        yield [c for c, q in zip(caches, pattern_of.ravel(), strict=True) if p == q], copy(dealer)


def _add_both(a, b):
    return a[0] + b[0], a[1] + b[1]


def _tails_of_rates(counts, weights, confidence):
    """Quantiles of hit rates of resamples: [2, caches, sizes]; NaN for caches without use.

    Parameters
    ----------
    counts : int array [sequences, caches, sizes]
        New hits.
    weights : float32 array [bootstrap, sequences]
        How often each sequence is drawn. None: `counts` are what the draws add up to, a float64
        array [caches, sizes, bootstrap].
    """
    num_caches, num_sizes = counts.shape[:2] if weights is None else counts.shape[1:]
    runs = [
        slice(cache * num_sizes + start, cache * num_sizes + min(start + SIZES, num_sizes))
        for cache in range(num_caches)
        for start in range(0, num_sizes, SIZES)
    ]
    starts = np.arange(0, num_sizes, SIZES)
    if weights is None:
        sums = np.add.reduceat(counts, starts, axis=1)
        product = counts.reshape(num_caches * num_sizes, -1).__getitem__
    else:
        flat = counts.reshape(len(counts), num_caches * num_sizes)
        sums = exact_product(np.add.reduceat(flat, [r.start for r in runs], axis=1), weights)
        sums = sums.reshape(num_caches, len(starts), len(weights))

        def product(columns):
            return exact_product(flat[:, columns], weights)

    # Hits with the sizes of each run and all before it.
    hits = sums.cumsum(axis=1, dtype=np.float64)
    ends = np.full((2, num_caches * num_sizes), np.nan)
    step = max(1, PRODUCT // (SIZES * hits.shape[-1]))
    for first in range(0, len(runs), step):
        some = runs[first : first + step]
        start = some[0].start
        new_hits = product(slice(start, some[-1].stop))

        def work(part, first=first, some=some, start=start, new_hits=new_hits):
            for i, run in enumerate(some[part], first + part.start):
                cache, place = divmod(i, len(starts))
                if hits[cache, -1].any():
                    uses = np.maximum(hits[cache, -1], 1)
                    before = hits[cache, place - 1] if place else np.zeros_like(uses)
                    ends[:, run] = kernels.quantiles_of_rates(
                        new_hits[run.start - start : run.stop - start],
                        before,
                        uses,
                        tails(confidence),
                    )

        kernels.in_slices(work, len(some), 4)
    return ends.reshape(2, num_caches, num_sizes)
