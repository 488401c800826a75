"""What each sequence adds to F1 at some thresholds, on a GPU: read off the window histograms."""

import numpy as np

from lrc import kernels
from lrc.kernels.gpu_arrays import load_torch


def count_columns(
    experts, lengths, sequences, layers, layer_rows, expert_rows, segment_lengths, plan, dtype
):
    """As `lrc.kernels.cpu_windows.count_columns`; integers, whatever the dtype."""
    torch = load_torch()
    groups = np.full(len(lengths), -1)
    groups[sequences] = np.arange(len(sequences))
    histograms = kernels.count_windows(
        experts, lengths, groups, len(sequences), layers, expert_rows, segment_lengths
    )
    shape = (len(sequences), int(layer_rows.max()) + 1, *histograms.shape[2:])
    rows = torch.as_tensor(layer_rows, device=histograms.device)
    pooled = torch.zeros(shape, dtype=torch.int64, device=histograms.device)
    pooled.index_add_(1, rows, histograms.to(torch.int64))
    first, low, high = plan
    columns = int((first + 3 + high - low)[first >= 0].max(initial=0))
    counted = torch.zeros((shape[0], columns), dtype=torch.int64, device=histograms.device)
    for i, bins in enumerate(kernels.bin_slices(segment_lengths)):
        exactly = pooled[..., bins]
        m = exactly.shape[-1] - 1
        # Windows with so many activations or more, and the activations in them.
        windows = exactly.flip(-1).cumsum(-1).flip(-1)
        active = exactly * torch.arange(m + 1, device=histograms.device)
        matches = active.flip(-1).cumsum(-1).flip(-1)
        both = torch.stack([exactly, windows, matches], dim=3).reshape(shape[0], -1)
        goal, origin = _places(first[i], low[i], high[i], m)
        counted[:, goal] = both[:, origin]
    return counted


def _places(first, low, high, m):
    """Columns of a segment length, and where they come from in [rows, 3 tables, m + 1]."""
    goal, origin = [], []
    for row, (c, lowest, highest) in enumerate(
        zip(first.ravel().tolist(), low.ravel().tolist(), high.ravel().tolist(), strict=True)
    ):
        if c >= 0:
            exactly, windows, matches = (np.arange(3) + 3 * row) * (m + 1)
            origin += [matches, windows + highest, matches + highest]
            origin += range(exactly + lowest, exactly + highest)
            goal += range(c, c + 3 + highest - lowest)
    return goal, origin
