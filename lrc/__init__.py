"""Local routing consistency (LRC) of Mixture-of-Experts language models."""

from importlib import import_module

from lrc import published
from lrc.errors import LrcError, TraceError
from lrc.notebook import glue, setup_notebook
from lrc.params import ParameterError, check_parameters, resolve_trace
from lrc.srp import srp, srp_by_position
from lrc.trace import Trace
from lrc.trace_file import load_trace

# Public names whose modules import torch, transformers or matplotlib: loaded on first use, so that
# `import lrc` stays light for those who only measure traces.
_LAZY: dict[str, str] = {}
_LAZY_MODULES: tuple[str, ...] = ("charts",)

__all__ = [
    "LrcError",
    "ParameterError",
    "Trace",
    "TraceError",
    "check_parameters",
    "glue",
    "load_trace",
    "published",
    "resolve_trace",
    "setup_notebook",
    "srp",
    "srp_by_position",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return import_module(f"lrc.{name}")
    raise AttributeError(f"module 'lrc' has no attribute {name!r}")
