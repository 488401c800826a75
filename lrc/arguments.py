"""Checks of the arguments that several measures share, each with an error that says what to do."""

import numpy as np

from lrc.errors import LrcError
from lrc.trace import Trace

LONGEST_SEGMENT = 1_000_000
"""Tokens: a histogram of window counts has a bin for each, and a slip must not fill memory."""


def check_trace(trace, *, anywhere: bool = False) -> None:
    """Refuse what is no trace, with the way to one, or a trace on a GPU unless `anywhere`."""
    if not isinstance(trace, Trace):
        hint = "lrc.load_trace reads a file; of a dict of stacks take one, as trace['decoder']"
        raise LrcError(f"expected a lrc.Trace, not {type(trace).__name__} ({hint})")
    if not anywhere and trace.device != "cpu":
        raise LrcError(
            f"the trace is on {trace.device}, and this measure has no kernel there: "
            "give it trace.to('cpu')"
        )


def check_level(level: str, levels: tuple[str, ...]) -> None:
    """Refuse a level that is none of `levels`."""
    if level not in levels:
        raise LrcError(f"level is {level!r}, but must be one of {', '.join(map(repr, levels))}")


def checked_segment_lengths(segment_lengths, longest: int | None = LONGEST_SEGMENT) -> tuple:
    """Return segment lengths, a number or several, as a tuple of ints up to `longest`."""
    lengths = np.atleast_1d(np.asarray(segment_lengths))
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or not lengths.size or lengths.min() < 1:
        raise LrcError(
            f"segment_lengths is {segment_lengths!r}, but must hold whole numbers of tokens, "
            "each at least 1, such as (4, 16)"
        )
    if longest is not None and lengths.max() > longest:
        raise LrcError(f"segment_lengths is {segment_lengths!r}: at most {longest:,} each")
    return once(lengths.tolist(), "segment_lengths")


def once(values: list, name: str) -> tuple:
    """Return values as a tuple, each of which may be given once."""
    if len(set(values)) < len(values):
        raise LrcError(f"{name} is {values!r}: give each once")
    return tuple(values)


def dataset_labels(trace: Trace, by_dataset: bool) -> tuple[str, ...]:
    """Return the sorted labels, or one empty label for all sequences pooled."""
    if not by_dataset:
        return ("",)
    if trace.datasets is None:
        raise LrcError("by_dataset needs labels: build the trace with datasets=[...]")
    return tuple(trace.dataset_names)


def dataset_groups(trace: Trace, datasets: tuple[str, ...]) -> np.ndarray:
    """Return the number of each sequence's dataset among `datasets`: int64 array [sequences]."""
    if datasets == ("",):
        return np.zeros(trace.num_sequences, np.int64)
    return np.searchsorted(np.array(datasets), trace.datasets)
