"""What one pass over a trace tells the doctor."""

from dataclasses import dataclass

import numpy as np

from lrc.kernels.cpu_census import census
from lrc.trace import Trace


@dataclass(frozen=True)
class Census:
    """What one pass over a trace tells; see `lrc.kernels.cpu_census.census`."""

    signatures: np.ndarray
    uses: np.ndarray
    empty: np.ndarray
    slots: np.ndarray
    blank: np.ndarray
    zero: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> "Census":
        sequences, tokens, layers, top_k = trace.shape
        found = cls(
            np.zeros((sequences, tokens), np.uint64),
            np.zeros((layers, trace.num_experts), np.int64),
            np.zeros(layers, np.int64),
            np.zeros(top_k, np.int64),
            np.zeros((sequences, tokens), bool),
            np.zeros((sequences, tokens), bool),
        )
        names = random_numbers((layers, trace.num_experts))
        census(trace.experts, trace.lengths, names, *(getattr(found, n) for n in vars(found)))
        return found


def random_numbers(shape) -> np.ndarray:
    """Numbers that tell routings apart: two differ in their sum, but for one chance in 2^64."""
    return np.random.default_rng(20250516).integers(0, 2**64, shape, np.uint64)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Row and length of each run of True."""
    edges = np.diff(np.pad(flags.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return list(zip(rows.tolist(), (np.nonzero(edges == -1)[1] - starts).tolist(), strict=True))
