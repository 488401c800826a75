"""What each sequence adds to F1 at some thresholds, on a GPU: read off the window histograms."""

import numpy as np

from lrc import kernels
from lrc.kernels.gpu_arrays import load_torch


def count_columns(experts, lengths, sequences, layers, segment_lengths, plan, dtype):
    """As `lrc.kernels.cpu_windows.count_columns`; integers, whatever the dtype."""
    torch = load_torch()
    first, low, high = plan
    groups = np.full(len(lengths), -1)
    groups[sequences] = np.arange(len(sequences))
    rows = np.arange(first.shape[3])
    of_experts = kernels.count_windows(
        experts, lengths, groups, len(sequences), layers, rows, segment_lengths
    ).to(torch.int64)
    of_layers = of_experts.sum(dim=2, keepdim=True)
    levels = [of_layers.sum(dim=1, keepdim=True), of_layers, of_experts]
    columns = int((first + 3 + high - low)[first >= 0].max(initial=0))
    device = of_experts.device
    counted = torch.zeros((len(sequences), columns), dtype=torch.int64, device=device)
    for i, bins in enumerate(kernels.bin_slices(segment_lengths)):
        for level, histograms in enumerate(levels):
            exactly = histograms[..., bins]
            m = exactly.shape[-1] - 1
            part = (slice(None, exactly.shape[1]), slice(None, exactly.shape[2]))
            places = (array[level, i][part] for array in plan)
            goal, origin = _places(*places, m)
            if goal:
                # Windows with so many activations or more, and the activations in them.
                windows = exactly.flip(-1).cumsum(-1).flip(-1)
                active = exactly * torch.arange(m + 1, device=device)
                matches = active.flip(-1).cumsum(-1).flip(-1)
                both = torch.stack([exactly, windows, matches], dim=3)
                counted[:, goal] = both.reshape(len(sequences), -1)[:, origin]
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
