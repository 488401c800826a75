"""Packing of documents into sequences, against the plain rule for each habit of tokenizers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import HABITS, LETTERS, tiny_tokenizer

from lrc import corpora
from lrc.corpora import CorpusError, packing

TOKENIZERS = {habit: tiny_tokenizer(habit) for habit in HABITS}
DOCUMENTS = st.lists(st.text(LETTERS[:-1], min_size=1, max_size=30), max_size=12)


def plain_pack(documents, tokenizer, length, *, language):
    """Append token by token, as the paper's program goes about it."""
    done, current = [], []
    for document in documents:
        ids = tokenizer(document)["input_ids"]
        if ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        for place, token in enumerate(ids):
            if language and place == 0 and current:
                continue  # Only the first token of a sequence names the language.
            current.append(token)
            if len(current) == length:
                done.append(current)
                current = current[:1] if language else []
    return done


@pytest.mark.parametrize("habit", HABITS)
@given(documents=DOCUMENTS, length=st.integers(2, 40), batch=st.integers(1, 40))
def test_packs_as_the_paper_does(habit, documents, length, batch):
    tokenizer = TOKENIZERS[habit]
    plain = plain_pack(documents, tokenizer, length, language=habit == "nllb")
    with pytest.MonkeyPatch.context() as patch:  # Batches end anywhere; results do not change.
        patch.setattr(packing, "_BATCH_CHARACTERS", batch)
        made = corpora.pack(documents, tokenizer, length)
    assert made.dtype == np.int32
    assert made.shape == (len(plain), length)
    assert made.tolist() == plain


def test_the_tokenizers_have_the_habits_they_are_named_for():
    opened, closed = (
        {
            habit
            for habit, tokenizer in TOKENIZERS.items()
            if tokenizer(["ab"])["input_ids"][0][place] in tokenizer.all_special_ids
        }
        for place in (0, -1)
    )
    assert opened == {"bos", "both", "nllb"}
    assert closed == {"eos", "both", "t5", "nllb"}


def test_language_token_opens_every_sequence_and_stands_nowhere_else():
    tokenizer = tiny_tokenizer("nllb")
    tokenizer.src_lang = "fra_Latn"
    made = corpora.pack(["abc"] * 20, tokenizer, 7)
    assert (made[:, 0] == tokenizer.convert_tokens_to_ids("fra_Latn")).all()
    assert not np.isin(made[:, 1:], made[0, 0]).any()


def test_reads_no_further_than_needed():
    read = []

    def documents():
        for number in range(10_000):
            read.append(number)
            yield "a" * 1_000

    rows = packing.packed(documents(), TOKENIZERS["none"], 500)
    assert next(rows).shape == (500,)
    assert len(read) <= packing._BATCH_CHARACTERS // 1_000 + 1


def test_bad_documents_and_tokenizers_end_in_one_line():
    tokenizer = tiny_tokenizer("none")
    with pytest.raises(CorpusError, match="documents are one string"):
        corpora.pack("abc", tokenizer)
    with pytest.raises(CorpusError, match="of type int, not a string"):
        corpora.pack([3], tokenizer)
    with pytest.raises(CorpusError, match="length is 1, but must be at least 2"):
        corpora.pack(["abc"], TOKENIZERS["nllb"], 1)
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="no end-of-text token"):
        corpora.pack(["a"], tokenizer)
    with pytest.raises(CorpusError, match="there is no tokenizer"):
        corpora.pack(["a"], None)
