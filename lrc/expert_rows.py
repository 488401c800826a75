"""Which tokens an expert received, told from the rows it was called with.

Experts that are modules of their own are handed a selection of the rows of their layer's input, and
nobody says which. But the rows are copies, so their bits name them: a few columns are enough to
tell most tokens apart, and where they are not, all columns are compared.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from lrc.errors import RecordError

# Columns that make a key. Eight numbers of 16 or 32 bits hardly ever coincide by chance.
_COLUMNS = 8


def match_rows(
    tokens: torch.Tensor, received: list[tuple[int, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the token that each row received by an expert is a copy of.

    Parameters
    ----------
    tokens : torch.Tensor
        Input of the layer [tokens, width].
    received : list of (int, torch.Tensor)
        An expert's id and the rows [rows, width] that it was called with. Rows of zeros that are no
        token's are free places of a buffer, and left out.

    Returns
    -------
    tokens, experts : torch.Tensor
        Integers [pairs]: expert ``experts[i]`` processed token ``tokens[i]``.

    Raises
    ------
    RecordError
        A row is no token's, or identical tokens cannot be told apart although it matters.

    Notes
    -----
    Tokens whose rows are equal in all columns need the same experts, unless some were dropped for
    want of capacity. Then the others tell which: layers pick rows in the order of tokens.
    """
    device = tokens.device
    # Cast as the layer does: equal rows stay equal, and others that become so are twins, see below.
    tokens = tokens.detach().to(received[0][1].dtype) if received else tokens
    received = [(expert, rows.reshape(-1, tokens.shape[-1])) for expert, rows in received]
    received = [(expert, rows.to(device)) for expert, rows in received if len(rows)]
    if not received:
        nothing = torch.empty(0, dtype=torch.long, device=device)
        return nothing, nothing
    counts = torch.tensor([len(rows) for _, rows in received], device=device)
    experts = torch.tensor([expert for expert, _ in received], device=device)
    experts = experts.repeat_interleave(counts)
    columns = _COLUMNS
    keys = _keys(tokens, columns)
    sorted_keys, order = keys.sort(stable=True)
    twins = sorted_keys[1:] == sorted_keys[:-1]
    has_twins = bool(twins.any())
    if has_twins and not _equal_rows(tokens, order, twins):
        columns = tokens.shape[-1]
        keys = _keys(tokens, columns)
        sorted_keys, order = keys.sort(stable=True)
        twins = sorted_keys[1:] == sorted_keys[:-1]
        if not _equal_rows(tokens, order, twins):
            raise RecordError("different tokens have the same key: use a smaller batch")
    found_keys = _keys(torch.cat([_some(rows, columns) for _, rows in received]), None)
    places = torch.searchsorted(sorted_keys, found_keys).clamp_(max=len(keys) - 1)
    is_token = sorted_keys[places] == found_keys
    if not bool(is_token.all()):
        _check_free_places(received, is_token)
        places, experts = places[is_token], experts[is_token]
    if has_twins:
        places = _assign_twins(sorted_keys, order, places, experts)
    return order[places], experts


def ids_of_pairs(
    tokens: torch.Tensor, experts: torch.Tensor, num_tokens: int, num_experts: int, slots: int = 1
) -> torch.Tensor:
    """Pairs of token and expert as ids [tokens, at least slots], ascending, -1 behind the last."""
    flat = (tokens * num_experts + experts).sort().values
    twice = flat[1:] == flat[:-1]
    if bool(twice.any()):
        expert = int(flat[1:][twice][0]) % num_experts
        raise RecordError(f"expert {expert} was called with the same token twice")
    tokens, experts = flat // num_experts, flat % num_experts
    counts = torch.bincount(tokens, minlength=num_tokens)
    slots = max(slots, int(counts.max()) if num_tokens else 0)
    ids = torch.full((num_tokens, slots), -1, dtype=torch.long, device=flat.device)
    starts = counts.cumsum(0) - counts
    ids[tokens, torch.arange(len(flat), device=flat.device) - starts[tokens]] = experts
    return ids


def _some(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Evenly spread columns of rows."""
    width = rows.shape[-1]
    return rows[:, :: max(1, width // columns)][:, : min(columns, width)]


def _keys(rows: torch.Tensor, columns: int | None) -> torch.Tensor:
    """A number [rows] from the bits of `columns` columns (None: of all); it wraps around."""
    some = rows if columns is None else _some(rows, columns)
    # + 0 because -0.0 and 0.0 are one number: a product with a one-hot matrix may turn the sign.
    bits = (some.detach() + 0).contiguous()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]
    factors = torch.tensor(
        [_wrapped(0x9E3779B97F4A7C15 * (2 * i + 1) ** 3) for i in range(bits.shape[-1])],
        device=rows.device,
    )
    return (bits.view(integer).long() * factors).sum(dim=-1)


def _wrapped(number: int) -> int:
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number


def _equal_rows(tokens, order, twins) -> bool:
    """Whether neighbours in `order` that have the same key are equal in all columns."""
    at = twins.nonzero().flatten()
    return bool((tokens[order[at]] == tokens[order[at + 1]]).all())


def _check_free_places(received, is_token):
    start = 0
    for expert, rows in received:
        strange = rows[~is_token[start : start + len(rows)]]
        start += len(rows)
        if strange.count_nonzero():
            raise RecordError(
                f"expert {expert} was called with rows that are no tokens of its layer: the layer "
                "changes tokens before its experts see them, and needs an adapter"
            )


def _assign_twins(sorted_keys, order, places, experts):
    """Give each of several equal rows a token of its own, among the tokens equal to it."""
    sizes = torch.searchsorted(sorted_keys, sorted_keys, right=True) - torch.searchsorted(
        sorted_keys, sorted_keys
    )
    sizes = sizes[places]
    assigned = places.clone()
    for expert in experts[sizes > 1].unique().tolist():
        mine = (experts == expert).nonzero().flatten()
        # In the order of the rows: where each group of equal tokens starts, and its size.
        starts, groups = places[mine].tolist(), sizes[mine].tolist()
        tokens = [
            int(order[start]) if size == 1 else None
            for start, size in zip(starts, groups, strict=True)
        ]
        for start in {start for start, size in zip(starts, groups, strict=True) if size > 1}:
            at = [i for i, other in enumerate(starts) if other == start]
            twins = order[start : start + groups[at[0]]].tolist()
            for i, twin in zip(at, _pick(at, twins, tokens, expert), strict=True):
                assigned[mine[i]] = start + twins.index(twin)
    return assigned


def _pick(at, twins, tokens, expert):
    """Which of the equal tokens `twins` the rows `at` are; `tokens` are the rows known for sure."""
    if len(at) == len(twins):
        return twins
    known = [token for token in tokens if token is not None]
    if len(at) < len(twins) and all(a < b for a, b in pairwise(known)):
        before = [max((t for t in tokens[:i] if t is not None), default=-1) for i in at]
        after = [
            min((t for t in tokens[i + 1 :] if t is not None), default=max(twins) + 1) for i in at
        ]
        picked = []
        for low, high in sorted(set(zip(before, after, strict=True))):
            between = [twin for twin in twins if low < twin < high]
            if len(between) == sum(b == low for b in before):
                picked += between
        if len(picked) == len(at):
            return picked
    raise RecordError(
        f"expert {expert} received {len(at)} of {len(twins)} identical tokens, and nothing tells "
        "which: record fewer sequences at a time"
    )
