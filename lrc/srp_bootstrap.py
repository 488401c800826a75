"""Bootstrap intervals of SRP: F1 of the best segment router in every resample, to the last bit.

A resample's histogram is the sum of the sequences' own, weighted by how often each is drawn. Of
its bins only those around the best threshold matter one by one: all below count through their
activations, all above through two sums (`lrc.kernels.cpu_windows`). Where that threshold lies is
known from the estimate and how far resamples spread; what turns out to lie too near the edge of
that range is drawn again with more bins.

How far they spread is estimated to first order ("delta method"): F1 is a ratio of sums over
sequences, so at the estimate's threshold its variance is that of the sequences' own shares in it.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from lrc.bootstrap import Dealer, exact_product, exact_sum, mirrored, strata_of_parts, tails
from lrc.kernels import (
    best_of_sequences,
    best_resampled,
    block_bytes,
    count_columns,
    cpu_quantiles,
    host,
    in_slices,
    on_host,
    panels_of,
)
from lrc.shards import Corpus, is_of, labels_of
from lrc.window_counts import LEVELS, WindowCounts, best_router

# Size of the sums of a step. Files are read again for each step; what is in memory is looked at in
# steps that suit the processor's cache.
SUM_BYTES = 1 << 28
SUM_BYTES_IN_MEMORY = 1 << 27
# Sequences that are added at a time, and how large their counts may become.
BLOCK_SEQUENCES = 512
BLOCK_BYTES = 1 << 26
# Rows that a thread works on.
ROWS = 32
# Sequences from which the spread of F1 is estimated, and how many standard deviations of it to look
# at on either side of the estimate.
SAMPLE = 256
REACH = 5.0


@dataclass(frozen=True)
class _Step:
    """Rows of SRP that draw the same sequences, and the thresholds to look at.

    Attributes
    ----------
    label : str
        Dataset, or "" for all.
    segment_lengths : tuple of int
        Of which the same sequences have windows.
    level, segment, layer, expert : int64 arrays [rows]
        Places of the rows, among `LEVELS`, `segment_lengths`, layers and experts.
    score, width : float64 arrays [rows]
        F1 of the estimate, and how far from it.
    """

    label: str
    segment_lengths: tuple[int, ...]
    level: np.ndarray
    segment: np.ndarray
    layer: np.ndarray
    expert: np.ndarray
    score: np.ndarray
    width: np.ndarray

    def select(self, rows) -> "_Step":
        """Some rows, and the segment lengths that these need."""
        used, segment = np.unique(self.segment[rows], return_inverse=True)
        names = ("level", "layer", "expert", "score", "width")
        return replace(
            self,
            segment_lengths=tuple(self.segment_lengths[i] for i in used),
            segment=segment,
            **{name: getattr(self, name)[rows] for name in names},
        )

    @property
    def m(self) -> np.ndarray:
        return np.array(self.segment_lengths)[self.segment]

    @property
    def low(self) -> np.ndarray:
        """Lowest threshold of each row; 0 is never better than 1."""
        return np.maximum(np.ceil((self.score - self.width) * self.m / 2), 1).astype(np.int64)

    @property
    def high(self) -> np.ndarray:
        """Highest threshold of each row; none above m / 2 is ever the best alone."""
        highest = np.ceil((self.score + self.width) * self.m / 2).astype(np.int64)
        return np.minimum(highest, (self.m + 1) // 2)

    @property
    def first(self) -> np.ndarray:
        """First column of each row, and at last the number of all columns."""
        return np.cumsum(np.append(0, 3 + self.high - self.low))


def srp_intervals(
    corpus: Corpus, levels: list[WindowCounts], bootstrap: int, confidence: float, seed: int
) -> list[np.ndarray]:
    """Intervals of `lrc.srp`, at several levels at once.

    Parameters
    ----------
    corpus : Corpus
    levels : list of WindowCounts
        Of the corpus: alike, but for their levels.
    bootstrap, confidence, seed
        As in `lrc.srp`.

    Returns
    -------
    list of float array [2, datasets, layers, experts, segment_lengths]
        For each level lower and upper ends; NaN where there are no windows.
    """
    lengths = levels[0].segment_lengths
    intervals, scores = [], []
    for counts in levels:
        parts = [best_router(counts.histogram(i))[0] for i in range(len(lengths))]
        scores.append(np.stack(parts, axis=-1))  # [datasets, layers, experts, segment_lengths]
        intervals.append(np.full((2, *scores[-1].shape), np.nan))
        # What is never active scores 0 in every resample.
        there = counts.windows[:, None, None] > 0
        intervals[-1][:, np.broadcast_to(there, scores[-1].shape)] = 0
    for g, label in enumerate(levels[0].datasets):
        for chosen, sizes, starts in _members(corpus, label, lengths):
            rows = []
            for n, (counts, score) in enumerate(zip(levels, scores, strict=True)):
                layer, expert, segment = np.nonzero(score[g][..., chosen])
                level = np.full(len(layer), LEVELS.index(counts.level))
                f1 = score[g][..., chosen][layer, expert, segment]
                rows.append((np.full(len(layer), n), level, segment, layer, expert, f1))
            number, level, segment, layer, expert, f1 = map(np.concatenate, zip(*rows, strict=True))
            if not len(f1):
                continue
            step = _Step(
                *(label, tuple(lengths[i] for i in chosen)),
                *(level, segment, layer, expert, f1, np.zeros(len(f1))),
            )
            used = [
                (part, start) for part, start in zip(corpus.parts, starts, strict=True) if start
            ]
            ends = _step_intervals(corpus, step, used, sizes, bootstrap, confidence, seed)
            for n, goal in enumerate(intervals):
                mine = number == n
                place = (layer[mine], expert[mine], np.array(chosen)[segment[mine]])
                goal[:, g, *place] = ends[:, mine]
    return intervals


def _members(corpus, label, lengths):
    """Which sequences segment lengths draw from: those of the dataset that have a window.

    Yields positions of segment lengths that draw from the same, their strata, and where these
    begin in each part (nowhere: a part without such sequences).
    """
    labels = labels_of(corpus)
    groups = {}
    for i, m in enumerate(lengths):
        members = _drawn(corpus, label, m)
        slices = [slice(part.start, part.stop) for part in corpus.parts]
        counts = [Counter(labels[part][members[part]].tolist()) for part in slices]
        sizes, starts = strata_of_parts(counts)
        # Longer windows draw from fewer sequences, so from the same if from as many.
        if sizes:
            groups.setdefault(sizes, ([], starts))[0].append(i)
    for sizes, (chosen, starts) in groups.items():
        yield chosen, sizes, starts


def _drawn(trace, label, m):
    """Sequences of a dataset that have a window of m tokens: bool [sequences]."""
    return (trace.lengths >= m) & is_of(trace, label)


def _step_intervals(corpus, step, used, sizes, bootstrap, confidence, seed):
    """Intervals [2, rows]; `used` are parts and where their strata begin."""
    parts = [part for part, _ in used]
    # The step is sent within a tuple: clusters keep other objects apart from the task, and lose
    # them with the worker that holds them.
    sample = ((step,), -(-SAMPLE // len(parts)))
    squares, sums, count = corpus.add_up(parts, _sums_of_squares, [sample] * len(parts))
    share = count / sum(size for _, size in sizes)
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(squares * share) / sums
    # What the sample does not hold may spread anywhere.
    step = replace(step, width=np.where(sums > 0, REACH * deviation, 1.0))
    in_memory = all(part.trace is not None and on_host(part.trace.experts) for part in parts)
    size = (SUM_BYTES_IN_MEMORY if in_memory else SUM_BYTES) // (8 * bootstrap)
    intervals = np.empty((2, len(step.score)))
    pending = np.arange(len(step.score))
    while len(pending):
        uncertain = []
        pending_step = step.select(pending)
        # Counts and draws of all sequences, where they take no more than sums of all resamples.
        columns = int(pending_step.first[-1])
        held = 8 * sum(n for _, n in sizes) * (columns + bootstrap)
        alone = in_memory and len(parts) == 1 and held <= SUM_BYTES_IN_MEMORY
        for block in _blocks(pending_step.first, columns if alone else size):
            rows = pending[block]
            block = step.select(rows)
            products = corpus.add_up(
                *(parts, _resample),
                [((block,), sizes, start, bootstrap, seed, alone) for _, start in used],
                *(exact_sum,),
            )
            ends, sure = _ends(products, block, confidence)
            intervals[:, rows] = mirrored(block.score, *ends)
            uncertain.append(rows[~sure])
        pending = np.concatenate(uncertain)
        step = replace(step, width=3 * step.width + 2 / step.m)
    return intervals


def _ends(resampled, step, confidence):
    """Quantiles of F1 in the resamples, [2, rows], and whether each row's are certain.

    Parameters
    ----------
    resampled : float array [columns, bootstrap], or tuple
        Sums of columns, or the columns of sequences and how often these are drawn.
    """
    ends, sure = np.empty((2, len(step.score))), np.empty(len(step.score), bool)
    groups = (step.first[:-1], step.low, step.high, step.m)
    best, data = best_resampled, (resampled,)
    if isinstance(resampled, tuple):
        counted, weights = resampled
        best, data = best_of_sequences, (counted, *panels_of(weights), len(weights))

    def work(rows):
        f1, sure[rows] = best(*data, *(values[rows] for values in groups))
        ends[:, rows] = cpu_quantiles.quantiles(f1, tails(confidence))

    in_slices(work, len(step.score), ROWS)
    return ends, sure


def _blocks(first, size):
    """Slices of rows that have so many columns together, or are one row."""
    start = 0
    while start < len(first) - 1:
        stop = int(np.searchsorted(first, first[start] + size, "right")) - 1
        stop = max(start + 1, stop)
        yield slice(start, stop)
        start = stop


def _sums_of_squares(traces, steps, sample):
    """What F1 gains and loses by each of some sequences, squared, its denominator, their number.

    Sums over sequences, [3, rows]. F1 is 2 M / D, sums over sequences both; moving a sequence's
    weight moves it by (2 M_s - F1 D_s) / D.
    """
    (step,) = steps
    sums = np.zeros((3, len(step.score)))
    for _, counted in _counted(traces, step, sample):
        activations, windows, matches = (
            host(counted[:, step.first[:-1] + column]).astype(np.float64) for column in range(3)
        )
        sizes = step.m * windows + activations
        sums[0] += ((2 * matches - step.score * sizes) ** 2).sum(axis=0)
        sums[1] += sizes.sum(axis=0)
        sums[2] += len(sizes)
    return sums


def _resample(traces, steps, sizes, starts, bootstrap, seed, alone):
    """Sums of `count_columns` in every resample: [columns, bootstrap].

    If there are no sequences but these, factors of the sums instead, as `_ends` takes them.
    """
    (step,) = steps
    dealer = Dealer(sizes, starts, bootstrap, seed)
    if alone:
        ((labels, counted),) = _counted(traces, step, block=max(1, sum(n for _, n in sizes)))
        return counted, dealer.deal(labels)
    totals = None
    for labels, counted in _counted(traces, step):
        totals = exact_sum(totals, exact_product(counted, dealer.deal(labels)))
    return None if totals is None else host(totals)


def _counted(traces, step, sample=None, block=None):
    """Labels of some sequences that are drawn, and their columns; of so many, or of all."""
    for trace in traces:
        step_size = block or _block_sequences(trace, step)
        labels = labels_of(trace)
        members = np.flatnonzero(_drawn(trace, step.label, max(step.segment_lengths)))
        if sample is not None:
            members = members[:: max(1, len(members) // max(1, sample))][:sample]
            sample -= len(members)
        layers = _layers(trace, step)
        plan = _plan(trace, step, layers)
        for start in range(0, len(members), step_size):
            chunk = members[start : start + step_size]
            yield (
                labels[chunk],
                count_columns(
                    *(trace.experts, trace.lengths, chunk, layers, step.segment_lengths),
                    *(plan, _dtype(trace, step)),
                ),
            )
        if sample == 0:
            return
        del trace  # before the next is read


def _block_sequences(trace, step):
    """Sequences that are added at a time."""
    if on_host(trace.experts):
        return max(1, min(BLOCK_SEQUENCES, BLOCK_BYTES // (8 * int(step.first[-1]))))
    # A GPU holds whole histograms, some eight times.
    bins = sum(step.segment_lengths) + len(step.segment_lengths)
    size = 64 * len(_layers(trace, step)) * trace.num_experts * bins
    return max(1, block_bytes(trace.experts) // size)


def _layers(trace, step):
    """Layers that a step needs."""
    return np.arange(trace.num_layers) if 0 in step.level else np.unique(step.layer)


def _plan(trace, step, layers):
    """First column and thresholds of each row, as `count_columns` takes them."""
    shape = (len(LEVELS), len(step.segment_lengths), len(layers), trace.num_experts)
    place = (step.level, step.segment, np.searchsorted(layers, step.layer), step.expert)
    plan = []
    for values in (step.first[:-1], step.low, step.high):
        plan.append(np.full(shape, -1))
        plan[-1][place] = values
    return tuple(plan)


def _dtype(trace, step):
    """Of the columns of a sequence: float32 if it holds them, which none of them exceeds."""
    experts = (trace.num_layers * trace.top_k, trace.top_k, 1)[step.level.min()]
    largest = trace.shape[1] * max(step.segment_lengths) * experts
    return np.float32 if largest < 2**24 else np.float64
