"""What the hardware would allow: the least time of each kernel, and how near it comes.

The least time is that of the operations which the kernel's method cannot do without, at the rate
that a loop of nothing else reaches on this machine (`benchmarks.machine`), on one core.
"""

from functools import partial

import numpy as np

from benchmarks.harness import LENGTHS, alone, threads
from benchmarks.machine import bandwidth, scalar_rate, vector_rate
from benchmarks.workloads import QWEN, accesses, named, synthetic
from lrc.bootstrap import resample_weights
from lrc.cache import policy_counts, sch_counts
from lrc.window_counts import window_counts


def rows():
    layer = synthetic(16, 512, 4, 64, 8)
    deep = synthetic(2, 256, *QWEN)
    yield {
        "name": "this machine, one core",
        "accesses_per_s": None,
        "note": f"copies {bandwidth() / 1e9:.1f} GB/s (all cores "
        f"{bandwidth(2) / 1e9:.1f}), {vector_rate() / 1e9:.1f} billion int32 minima, maxima or "
        f"sums a second, {scalar_rate() / 1e9:.2f} billion scalar operations",
    }
    with threads(1):
        # A place: find (compare, count) and sink (compare, clear, minimum, maximum); SCH also
        # raises (compare, mask, add).
        for name, call, replays, operations in [
            ("LRU, small caches", partial(policy_counts, layer, "lru", level="layer"), 1, 6),
            ("SCH, small caches", partial(sch_counts, layer, LENGTHS, level="layer"), 4, 9),
        ]:
            work = accesses(layer) * replays
            yield row(
                name,
                call,
                work * layer.num_experts * operations / vector_rate(),
                layer,
                f"{operations} vector operations at each of {layer.num_experts} places",
            )
        counts = sch_counts(deep, LENGTHS).new_hits
        depth = (counts * np.arange(counts.shape[-1])).sum() / counts.sum()
        work = accesses(deep) * len(LENGTHS)
        yield row(
            "SCH, one large cache",
            partial(sch_counts, deep, LENGTHS),
            work * depth * 4 / vector_rate(),
            deep,
            f"4 vector operations at each place down to the hit, {depth:.0f} on average",
        )
        yield row(
            "SRP windows, 4 lengths",
            partial(window_counts, layer, LENGTHS),
            accesses(layer) * len(LENGTHS) * 2 * 8 / scalar_rate(),
            layer,
            "8 scalar operations for an expert to enter a window, and 8 to leave",
        )
        weights = resample_weights(np.zeros(512, int), 1000, 0).astype(float)
        histograms = np.random.default_rng(0).integers(0, 99, (512, 4096)).astype(float)
        multiplied = alone(lambda: weights @ histograms)
        yield {
            "name": "bootstrap product (BLAS, all cores)",
            **multiplied,
            "note": f"{2 * 1000 * 512 * 4096 / multiplied['ours_s'] / 1e9:.0f} billion float64 "
            "operations a second",
        }


def row(name, call, bound, trace, note):
    timed = alone(call)
    return {
        "name": name,
        **timed,
        "bound_s": bound,
        "share": bound / timed["ours_s"],
        "accesses_per_s": accesses(trace) / timed["ours_s"],
        "note": f"{named(trace)}; {note}",
    }
