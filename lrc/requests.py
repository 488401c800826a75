"""What a cache is asked for: the experts that an engine needs together, one request after another.

An engine runs a text in *steps*: the prompt as one step (prefill), then token by token. In each
step it comes to the MoE layers one after the other, and in each layer it needs all experts of the
step's tokens at once. Such a set of experts, needed together in one layer, is a request.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lrc.errors import LrcError
from lrc.trace import Trace


@dataclass(frozen=True)
class Requests:
    """Requests of all sequences of a trace, in the order in which an engine makes them.

    Attributes
    ----------
    ids : int32 array [uses]
        Experts of all requests, one request after the other; layer and expert are one id,
        ``layer * num_experts + expert``. Within a request each is there once, in slot order, those
        of earlier tokens first.
    weights : float32 array [uses]
        Router weight of each use, summed over the tokens of the request; 0 if not recorded.
    starts : int64 array [requests + 1]
        Request r is ``ids[starts[r] : starts[r + 1]]``.
    layers, steps, sequences : int32 arrays [requests]
        Layer, step within its sequence (0 is the prompt if there is one), and sequence.
    prompt_tokens : int64 array [sequences]
        Tokens of each sequence's prompt, its step 0; 0 where there is none.
    num_layers, num_experts : int
    """

    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    layers: np.ndarray
    steps: np.ndarray
    sequences: np.ndarray
    prompt_tokens: np.ndarray
    num_layers: int
    num_experts: int

    @property
    def num_requests(self) -> int:
        """Number of requests."""
        return len(self.layers)

    def of_layer(self, layer: int) -> "Requests":
        """Requests of one layer, as if it were all that there is."""
        chosen = np.flatnonzero(self.layers == layer)
        sizes = np.diff(self.starts)
        uses = np.repeat(self.layers == layer, sizes)
        return Requests(
            self.ids[uses] - layer * self.num_experts,
            self.weights[uses],
            np.concatenate([[0], np.cumsum(sizes[chosen])]),
            np.zeros(len(chosen), np.int32),
            self.steps[chosen],
            self.sequences[chosen],
            self.prompt_tokens,
            1,
            self.num_experts,
        )


def requests(trace: Trace, prompt_tokens=None) -> Requests:
    """The requests that an engine makes of its experts when it runs the texts of a trace.

    Parameters
    ----------
    trace : Trace
    prompt_tokens : int or int array [sequences], optional
        Tokens at the head of each sequence that are run as one step. Default:
        ``meta["prompt_tokens"]`` of the trace, else 0, every token a step of its own.

    Returns
    -------
    Requests

    Raises
    ------
    LrcError
        Numbers of prompt tokens that do not fit the sequences.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0, 1]], [[2, 0]]]], num_experts=3)
    >>> requests(trace).ids
    array([0, 1, 2, 0], dtype=int32)
    >>> requests(trace, prompt_tokens=2).ids
    array([0, 1, 2], dtype=int32)
    """
    prompts = checked_prompts(trace, prompt_tokens)
    steps = trace.lengths - np.maximum(prompts - 1, 0)
    num_requests = int(steps.sum()) * trace.num_layers
    weights = np.zeros((0, 0, 0, 0)) if trace.weights is None else trace.weights
    weights = weights.astype(np.float32)
    ids = np.empty(int((trace.experts >= 0).sum()), np.int32)
    use_weights = np.zeros(len(ids), np.float32)
    starts = np.zeros(num_requests + 1, np.int64)
    layers, step_of, sequences = (np.empty(num_requests, np.int32) for _ in range(3))
    places = (starts, layers, step_of, sequences)
    uses = _fill(
        *(trace.experts, weights, trace.lengths, prompts, trace.num_experts),
        *(ids, use_weights, *places),
    )
    sizes = (trace.num_layers, trace.num_experts)
    return Requests(ids[:uses], use_weights[:uses], *places, prompts, *sizes)


def checked_prompts(trace: Trace, prompt_tokens) -> np.ndarray:
    """Tokens of each sequence's prompt as in `requests`, int64 [sequences], or `LrcError`."""
    if prompt_tokens is None:
        prompt_tokens = (trace.meta or {}).get("prompt_tokens", 0)
    prompts = np.asarray(prompt_tokens)
    if prompts.shape == (0,):
        prompts = prompts.astype(np.int64)
    if prompts.dtype.kind not in "iu" or prompts.ndim > 1:
        raise LrcError(
            f"prompt_tokens is {prompt_tokens!r}, but must be a whole number, or one for each "
            "sequence"
        )
    if prompts.ndim and len(prompts) != trace.num_sequences:
        raise LrcError(
            f"prompt_tokens has {len(prompts)} numbers for {trace.num_sequences} sequences"
        )
    prompts = np.broadcast_to(prompts.astype(np.int64), trace.num_sequences)
    wrong = (prompts < 0) | (prompts > trace.lengths)
    if wrong.any():
        i = int(wrong.argmax())
        raise LrcError(
            f"prompt_tokens of sequence {i} is {prompts[i]}, but the sequence has "
            f"{trace.lengths[i]} tokens"
        )
    return prompts


@njit(cache=True, nogil=True)
def _fill(
    experts, weights, lengths, prompts, num_experts, ids, use_weights, starts, layers, steps, owners
):
    num_layers, top_k = experts.shape[2:]
    weighted = weights.shape[0] > 0
    place = np.full(num_experts, -1, np.int64)
    uses = 0
    request = 0
    for sequence in range(experts.shape[0]):
        token = 0
        step = 0
        while token < lengths[sequence]:
            stop = max(prompts[sequence], 1) if token == 0 else token + 1
            for layer in range(num_layers):
                for t in range(token, stop):
                    for k in range(top_k):
                        e = experts[sequence, t, layer, k]
                        if e < 0:
                            continue
                        if place[e] < 0:
                            place[e] = uses
                            ids[uses] = layer * num_experts + e
                            uses += 1
                        if weighted:
                            use_weights[place[e]] += weights[sequence, t, layer, k]
                for use in range(starts[request], uses):
                    place[ids[use] - layer * num_experts] = -1
                layers[request] = layer
                steps[request] = step
                owners[request] = sequence
                request += 1
                starts[request] = uses
            token = stop
            step += 1
    return uses
