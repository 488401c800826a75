"""Plain, slow implementations, written from the definitions: the truth the tests compare with."""

from fractions import Fraction

# --- Segment routing best performance -------------------------------------------------------


def activity(trace, sequence, layer):
    """A(e, T)[i] of one sequence and layer as rows of 0 and 1: [experts][tokens]."""
    tokens = trace.experts[sequence, : trace.lengths[sequence], layer].tolist()
    return [[int(e in token) for token in tokens] for e in range(trace.num_experts)]


def segments(trace, m, *, sequences=None, layers=None, experts=None, start=None):
    """f(e, T, p, m) of every segment and expert of a group, as a flat list."""
    found = []
    for sequence in range(trace.num_sequences) if sequences is None else sequences:
        for layer in range(trace.num_layers) if layers is None else layers:
            rows = activity(trace, sequence, layer)
            for e in range(trace.num_experts) if experts is None else experts:
                for p in range(len(rows[e]) - m + 1):
                    if start is None or p == start:
                        found.append(sum(rows[e][p : p + m]))
    return found


def f1(router, f, m):
    """F1 of a segment router: `router` says on (1) or off (0) for each f."""
    hits = sum(r * n for r, n in zip(router, f, strict=True))
    total = sum(m * r + n for r, n in zip(router, f, strict=True))
    return Fraction(2 * hits, total) if total else Fraction(0)


def srp(f, m):
    """SRP, size ratio and activation rate of a group's f, as exact fractions.

    Every threshold is tried; on equal F1 the lowest counts.
    """
    if not sum(f):
        return Fraction(0), Fraction(0), Fraction(0)
    scores = [f1([int(n >= a) for n in f], f, m) for a in range(m + 1)]
    threshold = scores.index(max(scores))
    on = sum(n >= threshold for n in f)
    return max(scores), Fraction(m * on, sum(f)), Fraction(sum(f), m * len(f))
