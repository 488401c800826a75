"""How the time grows with tokens, layers, experts, top-k and threads."""

from functools import partial

from numba import config

from benchmarks.harness import LENGTHS, alone, threads
from benchmarks.workloads import accesses, named, synthetic
from lrc.cache import policy_counts, sch_counts
from lrc.window_counts import window_counts

START = {"tokens": 256, "layers": 2, "experts": 64, "top_k": 4}
GROWTH = (1, 2, 4, 8)
MEASURES = {
    "SRP": lambda trace: window_counts(trace, LENGTHS),
    "SCH": lambda trace: sch_counts(trace, LENGTHS, level="layer"),
    "LRU, LFU, Belady": lambda trace: policy_counts(trace, level="layer"),
}


def rows():
    for grows in START:
        for factor in GROWTH:
            size = START | {grows: START[grows] * factor}
            trace = synthetic(32, size["tokens"], size["layers"], size["experts"], size["top_k"])
            for name, measure in MEASURES.items():
                with threads(1):
                    yield row(name, measure, trace, grows, factor)
    trace = synthetic(32, START["tokens"] * GROWTH[-1], *list(START.values())[1:])
    for number in range(1, config.NUMBA_NUM_THREADS + 1):
        for name, measure in MEASURES.items():
            with threads(number):
                yield row(name, measure, trace, "threads", number)


def row(name, measure, trace, grows, factor):
    timed = alone(partial(measure, trace), repetitions=3)
    return {
        "name": f"{name}: {factor} × {grows}",
        **timed,
        "measure": name,
        "grows": grows,
        "factor": factor,
        "accesses_per_s": accesses(trace) / timed["ours_s"],
        "note": f"{named(trace)}; counts, a cache a layer",
    }
