"""Partial statistics of `lrc.overlap_by_distance`: what pairs of tokens of a text have in common.

A row of whole numbers a sequence. Rows of several shards are put one below the other, and whatever
follows from them follows from sums over rows, in which a bootstrap draws a row several times.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrc.arguments import check_level, check_trace, once
from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.errors import LrcError
from lrc.kernels.cpu_pairs import count_pairs
from lrc.trace import Trace

PAIR_LEVELS = ("model", "layer")


@dataclass(frozen=True)
class PairCounts:
    """Pairs of tokens of the sequences of a trace.

    Attributes
    ----------
    shared : int64 array [sequences, layers, distances + 1, 2]
        Experts that both tokens of a pair use, summed over pairs. Last of the distances: pairs of
        every distance. Last axis: pairs of different token ids, and of equal ones; without ids all
        pairs are of different ones.
    uses : int64 array, likewise
        Experts that one token uses, plus those that the other does.
    pairs : int64 array [sequences, distances + 1, 2]
    active : int64 array [sequences, layers, experts]
        Tokens that use an expert.
    lengths : int64 array [sequences]
    datasets : str array [sequences] or None
    distances : tuple of int
    """

    shared: np.ndarray
    uses: np.ndarray
    pairs: np.ndarray
    active: np.ndarray
    lengths: np.ndarray
    datasets: np.ndarray | None
    distances: tuple[int, ...]

    def __add__(self, other: "PairCounts") -> "PairCounts":
        kinds = [(c.distances, c.active.shape[1:], c.datasets is None) for c in (self, other)]
        if kinds[0] != kinds[1]:
            raise LrcError(
                "pair counts of different kinds cannot be added (distances; layers and experts; "
                f"without labels): {kinds[0]} and {kinds[1]}"
            )
        names = [name for name in _ROWS if getattr(self, name) is not None]
        rows: dict[str, Any] = {"datasets": None}
        for name in names:
            rows[name] = np.concatenate([getattr(self, name), getattr(other, name)])
        return PairCounts(**rows, distances=self.distances)

    def pooled(self, starts: np.ndarray) -> "PairCounts":
        """The same with several distances taken together, from each of these places to the next."""
        starts = np.append(starts, len(self.distances))  # Last, as before, all of them.
        rows = {
            name: np.add.reduceat(getattr(self, name), starts, axis=-2)
            for name in ("shared", "uses", "pairs")
        }
        return replace(self, **rows, distances=tuple(self.distances[i] for i in starts[:-1]))

    def sums(self, draws: np.ndarray, pooled: bool) -> "PairSums":
        """Expected overlaps, where each sequence is drawn so many times.

        Parameters
        ----------
        draws : array [resamples, sequences]
        pooled : bool
            Add up the layers.
        """
        draws = np.asarray(draws, float)
        shape = (len(draws), self.active.shape[1], len(self.distances))
        found = {name: np.zeros((2, *shape)) for name in ("chance", "domain")}
        found["text"], found["here"] = np.zeros((2, 2, *shape, 2))
        pair_counts, last = self.pairs.sum(axis=2), None
        for i in range(len(self.distances)):
            # How often a token of the sequence is in one of its pairs of this distance. Only the
            # proportions matter, and sequences of one length have the same at all distances.
            share = pair_counts[:, i] / np.maximum(self.lengths, 1)
            share = share / (share.max(initial=0) or 1)
            if last is None or not np.array_equal(share, last):
                weights = draws * share
                random = {"chance": self._chance(weights), "domain": self._domain(weights)}
                last = share
            for name, value in random.items():
                found[name][..., i] = value
            within = pair_counts[:, i] / np.maximum(pair_counts[:, -1], 1)
            for kind, counts in enumerate((self.shared, self.uses)):
                flat = counts[:, :, -1].reshape(len(counts), -1)
                found["text"][kind, :, :, i] = ((draws * within) @ flat).reshape(*shape[:2], 2)
                flat = counts[:, :, i].reshape(len(counts), -1)
                found["here"][kind, :, :, i] = (draws @ flat).reshape(*shape[:2], 2)
        if pooled:
            found = {name: value.sum(axis=2, keepdims=True) for name, value in found.items()}
        return PairSums(**found)

    def _chance(self, weights):
        """Two independent tokens, each of any sequence: shared and uses, [2, resamples, layers]."""
        tokens = (weights @ self.lengths)[:, None]
        active = self._active(weights)
        sums = np.stack([(active**2).sum(axis=2), 2 * active.sum(axis=2) * tokens])
        return sums / np.where(tokens > 0, tokens, 1)

    def _domain(self, weights):
        """Tokens of different sequences of one dataset, datasets weighted by their tokens."""
        total = np.zeros((2, len(weights), self.active.shape[1]))
        squares, uses = (self.active**2).sum(axis=2), self.active.sum(axis=2)
        labels = [] if self.datasets is None else np.unique(self.datasets)
        for label in labels if len(labels) > 1 else []:
            here = weights * (self.datasets == label)
            tokens, active = (here @ self.lengths)[:, None], self._active(here)
            # Less the pairs within a sequence, however often it was drawn.
            own = here**2
            pairs = tokens**2 - (own @ self.lengths**2)[:, None]
            shared = (active**2).sum(axis=2) - own @ squares
            used = 2 * (tokens * active.sum(axis=2) - own @ (uses * self.lengths[:, None]))
            some = pairs > 1e-9 * tokens**2
            each = np.where(some, tokens, 0) / np.where(some, pairs, 1)
            total += np.stack([shared, used]) * each
        return total

    def _active(self, weights):
        flat = weights @ self.active.reshape(len(self.active), -1)
        return flat.reshape(len(weights), *self.active.shape[1:])


_ROWS = ("shared", "uses", "pairs", "active", "lengths", "datasets")


@dataclass(frozen=True)
class PairSums:
    """Sums over pairs of tokens: shared experts, and uses, along the first axis.

    Attributes
    ----------
    here : array [2, resamples, layers, distances, 2]
        Pairs at the distance; last axis: of different token ids, and of equal ones.
    text : array, likewise
        As many pairs of tokens of the same sequences, at any distance.
    chance, domain : array [2, resamples, layers, distances]
        Independent tokens; tokens of different sequences of one dataset.
    """

    here: np.ndarray
    text: np.ndarray
    chance: np.ndarray
    domain: np.ndarray

    @property
    def has_domain(self) -> bool:
        """Whether there are tokens of different sequences of one dataset, wherever one looks."""
        return bool((self.domain[1] > 0)[self.here[1].sum(axis=-1) > 0].all())

    def overlap(self, name: str) -> np.ndarray:
        """Overlap of pairs of all ids: [resamples, layers, distances]; NaN without any."""
        sums = getattr(self, name)
        return ratio(*(sums.sum(axis=-1) if name in ("here", "text") else sums))

    def gains(self, domain: bool, ids: bool) -> dict[str, np.ndarray]:
        """What each source adds to the overlap: [resamples, layers, distances] each.

        They are those of `lrc.overlap_sources`, at each distance, with those of domains and of
        token ids if asked for.
        """
        levels = {"popularity": self.overlap("chance")}
        if domain:
            levels["domain"] = self.overlap("domain")
        levels["text"] = self.overlap("text")
        steps = np.diff(list(levels.values()), axis=0, prepend=0)
        gains = dict(zip(levels, steps, strict=True))
        order = self.overlap("here") - levels["text"]
        if ids:
            different, equal = np.moveaxis(np.nan_to_num(ratio(*self.text)), -1, 0)
            repeated, usual = (sums[1, ..., 1] / sums[1].sum(-1) for sums in (self.here, self.text))
            gains["repeats"] = (repeated - usual) * (equal - different)
            order = order - gains["repeats"]
        return gains | {"order": order}


def ratio(shared, uses):
    """Overlap: twice the shared experts over the uses; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(uses > 0, 2 * shared / uses, np.nan)


def pair_counts(trace: Trace, distances) -> PairCounts:
    """Partial statistics of `overlap_by_distance` for one shard of a corpus."""
    token_ids = trace.token_ids
    if token_ids is None:
        token_ids = np.full(trace.shape[:2], -1, np.int32)
    shared, uses, pairs = count_pairs(
        trace.experts, trace.lengths, token_ids, trace.num_experts, np.array(distances, np.int64)
    )
    shape = (trace.num_sequences, trace.num_layers, trace.num_experts)
    sequence, _, layer, _ = (place := np.nonzero(trace.experts >= 0))
    cells = np.ravel_multi_index((sequence, layer, trace.experts[place]), shape)
    active = np.bincount(cells, minlength=np.prod(shape)).reshape(shape)
    return PairCounts(shared, uses, pairs, active, trace.lengths, trace.datasets, tuple(distances))


def counted(trace, distances, level):
    """Check the arguments; return those distances that occur in a trace, and its counts."""
    check_trace(trace)
    check_level(level, PAIR_LEVELS)
    distances = np.atleast_1d(np.asarray(distances))
    if distances.dtype.kind not in "iu" or distances.ndim != 1 or not (distances >= 1).all():
        raise LrcError(
            f"distances are {distances!r}, but must be whole numbers of tokens from 1 on"
        )
    longest = trace.lengths.max(initial=0)
    distances = tuple(d for d in once(distances.tolist(), "distances") if d < longest)
    if not distances:
        raise LrcError("no sequence is longer than the smallest distance: nothing to measure")
    counts = pair_counts(trace, distances)
    if not counts.active.any():
        raise LrcError("no token uses any expert, so there is no overlap to measure")
    return distances, counts


def sums_of(counts, level, bootstrap, confidence, seed):
    """Sums of the sequences, and of sequences drawn anew (or None)."""
    check_bootstrap(bootstrap, confidence)
    pooled, number = level == "model", len(counts.lengths)
    estimate = counts.sums(np.ones((1, number)), pooled)
    if not bootstrap:
        return estimate, None
    strata = np.zeros(number) if counts.datasets is None else counts.datasets
    return estimate, counts.sums(resample_weights(strata, bootstrap, seed), pooled)


def interval(estimate, resampled, confidence):
    """As `mirrored_interval`, over the resamples that have such pairs at all."""
    some = ~np.isnan(resampled)
    if some.all():
        return mirrored_interval(estimate, resampled, confidence)
    ends = np.full((2, *np.shape(estimate)), np.nan)
    for cell in zip(*some.any(axis=0).nonzero(), strict=True):
        drawn = resampled[(slice(None), *cell)][some[(slice(None), *cell)]]
        ends[(slice(None), *cell)] = mirrored_interval(estimate[cell], drawn, confidence)
    return ends
