"""Time two ways of doing the same, in turns, so that a busy machine slows down both."""

import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from numba import config

LENGTHS = (4, 16, 64, 256)


@contextmanager
def threads(number):
    """Let the kernels use so many threads."""
    before, config.NUMBA_NUM_THREADS = config.NUMBA_NUM_THREADS, number
    try:
        yield
    finally:
        config.NUMBA_NUM_THREADS = before


def seconds(call, at_least=0.05):
    """Seconds of one call, from as many as take `at_least` seconds."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < at_least:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def race(ours, baseline, *, repetitions=5, scale=1.0):
    """Medians of both times and of their ratio in each repetition, with its extremes.

    `scale` is how often the work of one call of `baseline` is in that of `ours`. What `baseline`
    returns is taken as its seconds, if it is a number.
    """
    ours()
    pairs = []
    for _ in range(repetitions):
        mine = seconds(ours)
        start = time.perf_counter()
        told = baseline()
        theirs = told if isinstance(told, float) else time.perf_counter() - start
        pairs.append((mine, theirs * scale))
    ratios = [theirs / mine for mine, theirs in pairs]
    return {
        "ours_s": statistics.median(mine for mine, _ in pairs),
        "baseline_s": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repetitions": repetitions,
    }


def alone(call, *, repetitions=5):
    """Median time of a call that has no baseline."""
    call()
    return {"ours_s": statistics.median(seconds(call) for _ in range(repetitions))}


def in_new_process(code, *arguments):
    """Run Python code in a process of its own and return the number it prints last."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


def time_hooks(model, clock) -> list[float]:
    """Wrap each hook of lrc so that it adds its time to the list that is returned.

    Parameters
    ----------
    model : torch.nn.Module
        Inside the block of a recorder.
    clock : callable
        `time.perf_counter` or `time.process_time`.
    """
    spent: list[float] = []

    def timed(hook):
        def call(*arguments):
            start = clock()
            hook(*arguments)
            spent.append(clock() - start)

        return call

    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                if hook.__module__.startswith("lrc"):
                    hooks[key] = timed(hook)
    return spent
