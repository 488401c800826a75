"""Bootstrap over sequences: how far a measure would move had other texts been sampled.

Tokens of one text are no independent draws, whole sequences are. So sequences are drawn with
replacement, within each dataset, which keeps the mix of datasets as it was sampled.
"""

import numpy as np

from lrc.errors import LrcError


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
    strata = np.asarray(strata)
    weights = np.zeros((bootstrap, len(strata)), np.int64)
    rng = np.random.default_rng(seed)
    for label in dict.fromkeys(strata.tolist()):
        members = np.flatnonzero(strata == label)
        even = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), even, size=bootstrap)
    return weights


def mirrored_interval(estimate, resampled, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval mirrored about the estimate ("basic" bootstrap), as in the paper.

    Parameters
    ----------
    estimate : array [...]
    resampled : array [bootstrap, ...]
    confidence : float

    Returns
    -------
    tuple of arrays [...]
        2 * estimate - upper percentile, 2 * estimate - lower percentile.
    """
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return 2 * np.asarray(estimate) - upper, 2 * np.asarray(estimate) - lower
