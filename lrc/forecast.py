"""A device's speed foretold from one part of its log, and held against the clock in the other."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrc.errors import LrcError
from lrc.throughput import Device, fit

_BLOCK = 8  # steps that are drawn together: a phone's neighbouring steps are alike
_DRAWS = 2000


@dataclass(frozen=True)
class Forecast:
    """What was foretold of the steps that the device was not fitted on, and what came.

    Attributes
    ----------
    device : lrc.throughput.Device
        As fitted on the known steps; its `spread` holds `coverage` of their times.
    steps : DataFrame
        step, known, wall_ms, predicted_ms, low_ms, high_ms; of all steps, in order.
    error : float
        Median over the foretold steps of the absolute relative error of a step's time.
    covered : float
        Share of the foretold steps within low_ms and high_ms.
    coverage : float
        What that share should be.
    tokens_per_second : tuple of float
        Foretold for all those steps together: low, expected, high.
    measured : float
        What they made.
    """

    device: Device
    steps: pd.DataFrame
    error: float
    covered: float
    coverage: float
    tokens_per_second: tuple[float, float, float]
    measured: float


def foretell(
    wall_ms, num_bytes, known, *, compute_ms=None, coverage: float = 0.8, seed: int = 0
) -> Forecast:
    """Fit a device on the known steps of a log, and foretell the others.

    Parameters
    ----------
    wall_ms, num_bytes : array_like [steps]
        Milliseconds that steps took, and bytes that they loaded: measured, or as replayed.
    known : bool array [steps]
        The steps that may be used.
    compute_ms : array_like [steps], optional
        Milliseconds they computed; of the other steps it is not used.
    coverage : float
        Share that ranges are to hold.
    seed : int
        Of the resampling behind the range of the speed.

    Returns
    -------
    Forecast

    Raises
    ------
    LrcError
        No step to foretell, or as `lrc.throughput.fit`.

    Notes
    -----
    The fit is that of a typical step. Slow steps are slower than fast ones are fast, so that the
    mean of the known steps lies above what is fitted; speed is foretold with that factor, and its
    range is that of the factor over resampled blocks of neighbouring steps. Neither knows of what
    changes from the known part to the other, such as a phone that grows hot.
    """
    known = np.asarray(known, bool)
    wall, loaded = np.asarray(wall_ms, np.float64), np.asarray(num_bytes, np.float64)
    if known.shape != wall.shape or known.all():
        raise LrcError("known must be one of True and False for each step, some of them False")
    computed = None if compute_ms is None else np.asarray(compute_ms, np.float64)[known]
    device = fit(wall[known], loaded[known], compute_ms=computed, coverage=coverage)
    predicted = device.step_ms(0, loaded)
    low, high = device.spread
    steps = pd.DataFrame(
        {
            "step": np.arange(1, len(wall) + 1),
            "known": known,
            "wall_ms": wall,
            "predicted_ms": predicted,
            "low_ms": low * predicted,
            "high_ms": high * predicted,
        }
    )
    new = steps[~known]
    inside = new["wall_ms"].between(new["low_ms"], new["high_ms"])
    factors = _mean_factors(wall[known], predicted[known], seed)
    tail = (1 - coverage) / 2
    slow, fast = np.quantile(factors, [1 - tail, tail])
    middle = wall[known].sum() / predicted[known].sum()
    mean = new["predicted_ms"].mean()
    least, expected, most = (float(1e3 / (factor * mean)) for factor in (slow, middle, fast))
    return Forecast(
        device,
        steps,
        float((new["predicted_ms"] / new["wall_ms"] - 1).abs().median()),
        float(inside.mean()),
        coverage,
        (least, expected, most),
        float(1e3 / new["wall_ms"].mean()),
    )


def _mean_factors(wall, predicted, seed):
    """Mean time over mean prediction, in resampled blocks of neighbouring steps."""
    rng = np.random.default_rng(seed)
    size = min(_BLOCK, len(wall))
    starts = rng.integers(0, len(wall) - size + 1, (_DRAWS, -(-len(wall) // size)))
    places = (starts[..., None] + np.arange(size)).reshape(_DRAWS, -1)[:, : len(wall)]
    return wall[places].sum(axis=1) / predicted[places].sum(axis=1)
