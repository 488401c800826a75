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


# --- Caches -----------------------------------------------------------------------------------


def uses(trace, sequence, layers):
    """Experts that each token uses, as (layer, expert), in the order the cache takes them."""
    experts = trace.experts[sequence, : trace.lengths[sequence]].tolist()
    return [[(layer, e) for layer in layers for e in token[layer] if e >= 0] for token in experts]


def hits_of_replay(tokens, capacity, policy, m=0):
    """Hits of one cache of one size on one sequence, under the replay contract "paper".

    `policy` is "lru", "lfu", "belady" or "lookahead" (then `m` tokens are known).
    """
    stream = [x for token in tokens for x in token]
    moments = {x: [i for i, y in enumerate(stream) if y == x] for x in stream}
    held, ever, hits, now = [], [], 0, 0
    for t, token in enumerate(tokens):
        end_of_window = now + sum(map(len, tokens[t : t + m]))
        for x in token:
            hits += x in held if x in ever else len(ever) < capacity
            if x not in ever:
                ever.append(x)
        for x in token:
            if x not in held:
                if len(held) == capacity:
                    held.remove(
                        min(held, key=lambda y: worth(moments[y], now, end_of_window)[policy])
                    )
                held.append(x)
            now += 1
    return hits


def worth(moments, now, end_of_window):
    """What each policy thinks of a held expert while the cache takes the use at `now`."""
    past = [i for i in moments if i < now]
    ahead = [i for i in moments if i > now]
    return {
        "lru": past[-1],
        "lfu": (len(past), past[-1]),
        "belady": -ahead[0] if ahead else float("-inf"),
        "lookahead": (len([i for i in ahead if i < end_of_window]), past[-1]),
    }


def hits_of_best_sets(tokens, capacity, m):
    """Hits of the best set of each window of m tokens, and uses in these windows."""
    hits = total = 0
    for p in range(len(tokens) - m + 1):
        window = [x for token in tokens[p : p + m] for x in token]
        counts = sorted((window.count(x) for x in set(window)), reverse=True)
        hits += sum(counts[:capacity])
        total += len(window)
    return hits, total
