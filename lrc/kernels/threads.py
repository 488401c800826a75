"""Threads for kernels, as many as numba is to use."""

from concurrent.futures import ThreadPoolExecutor

from numba import config


def in_slices(work, count: int, size: int) -> None:
    """Let threads work on slices of so many each."""
    threads = max(1, config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, part) for part in parts]:
                done.result()
