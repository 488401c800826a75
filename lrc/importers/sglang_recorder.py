"""Dumps of SGLang's expert distribution recorder in its mode ``per_token``.

A record is a forward pass of one rank: tokens of several requests, told apart by
``extend_seq_lens`` where prompts are run, one token a request where texts are continued. Requests
have no names, so which text a token continues is inferred from its position, as far as that proves
it:

- a run of prompt tokens begins a text of its own. (One that starts past position 0 may continue a
  prompt run in parts, or one found in the cache: the log does not tell, so it stays apart.)
- in a pass that continues texts, every running text has a token; one that has none is finished.
- a token continues the text whose next position it has, if it is the only such token and that the
  only such text, and if every token of the pass continues some text. Else texts began before the
  recording did, and a match might be another text's end.

``stitch="order"`` also takes equal positions in the order of the batch, which SGLang keeps but the
log does not prove.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes
from lrc.importers.npy import as_count, as_ids, as_list, load_torch

# ForwardMode of SGLang: prompts, continuations, both in one pass, nothing.
EXTEND, DECODE, MIXED, IDLE = 1, 2, 3, 4


@dataclass
class _Text:
    """Tokens known to follow one another: columns of their passes."""

    place: str
    next_position: int
    start: int
    columns: list = field(default_factory=list)
    prompt_tokens: int | None = None

    def add(self, record, first, last):
        self.columns.append((record, first, last))
        self.next_position += last - first


def read_recorder(source, name: str, options: Options) -> Log:
    """Read a dump: its file, or what `torch.load` made of it."""
    if isinstance(source, Path):
        source = load_torch(source)
    if not isinstance(source, dict) or not isinstance(source.get("records"), list):
        raise TraceError(f"{name}: has no list of records, as SGLang's recorder writes it")
    records = [
        _checked(record, f"{name}, record {i}") for i, record in enumerate(source["records"])
    ]
    records = [record for record in records if len(record["positions"])]
    if not records:
        raise TraceError(f"{name}: holds no records")
    logical = _logical(source.get("last_physical_to_logical_map"), name)
    used = np.zeros(records[0]["ids"].shape[2], bool)
    for record in records:
        used |= (record["ids"] >= 0).any(axis=(0, 1))
        record["ids"] = _map(record["ids"], logical, record["place"])
    # The recorder has eight slots whatever the model's top-k.
    width = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 1
    texts = [text for rank in _ranks(records) for text in _stitch(rank, options.stitch)]
    routes = [_routes(text, width) for text in texts]
    pieces = sum(text.start > 0 for text in texts)
    return Log(
        routes,
        "sglang-recorder",
        None if logical is None else int(logical.max()) + 1,
        meta={"incomplete_sequences": pieces} if pieces else {},
    )


def _checked(record, place):
    """A record with its arrays, or the reason why it is none of mode per_token."""
    if not isinstance(record, dict):
        raise TraceError(f"{place}: is no record")
    if "topk_ids_of_layer" not in record:
        raise TraceError(
            f"{place}: has no topk_ids_of_layer: record with "
            "--expert-distribution-recorder-mode per_token"
        )
    mode = record.get("forward_mode")
    if mode not in (None, EXTEND, DECODE, MIXED, IDLE):
        raise TraceError(
            f"{place}: has forward mode {mode}: with speculative decoding, rejected tokens are "
            "recorded like all others, so the log is no text"
        )
    ids = as_ids(record["topk_ids_of_layer"], f"{place}, topk_ids_of_layer")
    tokens, positions = (
        as_ids(record.get(key, []), f"{place}, {key}") for key in ("input_ids", "positions")
    )
    lengths = as_list(record.get("extend_seq_lens"), f"{place}, extend_seq_lens")
    if ids.ndim != 3 or tokens.ndim != 1 or positions.shape != tokens.shape:
        raise TraceError(f"{place}: its tokens, positions and ids do not fit together")
    if ids.shape[1] != len(tokens):
        raise TraceError(
            f"{place}: topk_ids_of_layer has shape {list(ids.shape)}, but must be "
            f"[layers, tokens, slots] with {len(tokens)} tokens"
        )
    if lengths is not None and sum(lengths) != len(tokens):
        raise TraceError(f"{place}: extend_seq_lens sums up to {sum(lengths)}, not {len(tokens)}")
    return {
        "ids": ids,
        "tokens": tokens,
        "positions": positions,
        "lengths": lengths,
        "place": place,
        "rank": as_count(record.get("rank", 0), f"{place}, rank"),
        "pass": as_count(record.get("forward_pass_id", 0), f"{place}, forward_pass_id") or 0,
    }


def _logical(table, name):
    if table is None:
        return None
    table = as_ids(table, f"{name}, last_physical_to_logical_map")
    count = int(table.max(initial=-1)) + 1
    for layer, row in enumerate(np.atleast_2d(table)):
        if not np.array_equal(np.unique(row), np.arange(count)):
            raise TraceError(
                f"{name}, last_physical_to_logical_map: layer {layer} does not hold all of the "
                f"{count} experts"
            )
    return np.atleast_2d(table)


def _map(ids, logical, place):
    """Logical experts of physical ones."""
    if logical is None:
        return ids
    if len(logical) != len(ids):
        raise TraceError(f"{place}: has {len(ids)} layers, but the physical map {len(logical)}")
    if ids.max(initial=-1) >= logical.shape[1]:
        raise TraceError(
            f"{place}: holds id {ids.max()}, but there are {logical.shape[1]} physical experts; "
            "if shared experts are fused into the routed ones, record without that"
        )
    rows = np.arange(len(ids))[:, None, None]
    return np.where(ids >= 0, logical[rows, np.maximum(ids, 0)], ids)


def _ranks(records):
    """Records of each rank in order; of ranks that recorded the same, one."""
    ranks = {}
    for record in records:
        ranks.setdefault(record["rank"], []).append(record)
    kept = []
    for own in ranks.values():
        own.sort(key=lambda record: record["pass"])
        if not any(_same(own, other) for other in kept):
            kept.append(own)
    return kept


def _same(these, those):
    return len(these) == len(those) and all(
        a["pass"] == b["pass"]
        and np.array_equal(a["tokens"], b["tokens"])
        and np.array_equal(a["positions"], b["positions"])
        and np.array_equal(a["ids"], b["ids"])
        for a, b in zip(these, those, strict=True)
    )


def _stitch(records, how):
    """Texts of one rank, in the order in which they begin."""
    texts, prompts, running = [], [], []  # all; those not continued yet; those in the last pass
    for record in records:
        if record["lengths"] is not None:
            prompts += (new := _begin(record, record["lengths"]))
            for text in new:
                text.prompt_tokens = text.next_position
        else:
            found = _continued(record["positions"], running + prompts, how)
            # Texts of which nothing was known before begin here.
            new = [
                text
                for column, (old, text) in enumerate(
                    zip(found, _begin(record, [1] * len(found)), strict=True)
                )
                if old is None or old.add(record, column, column + 1)
            ]
            known = iter(new)
            running = [next(known) if text is None else text for text in found]
            taken = {id(text) for text in running}
            prompts = [text for text in prompts if id(text) not in taken]
        texts += new
    return texts


def _begin(record, lengths):
    texts, first = [], 0
    for length in lengths:
        start = int(record["positions"][first]) if length else 0
        run = record["positions"][first : first + length]
        if not np.array_equal(run, np.arange(start, start + length)):
            raise TraceError(f"{record['place']}: positions of a request do not follow on")
        text = _Text(f"{record['place']}, token {first}", start, start)
        text.add(record, first, first + length)
        texts += [text] if length else []
        first += length
    return texts


def _continued(positions, texts, how):
    """The text that each token of a pass continues, or None."""
    waiting = {}
    for text in texts:
        waiting.setdefault(text.next_position, []).append(text)
    asking = {}
    for column, position in enumerate(positions.tolist()):
        asking.setdefault(position, []).append(column)
    found = [None] * len(positions)
    if how == "none" or not asking.keys() <= waiting.keys():
        return found
    for position, columns in asking.items():
        if len(columns) == len(waiting[position]) and (how == "order" or len(columns) == 1):
            for column, text in zip(columns, waiting[position], strict=True):
                found[column] = text
    return found


def _routes(text, width):
    parts = [
        (record["ids"][:, first:last, :width].swapaxes(0, 1), record["tokens"][first:last])
        for record, first, last in text.columns
    ]
    return Routes(
        np.concatenate([ids for ids, _ in parts]),
        text.place,
        token_ids=np.concatenate([tokens for _, tokens in parts]),
        # Where a text's beginning is missing, so may be the end of its prompt.
        prompt_tokens=text.prompt_tokens,
        start=text.start,
    )
