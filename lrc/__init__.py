"""Local routing consistency (LRC) of Mixture-of-Experts language models."""

from importlib import import_module

from lrc import prefetch, published, throughput
from lrc.association import correlation
from lrc.balance import balance
from lrc.cache import hit_rates, sch
from lrc.cache_replay import replay
from lrc.chance import chance, excess
from lrc.diagnosis import diagnose
from lrc.errors import LrcError, RecordError, TraceError
from lrc.live_measures import LiveMeasures, load_measures
from lrc.local_balance import local_balance
from lrc.notebook import glue, glue_table, setup_notebook
from lrc.optimum import optimum
from lrc.origin import decompose, ladder, shuffle_labels
from lrc.overlap import overlap_by_distance, overlap_half_life, public_overlaps
from lrc.params import ParameterError, check_parameters, resolve_counts, resolve_trace
from lrc.planning import plan_recording
from lrc.policy_comparison import compare_policies
from lrc.segment_overlap import overlap_sources, segment_overlap
from lrc.shuffling import shuffle
from lrc.sizing import size_cache
from lrc.specialization import specialization
from lrc.srp import srp, srp_by_position
from lrc.trace import Trace
from lrc.trace_file import load_trace
from lrc.vocabulary import TokenCounts, load_token_counts, token_counts

# Public names whose modules import torch, transformers or matplotlib: loaded on first use, so that
# `import lrc` stays light for those who only measure traces.
_LAZY: dict[str, str] = {
    "ModelError": "lrc.models",
    "Recorder": "lrc.recorder",
    "examine": "lrc.doctor",
    "Offloader": "lrc.offload",
    "load_model": "lrc.models",
    "load_routes": "lrc.importers",
    "measure": "lrc.measuring",
    "record": "lrc.recording",
}
_LAZY_MODULES: tuple[str, ...] = (
    "architectures",
    "charts",
    "contrasts",
    "corpora",
    "curves",
    "device_question",
    "expert_bytes",
    "forecast",
    "importers",
    "models",
    "public_traces",
    "recommendation",
    "rule_of_two",
    "specialists",
    "toy_comparison",
    "toy_experiments",
    "toy_statistics",
    "toys",
    "unions",
)

__all__ = [
    "LiveMeasures",
    "LrcError",
    "ParameterError",
    "RecordError",
    "TokenCounts",
    "Trace",
    "TraceError",
    "balance",
    "chance",
    "check_parameters",
    "compare_policies",
    "correlation",
    "decompose",
    "diagnose",
    "excess",
    "glue",
    "glue_table",
    "hit_rates",
    "ladder",
    "load_measures",
    "load_token_counts",
    "load_trace",
    "local_balance",
    "optimum",
    "overlap_by_distance",
    "overlap_half_life",
    "overlap_sources",
    "prefetch",
    "plan_recording",
    "public_overlaps",
    "published",
    "replay",
    "resolve_counts",
    "resolve_trace",
    "sch",
    "segment_overlap",
    "setup_notebook",
    "shuffle",
    "shuffle_labels",
    "size_cache",
    "specialization",
    "srp",
    "srp_by_position",
    "throughput",
    "token_counts",
    *_LAZY,
]


def __dir__() -> list[str]:
    # So that completion offers what is not loaded yet.
    return sorted({*globals(), *__all__, *_LAZY_MODULES})


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return import_module(f"lrc.{name}")
    raise AttributeError(f"module 'lrc' has no attribute {name!r}")
