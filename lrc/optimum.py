"""The best that any cache can do under the contract "engine": exact, or bounded with proof.

An expert that stays in the cache from one request that needs it to the next one is an *interval* of
requests, and every hit is an interval that was kept. What fits, fits for all of them together:
beside a request of n experts a cache of C slots has room for C - n intervals that pass over it. So
the best choice is an integer program, and its relaxation is a bound that nothing exceeds.

Where slots are equal and loads are counted, Belady's choice, taken over requests, is optimal, and
the program is not needed. It is where that is not so: experts of several sizes in one cache, and
engines that load a request's missing experts side by side, so that they wait once for all of them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lrc.arguments import check_level, check_trace
from lrc.cache_replay import LEVELS, checked_capacities, expert_sizes
from lrc.errors import LrcError
from lrc.requests import Requests, requests
from lrc.trace import Trace

GOALS = ("loads", "bytes", "waits")


@dataclass(frozen=True)
class Optimum:
    """The least that any cache loads, or waits.

    Attributes
    ----------
    goal : str
    total : int
        Uses ("loads"), bytes of all uses ("bytes") or requests ("waits").
    least : int or None
        What the best cache there can be loads or waits; None if only the bound was asked for.
    bound : float
        No cache loads or waits less. Equal to `least` where that is known.
    """

    goal: str
    total: int
    least: int | None
    bound: float

    @property
    def rate(self) -> float:
        """The share of the total that hits, or does not wait: at most this, if only bounded."""
        return 1 - (self.bound if self.least is None else self.least) / max(self.total, 1)


def optimum(
    trace: Trace,
    goal: str = "loads",
    *,
    cache_size=None,
    budget_bytes=None,
    level: str = "model",
    prompt_tokens=None,
    expert_bytes=None,
    exact: bool = True,
) -> Optimum:
    """What the best possible evictions would load, or wait, each sequence from an empty cache.

    Parameters
    ----------
    trace : Trace
    goal : {"loads", "bytes", "waits"}
        What is to be least: experts loaded, bytes loaded, or requests that load anything.
    cache_size, budget_bytes, level, prompt_tokens, expert_bytes
        As in `lrc.replay`.
    exact : bool
        Solve the integer program, which may take long on traces of more than some dozens of
        tokens; else its relaxation, which bounds it.

    Returns
    -------
    Optimum

    Raises
    ------
    LrcError
        An unknown goal; as `lrc.replay`.

    Notes
    -----
    Experts are loaded on demand: not ahead of need, not even while another one is waited for.

    Examples
    --------
    Three slots. When (0, 2) comes, one of 1, 3 and 4 can stay. Belady keeps 1, which is needed
    first, and the request (1, 3) waits for 3 all the same; to keep 4 loads as many, and waits less.

    >>> trace = lrc.Trace([[[[1, 3]], [[4, -1]], [[0, 2]], [[1, 3]], [[4, -1]]]], num_experts=5)
    >>> belady = lrc.replay(trace, "belady", cache_size=3)
    >>> belady.loads, belady.waits
    (7, 5)
    >>> lrc.optimum(trace, "loads", cache_size=3).least
    7
    >>> lrc.optimum(trace, "waits", cache_size=3).least
    4
    """
    check_trace(trace)
    check_level(level, LEVELS)
    if goal not in GOALS:
        raise LrcError(f"goal is {goal!r}, but must be one of {', '.join(GOALS)}")
    sizes = expert_sizes(trace, expert_bytes)
    if goal == "bytes" and sizes is None:
        raise LrcError("the goal 'bytes' needs the bytes of one expert: give expert_bytes")
    capacities, in_bytes = checked_capacities(
        trace.num_layers, cache_size, budget_bytes, level, sizes
    )
    known = np.ones(trace.num_layers, np.int64) if sizes is None else sizes
    taken = known if in_bytes else np.ones_like(known)
    asked = requests(trace, prompt_tokens)
    total, least, bound = 0, 0, 0.0
    for group, capacity in enumerate(capacities):
        part = asked if level == "model" else asked.of_layer(group)
        layers = slice(None) if level == "model" else slice(group, group + 1)
        for ids, starts in _by_sequence(part):
            size_of = np.repeat(taken[layers], trace.num_experts)[ids]
            worth = np.repeat(known[layers], trace.num_experts)[ids]
            solved = _solve(ids, starts, size_of, worth, capacity, goal, exact)
            total, least, bound = total + solved[0], least + solved[1], bound + solved[2]
    return Optimum(goal, total, round(least) if exact else None, bound)


def one_by_one(trace: Trace) -> Trace:
    """The same uses as if each were a token of its own, of a model of one layer.

    Its experts need not be in the cache together, so Belady's choice loads less than any engine can
    that needs them together: what the constraint costs is the difference. (A cache with less than
    top-k slots is another matter: there, requests pass through memory of their own.)

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    Trace
        Layer and expert are one id, ``layer * num_experts + expert``; slots that use no expert are
        left out. Contract "engine", one token a step.

    Examples
    --------
    >>> one_by_one(lrc.Trace([[[[0, 1]], [[2, 0]]]], num_experts=3)).experts.ravel()
    array([0, 1, 2, 0], dtype=int16)
    """
    check_trace(trace)
    layers = np.arange(trace.num_layers)[:, None] * trace.num_experts
    ids = np.where(trace.experts >= 0, trace.experts + layers, -1)
    ids = ids.reshape(trace.num_sequences, -1)
    inside = np.arange(trace.experts.shape[1]) < trace.lengths[:, None]
    used = (ids >= 0) & np.repeat(inside, trace.num_layers * trace.top_k, axis=1)
    ids = np.take_along_axis(ids, np.argsort(~used, axis=1, kind="stable"), axis=1)
    lengths = used.sum(axis=1)
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = -1
    return Trace(
        ids[:, :, None, None],
        trace.num_layers * trace.num_experts,
        lengths=lengths,
        datasets=None if trace.datasets is None else trace.datasets.tolist(),
    )


def _by_sequence(asked: Requests):
    """Ids and starts of the requests of each sequence that has any."""
    owners, first = np.unique(asked.sequences, return_index=True)
    ends = np.append(first[1:], asked.num_requests)
    for at in range(len(owners)):
        starts = asked.starts[first[at] : ends[at] + 1]
        yield asked.ids[starts[0] : starts[-1]], starts - starts[0]


def _solve(ids, starts, size_of, worth, capacity, goal, exact):
    """Total, what the best choice leaves of it (an integer if exact), and the bound."""
    num_requests = len(starts) - 1
    request = np.repeat(np.arange(num_requests), np.diff(starts))
    # The use before of the same expert; uses are in order, so a stable sort pairs neighbours.
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    before = order[:-1][ids[order[1:]] == ids[order[:-1]]]
    begin, end, size = request[before], request[again], size_of[again]
    intervals = len(again)
    if goal == "waits":
        # A request that needs an expert for the first time waits in any case.
        firsts = np.bincount(request, minlength=num_requests) - np.bincount(
            end, minlength=num_requests
        )
        total = int((np.diff(starts) > 0).sum())
        free = np.flatnonzero((firsts == 0) & (np.diff(starts) > 0))
    else:
        gains = np.ones(intervals) if goal == "loads" else worth[again].astype(float)
        total = len(ids) if goal == "loads" else int(worth.sum())
        free = np.empty(0, np.int64)
    if not intervals:
        return total, total, float(total)

    # Variables: intervals kept; what they take between a request and the next; requests served
    # without waiting.
    edges, waits = intervals + np.arange(num_requests), np.full(num_requests, -1)
    waits[free] = intervals + num_requests + np.arange(len(free))
    width = intervals + num_requests + len(free)
    kept = np.arange(intervals)
    needed = np.bincount(request, size_of, num_requests)
    rows = [begin, end, np.arange(num_requests), np.arange(1, num_requests)]
    columns = [kept, kept, edges, edges[:-1]]
    values = [size, -size, -np.ones(num_requests), np.ones(num_requests - 1)]
    balance = _matrix(rows, columns, values, (num_requests, width))
    over = _matrix(
        [end, np.arange(1, num_requests)], [kept, edges[:-1]],
        [-size, np.ones(num_requests - 1)], (num_requests, width),
    )  # fmt: skip
    constraints = [
        LinearConstraint(balance, 0, 0),
        LinearConstraint(over, -np.inf, np.maximum(capacity - needed, 0)),
    ]
    objective = np.zeros(width)
    if goal == "waits":
        served = np.flatnonzero(waits[end] >= 0)
        held = _matrix(
            [np.arange(len(served))] * 2, [waits[end[served]], served],
            [np.ones(len(served)), -np.ones(len(served))], (len(served), width),
        )  # fmt: skip
        constraints.append(LinearConstraint(held, -np.inf, 0))
        objective[intervals + num_requests :] = -1
    else:
        objective[:intervals] = -gains
    highest = np.ones(width)
    highest[edges] = capacity
    solved = milp(
        objective,
        # What is taken is whole if what is kept is; untold, HiGHS may call it infeasible.
        integrality=np.full(width, int(exact)),
        bounds=Bounds(0, highest),
        constraints=constraints,
    )
    if not solved.success:
        raise LrcError(f"the optimum was not found ({solved.message})")
    left = total + solved.fun
    return total, round(left) if exact else left, float(round(left) if exact else left)


def _matrix(rows, columns, values, shape):
    return csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape
    )
