"""What the benchmarks ran on, and how fast it can be at best."""

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lrc.kernels import simd

PACKAGES = ("numpy", "numba", "torch", "libcachesim")
# Numbers in a vector: two AVX2 registers of int32, as in the kernels.
WIDTH, CHAINS = 16, 4


def describe():
    """The machine and the versions, in words that can be compared."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        found = {key.strip(): value.strip() for key, value in fields.items()}
        vectors = next((v for v in ("avx512bw", "avx2") if v in found.get("flags", "")), "SSE")
        return f"{found['model name']}, {vectors.upper()}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


@cache
def bandwidth(threads=1):
    """Bytes a second that so many threads copy, read and written."""
    source = np.ones(1 << 25, np.int64)
    target = np.zeros_like(source)
    parts = np.array_split(np.arange(len(source)), threads)
    slices = [slice(part[0], part[-1] + 1) for part in parts]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda part: np.copyto(target[part], source[part]), slices))

        return 2 * source.nbytes / _fastest(copy)


@cache
def vector_rate():
    """Minima, maxima and sums of single int32 that a core makes in a second, at best."""
    numbers = np.arange(2 * CHAINS * WIDTH, dtype=np.int32).reshape(-1, WIDTH)
    rounds = 1 << 18
    return rounds * CHAINS * WIDTH * 3 / _fastest(lambda: _churn(numbers, rounds))


@cache
def scalar_rate():
    """Additions of single numbers, each on the one before or beside it, that a core makes."""
    rounds = 1 << 22
    return rounds * 8 / _fastest(lambda: _count(rounds, 3))


def _fastest(call, repetitions=7):
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@intrinsic
def _mix(typingctx, numbers, rounds):
    """So many rounds of a sum, a minimum and a maximum on vectors that do not wait for another."""

    def code(context, builder, signature, args):
        rows = simd.rows(context, builder, signature, args, 0, WIDTH)
        vector = rows.type.pointee
        state = [cgutils.alloca_once(builder, vector) for _ in range(CHAINS)]
        for i, slot in enumerate(state):
            builder.store(simd.load(builder, rows, simd.index(i)), slot)
        steps = [simd.load(builder, rows, simd.index(CHAINS + i)) for i in range(CHAINS)]
        with cgutils.for_range(builder, args[1]):
            for step, slot in zip(steps, state, strict=True):
                moved = builder.add(builder.load(slot), step)
                low, high = simd.min_max(builder, moved, steps[0])
                builder.store(builder.select(builder.icmp_signed("<", high, step), low, high), slot)
        for i, slot in enumerate(state):
            simd.store(builder, builder.load(slot), rows, simd.index(i))
        return context.get_dummy_value()

    return types.void(numbers, types.intp), code


@njit(nogil=True)
def _churn(numbers, rounds):
    _mix(numbers, rounds)


@njit(nogil=True)
def _count(rounds, step):
    a = b = c = d = 0
    for i in range(rounds):
        a += i ^ b
        b += a ^ step
        c += i ^ d
        d += c ^ step
    return a + b + c + d
