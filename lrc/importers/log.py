"""What a foreign log says before anything in it is interpreted, and what its reader was told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from lrc.errors import TraceError


@dataclass
class Routes:
    """Routing of one text as a log has it, fillers and dense layers included.

    Attributes
    ----------
    experts : int array [tokens, layers, top_k]
    place : str
        Where in the log it stands, for messages.
    weights : float array [tokens, layers, top_k], optional
    token_ids : int array [tokens], optional
    prompt_tokens : int, optional
        Tokens of the prompt, counted from the text's first token.
    start : int
        Tokens of the text before the first row.
    dataset : str, optional
    flags : dict of bool array [tokens, layers, top_k]
        What else is known of each slot; goes into ``meta``.
    """

    experts: np.ndarray
    place: str
    weights: np.ndarray | None = None
    token_ids: np.ndarray | None = None
    prompt_tokens: int | None = None
    start: int = 0
    dataset: str | None = None
    flags: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Log:
    """All texts of a log, and what it says of the model."""

    routes: list[Routes]
    format: str
    num_experts: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the caller of `lrc.load_routes` said; see there."""

    num_experts: int | None = None
    num_layers: int | None = None
    top_k: int | None = None
    moe_layers: Sequence[int] | str | None = None
    zero_rows: str = "error"
    missing: int | None = None
    lengths: Sequence[int] | None = None
    prompt_tokens: int | Sequence[int] | None = None
    prompt_start: int | None = None
    part: str = "all"
    stitch: str = "proved"
    datasets: str | Sequence[str] | None = None
    meta: dict[str, Any] | None = None

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                listed = ", ".join(map(repr, choices))
                raise TraceError(f"{name} is {given!r}, but must be one of {listed}")
        for name in ("num_experts", "num_layers", "top_k"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and value > 0):
                raise TraceError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if self.prompt_start is not None and not (
            _is_int(self.prompt_start) and self.prompt_start >= 0
        ):
            raise TraceError(f"prompt_start is {self.prompt_start!r}, but must count tokens")

    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not f.default]


CHOICES = {
    "zero_rows": ("error", "none", "expert"),
    "part": ("all", "prompt", "completion"),
    "stitch": ("proved", "order", "none"),
}


@dataclass(frozen=True)
class Format:
    """A kind of log: how it is known, how it is read, and which options only it takes."""

    about: str
    read: Callable[[Any, str, Options], Log]
    options: tuple[str, ...] = ()


def name_of(source: Any) -> str:
    """What messages call a source: its file name, or its type."""
    if isinstance(source, str | Path):
        return Path(source).name
    return f"the {type(source).__name__} given"


def _is_int(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
