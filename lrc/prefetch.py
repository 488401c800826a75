"""Predictors of the experts that the next request needs, for `lrc.replay(..., prefetch=…)`.

A predictor is a function of `lrc.requests.Requests`. It returns, for every request, the experts to
load ahead of it: ids by request and where each request's begin. It may use what came before the
request and nothing else.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from lrc.arguments import check_trace
from lrc.errors import LrcError
from lrc.requests import Requests
from lrc.trace import Trace

Predictor = Callable[[Requests], tuple[np.ndarray, np.ndarray]]


def previous_token() -> Predictor:
    """Predict that a layer needs what it needed in the step before.

    Right as often as routing is consistent from one token to the next. A cache that holds more than
    one token's experts has most of them anyway.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[1]], [[0]]]], num_experts=2)
    >>> lrc.replay(trace, cache_size=1, prefetch=lrc.prefetch.previous_token()).hit_rate
    0.0
    """
    return _previous


def _previous(asked: Requests):
    step_before = np.full(asked.num_requests, -1, np.int64)
    # Every step of a sequence makes one request a layer.
    if asked.num_requests > asked.num_layers:
        same = asked.sequences[asked.num_layers :] == asked.sequences[: -asked.num_layers]
        step_before[asked.num_layers :][same] = np.flatnonzero(same)
    return _gather(asked.ids, asked.starts, step_before)


@njit(cache=True)
def _gather(ids, starts, sources):
    """Uses of the source of every request; none where it is -1."""
    gathered = np.zeros(len(sources) + 1, np.int64)
    for r in range(len(sources)):
        source = sources[r]
        size = starts[source + 1] - starts[source] if source >= 0 else 0
        gathered[r + 1] = gathered[r] + size
    predicted = np.empty(gathered[-1], np.int32)
    for r in range(len(sources)):
        for i in range(gathered[r + 1] - gathered[r]):
            predicted[gathered[r] + i] = ids[starts[sources[r]] + i]
    return predicted, gathered


def next_layer(fit: Trace, count: int | None = None) -> Predictor:
    """Predict a layer's experts from those that the same token used in the layer before.

    Parameters
    ----------
    fit : Trace
        Of the same model, on other text: how often an expert follows each expert of the layer
        before is counted there. Experts are ranked by the sum of these shares over the request at
        hand; on a tie the lower id first.
    count : int, optional
        Experts to predict (default: top-k). The first layer is not predicted, and no prompt.

    Raises
    ------
    LrcError
        A count below 1 or above the number of experts.
    """
    check_trace(fit)
    count = fit.top_k if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= fit.num_experts:
        raise LrcError(f"count is {count!r}, but must be from 1 to {fit.num_experts} experts")
    follows = _follows(fit.experts, fit.lengths, fit.num_experts)
    shares = follows / np.maximum(follows.sum(axis=2, keepdims=True), 1)

    def predict(asked: Requests):
        if (asked.num_layers, asked.num_experts) != (fit.num_layers, fit.num_experts):
            raise LrcError(
                f"the predictor was fitted on {fit.num_layers} layers of {fit.num_experts} "
                f"experts, but the trace has {asked.num_layers} of {asked.num_experts}"
            )
        return _predict(asked.ids, asked.starts, asked.layers, shares, count)

    return predict


@njit(cache=True)
def _follows(experts, lengths, num_experts):
    """How often expert f follows expert e in the next layer: int64 [layers - 1, e, f]."""
    num_layers, top_k = experts.shape[2:]
    counts = np.zeros((max(num_layers - 1, 0), num_experts, num_experts), np.int64)
    for sequence in range(experts.shape[0]):
        for t in range(lengths[sequence]):
            for layer in range(num_layers - 1):
                for k in range(top_k):
                    e = experts[sequence, t, layer, k]
                    for j in range(top_k):
                        f = experts[sequence, t, layer + 1, j]
                        if e >= 0 and f >= 0:
                            counts[layer, e, f] += 1
    return counts


@njit(cache=True)
def _predict(ids, starts, layers, shares, count):
    num_requests = len(layers)
    num_experts = shares.shape[1]
    ends = np.zeros(num_requests + 1, np.int64)
    predicted = np.empty(num_requests * count, np.int32)
    n = 0
    for r in range(num_requests):
        layer = layers[r]
        if layer > 0:
            score = np.zeros(num_experts)
            for i in range(starts[r - 1], starts[r]):
                score += shares[layer - 1, ids[i] - (layer - 1) * num_experts]
            order = np.argsort(-score, kind="mergesort")
            for x in order[:count]:
                if score[x] > 0:
                    predicted[n] = layer * num_experts + x
                    n += 1
        ends[r + 1] = n
    return predicted[:n], ends
