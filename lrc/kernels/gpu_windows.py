"""Histograms of how often an expert is active in a window, on a GPU.

A program follows one sequence, layer, segment length and block of experts, an expert a lane. When
a token makes the activations of an expert change, the windows that had its former number are
booked at once, as on the CPU (`lrc.kernels.cpu_windows`): lanes that do not change write nothing.
Programs meet in the histogram only, by atomic additions of integers, so their order is no matter.

Per token a program reads the experts that enter the window and those that leave it, ``4 * top_k``
bytes, mostly from the cache, and a slot a thread; the warp makes a bit mask of them, of which each
lane takes its bit. So it is bound by integer instructions, not by memory.
"""

import numpy as np
import triton
import triton.language as tl

from lrc.kernels.cpu_windows import bin_slices
from lrc.kernels.gpu_arrays import load_torch, on_device_of, to_device_of

# Lanes of a program; four experts for each thread of a warp.
EXPERTS = 128
# Slots that a warp reads at a time: a full warp adds up bits in one step.
SLOTS = 32


def count_windows(experts, lengths, groups, num_groups, layers, expert_rows, segment_lengths):
    """Histogram of activations per window, for every segment length.

    Parameters and result are those of `lrc.kernels.cpu_windows.count_windows`, but that `experts`
    and the result are tensors, the result of int32 where that is enough.
    """
    bins = bin_slices(segment_lengths)
    num_rows = int(expert_rows.max()) + 1
    shape = (num_groups, len(layers), num_rows, bins[-1].stop)
    # No bin holds more than all windows of all experts of its row.
    sequences = np.flatnonzero(groups >= 0)
    windows = np.bincount(groups[sequences], lengths[sequences], minlength=1).max(initial=0)
    most = windows * np.bincount(expert_rows[expert_rows >= 0], minlength=1).max()
    histogram = _zeros(shape, experts, small=most < 2**31)
    first_bins = np.array([part.start for part in bins])
    _launch(
        _count_windows,
        *(experts, lengths, groups, sequences, layers, len(expert_rows), len(segment_lengths)),
        to_device_of(experts, expert_rows),
        to_device_of(experts, np.asarray(segment_lengths)),
        to_device_of(experts, first_bins),
        histogram,
        *shape[1:],
    )
    return histogram


def count_windows_by_position(
    experts, lengths, groups, num_groups, layers, num_experts, segment_length
):
    """Histogram of activations per window, over all experts, at every start position.

    Parameters and result are those of `lrc.kernels.cpu_windows.count_windows_by_position`, but that
    `experts` and the result are tensors.
    """
    sequences = np.flatnonzero((groups >= 0) & (lengths >= segment_length))
    longest = int(lengths[groups >= 0].max(initial=0))
    starts = max(longest - segment_length + 1, 0)
    # How each window's histogram differs from that of the window before; one start more, where
    # the last window of the longest sequence ends.
    shape = (num_groups, len(layers), starts + 1, segment_length + 1)
    change = _zeros(shape, experts, small=False)
    _launch(
        _count_changes,
        *(experts, lengths, groups, sequences, layers, num_experts, 1),
        segment_length,
        change,
        *shape[1:],
    )
    return change.cumsum(dim=2)[:, :, :-1]


def _zeros(shape, experts, small):
    torch = load_torch()
    dtype = torch.int32 if small else torch.int64
    return torch.zeros(shape, dtype=dtype, device=experts.device)


def _launch(kernel, experts, lengths, groups, sequences, layers, num_experts, variants, *rest):
    """Run a program for every sequence and block of experts, layer, and variant."""
    _, num_tokens, num_layers, top_k = experts.shape
    blocks = triton.cdiv(num_experts, EXPERTS)
    grid = (len(sequences) * blocks, len(layers), variants)
    if 0 in grid:
        return
    with on_device_of(experts):
        kernel[grid](
            experts.contiguous(),
            *(to_device_of(experts, part) for part in (lengths, groups, sequences, layers)),
            num_tokens,
            num_layers,
            top_k,
            num_experts,
            *rest,
            EXPERTS=min(EXPERTS, triton.next_power_of_2(num_experts)),
            SLOTS=SLOTS,
            num_warps=1,
        )


@triton.jit
def _place(lengths, groups, sequences, layers, num_experts, EXPERTS: tl.constexpr):
    """Sequence, length, group and layer of a program, and its experts."""
    blocks = (num_experts + EXPERTS - 1) // EXPERTS
    sequence = tl.load(sequences + tl.program_id(0) // blocks)
    expert = (tl.program_id(0) % blocks) * EXPERTS + tl.arange(0, EXPERTS)
    length = tl.load(lengths + sequence).to(tl.int32)
    group = tl.load(groups + sequence)
    layer = tl.load(layers + tl.program_id(1))
    return sequence, length, group, layer, expert


@triton.jit
def _uses(token, top_k, expert, EXPERTS: tl.constexpr, SLOTS: tl.constexpr):
    """1 for the experts of a program that a token uses, 0 for its others."""
    lane = tl.arange(0, EXPERTS)
    first_expert = tl.min(expert)
    bits = tl.zeros_like(lane)
    for first_slot in range(0, top_k, SLOTS):
        slot = first_slot + tl.arange(0, SLOTS)
        e = tl.load(token + slot, mask=slot < top_k, other=-1).to(tl.int32)
        e = tl.where(e < 0, -1, e - first_expert)
        for word in tl.static_range((EXPERTS + 31) // 32):
            # A token uses an expert once, so a sum of bits is their union.
            used = tl.sum(tl.where(e >> 5 == word, 1 << (e & 31), 0))
            bits |= tl.where(lane // 32 == word, used, 0)
    return (bits >> (lane % 32)) & 1


@triton.jit
def _count_windows(
    experts,
    lengths,
    groups,
    sequences,
    layers,
    num_tokens,
    num_layers,
    top_k,
    num_experts,
    expert_rows,
    segment_lengths,
    first_bins,
    histogram,
    num_layer_rows,
    num_rows,
    num_bins,
    EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    sequence, length, group, layer, expert = _place(
        lengths, groups, sequences, layers, num_experts, EXPERTS
    )
    m = tl.load(segment_lengths + tl.program_id(2)).to(tl.int32)
    num_windows = length - m + 1
    row = tl.load(expert_rows + expert, mask=expert < num_experts, other=-1)
    counted = row >= 0
    first_row = (group * num_layer_rows + tl.program_id(1)) * num_rows
    bins = histogram + (first_row + row) * num_bins + tl.load(first_bins + tl.program_id(2))
    stride = num_layers * top_k
    tokens = experts + sequence * num_tokens * stride + layer * top_k
    dtype = histogram.dtype.element_ty
    active = tl.zeros_like(expert)  # activations in the current window
    since = tl.zeros_like(expert)  # first window with this many
    if num_windows > 0:
        for t in range(length):
            window = tl.maximum(t - m + 1, 0)
            change = _uses(tokens + t * stride, top_k, expert, EXPERTS, SLOTS)
            if t >= m:
                change -= _uses(tokens + (t - m) * stride, top_k, expert, EXPERTS, SLOTS)
            changes = change != 0
            booked = changes & counted & (since < window)
            tl.atomic_add(bins + active, (window - since).to(dtype), booked, sem="relaxed")
            since = tl.where(changes, window, since)
            active += change
        tl.atomic_add(bins + active, (num_windows - since).to(dtype), counted, sem="relaxed")


@triton.jit
def _count_changes(
    experts,
    lengths,
    groups,
    sequences,
    layers,
    num_tokens,
    num_layers,
    top_k,
    num_experts,
    m,
    change,
    num_layer_rows,
    num_starts,
    num_bins,
    EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    sequence, length, group, layer, expert = _place(
        lengths, groups, sequences, layers, num_experts, EXPERTS
    )
    there = expert < num_experts
    first = (group * num_layer_rows + tl.program_id(1)) * num_starts * num_bins
    bins = change + first + tl.zeros_like(expert)
    stride = num_layers * top_k
    tokens = experts + sequence * num_tokens * stride + layer * top_k
    active = tl.zeros_like(expert)
    one = tl.full(expert.shape, 1, tl.int64)
    tl.atomic_add(bins, one, there, sem="relaxed")
    for t in range(length):
        window = tl.maximum(t - m + 1, 0)
        now = active + _uses(tokens + t * stride, top_k, expert, EXPERTS, SLOTS)
        if t >= m:
            now -= _uses(tokens + (t - m) * stride, top_k, expert, EXPERTS, SLOTS)
        moved = there & (now != active)
        tl.atomic_add(bins + window * num_bins + active, -one, moved, sem="relaxed")
        tl.atomic_add(bins + window * num_bins + now, one, moved, sem="relaxed")
        active = now
    tl.atomic_add(bins + (length - m + 1) * num_bins + active, -one, there, sem="relaxed")
