"""Texts to route: corpora by name or your own, and their packing into sequences.

`sequences` is the door: it takes the embedded corpus, the paper's eleven, local files or what the
library ``datasets`` has loaded, and returns token sequences that `lrc.record` runs. `inputs_for`
makes of them what the paper feeds an encoder-decoder model.
"""

from lrc.corpora.corpus_sequences import Sequences, SequenceStream, sequences
from lrc.corpora.embedded_corpus import DOMAINS, embedded
from lrc.corpora.packing import SEQUENCE_LENGTH, CorpusError, pack
from lrc.corpora.paper_corpora import PAPER, SEQUENCES_PER_DOMAIN, PaperCorpus
from lrc.corpora.seq2seq_inputs import MASKED_SPANS, copies, inputs_for, masked_spans, pairs

__all__ = [
    "DOMAINS",
    "MASKED_SPANS",
    "PAPER",
    "SEQUENCES_PER_DOMAIN",
    "SEQUENCE_LENGTH",
    "CorpusError",
    "PaperCorpus",
    "SequenceStream",
    "Sequences",
    "copies",
    "embedded",
    "inputs_for",
    "masked_spans",
    "pack",
    "pairs",
    "sequences",
]
