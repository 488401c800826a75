"""Segment cache best hit rate (SCH) and the hit rates of real policies, at every cache size.

How many of the experts that tokens need does a cache of C slots hold? `sch` says what a cache
makes of it that knows the next m tokens, `hit_rates` what LRU, LFU and the clairvoyant Belady do
(Liang et al., "Not All Models Suit Expert Offloading", Section 2.3).

Replay contract "paper", that of the paper's own scripts: every sequence starts with an empty
cache; the experts of a token are all looked up before the cache takes them, one after the other,
in slot order (one cache over all layers: layer 0 first); first uses count as hits until the cache
is full, as if empty slots had been preloaded right.

All of it follows from histograms of integers (`lrc.hit_counts`). Histograms of shards add up, so a
corpus may be measured in parts, in any order, on any machine, to the same last bit: `sch_counts`
or `policy_counts` on each, the sum, then `HitCounts.table`.
"""

from os import PathLike

import pandas as pd

from lrc.arguments import (
    check_level,
    check_trace,
    checked_segment_lengths,
    dataset_labels,
    once,
)
from lrc.bootstrap import check_bootstrap
from lrc.errors import LrcError
from lrc.hit_bootstrap import count_and_resample
from lrc.hit_counts import DEFINITIONS, POLICIES, HitCounts, HitKind, count_corpus
from lrc.shards import Corpus
from lrc.trace import Trace

SEGMENT_LENGTHS = (4, 16, 64, 256)
LEVELS = ("model", "layer")


def sch(
    source: Trace | str | PathLike | list,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str = "model",
    by_dataset: bool = False,
    definition: str = "lookahead",
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Segment cache best hit rate, at every cache size.

    Parameters
    ----------
    source : Trace or path or list of these
        A trace, the path of one that was saved, a pattern for paths such as ``"shards/*.parquet"``,
        or a list: the sequences of all together. Files are read a row group at a time, so they may
        be larger than memory, and shared out among processes or machines: see :doc:`scale`.
    segment_lengths : int or sequence of int
        Window lengths m in tokens, each at least 1.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each layer.
    by_dataset : bool
        Measure each dataset by itself rather than all sequences pooled.
    definition : {"lookahead", "static"}
        - "lookahead" (the paper's versions 3 and 4): a cache that runs over the sequence and,
          when it needs room, evicts the expert used least in the rest of the current token and
          the m - 1 tokens after it; on a tie, the one used longest ago.
        - "static" (versions 1 and 2): in every window of m tokens the cache holds the experts
          most used in it, at no cost. A sequence shorter than m has no window.
    bootstrap : int
        Resamples of the sequences, drawn within each dataset (0 = no interval).
    confidence : float
        Coverage of the interval, between 0 and 1.
    seed : int
        Of the resampling; the same seed gives the same interval.

    Returns
    -------
    DataFrame
        A row per dataset, layer (as far as asked for), segment length and cache size:

        - ``cache_size``: slots, one expert each, from 1 to all experts of the level;
        - ``cache_ratio``: slots over the experts that a token activates, top_k (times layers);
        - ``hit_rate``: hits over uses (-1 slots are none);
        - ``ci_low``, ``ci_high``: bootstrap interval, mirrored about the estimate.

        Where no expert is used, or no sequence reaches a window's length ("static"), there are
        no rows.

    Raises
    ------
    LrcError
        A segment length below 1, an unknown level or definition, `by_dataset` without labels, a
        confidence out of range.

    Examples
    --------
    >>> trace = Trace([[[[0]], [[1]], [[2]], [[0]]]], num_experts=3)
    >>> lrc.sch(trace, 4)
       segment_length  cache_size  cache_ratio  hit_rate
    0               4           1          1.0      0.25
    1               4           2          2.0      0.75
    2               4           3          3.0      1.00
    """
    check_bootstrap(bootstrap, confidence)
    with Corpus(source) as corpus:
        kind = _sch_kind(corpus, segment_lengths, level, definition)
        return _table(corpus, kind, by_dataset, bootstrap, confidence, seed)


def hit_rates(
    source: Trace | str | PathLike | list,
    policies=("lru", "lfu", "belady"),
    *,
    level: str = "model",
    by_dataset: bool = False,
    replay: str = "paper",
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rates of cache policies, at every cache size.

    Parameters
    ----------
    source : Trace or path or list of these
        As in `sch`.
    policies : str or sequence of str
        What is evicted when a cache is full:

        - "lru": the expert used longest ago;
        - "lfu": the expert used least since the sequence began, whether in the cache or not; on
          a tie, the one used longest ago;
        - "belady": the expert whose next use is farthest ahead, uses counted one by one. Since
          "paper" looks up the experts of a token together, it is no strict upper bound unless a
          token uses one expert.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each layer.
    by_dataset : bool
        Measure each dataset by itself rather than all sequences pooled.
    replay : {"paper", "engine"}
        How a token's experts meet the cache: "paper" as in `lrc.cache`, "engine" as in
        `lrc.cache_replay`, where first uses miss, prompts (``meta["prompt_tokens"]``) run as one
        step, and "belady" is the optimum.
    bootstrap, confidence, seed
        As in `sch`.

    Returns
    -------
    DataFrame
        As `sch`, with ``policy`` for ``segment_length``.

    Raises
    ------
    LrcError
        An unknown policy, level or replay contract, `by_dataset` without labels, a confidence out
        of range.

    Examples
    --------
    >>> trace = Trace([[[[0]], [[1]], [[2]], [[0]], [[1]]]], num_experts=3)
    >>> lrc.hit_rates(trace, ["lru", "belady"]).query("cache_size == 2")
       policy  cache_size  cache_ratio  hit_rate
    1     lru           2          2.0       0.4
    4  belady           2          2.0       0.6
    """
    check_bootstrap(bootstrap, confidence)
    with Corpus(source) as corpus:
        kind = _policy_kind(corpus, policies, level, replay)
        return _table(corpus, kind, by_dataset, bootstrap, confidence, seed)


def sch_counts(
    source: Trace | str | PathLike | list,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str = "model",
    by_dataset: bool = False,
    definition: str = "lookahead",
) -> HitCounts:
    """Partial statistics of `sch` for one shard of a corpus (parameters as there).

    Examples
    --------
    >>> parts = [sch_counts(shard, level="layer") for shard in shards]  # doctest: +SKIP
    >>> sum(parts[1:], parts[0]).table()  # doctest: +SKIP
    """
    with Corpus(source) as corpus:
        kind = _sch_kind(corpus, segment_lengths, level, definition)
        return count_corpus(corpus, kind, dataset_labels(corpus, by_dataset))


def policy_counts(
    source: Trace | str | PathLike | list,
    policies=("lru", "lfu", "belady"),
    *,
    level: str = "model",
    by_dataset: bool = False,
    replay: str = "paper",
) -> HitCounts:
    """Partial statistics of `hit_rates` for one shard of a corpus (parameters as there)."""
    with Corpus(source) as corpus:
        kind = _policy_kind(corpus, policies, level, replay)
        return count_corpus(corpus, kind, dataset_labels(corpus, by_dataset))


def _table(corpus, kind, by_dataset, bootstrap, confidence, seed):
    datasets = dataset_labels(corpus, by_dataset)
    if not bootstrap:
        return count_corpus(corpus, kind, datasets).table()
    counts, intervals = count_and_resample(corpus, kind, datasets, bootstrap, confidence, seed)
    return counts.table(intervals)


def _sch_kind(corpus, segment_lengths, level, definition):
    check_level(level, LEVELS)
    if definition not in DEFINITIONS:
        raise LrcError(f"definition is {definition!r}, but must be 'lookahead' or 'static'")
    lengths = checked_segment_lengths(segment_lengths, longest=None)
    return HitKind("segment_length", lengths, definition, level, *_sizes(corpus))


def _policy_kind(corpus, policies, level, replay):
    check_level(level, LEVELS)
    if replay not in ("paper", "engine"):
        raise LrcError(f"replay is {replay!r}, but must be 'paper', or 'engine'")
    for part in corpus.parts if replay == "engine" else ():
        if part.trace is not None:
            check_trace(part.trace)
    return HitKind("policy", _checked_policies(policies), replay, level, *_sizes(corpus))


def _checked_policies(policies):
    policies = [policies] if isinstance(policies, str) else list(policies)
    known = ", ".join(map(repr, POLICIES))
    if not policies:
        raise LrcError(f"policies is empty: choose from {known}")
    for policy in policies:
        if policy not in POLICIES:
            raise LrcError(f"policy {policy!r} is unknown: choose from {known}")
    return once(policies, "policies")


def _sizes(corpus):
    return corpus.num_layers, corpus.num_experts, corpus.top_k
