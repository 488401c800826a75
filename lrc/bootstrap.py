"""Bootstrap over sequences: how far a measure would move had other texts been sampled.

Tokens of one text are no independent draws, whole sequences are. So sequences are drawn with
replacement, within each dataset, which keeps the mix of datasets as it was sampled.
"""

from collections import Counter
from functools import lru_cache
from math import prod

import numpy as np

from lrc.errors import LrcError
from lrc.kernels import on_host, quantiles, weighted_sums

# Sequences of a stratum whose draws come from one stream of random numbers.
BLOCK = 512


def check_bootstrap(bootstrap: int, confidence: float) -> None:
    """Raise `LrcError` unless there is a whole number of resamples and 0 < confidence < 1."""
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int | np.integer) or bootstrap < 0:
        raise LrcError(f"bootstrap is {bootstrap!r}, but must be a number of resamples (0 = none)")
    if not isinstance(confidence, float | int | np.number) or not 0 < confidence < 1:
        raise LrcError(f"confidence is {confidence!r}, but must lie between 0 and 1, such as 0.95")


def resample_weights(strata, bootstrap: int, seed: int) -> np.ndarray:
    """How often each resample draws each sequence.

    Parameters
    ----------
    strata : array_like [sequences]
        Dataset labels: as many sequences are drawn of each as it has. One constant for no strata.
    bootstrap : int
        Number of resamples.
    seed : int

    Returns
    -------
    int64 array [bootstrap, sequences]
        Each row adds up to the number of sequences.
    """
    labels = np.asarray(strata).tolist()
    sizes, starts = strata_of_parts([Counter(labels)])
    return Dealer(sizes, starts[0], bootstrap, seed).deal(labels).astype(np.int64)


def strata_of_parts(parts) -> tuple[tuple, list[dict]]:
    """What a `Dealer` must know of a corpus and of each of its parts.

    Parameters
    ----------
    parts : iterable of dict
        Sequences of each label in each part, parts and labels in the order of the corpus.

    Returns
    -------
    sizes : tuple of (label, sequences)
        Of the whole corpus, in order of appearance.
    starts : list of dict
        For each part, the sequences of each of its labels that lie in earlier parts.
    """
    sizes, starts = {}, []
    for part in parts:
        starts.append({label: sizes.get(label, 0) for label in part})
        for label, count in part.items():
            sizes[label] = sizes.get(label, 0) + count
    return tuple(sizes.items()), starts


class Dealer:
    """Weights of the sequences of one part of a corpus, a few at a time.

    They are those that `resample_weights` gives the whole corpus, without its matrix: the draws of
    a stratum of more than `BLOCK` sequences are split among blocks first, and each block has a
    stream of random numbers of its own.

    Parameters
    ----------
    sizes : tuple of (label, sequences)
        Strata of the whole corpus, see `strata_of_parts`.
    starts : dict
        Where in each stratum the part begins.
    bootstrap, seed : int
    """

    def __init__(self, sizes: tuple, starts: dict, bootstrap: int, seed: int):
        self._dealt = dict(starts)
        self._stream = (sizes, bootstrap, seed, BLOCK)

    def deal(self, labels) -> np.ndarray:
        """Weights of the next sequences, which have these labels: float32 [bootstrap, sequences].

        They are whole numbers.
        """
        labels = np.asarray(labels)
        _, bootstrap, _, size = self._stream
        weights = np.empty((bootstrap, len(labels)), np.float32)
        for label in dict.fromkeys(labels.tolist()):
            places = np.flatnonzero(labels == label)
            start = self._dealt[label]
            stop = start + len(places)
            self._dealt = {**self._dealt, label: stop}
            for block in range(start // size, -(-stop // size)):
                first = block * size
                drawn = _block_weights(*self._stream, label, block)
                low, high = max(start, first), min(stop, first + size)
                weights[:, places[low - start : high - start]] = drawn[
                    :, low - first : high - first
                ]
        return weights


@lru_cache(maxsize=8)
def _common_stream(sizes, bootstrap, seed, block_size):
    """Draws of each block of each stratum; of a stratum that is one block, of its sequences."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for label, size in sizes:
        step = block_size if size > block_size else 1
        shares = np.diff(np.append(np.arange(0, size, step), size)) / size
        drawn[label] = rng.multinomial(size, shares, size=bootstrap).astype(np.int32)
    return drawn


@lru_cache(maxsize=8)
def _block_weights(sizes, bootstrap, seed, block_size, label, block):
    """Weights of the sequences of one block of a stratum: [bootstrap, sequences]."""
    drawn = _common_stream(sizes, bootstrap, seed, block_size)[label]
    size = dict(sizes)[label]
    if size <= block_size:
        return drawn
    length = min(block_size, size - block * block_size)
    stratum = [name for name, _ in sizes].index(label)
    rng = np.random.default_rng([seed, stratum, block])
    hits = np.repeat(np.arange(bootstrap) * length, drawn[:, block])
    hits += rng.integers(length, size=len(hits))
    return np.bincount(hits, minlength=bootstrap * length).reshape(bootstrap, length)


def exact_product(counts, weights: np.ndarray) -> np.ndarray:
    """Sums of the sequences' counts, each as often as a resample draws it, to the last bit.

    Whole numbers, not negative: sums below 2**24 are exact in float32, in any order, which is twice
    as fast; those below 2**53 in float64.

    Parameters
    ----------
    counts : array [sequences, columns]
        On a GPU it is multiplied there, and there the sums stay.
    weights : float32 array [resamples, sequences]

    Returns
    -------
    float32 or float64 array [columns, resamples]
        Add these up with `exact_sum`.
    """
    if not on_host(counts):
        return weighted_sums(weights, counts).T
    draws = weights.sum(axis=1, dtype=np.float64).max(initial=0)
    small = draws * counts.max(axis=0, initial=0) < 2**24
    if small.all():
        return counts.T.astype(np.float32, copy=False) @ weights.T
    product = np.empty((counts.shape[1], len(weights)))
    for columns, dtype in ((small, np.float32), (~small, np.float64)):
        product[columns] = counts[:, columns].T.astype(dtype) @ weights.T.astype(dtype)
    return product


def exact_sum(total, more):
    """Sum of two results of `exact_product`, the first of which may not be there yet."""
    if total is None or not on_host(more):
        return more if total is None else total + more
    # In place from the second sum on; what came from another process may be read-only.
    ours = total.dtype == np.float64 and total.flags.writeable
    return np.add(total, more, out=total if ours else None, dtype=np.float64)


def mirrored_interval(
    estimate, resampled, confidence: float, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval mirrored about the estimate ("basic" bootstrap), as in the paper.

    Parameters
    ----------
    estimate : array [...]
    resampled : array [bootstrap, ...]
        Or with the resamples along another `axis`.
    confidence : float
    axis : int, default 0

    Returns
    -------
    tuple of arrays [...]
        2 * estimate - upper percentile, 2 * estimate - lower percentile.
    """
    resampled = np.moveaxis(np.asarray(resampled, np.float64), axis, -1)
    rows = resampled.reshape(prod(resampled.shape[:-1]), resampled.shape[-1])
    lower, upper = quantiles(rows, tails(confidence)).reshape(2, *resampled.shape[:-1])
    return mirrored(estimate, lower, upper)


def mirrored(estimate, lower, upper) -> tuple[np.ndarray, np.ndarray]:
    """Ends of an interval, mirrored about the estimate."""
    return 2 * np.asarray(estimate) - upper, 2 * np.asarray(estimate) - lower


def tails(confidence: float) -> tuple[float, float]:
    """Probabilities between which the middle of a distribution lies."""
    tail = (1 - confidence) / 2
    return tail, 1 - tail
