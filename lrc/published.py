"""Published results of the local-routing-consistency paper, as tables that know their source.

Transcribed facts of "Not All Models Suit Expert Offloading" (arXiv 2505.16056) and of its public
repository. The paper changed between its versions: SCH was redefined and the cache policies are
replayed by other rules, so its cache figures exist in several *vintages* that must not be compared.

=========  ================================  ============================================
vintage    repository                        SCH and policies
=========  ================================  ============================================
pre-1.0    67eaaf6, older history            best static set per segment; 7 domains
v1.0       tag v1.0 (802dbf5, Oct 2025)      best static set per segment; 11 domains
HEAD       7b3ca46 (Dec 2025), ICLR 2026     cache with a look-ahead window; 11 domains
=========  ================================  ============================================

SRP is the same at v1.0 and HEAD.
"""

import json
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from lrc.errors import LrcError

__all__ = ["names", "table"]

_FOLDER = Path(__file__).parent / "data" / "published"

# Asked without a vintage, these tables answer with the one that stands for the published paper;
# every other table with several vintages wants to be told.
_DEFAULT_VINTAGE = {"srp_model": "v1.0"}


def names() -> list[str]:
    """Names of all tables, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.parquet"))


def table(name: str, vintage: str | None = None) -> pd.DataFrame:
    """One published table.

    Parameters
    ----------
    name : str
        One of `names`. "models" and "datasets" hold the display names and abbreviations of the
        keys that all other tables use.
    vintage : str, optional
        Keep the rows of this vintage; "all" keeps every row, told apart by column ``vintage``.
        Needed for tables that hold several ("sch_model", "sch_rho2_ci", "chr_model",
        "correlations"); "srp_model" gives "v1.0" by default, which equals HEAD.

    Returns
    -------
    DataFrame
        All rates and correlations are fractions; an empty cell (NaN) was not published.
        ``attrs`` hold ``source`` (file, commit and notebook cell), ``vintages`` (those in the
        frame), ``about`` (what to mind when reading it) and ``paper``.

    Raises
    ------
    LrcError
        Unknown table or vintage, or a table of several vintages without saying which.

    Examples
    --------
    >>> from lrc import published
    >>> sch = published.table("sch_model", vintage="HEAD")
    >>> sch.attrs["vintages"], sch["definition"].unique().tolist()
    (['HEAD'], ['future_window_cache'])
    """
    frame, note = _load(name)
    there = note["vintages"]
    labelled = "vintage" in frame
    if vintage is None and labelled and len(there) > 1:
        vintage = _DEFAULT_VINTAGE.get(name)
        if vintage is None:
            raise LrcError(
                f"published table {name!r} holds several vintages, which must not be compared: "
                f"pass vintage= one of {', '.join(there)} (or 'all')"
            )
    if vintage not in (None, "all", *there):
        raise LrcError(
            f"published table {name!r} has no vintage {vintage!r}: it holds {', '.join(there)}"
        )
    if labelled and vintage not in (None, "all"):
        frame = frame[frame["vintage"] == vintage].reset_index(drop=True)
        there = [vintage]
    frame = frame.copy()
    frame.attrs = {**note, "vintages": list(there)}
    return frame


@lru_cache
def _load(name):
    path = _FOLDER / f"{name}.parquet"
    if name not in names():
        raise LrcError(f"no published table {name!r}: there are {', '.join(names())}")
    content = pq.read_table(path)
    note = json.loads(content.schema.metadata[b"lrc"])
    return content.replace_schema_metadata().to_pandas(), note
