"""Inputs of encoder-decoder models: spans go back where they came from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import tiny_tokenizer
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

import lrc
from lrc import corpora
from lrc.corpora import CorpusError, Sequences, seq2seq_inputs

T5 = tiny_tokenizer("t5")
SENTINELS = [T5.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)]
START = T5.pad_token_id


def reassemble(inputs, target):
    """Put each span back in place of its sentinel: from the definition, token by token."""
    spans, current = {}, None
    for token in target:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text = []
    for token in inputs:
        text += spans[token] if token in SENTINELS else [token]
    return text, spans


def batch_texts(batch):
    """Text behind each row of a batch, found without its padding."""
    for row in range(len(batch["input_ids"])):
        inputs = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        target = batch["labels"][row][batch["labels"][row] != -100].tolist()
        yield inputs, target


def texts(sequences, tokens):
    random = np.random.default_rng(0)
    ids = random.integers(3, 31, (sequences, tokens)).astype(np.int32)  # Letters.
    return Sequences(ids, tuple("ab"[i % 2] for i in range(sequences)))


@given(
    tokens=st.integers(2, 198),  # the tokenizer has sentinels for 100 spans
    density=st.floats(0.01, 0.5),
    mean_length=st.floats(1, 10),
    seed=st.integers(0, 2**32),
)
def test_random_spans_give_the_text_back(tokens, density, mean_length, seed):
    given_texts = texts(3, tokens)
    batch = corpora.masked_spans(
        given_texts,
        T5,
        decoder_start_token_id=START,
        mask="random",
        density=density,
        mean_length=mean_length,
        seed=seed,
    )
    masked = min(max(round(tokens * density), 1), tokens - 1)
    spans = min(max(round(masked / mean_length), 1), tokens - masked)
    for (inputs, target), row in zip(batch_texts(batch), given_texts.token_ids, strict=True):
        text, found = reassemble(inputs, target)
        assert text == row.tolist()
        assert list(found) == SENTINELS[: spans + 1]  # In order, each once, one more as the end.
        lengths = [len(span) for span in found.values()]
        assert lengths[-1] == 0
        assert min(lengths[:-1]) > 0
        assert sum(lengths) == masked
        assert inputs[0] not in SENTINELS


def test_random_spans_follow_the_seed():
    def made(seed):
        batch = corpora.masked_spans(
            texts(4, 100), T5, decoder_start_token_id=START, mask="random", seed=seed
        )
        return batch["input_ids"].tolist()

    assert made(1) == made(1) != made(2)
    assert len({tuple(row) for row in made(1)}) == 4


@given(tokens=st.integers(1, 300), spans=st.integers(1, 60))
def test_even_spans_are_single_tokens_amid_equal_parts(tokens, spans):
    if spans > tokens:
        with pytest.raises(CorpusError, match=f"cannot mask {spans} of {tokens} tokens"):
            seq2seq_inputs.even_spans(tokens, spans)
        return
    starts, lengths = seq2seq_inputs.even_spans(tokens, spans)
    step = tokens // spans
    assert starts.tolist() == [part * step + step // 2 for part in range(spans)]
    assert lengths.tolist() == [1] * spans
    given_texts = texts(2, tokens)
    batch = corpora.masked_spans(given_texts, T5, decoder_start_token_id=START, spans=spans)
    for (inputs, target), row in zip(batch_texts(batch), given_texts.token_ids, strict=True):
        assert reassemble(inputs, target)[0] == row.tolist()
        assert len(inputs) == tokens


def test_masks_of_the_paper():
    given_texts = texts(3, 512)
    batch = corpora.masked_spans(given_texts, T5, decoder_start_token_id=START)
    assert batch["input_ids"].shape == (3, 512)
    assert batch["labels"].shape == (3, 65)  # 32 sentinels with a token each, and one at the end.
    places = np.flatnonzero(batch["input_ids"][0] != given_texts.token_ids[0])
    assert places.tolist() == list(range(8, 512, 16))
    assert batch["input_ids"][0, places].tolist() == SENTINELS[:32]
    assert batch["labels"][0, 0::2].tolist() == SENTINELS[:33]
    assert batch["labels"][0, 1::2].tolist() == given_texts.token_ids[0, places].tolist()
    assert batch["dataset"] == ["a", "b", "a"]


@given(
    rows=st.lists(
        st.tuples(*[st.lists(st.integers(3, 30), min_size=1, max_size=9)] * 2),
        min_size=1,
        max_size=6,
    )
)
def test_pairs_are_padded_and_shifted(rows):
    inputs, targets = zip(*rows, strict=True)
    batch = corpora.pairs(inputs, targets, decoder_start_token_id=2, datasets="news")
    for row, (source, target) in enumerate(rows):
        read = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        fed = batch["decoder_input_ids"][row][batch["decoder_attention_mask"][row] == 1]
        assert read.tolist() == source
        assert fed.tolist() == [2, *target[:-1]]
    assert list(batch_texts(batch)) == rows
    assert batch["dataset"] == ["news"] * len(rows)
    assert {array.dtype for name, array in batch.items() if name != "dataset"} == {
        np.dtype(np.int64)
    }


def test_copies_begin_with_the_language_token():
    tokenizer = tiny_tokenizer("nllb")
    packed = corpora.sequences(tokenizer, {"a": ["abc def"] * 20}, per_domain=4, length=16)
    batch = corpora.copies(packed, decoder_start_token_id=tokenizer.eos_token_id)
    english = tokenizer.convert_tokens_to_ids("eng_Latn")
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == packed.token_ids.tolist()
    assert batch["decoder_input_ids"][:, :2].tolist() == [[tokenizer.eos_token_id, english]] * 4
    assert batch["decoder_input_ids"][:, 1:].tolist() == packed.token_ids[:, :-1].tolist()


def test_translation_pairs_keep_the_language_of_the_target():
    tokenizer = tiny_tokenizer("nllb")
    tokenizer.tgt_lang = "fra_Latn"
    both = tokenizer(["abc", "a"], text_target=["de", "defg"])
    batch = corpora.pairs(
        both["input_ids"], both["labels"], decoder_start_token_id=tokenizer.eos_token_id
    )
    assert (batch["input_ids"][:, 0] == tokenizer.convert_tokens_to_ids("eng_Latn")).all()
    assert (batch["labels"][:, 0] == tokenizer.convert_tokens_to_ids("fra_Latn")).all()
    assert (batch["decoder_input_ids"][:, 1] == batch["labels"][:, 0]).all()


def test_streams_are_taken_as_they_are():
    corpus = {"a": ["abcdefgh " * 40], "b": ["hgfedcba " * 40]}
    options = {"per_domain": 2, "length": 64}
    made = [
        corpora.masked_spans(
            corpora.sequences(T5, corpus, lazy=lazy, **options), T5, decoder_start_token_id=START
        )
        for lazy in (False, True)
    ]
    assert made[0].keys() == made[1].keys()
    for name in made[0]:
        assert np.array_equal(made[0][name], made[1][name])


def switch(**changes):
    """Tiny Switch model for the tiny tokenizer, with an MoE layer in each stack."""
    options = {
        "vocab_size": len(T5),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "num_heads": 4,
        "num_experts": 4,
        "decoder_start_token_id": START,
        "pad_token_id": START,
        "eos_token_id": T5.eos_token_id,
    }
    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(**options | changes)
    ).eval()


@pytest.mark.parametrize("lazy", [False, True])
def test_record_runs_what_a_switch_model_is_fed(lazy):
    model = switch()
    corpus = {"a": ["abc def ghi " * 99], "b": ["xyz uvw " * 99]}
    options = {"per_domain": 2, "length": 128, "lazy": lazy}
    batch = corpora.inputs_for(model, T5, corpora.sequences(T5, corpus, **options))
    traces = lrc.record(model, batch, batch_size=3, progress=False)
    encoder, decoder = traces["encoder"], traces["decoder"]
    assert encoder.token_ids.tolist() == batch["input_ids"].tolist()
    assert decoder.token_ids.tolist() == batch["decoder_input_ids"].tolist()
    assert decoder.token_ids.shape == (4, 65)
    inputs = {name: torch.as_tensor(batch[name]) for name in batch if name != "dataset"}
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(-1)
    assert decoder.predicted_ids.tolist() == predicted.tolist()
    assert list(encoder.datasets) == list(decoder.datasets) == ["a", "a", "b", "b"]


def test_inputs_follow_the_model():
    decoder = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    both = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=2)
    )
    nllb = tiny_tokenizer("nllb")
    given_texts = texts(2, 64)
    assert corpora.inputs_for(decoder, T5, given_texts) is given_texts
    copied = corpora.inputs_for(both, nllb, given_texts)
    assert copied["labels"].tolist() == given_texts.token_ids.tolist()
    with pytest.raises(CorpusError, match="neither fills masked spans nor translates"):
        corpora.inputs_for(both, tiny_tokenizer("bos"), given_texts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: corpora.masked_spans(t, T5, decoder_start_token_id=0, mask="holes"), "'even'"),
        (
            lambda t: corpora.masked_spans(t, T5, decoder_start_token_id=0, spans=100),
            "100>, 101 are",
        ),
        (
            lambda t: corpora.masked_spans(t, tiny_tokenizer("bos"), decoder_start_token_id=0),
            "no sentinel <extra_id_0>",
        ),
        (
            lambda t: corpora.masked_spans(
                t, T5, decoder_start_token_id=0, mask="random", density=1
            ),
            "must lie between 0 and 1",
        ),
        (lambda t: corpora.pairs([[1]], [], decoder_start_token_id=0), "1 inputs and 0 targets"),
        (lambda t: corpora.pairs([], [], decoder_start_token_id=0), "at least one"),
        (lambda t: corpora.pairs([[1], []], [[1], [1]], decoder_start_token_id=0), "inputs 1 is"),
        (
            lambda t: corpora.pairs([[1]], [[1]], decoder_start_token_id=0, datasets=["a", "b"]),
            "2 labels for 1 pairs",
        ),
    ],
)
def test_bad_calls_end_in_one_line(call, message):
    with pytest.raises(CorpusError, match=message) as error:
        call(texts(2, 200))
    assert "\n" not in str(error.value)
