"""How often each expert is the first choice for each token id: all that vocabulary measures need.

Counts say nothing about the order of tokens, so they can be shared where a text cannot.
"""

import json
import os
import tempfile
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lrc.arguments import check_trace
from lrc.errors import LrcError, TraceError
from lrc.trace import Trace

__all__ = ["KINDS", "TokenCounts", "load_token_counts", "token_counts"]

KINDS = ("in", "predicted", "next")

_VERSION = 1
_COLUMNS: dict[str, Any] = {
    "kind": np.int8,
    "layer": np.int16,
    "token_id": np.int32,
    "expert": np.int16,
    "count": np.int32,
}
_KEY = ["kind", "layer", "token_id", "expert"]


class TokenCounts:
    """Counts of first-choice experts per layer and token id. Build them with `token_counts`.

    Attributes
    ----------
    table : DataFrame
        A row for every count above 0: kind (position in `KINDS`), layer, token_id, expert, count;
        sorted in this order. Kind "in" counts a token's own id, "predicted" the id the model
        predicts there, "next" the id that really follows.
    kinds : tuple of str
        Kinds that were counted.
    num_layers, num_experts : int
    min_count : int
        Token ids counted fewer times in a layer were dropped; 1 = everything is there.
    """

    def __init__(self, table, kinds, num_layers, num_experts, min_count=1):
        self.table = table
        self.kinds = tuple(kinds)
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.min_count = min_count

    def frequent(self, min_count: int) -> "TokenCounts":
        """Counts of those token ids only that were counted at least `min_count` times in a layer.

        Measures of vocabulary specialization leave out rarer ids anyway, and files get smaller.
        """
        if min_count < self.min_count:
            raise LrcError(
                f"these counts hold only token ids counted {self.min_count} times or more, so "
                f"min_count={min_count} cannot be met: count the trace again with a lower min_count"
            )
        total = self.table.groupby(_KEY[:3])["count"].transform("sum")
        kept = self.table[total >= min_count].reset_index(drop=True)
        return TokenCounts(kept, self.kinds, self.num_layers, self.num_experts, min_count)

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        """Counts of two parts of one corpus together; exact, in any order."""
        mine = (self.kinds, self.num_layers, self.num_experts)
        if mine != (other.kinds, other.num_layers, other.num_experts):
            raise LrcError(f"counts do not fit together: {self!r} and {other!r}")
        if self.min_count > 1 or other.min_count > 1:
            raise LrcError(
                "counts without their rare token ids cannot be added: add first, then keep the "
                "frequent ones (counts.frequent)"
            )
        both = pd.concat([self.table, other.table])
        table = both.groupby(_KEY, as_index=False)["count"].sum()
        if table["count"].max() > np.iinfo(_COLUMNS["count"]).max:
            raise LrcError("a token id was counted more than 2,147,483,647 times: keep parts apart")
        table = table.astype(_COLUMNS)
        return TokenCounts(table, *mine)

    def share(self, kind: str) -> pd.DataFrame:
        """Main expert of each token id in each layer, and the share of the id's uses it takes.

        Parameters
        ----------
        kind : str
            One of `kinds`.

        Returns
        -------
        DataFrame
            layer, token_id, expert, share, uses; of equally used experts the lowest id.
        """
        if kind not in self.kinds:
            raise LrcError(f"kind {kind!r} was not counted: there are {', '.join(self.kinds)}")
        table = self.table[self.table["kind"] == KINDS.index(kind)]
        uses = table.groupby(["layer", "token_id"])["count"].sum().to_numpy()
        order = np.lexsort(
            [table["expert"], -table["count"].to_numpy(), table["token_id"], table["layer"]]
        )
        main = table.iloc[order].drop_duplicates(["layer", "token_id"])
        shares = main["count"].to_numpy() / uses
        main = main[["layer", "token_id", "expert"]].reset_index(drop=True)
        return main.assign(share=shares, uses=uses)

    def save(self, path: str | PathLike) -> None:
        """Write a Parquet file, whole or not at all; `load_token_counts` reads it back."""
        path = Path(path)
        if not path.parent.is_dir():
            raise TraceError(f"{path}: folder {path.parent} does not exist; create it")
        header = {
            "version": _VERSION,
            "kinds": list(self.kinds),
            "num_layers": self.num_layers,
            "num_experts": self.num_experts,
            "min_count": self.min_count,
        }
        header["checksum"] = _checksum(header, self.table)
        schema = pa.schema([(name, pa.from_numpy_dtype(kind)) for name, kind in _COLUMNS.items()])
        table = pa.Table.from_pandas(self.table, schema=schema, preserve_index=False)
        table = table.replace_schema_metadata({"lrc_token_counts": json.dumps(header)})
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                # Small integers: their low bytes compress well once they lie side by side.
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    compression_level=19,
                    use_dictionary=False,
                    use_byte_stream_split=["layer", "token_id", "expert", "count"],
                    write_statistics=False,
                )
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def __repr__(self) -> str:
        kinds = ", ".join(self.kinds)
        shape = f"{self.num_layers} x {self.num_experts} experts"
        return f"<lrc.TokenCounts: {kinds}; {len(self.table):,} counts over {shape}>"


def token_counts(trace: Trace, *, min_count: int = 1) -> TokenCounts:
    """Count how often each expert is the first choice for each token id.

    The first choice is slot 0, the routed expert with the highest router weight. Where it is -1,
    and where a token id is unknown (-1), nothing is counted. The last token of a sequence has no
    next one.

    Parameters
    ----------
    trace : Trace
        With ``token_ids`` (kinds "in" and "next"), ``predicted_ids`` (kind "predicted"), or both.
    min_count : int, default 1
        Drop token ids counted fewer times in a layer.

    Returns
    -------
    TokenCounts

    Raises
    ------
    LrcError
        The trace has neither token ids nor predicted ids.
    """
    check_trace(trace)
    if trace.token_ids is None and trace.predicted_ids is None:
        raise LrcError(
            "the trace has neither token_ids nor predicted_ids: record it with them, or pass "
            "counts that were made where they are known"
        )
    ids = {}
    if trace.token_ids is not None:
        following = np.full_like(trace.token_ids, -1)
        following[:, :-1] = trace.token_ids[:, 1:]
        ids = {"in": trace.token_ids, "next": following}
    if trace.predicted_ids is not None:
        ids["predicted"] = trace.predicted_ids
    kinds = [kind for kind in KINDS if kind in ids]
    parts = [
        _count_layer(trace, ids[kind], kind, j) for kind in kinds for j in range(trace.num_layers)
    ]
    table = pd.concat(parts, ignore_index=True)
    counts = TokenCounts(table, kinds, trace.num_layers, trace.num_experts)
    return counts.frequent(min_count) if min_count > 1 else counts


def load_token_counts(path: str | PathLike) -> TokenCounts:
    """Read counts that `TokenCounts.save` wrote.

    Raises
    ------
    TraceError
        No such file, or one that holds no token counts, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        content = pq.read_table(path)
        header = json.loads((content.schema.metadata or {}).get(b"lrc_token_counts", b"null"))
        table = content.replace_schema_metadata().to_pandas()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise TraceError(f"{path}: no Parquet file, or a damaged one ({reason})") from error
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        raise TraceError(f"{path}: holds no token counts this lrc can read; make them again")
    checksum = header.pop("checksum", None)
    if list(table) != list(_COLUMNS) or checksum != _checksum(header, table):
        raise TraceError(f"{path}: damaged (its checksum differs); copy or make it again")
    del header["version"]
    return TokenCounts(table, **header)


def _count_layer(trace, ids, kind, layer):
    """Counts of one layer as rows of the table."""
    first = trace.experts[:, :, layer, 0]
    known = (ids >= 0) & (first >= 0)
    tokens, position = np.unique(ids[known], return_inverse=True)
    cells = np.bincount(
        position * trace.num_experts + first[known], minlength=len(tokens) * trace.num_experts
    )
    (used,) = cells.nonzero()
    columns = {
        "kind": KINDS.index(kind),
        "layer": layer,
        "token_id": tokens[used // trace.num_experts],
        "expert": used % trace.num_experts,
        "count": cells[used],
    }
    return pd.DataFrame(columns, index=range(len(used))).astype(_COLUMNS)


def _checksum(header, table):
    digest = blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name, kind in _COLUMNS.items():
        digest.update(np.ascontiguousarray(table[name], np.dtype(kind).newbyteorder("<")).tobytes())
    return digest.hexdigest()
