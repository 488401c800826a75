"""Routing traces of real models that others have published: found on this machine, or fetched.

Nothing of them is part of this repository. `load` looks in the folder that the environment variable
``LRC_TRACES`` names, then in the cache of earlier downloads, and only then asks the repository they
were published in, at one commit, with a checksum for each file. Names are those of `names`; where a
notebook takes a trace, it takes ``public:NAME``.

deepseek-v2-lite
    DeepSeek-V2-Lite, 26 layers, top-6 of 64 experts: 213 texts of four domains, 33,279 tokens.
    From deepseek-ai/ESFT, MIT licence; 51 MB.
gpt-oss-20b
    gpt-oss-20b, 24 layers, top-4 of 32 experts: 282 answers, 53,887 tokens; their prompts were not
    traced. From AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0; 365 MB.
phone-qwen, phone-gemma, phone-gptoss
    Qwen3-30B-A3B, Gemma-4-26B-A4B and gpt-oss-120b on a phone: one prompt and its answer each, with
    the device's own log (`metrics`). Top-k was lowered to 6, 6 and 2. From Helldez/BigMoeOnEdge,
    Apache-2.0; 3 MB.

The 282 answers are those that its recorder calls finished and free of repetitions, one for each
category of its benchmarks: the files ``True_False_examples.json``.

In ``LRC_TRACES`` a trace is a folder of its name that holds ``NAME.npz`` (arrays ``expert_ids``,
``offsets``, ``dataset``, ``num_experts``, see `lrc.load_routes`), those of phones are
``phone/qwen.route.csv`` and ``phone/qwen.metrics``; or it is the repository's files at their paths
in the repository, below a folder that has the trace's name or the repository's, such as a clone.
"""

import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from lrc.errors import LrcError, TraceError
from lrc.params import ParameterError
from lrc.trace import Trace

__all__ = ["is_here", "load", "metrics", "missing_for", "names", "require"]

_HOST = "https://raw.githubusercontent.com"
_REGISTRIES = Path(__file__).parent / "data" / "public_traces"
# Downloads at a time: most of a small file's time is waiting.
_THREADS = 4


@dataclass(frozen=True)
class _Source:
    """Where a trace was published, and how its files are read."""

    model: str
    repository: str
    commit: str
    licence: str
    megabytes: int
    # What `lrc.load_routes` is given: a path in the repository, or (None) the list of all files.
    entry: str | None
    # Sequences, tokens, layers, slots, experts: what is read must be that.
    sizes: tuple[int, int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)


_PHONE = "docs/bench-data/2026-07-15-route-trace"


def _phone(model, name, *sizes):
    commit = "2d4f2b11db128cbe32da738ce114c0479542f458"
    path = f"{_PHONE}/{name}.route.csv"
    return _Source(model, "Helldez/BigMoeOnEdge", commit, "Apache-2.0", 1, path, sizes)


_SOURCES = {
    "deepseek-v2-lite": _Source(
        "DeepSeek-V2-Lite",
        "deepseek-ai/ESFT",
        "579a7711e4b332b4c57b47e378a0cf240d85caa6",
        "MIT",
        51,
        "results/expert_scores",
        (213, 33279, 26, 6, 64),
        {"num_experts": 64, "top_k": 6},
    ),
    "gpt-oss-20b": _Source(
        "gpt-oss-20b",
        "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
        "72b368f60045221f21eeb65debb27d58de92e565",
        "Apache-2.0",
        365,
        None,
        (282, 53887, 24, 4, 32),
        {"num_experts": 32, "top_k": 4},
    ),
    "phone-qwen": _phone("Qwen3-30B-A3B", "qwen", 1, 156, 48, 6, 128),
    "phone-gemma": _phone("Gemma-4-26B-A4B", "gemma", 1, 157, 30, 6, 128),
    "phone-gptoss": _phone("gpt-oss-120b", "gptoss", 1, 149, 36, 2, 128),
}


def names() -> list[str]:
    """Names of all public traces."""
    return list(_SOURCES)


def is_here(name: str) -> bool:
    """Whether a trace is on this machine: in ``LRC_TRACES``, or downloaded before.

    Parameters
    ----------
    name : str
        One of `names`.

    Raises
    ------
    LrcError
        There is no public trace of that name.
    """
    source = _source(name)
    return any(_local_files(name, source)) or _complete(_cache(name, source), _registry(name))


def missing_for(notebook: Path) -> list[str]:
    """Public traces that a notebook needs, but that are not on this machine.

    Parameters
    ----------
    notebook : Path
        Its metadata name what it needs: ``{"lrc": {"public_traces": ["gpt-oss-20b"]}}``.
    """
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    needed = metadata.get("lrc", {}).get("public_traces", [])
    return [name for name in needed if not is_here(name)]


def require(*traces: str, download: bool = False) -> None:
    """End a notebook in one line, unless the public traces that it needs are on this machine.

    Parameters
    ----------
    *traces : str
        Some of `names`.
    download : bool, default False
        Fetch what is missing, which the user has asked for.

    Raises
    ------
    ParameterError
        Traces are missing, and were not to be fetched or could not be.
    """
    missing = [name for name in traces if not is_here(name)]
    if missing and not download:
        listed = ", ".join(f"{name} ({_source(name).megabytes} MB)" for name in missing)
        raise ParameterError(
            f"this notebook needs public traces that are not on this machine: {listed}; run it "
            "with -p download True to fetch them, or set LRC_TRACES to a folder that holds them"
        )
    for name in missing:
        try:
            _download(name, _source(name))
        except LrcError as error:
            raise ParameterError(str(error)) from error


def load(name: str) -> Trace:
    """Load a public trace; it is fetched if it is not on this machine.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Trace
        Slots in falling weight. ``meta`` tells model, repository, commit and licence. Weights are
        there where the file that was found has them.

    Raises
    ------
    LrcError
        There is no such trace, or it is not here and cannot be fetched.
    TraceError
        A file is damaged or is not what was published.

    Examples
    --------
    >>> lrc.public_traces.load("phone-qwen")  # doctest: +SKIP
    <lrc.Trace: 1 sequence, 156 tokens, 48 layers, top-6 of 128 experts>
    """
    from lrc.importers import load_routes

    source = _source(name)
    path = _copy(name, source) or _original(name, source)
    meta = {"model": source.model, "source": f"{source.repository}@{source.commit}"}
    meta["licence"] = source.licence
    try:
        trace = load_routes(path, **source.options, meta=meta)
    except TraceError as error:
        raise TraceError(f"public:{name}, {_folder(path)}: {error}") from error
    found = (len(trace.lengths), int(trace.lengths.sum()), *trace.shape[2:], trace.num_experts)
    if found != source.sizes:
        raise TraceError(
            f"public:{name}, {_folder(path)}: holds sequences, tokens, layers, slots and experts "
            f"{found}, but {source.sizes} were published: another or an incomplete file"
        )
    if trace.datasets is None:
        return trace
    # In one order, whichever files were found: what is drawn from a seed is then the same.
    return trace.select(np.argsort(trace.datasets, kind="stable"))


def metrics(name: str) -> pd.DataFrame:
    """What a phone's engine logged while it wrote its trace.

    Parameters
    ----------
    name : str
        ``phone-qwen``, ``phone-gemma`` or ``phone-gptoss``.

    Returns
    -------
    DataFrame
        A row for each generated token: step; wall_ms, io_ms, compute_ms (time of the token, of
        reading summed over threads, of computing; milliseconds), read_bytes (read from flash),
        cache_hit_pct (hit rate of the device's cache from the first token on, in percent) and what
        else the device logged. ``attrs`` hold its summary, such as cache_budget_MiB.

    Raises
    ------
    LrcError
        There is no such log, or it is not here and cannot be fetched.
    TraceError
        The log is damaged.
    """
    source = _source(name)
    if not name.startswith("phone-"):
        phones = ", ".join(other for other in names() if other.startswith("phone-"))
        raise LrcError(f"public trace {name!r} comes without a device's log; those of {phones} do")
    path = _copy(name, source) or _original(name, source)
    path = path.with_name(path.name.replace(".route.csv", ".metrics"))
    try:
        table = pd.read_csv(path, comment="#")
        last = path.read_text(encoding="utf-8").rpartition("# summary ")[2]
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from error
    if not {"wall_ms", "read_bytes", "cache_hit_pct"} <= set(table) or table.isna().any(axis=None):
        raise TraceError(f"{path}: is no log of a phone's engine, or damaged")
    pairs = [word.partition("=") for word in last.split()]
    table.attrs = {key: float(value) for key, _, value in pairs if value}
    return table


def _source(name):
    if name not in _SOURCES:
        raise LrcError(f"there is no public trace {name!r}; there are {', '.join(_SOURCES)}")
    return _SOURCES[name]


def _registry(name):
    """Checksum of each of a trace's files, by path in the repository."""
    lines = (_REGISTRIES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(shlex.split(line) for line in lines)


def _local_files(name, source):
    """What is in LRC_TRACES: a copy in its short form, a folder with the repository's files."""
    return _copy(name, source), _checkout(name, source)


def _roots():
    folder = os.environ.get("LRC_TRACES", "")
    return [Path(folder).expanduser()] if folder else []


def _copy(name, source):
    short = f"{name}/{name}.npz"
    if name.startswith("phone-"):
        short = f"phone/{source.entry.rpartition('/')[2]}"
    return next((root / short for root in _roots() if (root / short).is_file()), None)


def _checkout(name, source):
    folders = (name, source.repository.rpartition("/")[2])
    for folder in (root / one for root in _roots() for one in folders):
        if _complete(folder, _registry(name)):
            return folder
    return None


def _complete(folder, registry):
    return all((folder / path).is_file() for path in registry)


def _cache(name, source):
    import pooch

    return Path(pooch.os_cache("lrc")) / "public_traces" / f"{name}-{source.commit[:7]}"


def _original(name, source):
    """The repository's files with their checksums verified: what `lrc.load_routes` is to read."""
    registry = _registry(name)
    folder = _checkout(name, source)
    if folder is None:
        folder = _download(name, source)
    else:
        import pooch

        for path, known in registry.items():
            if pooch.file_hash(str(folder / path)) != known:
                raise TraceError(
                    f"public:{name}: {folder / path} is not the file of {source.repository} at "
                    f"commit {source.commit[:7]}; check out that commit there, or unset LRC_TRACES"
                )
    return folder / source.entry if source.entry else [folder / path for path in registry]


def _download(name, source):
    """Folder of the cache with all files of a trace, fetched where they are not there."""
    import pooch
    from tqdm import tqdm

    registry = _registry(name)
    base = f"{_HOST}/{source.repository}/{source.commit}/"
    folder = _cache(name, source)
    urls = {path: base + quote(path) for path in registry}
    store = pooch.create(folder, base, registry=registry, urls=urls, retry_if_failed=1)
    # It tells of every single file; the bar below tells of all.
    pooch.get_logger().setLevel("ERROR")
    here = _complete(folder, registry)
    for path in registry:  # pooch would do so in each thread, and fail where two do it at once
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        done = pool.map(store.fetch, registry)
        for _ in tqdm(done, name, len(registry), unit="file", leave=False, disable=here):
            pass
    except (OSError, ValueError) as error:  # no connection, no such file; a wrong checksum
        reason = " ".join(str(error).split())[:160]
        raise LrcError(
            f"public trace {name!r} cannot be fetched from github.com/{source.repository} "
            f"({reason}); what has come is kept, so try again, or set LRC_TRACES to a folder that "
            "holds it (help(lrc.public_traces) says how)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return folder


def _folder(path):
    return path[0].parent if isinstance(path, list) else path
