"""The trace doctor: what would make the measures of a trace say something else than they seem to.

A padded batch, a prompt shared by all texts, a model that repeats itself: each gives a perfectly
valid trace, and a number that means something else than its reader thinks. `lrc.examine` looks for
them.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import pandas as pd

from lrc.arguments import check_trace, checked_segment_lengths
from lrc.doctor import records, texts
from lrc.doctor.census import Census
from lrc.doctor.finding import Finding
from lrc.trace import Trace

__all__ = ["Finding", "Findings", "examine"]


@dataclass(frozen=True, repr=False)
class Findings:
    """What `lrc.examine` found, most serious first; prints as one line each.

    Attributes
    ----------
    findings : tuple of Finding
    trace : str
        What the trace says of itself.
    """

    findings: tuple[Finding, ...]
    trace: str

    @property
    def table(self) -> pd.DataFrame:
        """A row a finding: code, severity, where, evidence."""
        rows = [astuple(finding) for finding in self.findings]
        return pd.DataFrame(rows, columns=["code", "severity", "where", "evidence"])

    @property
    def codes(self) -> list[str]:
        """Codes of the findings, in order."""
        return [finding.code for finding in self.findings]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __repr__(self) -> str:
        count = len(self.findings)
        head = f"{count or 'no'} finding{'' if count == 1 else 's'} in {self.trace}"
        lines = [f"- {f.severity}: {f.code} ({f.where}): {f.evidence}" for f in self.findings]
        return "\n".join([head, *lines])


def examine(
    trace: Trace,
    *,
    segment_lengths=(4, 16, 64, 256),
    top_k: int | None = None,
) -> Findings:
    """Look for what would make the measures of a trace mislead.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int
        Lengths in tokens that will be measured.
    top_k : int, optional
        Experts a token uses in the model as published. Default: ``meta["model_top_k"]``, else that
        of the published model whose name ``meta["model"]`` holds, else not compared.

    Returns
    -------
    Findings
        Iterable; ``.table`` is a DataFrame with columns code, severity, where and evidence.
        "warning": measures will mislead; "note": mind it when you read them.

    Raises
    ------
    LrcError
        If `trace` is no trace, or a segment length is no length.

    Notes
    -----
    ================  ==============================================================================
    code              found if
    ================  ==============================================================================
    no_tokens         there are none
    identical         sequences of at least 16 tokens route all of them alike
    shared_prefix     sequences that are not identical route their first 32 tokens alike
    loop              at least 64 tokens in a row, and two whole periods, equal those `period`
                      tokens before, for a period up to 64: token ids where known, else the routing
                      of traces with at least 4 layers
    interleaved       experts are shared most with tokens at a lag above 1, as if texts took turns:
                      at that lag and its multiples the overlap peaks, and no smaller lag has 70 %
                      of its excess over chance (in up to 8 layers, for lags up to 32)
    zero_rows         at least 8 tokens in a row use expert 0, and no other, in every layer
    empty_layers      a layer holds no expert for any token
    empty_tokens      tokens hold no expert in any layer
    empty_rows        other tokens hold no expert in some layer (a note: capacity drops tokens)
    top_k             a slot is never used, or the model has more of them than the trace
    unused_experts    experts never used in a layer where a fair share would be 20 uses
    small_domains     domains of fewer than 1,000 tokens (a note)
    short_sequences   sequences shorter than a segment, which give none (a note)
    ================  ==============================================================================

    One pass over all slots and one over those of 8 layers; the rest is linear in tokens.

    Examples
    --------
    >>> lrc.examine(lrc.Trace([[[[0, 1]]] * 20] * 2, num_experts=2), segment_lengths=16)
    1 finding in <lrc.Trace: 2 sequences, 40 tokens, 1 layer, top-2 of 2 experts>
    - warning: identical (sequences 0 = 1): all 20 tokens alike; 1 of 2 sequences repeats another
    """
    check_trace(trace)
    lengths = checked_segment_lengths(segment_lengths)
    if not trace.num_tokens:
        return Findings((records.no_tokens(trace),), repr(trace))
    census = Census.of(trace)
    found = [
        texts.identical(trace, census),
        texts.shared_prefix(trace, census),
        texts.loop(trace, census),
        texts.interleaved(trace, census),
        records.zero_rows(trace, census),
        records.empty_layers(trace, census),
        records.empty_tokens(trace, census),
        records.too_few_slots(trace, census, top_k),
        records.unused_experts(trace, census),
        records.empty_rows(trace, census),
        records.small_domains(trace),
        records.short_sequences(trace, lengths),
    ]
    return Findings(tuple(finding for finding in found if finding is not None), repr(trace))
