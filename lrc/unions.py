"""Several tokens in one step: batches of texts, and drafts of speculative decoding.

An engine that runs several tokens at once needs the experts of all of them together. Tokens of
different texts agree on experts by little more than chance, neighbouring tokens of one text by as
much as routing is locally consistent, so that a draft asks for fewer experts than a batch.
"""

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.errors import LrcError
from lrc.requests import checked_prompts
from lrc.trace import Trace

ACROSS = ("texts", "tokens")
_SIZES = ("batch_size", "draft_tokens")


def join_steps(
    trace: Trace, *, batch_size: int = 1, draft_tokens: int = 1, prompt_tokens=None, seed: int = 0
) -> Trace:
    """The trace that an engine sees that runs several tokens in one step.

    Parameters
    ----------
    trace : Trace
    batch_size : int
        Texts that run in lockstep, from their first tokens on; one that ends leaves the others.
        They are drawn at random, as requests come to a server.
    draft_tokens : int
        Consecutive tokens of a text in one step: a draft that is accepted as a whole. What a
        rejected draft asks for is in no trace.
    prompt_tokens : int or int array [sequences], optional
        As in `lrc.replay`: a text's first step is its prompt.
    seed : int
        Of the drawing.

    Returns
    -------
    Trace
        A sequence for each batch, a "token" for each step, and in its slots the union of the
        experts in the order of their first use, with weights summed. Labels are kept where a
        batch has but one; ``meta["step_tokens"]`` is the mean number of tokens in a step after the
        prompts, and ``meta["prompt_tokens"]`` is 1 for batches whose first step holds prompts.

    Raises
    ------
    LrcError
        Numbers below 1, or more texts in a batch than there are.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0, 1]], [[2, 0]], [[3, 0]]]], num_experts=4)
    >>> lrc.unions.join_steps(trace, draft_tokens=2).experts[0, :, 0].tolist()
    [[0, 1, 2], [3, 0, -1]]
    """
    check_trace(trace)
    _check(batch_size, "batch_size", trace.num_sequences, "texts of the trace")
    _check(draft_tokens, "draft_tokens", trace.experts.shape[1], "tokens of its longest text")
    prompts = checked_prompts(trace, prompt_tokens)
    batch, step, rank, alone = _layout(trace, prompts, batch_size, draft_tokens, seed)
    lengths = np.zeros(batch.max() + 1, np.int64)
    np.maximum.at(lengths, batch, np.where(trace.valid, step + 1, 0).max(axis=1, initial=0))

    # Uses in the order in which an engine comes to them; the first of each expert in a step stays.
    s, t, layer, slot = np.nonzero(trace.experts >= 0)
    request = (batch[s] * (lengths.max() + 1) + step[s, t]) * trace.num_layers + layer
    turn = np.lexsort((slot, t, rank[s], request))
    request = request[turn]
    key = request * trace.num_experts + trace.experts[s, t, layer, slot][turn]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    kept = np.sort(first)
    where, expert = np.divmod(key[kept], trace.num_experts)
    begins = np.flatnonzero(np.diff(where, prepend=-1))
    place = np.arange(len(where)) - np.repeat(begins, np.diff(np.append(begins, len(where))))
    rest, of_layer = np.divmod(where, trace.num_layers)
    at = (*np.divmod(rest, lengths.max() + 1), of_layer, place)
    shape = (len(lengths), lengths.max(), trace.num_layers, place.max(initial=0) + 1)
    experts = np.full(shape, -1, np.int16)
    experts[at] = expert
    weights = None
    if trace.weights is not None:
        weights = np.zeros(shape, np.float32)
        own = trace.weights[s, t, layer, slot][turn]
        weights[at] = np.bincount(inverse, own, len(first))[np.argsort(first)]

    prompted = np.zeros(len(lengths), bool)
    prompted[batch[prompts > 0]] = True
    meta = dict(trace.meta) | {"prompt_tokens": prompted.astype(int).tolist()}
    meta["step_tokens"] = float(alone.sum() / max((lengths - prompted).sum(), 1))
    return Trace(
        experts,
        trace.num_experts,
        lengths=lengths,
        datasets=_labels(trace, batch),
        weights=weights,
        meta=meta,
    )


def unions(
    trace: Trace, tokens=(1, 2, 4, 8, 16), across: str = "tokens", *, prompt_tokens=None, seed=0
) -> pd.DataFrame:
    """How many experts several tokens use together, and how many they would if independent.

    Parameters
    ----------
    trace : Trace
    tokens : sequence of int
        Tokens in a step.
    across : {"texts", "tokens"}
        The same place in so many texts (a batch), or consecutive tokens of a text (a draft).
    prompt_tokens, seed
        As in `join_steps`; prompts are left out.

    Returns
    -------
    DataFrame
        tokens; experts: mean over layers and full steps of the number of different experts;
        independent: :math:`\\sum_e 1 - (1 - r_e)^n`, the mean over layers, for n tokens drawn
        independently at the experts' activation rates :math:`r_e` after the prompts; ratio: of the
        two. Numbers of tokens that no step of the trace reaches have no row.

    Raises
    ------
    LrcError
        Numbers below 1, an unknown `across`, or nothing to measure.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[0]], [[1]], [[1]]]], num_experts=2)
    >>> lrc.unions.unions(trace, (1, 2))
       tokens  experts  independent  ratio
    0       1      1.0          1.0  1.000
    1       2      1.0          1.5  0.667
    """
    check_trace(trace)
    if across not in ACROSS:
        raise LrcError(f"across is {across!r}, but must be one of {', '.join(ACROSS)}")
    prompts = checked_prompts(trace, prompt_tokens)
    counted = trace.valid & (np.arange(trace.experts.shape[1]) >= prompts[:, None])
    if not (trace.experts[counted] >= 0).any():
        raise LrcError("no token after a prompt uses an expert: there is nothing to join")
    rates = np.stack(
        [
            np.bincount(chosen[chosen >= 0], minlength=trace.num_experts) / counted.sum()
            for chosen in (trace.experts[:, :, j][counted] for j in range(trace.num_layers))
        ]
    )
    rows = []
    for n in tokens:
        longest = trace.num_sequences if across == "texts" else (trace.lengths - prompts).max()
        _check(n, "tokens", np.inf, "")
        if n > longest:
            continue
        size = {"batch_size" if across == "texts" else "draft_tokens": n}
        joined = join_steps(trace, prompt_tokens=prompts, seed=seed, **size)
        texts, drafted = (size.get(name, 1) for name in _SIZES)
        batch, step, _, alone = _layout(trace, prompts, texts, drafted, seed)
        full = np.zeros(joined.experts.shape[:2], np.int64)
        np.add.at(full, (np.broadcast_to(batch[:, None], step.shape)[alone], step[alone]), 1)
        full = full == n
        if full.any():
            found = float((joined.experts >= 0).sum(axis=3)[full].mean())
            independent = float((1 - (1 - rates) ** n).sum(axis=1).mean())
            rows.append((n, found, independent, found / independent))
    return pd.DataFrame(rows, columns=["tokens", "experts", "independent", "ratio"])


def _check(value, name, most, what):
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise LrcError(f"{name} is {value!r}, but must be a whole number of at least 1")
    if value > most:
        raise LrcError(f"{name} is {value:,}, but there are only {most:,} {what}")


def _layout(trace, prompts, batch_size, draft_tokens, seed):
    """Where tokens go.

    The batch of each sequence; the step of each token; the rank of each sequence in the order of
    the batches; and which tokens are valid and share no step with a prompt.
    """
    order = np.arange(trace.num_sequences)
    if batch_size > 1:
        order = np.random.default_rng(seed).permutation(trace.num_sequences)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    batch = rank // batch_size
    token = np.arange(trace.experts.shape[1])
    later = np.maximum(token - prompts[:, None], 0) // draft_tokens + (prompts > 0)[:, None]
    step = np.where(token < prompts[:, None], 0, later)
    prompted = np.isin(batch, batch[prompts > 0])
    return batch, step, rank, trace.valid & ~(prompted[:, None] & (step == 0))


def _labels(trace, batch):
    """A label for each batch, where no batch has two."""
    if trace.datasets is None:
        return None
    labels = [set(trace.datasets[batch == b].tolist()) for b in range(batch.max() + 1)]
    return [one.pop() for one in labels] if all(len(one) == 1 for one in labels) else None
