"""What a GPU reaches in loops that do one thing only: the limits that kernels are held against."""

import time

import torch
import triton
import triton.language as tl

INTERPRETER = "interpreter"
# Instructions of a turn of `_arithmetic`: additions and exclusive ors.
TURN = 32


def timed(function, device: str):
    """Seconds until the device has done a call, and its result."""
    if device != INTERPRETER:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if device != INTERPRETER:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def best_of(function, device: str, turns: int = 3) -> float:
    """Shortest of some times in seconds, after a call that compiles; one time if interpreted."""
    if device == INTERPRETER:
        return timed(function, device)[0]
    function()
    return min(timed(function, device)[0] for _ in range(turns))


def limits(device: str) -> dict[str, float]:
    """Measure a device.

    Returns
    -------
    dict
        ``bytes``: read and written per second in a copy; ``instructions``: of 32-bit integer
        arithmetic per second, one for a warp of 32 threads, all multiprocessors together.
    """
    interpreted = device == INTERPRETER
    place = torch.device("cpu" if interpreted else device)
    source = torch.zeros(1 << 10 if interpreted else 1 << 30, dtype=torch.uint8, device=place)
    goal = torch.empty_like(source)
    copy = best_of(lambda: goal.copy_(source), device)
    programs, turns = (1, 2) if interpreted else (1 << 15, 1 << 10)
    out = torch.empty(programs * 128, dtype=torch.int32, device=place)
    loop = best_of(lambda: _arithmetic[(programs,)](out, turns, TURN, num_warps=1), device)
    # 128 lanes, four instructions for the warp.
    return {
        "bytes": 2 * source.numel() / copy,
        "instructions": programs * turns * TURN * 4 / loop,
    }


@triton.jit
def _arithmetic(out, turns, TURN: tl.constexpr):
    lane = tl.program_id(0) * 128 + tl.arange(0, 128)
    x = lane
    for turn in range(turns):
        for _ in tl.static_range(TURN // 2):
            x = (x + turn) ^ lane
    tl.store(out + lane, x)
