"""Tokens per second of an engine that loads experts on demand.

A step takes the time to compute, plus the time that loading holds it up:

    wall = compute + loads * latency + bytes / bandwidth        (bytes that are not hidden)

`overlap` is the share of a step's computing time behind which loading can hide. Latency and
bandwidth are those that an engine really gets from its storage, all threads together; `fit`
reads them off a log of steps.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from lrc.cache_replay import Replay
from lrc.errors import LrcError


@dataclass(frozen=True)
class Device:
    """What an engine on a device takes for a step.

    Attributes
    ----------
    compute_ms : float
        Milliseconds to compute a token when all experts are at hand.
    bandwidth : float
        Bytes a second at which experts are loaded.
    latency_ms : float
        Milliseconds a load, whatever its size.
    overlap : float
        Share of `compute_ms`, 0 to 1, behind which loading can hide.
    spread : tuple of float
        Factors (low, high) between which the time of single steps lies, relative to that
        predicted; (1, 1) if not known.
    """

    compute_ms: float
    bandwidth: float
    latency_ms: float = 0.0
    overlap: float = 0.0
    spread: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        for name, least, open_end in (
            ("compute_ms", 0, False),
            ("bandwidth", 0, True),
            ("latency_ms", 0, False),
            ("overlap", 0, False),
        ):
            value = getattr(self, name)
            fine = isinstance(value, int | float) and not isinstance(value, bool)
            fine = fine and np.isfinite(value) and (value > least if open_end else value >= least)
            if not fine or (name == "overlap" and value > 1):
                raise LrcError(f"{name} is {value!r}, but must be {_WANTED[name]}")

    def loading_ms(self, loads, num_bytes) -> np.ndarray:
        """Milliseconds that so many loads and bytes take, hidden or not.

        Parameters
        ----------
        loads, num_bytes : array_like [steps]

        Returns
        -------
        float64 array [steps]
        """
        return np.asarray(loads) * self.latency_ms + np.asarray(num_bytes) / self.bandwidth * 1e3

    def step_ms(self, loads, num_bytes) -> np.ndarray:
        """Milliseconds of steps that load so many experts and bytes.

        Parameters
        ----------
        loads, num_bytes : array_like [steps]

        Returns
        -------
        float64 array [steps]
        """
        loading = self.loading_ms(loads, num_bytes)
        hidden = np.minimum(loading, self.overlap * self.compute_ms)
        return self.compute_ms + loading - hidden

    def wait(self, replayed: Replay) -> float:
        """Time to load all experts of a token over the time to compute it, without overlap.

        Parameters
        ----------
        replayed : Replay
            As for `by_step`; what it used counts, not what it loaded.

        Raises
        ------
        LrcError
            A device that takes no time to compute.
        """
        if not self.compute_ms:
            raise LrcError("compute_ms is 0: there is nothing to compare the time of loading with")
        asked = replayed.requests
        steps = asked.num_requests // asked.num_layers - np.count_nonzero(asked.prompt_tokens)
        owner = np.repeat(np.arange(asked.num_requests), np.diff(asked.starts))
        prompt = (asked.prompt_tokens[asked.sequences] > 0) & (asked.steps == 0)
        used = replayed.use_bytes[~prompt[owner]]
        if not steps or not len(used):
            raise LrcError("the replay has no steps of single tokens, whose speed could be told")
        loading = len(used) * self.latency_ms + used.sum() / self.bandwidth * 1e3
        return float(loading / steps / self.compute_ms)

    def by_step(self, replayed: Replay) -> pd.DataFrame:
        """Milliseconds of the single-token steps of a replay.

        Parameters
        ----------
        replayed : Replay
            Under the contract "engine", of a trace that knows the bytes of an expert. Prompts are
            left out.

        Returns
        -------
        DataFrame
            sequence, step, ms.
        """
        steps = replayed.by_step()
        prompts = np.flatnonzero(replayed.requests.prompt_tokens)
        steps = steps[(steps["step"] > 0) | ~steps["sequence"].isin(prompts)]
        if steps.empty:
            raise LrcError("the replay has no steps of single tokens, whose speed could be told")
        ms = self.step_ms(steps["loads"], steps["bytes"])
        return steps[["sequence", "step"]].assign(ms=ms).reset_index(drop=True)

    def tokens_per_second(self, replayed: Replay) -> tuple[float, float, float]:
        """Mean over the single-token steps of a replay: (low, expected, high).

        Parameters
        ----------
        replayed : Replay
            As for `by_step`.

        Returns
        -------
        tuple of float
            The expected value and those at both ends of `spread`.
        """
        mean = self.by_step(replayed)["ms"].mean()
        low, high = self.spread
        return 1e3 / (mean * high), 1e3 / mean, 1e3 / (mean * low)

    def mean_tokens_per_second(self, loads, expert_bytes: float) -> tuple[float, float, float]:
        """What mean loads a step allow: (low, expected, high).

        Parameters
        ----------
        loads : array_like [3]
            Experts loaded in a step: the most, as expected, and the fewest.
        expert_bytes : float
            Bytes of one expert, their mean.

        Returns
        -------
        tuple of float
            With the ends of `spread` added to those of `loads`. Exact without overlap; with it an
            upper bound, since steps that load little do not use what could be hidden.
        """
        most, expected, fewest = self.step_ms(loads, np.asarray(loads) * expert_bytes).tolist()
        low, high = self.spread
        return 1e3 / (most * high), 1e3 / expected, 1e3 / (fewest * low)


_WANTED = {
    "compute_ms": "milliseconds, 0 or more",
    "bandwidth": "bytes a second, more than 0",
    "latency_ms": "milliseconds, 0 or more",
    "overlap": "a share from 0 to 1",
}


def fit(wall_ms, num_bytes, loads=None, *, compute_ms=None, coverage: float = 0.8) -> Device:
    """The device that a log of steps shows.

    Parameters
    ----------
    wall_ms : array_like [steps]
        Milliseconds that single-token steps took.
    num_bytes : array_like [steps]
        Bytes they loaded.
    loads : array_like [steps], optional
        Experts they loaded; without, no latency is fitted.
    compute_ms : array_like [steps], optional
        Milliseconds they computed, where the log tells: then the time held up by loading is
        fitted, and the median of computing is taken. Else computing is fitted as well.
    coverage : float
        Share of the steps whose time lies within the device's `spread`.

    Returns
    -------
    Device

    Raises
    ------
    LrcError
        Fewer than 8 steps, arrays that do not fit together, or numbers that are none.

    Notes
    -----
    By least absolute deviations, which the odd step that waits for something else (a page fault, a
    hot phone) does not move, with coefficients of at least 0.
    """
    wall = np.asarray(wall_ms, np.float64)
    columns = {"num_bytes": num_bytes} | ({} if loads is None else {"loads": loads})
    columns |= {} if compute_ms is None else {"compute_ms": compute_ms}
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    for name, array in {"wall_ms": wall, **arrays}.items():
        if array.shape != wall.shape or array.ndim != 1 or not np.isfinite(array).all():
            raise LrcError(f"{name} must be finite numbers, one for each of {wall.size} steps")
    if len(wall) < 8:
        raise LrcError(f"{len(wall)} steps are too few to fit a device: give at least 8")
    if not 0 < coverage < 1:
        raise LrcError(f"coverage is {coverage!r}, but must lie between 0 and 1")
    held_up = wall - arrays.get("compute_ms", 0.0)
    features = [arrays["num_bytes"]] + ([] if loads is None else [arrays["loads"]])
    features += [np.ones_like(wall)] if compute_ms is None else []
    found = _least_absolute(np.stack(features, axis=1), held_up)
    if found[0] <= 0:
        raise LrcError("the steps do not get longer with the bytes they load: no bandwidth shows")
    compute = float(np.median(arrays["compute_ms"])) if compute_ms is not None else found[-1]
    device = Device(compute, 1e3 / found[0], 0.0 if loads is None else found[1])
    counts = np.zeros_like(wall) if loads is None else arrays["loads"]
    ratio = wall / device.step_ms(counts, arrays["num_bytes"])
    tail = (1 - coverage) / 2
    low, high = np.quantile(ratio, [tail, 1 - tail])
    return Device(compute, device.bandwidth, device.latency_ms, 0.0, (float(low), float(high)))


def _least_absolute(features, target):
    """Coefficients, none below 0, with the least sum of absolute deviations."""
    steps, width = features.shape
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    scaled = features / scale
    # target = scaled @ x + above - below, both at least 0; their sum is least.
    solved = linprog(
        np.concatenate([np.zeros(width), np.ones(2 * steps)]),
        A_eq=np.hstack([scaled, np.eye(steps), -np.eye(steps)]),
        b_eq=target,
        bounds=(0, None),
    )
    if not solved.success:
        raise LrcError(f"the steps cannot be fitted ({solved.message})")
    return (solved.x[:width] / scale).tolist()
