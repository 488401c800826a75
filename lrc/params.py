"""The parameters of a notebook: declared once, checked before anything is computed.

A notebook declares its parameters in one cell, a line each, ``name: type = default  # help``.
papermill puts the values of a run into a cell of its own right below. It accepts any name, warns
of a misspelt one in its log and goes on with the default; :func:`lrc.check_parameters`, called
next, ends such a run with one line instead.
"""

import ast
import difflib
import io
import sys
import tokenize
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrc.errors import LrcError

_UNKNOWN = object()


class ParameterError(LrcError):
    """A notebook's parameter is misspelt, or its value cannot be used."""

    def _render_traceback_(self) -> list[str]:
        # IPython and Jupyter show this in place of a traceback: the fault lies in the call.
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; None is no bound."""

    low: float | None = None
    high: float | None = None

    def __contains__(self, value: Any) -> bool:
        # Written so that NaN lies in no interval.
        above = self.low is None or value >= self.low
        return above and (self.high is None or value <= self.high) and value == value

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low}"
        if self.low is None:
            return f"at most {self.high}"
        return f"from {self.low} to {self.high}"


def between(low: float, high: float) -> Interval:
    """A rule for :func:`lrc.check_parameters`: a number from `low` to `high`, both included."""
    return Interval(low, high)


def at_least(low: float) -> Interval:
    """A rule for :func:`lrc.check_parameters`: a number not below `low`."""
    return Interval(low)


def check_parameters(**rules: Interval | range | Collection) -> None:
    """Check the parameters of the calling notebook; call it right after its parameters cell.

    Values are compared with the declared types. What the command line cannot express is
    converted in place: ``-p segment_lengths 4,16`` or ``-p segment_lengths 16`` becomes a list or
    tuple where one is declared, an int becomes a float.

    Parameters
    ----------
    **rules
        What a parameter may be, beyond its type: :func:`lrc.params.between` or
        :func:`lrc.params.at_least`, a `range`, or a collection of choices. For a list or tuple,
        what each of its items may be.

    Raises
    ------
    ParameterError
        A value was given for a parameter that does not exist, or a value has the wrong type or
        breaks a rule. The message names every such parameter, in one line.

    Examples
    --------
    >>> lrc.check_parameters(segment_length=lrc.at_least(1), policy=("lru", "lfu", "belady"))
    """
    namespace = sys._getframe(1).f_globals
    declared, given = _read_cells(_cells_run(), namespace)
    if not declared:
        raise LrcError(
            "found no parameters: a cell of `name: type = default  # help` lines must come "
            "before check_parameters"
        )
    if strange := [name for name in rules if name not in declared]:
        raise LrcError(f"check_parameters has a rule for {strange[0]!r}, which no cell declares")

    faults = [_misspelt(name, declared) for name in given if name not in declared]
    for name, parameter in declared.items():
        try:
            value = _convert(namespace[name], parameter.annotation)
            _obey(value, rules.get(name))
        except (TypeError, ValueError) as error:
            faults.append(f"{name} must be {error}, not {namespace[name]!r}{parameter.note}")
        else:
            namespace[name] = value
    if faults:
        raise ParameterError("; ".join(faults))


def resolve_trace(source: str, *, parameter: str = "trace"):
    """Load the trace that a notebook's parameter names.

    Parameters
    ----------
    source
        ``toy:NAME`` or ``toy:NAME:SEED``, a shipped trace of a toy model; ``public:NAME``, a trace
        of a real model that others published (`lrc.public_traces`), fetched if it is not here; or
        the path of a trace that `Trace.save` or `lrc.record` wrote, or of a log that
        `lrc.load_routes` reads.
    parameter
        Name of the parameter, for the error message.

    Returns
    -------
    lrc.Trace

    Raises
    ------
    ParameterError
        There is no such toy, public trace or file, or the file holds no valid trace.
    """
    text = str(source)
    if text.startswith("toy:"):
        return _shipped("load_trace", text, parameter)
    if text.startswith("public:"):
        from lrc import public_traces

        try:
            return public_traces.load(text.removeprefix("public:"))
        except LrcError as error:
            raise ParameterError(f"{parameter}: {error}") from error

    path = Path(text).expanduser()
    if not path.exists():
        raise ParameterError(
            f"{parameter}: there is no file {text!r} in {Path.cwd()}; give the path of a trace "
            "file, toy:NAME for one of the shipped toy models, such as toy:baseline, or "
            "public:NAME for a published trace, such as public:deepseek-v2-lite"
        )
    try:
        return _read_trace(path)
    except LrcError as error:
        raise ParameterError(f"{parameter}: {error}") from error


def _read_trace(path: Path):
    """A trace file of ours, or a log of an engine."""
    foreign = False
    if path.is_file():
        with open(path, "rb") as file:
            foreign = file.read(4) != b"PAR1"
    if foreign:
        from lrc.importers import load_routes

        return load_routes(path)
    from lrc.trace_file import load_trace

    return load_trace(path)


def resolve_counts(source: str, trace: str = "", *, parameter: str = "counts"):
    """Load the token counts that a notebook's parameter names, or those that come with its trace.

    Parameters
    ----------
    source
        Path of a file that `TokenCounts.save` wrote, or ``toy:NAME`` or ``toy:NAME:SEED``; empty
        for what comes with the trace.
    trace
        What the notebook's trace was loaded from, see `resolve_trace`.
    parameter
        Name of the parameter, for the error message.

    Returns
    -------
    TokenCounts or None
        None where `source` is empty and the trace is no toy's. A trace with token ids needs no
        counts: `lrc.specialization` counts them itself.

    Raises
    ------
    ParameterError
        There is no such toy or file, or the file holds no token counts.
    """
    text = str(source) or (str(trace) if str(trace).startswith("toy:") else "")
    if not text:
        return None
    if text.startswith("toy:"):
        return _shipped("load_counts", text, parameter)
    from lrc.vocabulary import load_token_counts

    try:
        return load_token_counts(Path(text).expanduser())
    except LrcError as error:
        raise ParameterError(f"{parameter}: {error}") from error


def _shipped(load: str, text: str, parameter: str):
    """Load what `lrc.toys` ships of toy:NAME or toy:NAME:SEED, by its function of that name."""
    name, _, seed = text.removeprefix("toy:").partition(":")
    if seed and not seed.isdecimal():
        raise ParameterError(f"{parameter}: the seed of {text!r} is no whole number")
    from lrc import toys

    try:
        return getattr(toys, load)(name, seed=int(seed or 0))
    except LrcError as error:
        raise ParameterError(f"{parameter}: {error}") from error


@dataclass(frozen=True)
class _Parameter:
    annotation: Any
    default: str = ""
    help: str = ""

    @property
    def note(self) -> str:
        default = f" (default {self.default})" if self.default else ""
        return default + (f": {self.help}" if self.help else "")


def _cells_run() -> list[str]:
    """Return the cells that this kernel has run, oldest first; none outside IPython.

    nbval runs cells without entering them into the history: there it is empty.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return list(shell.user_ns.get("In", ())) if shell else []


def _read_cells(
    cells: list[str], namespace: dict[str, Any]
) -> tuple[dict[str, _Parameter], list[str]]:
    """Find the declared parameters, and the names that papermill gave values for."""
    given: list[str] = []
    for cell in reversed(cells):
        try:
            statements = ast.parse(cell).body
        except SyntaxError:
            continue
        declared = [line for line in statements if isinstance(line, ast.AnnAssign)]
        if declared and len(declared) == len(statements):
            return _declared(cell, declared, namespace), given
        if cell.lstrip().startswith("# Parameters"):
            names = [line.targets[0] for line in statements if isinstance(line, ast.Assign)]
            given = [name.id for name in names if isinstance(name, ast.Name)]
    # A plain script, or nbval: types are known, names given from outside do not exist.
    annotations: Mapping[str, Any] = namespace.get("__annotations__", {})
    return {name: _Parameter(kind) for name, kind in annotations.items()}, given


def _declared(
    cell: str, statements: list[ast.AnnAssign], namespace: dict[str, Any]
) -> dict[str, _Parameter]:
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(cell).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for line in statements:
        kind = eval(ast.unparse(line.annotation), namespace)
        default = ast.unparse(line.value) if line.value else ""
        comment = comments.get(line.end_lineno or line.lineno, "")
        found[ast.unparse(line.target)] = _Parameter(kind, default, comment)
    return found


def _misspelt(name: str, declared: Collection[str]) -> str:
    close = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no parameter {name!r} ({hint}this notebook takes {', '.join(declared)})"


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as the declared type; TypeError says what it must be."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(value, option)
            except TypeError:
                continue
    elif kind in (None, types.NoneType):
        if value is None:
            return None
    elif origin in (list, tuple):
        items = _items(value)
        wanted = arguments[0] if arguments else object
        try:
            return origin(_convert(item, wanted) for item in items)
        except TypeError:
            pass
    elif isinstance(value, bool):
        if kind in (bool, object):
            return value
    elif kind is float and isinstance(value, int):
        return float(value)
    elif isinstance(value, origin):
        return value
    if kind is str and isinstance(value, int | float):
        raise TypeError("str (papermill's -r passes text as it is)")
    raise TypeError(kind.__name__ if isinstance(kind, type) and not arguments else str(kind))


def _items(value: Any) -> Collection:
    """Return the items of a list, also of one typed on a command line as 4,16 or [4, 16]."""
    if isinstance(value, str):
        inner = value.strip().strip("[]()")
        try:
            value = ast.literal_eval(f"[{inner}]")
        except (SyntaxError, ValueError):
            value = [part.strip() for part in inner.split(",")]
    return value if isinstance(value, list | tuple) else [value]


def _obey(value: Any, rule: Interval | range | Collection | None) -> None:
    """Raise ValueError, which says what `value` must be, where it breaks the rule."""
    if rule is None or value is None:
        return
    several = isinstance(value, list | tuple)
    if several and not value:
        raise ValueError("at least one value")
    if all(item in rule for item in (value if several else [value])):
        return
    if isinstance(rule, range):
        rule = Interval(rule.start, rule.stop - 1)
    text = str(rule) if isinstance(rule, Interval) else f"one of {', '.join(map(str, rule))}"
    raise ValueError(text)
