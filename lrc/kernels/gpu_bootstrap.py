"""Resamples as one matrix product, and best thresholds, on a GPU: by PyTorch, exactly.

The product of draws and counts is a sum of whole numbers that are not negative. So no partial sum,
in whatever order and tiling, exceeds the result, and floating point that can hold the result holds
all of them without rounding:

- below 2**24, float32 does. So does TF32, which multiplies twice as many or more on tensor cores:
  it takes 11 significant bits of each factor, enough up to 2**11, multiplies exactly and adds up in
  float32. Tensor cores cut off rather than round what goes beyond the 24 bits; here nothing does.
- below 2**53, float64 does, on tensor cores where the GPU has them for float64.

The bounds are checked for each product: the largest sum of draws times the largest count.
"""

from contextlib import contextmanager
from math import prod

import numpy as np

from lrc.errors import LrcError
from lrc.kernels.gpu_arrays import load_torch, to_device_of

# Numbers of a step of `best_thresholds`, in float64 and held some six times.
STEP = 1 << 26


def weighted_sums(weights, counts):
    """Sums of the sequences' counts, each sequence as often as a resample drew it.

    Parameters
    ----------
    weights : array [bootstrap, sequences]
        Whole numbers, of numpy.
    counts : int tensor [sequences, ...]

    Returns
    -------
    float64 tensor [bootstrap, ...]
        Whole numbers.

    Raises
    ------
    LrcError
        Sums that could reach 2**53.
    """
    torch = load_torch()
    shape = (len(weights), *counts.shape[1:])
    largest = int(counts.max()) if counts.numel() else 0
    bound = int(weights.sum(axis=1).max(initial=0)) * largest
    if bound >= 2**53:
        raise LrcError(f"resampled counts may reach {bound:,}: too many to be exact, use fewer")
    short = bound < 2**24 and max(int(weights.max(initial=0)), largest) <= 2**11
    dtype = torch.float32 if short else torch.float64
    flat = counts.reshape(len(counts), prod(shape[1:])).to(dtype)
    with _tf32(short and counts.is_cuda):
        sums = to_device_of(counts, weights).to(dtype) @ flat
    return sums.to(torch.float64).reshape(shape)


@contextmanager
def _tf32(wanted):
    """Let matrix products of float32 use TF32, for this product only."""
    if not wanted:
        yield
        return
    matmul = load_torch().backends.cuda.matmul
    # The newer of two switches that must not be mixed.
    name, value = "allow_tf32", True
    if hasattr(matmul, "fp32_precision"):
        name, value = "fp32_precision", "tf32"
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def best_thresholds(histograms) -> np.ndarray:
    """F1, size ratio and activation rate at the best threshold of each histogram.

    Parameters
    ----------
    histograms : tensor [groups, m + 1]
        Whole numbers.

    Returns
    -------
    float64 array [groups, 3]
        On the host, as from `lrc.kernels.cpu_windows.best_thresholds`: sums are exact, and each
        division is rounded once, so all bits agree.
    """
    num_groups, num_bins = histograms.shape
    best = np.zeros((num_groups, 3))
    step = max(1, STEP // num_bins)
    for start in range(0, num_groups, step):
        part = histograms[start : start + step]
        best[start : start + step] = _best_thresholds(part).cpu().numpy()
    return best


def _best_thresholds(histograms):
    torch = load_torch()
    m = histograms.shape[1] - 1
    # From the highest threshold down, so that running sums are over all bins at or above it.
    counts = histograms.to(torch.float64).flip(1)
    windows = counts.cumsum(1)
    active = torch.arange(m, -1, -1, dtype=torch.float64, device=counts.device)
    matches = counts.mul_(active).cumsum(1)
    activations = matches[:, -1:].clone()
    nothing = activations == 0
    activations[nothing] = 1
    f1 = 2 * matches / (m * windows + activations)
    best = f1.amax(1, keepdim=True)
    # The lowest of equal thresholds is the last one here.
    place = torch.arange(m + 1, device=counts.device)
    lowest = torch.where(f1 == best, place, -1).amax(1, keepdim=True)
    size_ratio = m * windows.gather(1, lowest) / activations
    rate = activations / (m * windows[:, -1:])
    result = torch.cat([best, size_ratio, rate], dim=1)
    return result.masked_fill(nothing, 0)
