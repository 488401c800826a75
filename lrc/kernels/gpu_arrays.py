"""Arrays on a GPU: how they get there and back, and what lets the kernels run on a CPU.

The Triton kernels take torch tensors. On a CPU they run in Triton's interpreter, thousands of times
slower, which is what tests are made with: set ``TRITON_INTERPRET=1`` before Triton is imported and
use ``trace.to("interpreter")``.
"""

import os
from contextlib import nullcontext

import numpy as np

from lrc.errors import LrcError

INTERPRETER = "interpreter"
# Long launches, and much room for the trace and for what else is on the card.
BLOCK_BYTES = 1 << 32
# What is copied to a device at a time.
PART_BYTES = 1 << 28
# The interpreter's arrays are small anyway; several blocks test what is between them.
INTERPRETER_BLOCK_BYTES = 1 << 14


def load_torch():
    """Return torch, or raise `LrcError` that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise LrcError("a trace on a device needs PyTorch: pip install torch") from error
    return torch


def to_device(array: np.ndarray, device):
    """Return an array as a tensor on a CUDA device, or on the CPU for the interpreter."""
    torch = load_torch()
    if str(device) == INTERPRETER:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise LrcError(
                f"device {INTERPRETER!r} is Triton's interpreter, for tests: set "
                "TRITON_INTERPRET=1 before Python starts"
            )
        return _sent(array, torch.device("cpu"))
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LrcError(f"device {device!r} is unknown: 'cpu', 'cuda' or 'cuda:0'") from error
    if wanted.type != "cuda":
        raise LrcError(f"device {device!r} has no kernels here: choose 'cpu' or 'cuda'")
    if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
        raise LrcError(
            f"device {device!r} is not there: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; the CPU needs no .to()"
        )
    return _sent(array, wanted)


def _sent(array, device):
    """Copy an array to a device, in parts: the host holds no second copy of a large one."""
    torch = load_torch()
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=kind, device=device)
    step = max(1, PART_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        # A copy, since torch warns of arrays that are read-only, as those of a trace are.
        part = torch.from_numpy(np.array(array[start : start + step]))
        tensor[start : start + step].copy_(part)
    return tensor


def to_device_of(tensor, array: np.ndarray):
    """Return a small array as a tensor that lies where another one does."""
    return _sent(array, tensor.device)


def device_name(array) -> str:
    """Where an array lies, as `to_device` understands it."""
    return INTERPRETER if array.device.type == "cpu" else str(array.device)


def on_device_of(array):
    """Context in which kernels are launched on the device of an array."""
    return load_torch().cuda.device(array.device) if array.is_cuda else nullcontext()


def host(tensor) -> np.ndarray:
    """Return a tensor as a numpy array: int64 if it holds integers."""
    array = tensor.cpu().numpy()
    return array.astype(np.int64) if array.dtype.kind == "i" else array


def block_bytes(experts) -> int:
    """Size of the histograms of single sequences that may be held at a time, in bytes."""
    if not experts.is_cuda:
        return INTERPRETER_BLOCK_BYTES
    free, _ = load_torch().cuda.mem_get_info(experts.device)
    return max(1 << 26, min(BLOCK_BYTES, free // 8))


def used_layers(experts) -> np.ndarray:
    """Which sequences use an expert in which layer: bool [sequences, layers]."""
    # Slots one by one: comparing all at once would need half the trace's memory again.
    used = (experts[..., 0] >= 0).any(dim=1)
    for slot in range(1, experts.shape[3]):
        used |= (experts[..., slot] >= 0).any(dim=1)
    return used.cpu().numpy()
