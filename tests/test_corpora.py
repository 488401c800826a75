"""The embedded corpus, local files and packing."""

import ast
import json
import re

import numpy as np
import pandas as pd
import pytest

from lrc import corpora
from lrc.corpora import CorpusError

CHEAP = ("javascript", "readme", "licence", "translation", "mathematics")


class Characters:
    """A tokenizer whose tokens are characters: what it packs can be read back."""

    eos_token_id = 0

    def __call__(self, documents, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(character) for character in text] for text in documents]}


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_held_out_documents_are_not_trained_on(domain):
    train = corpora.embedded("train", [domain])[domain]
    held_out = corpora.embedded("held-out", [domain])[domain]
    assert not set(train) & set(held_out)
    assert sum(map(len, train)) > 400_000
    assert sum(map(len, held_out)) > 50_000


def test_embedded_corpus_is_the_same_twice():
    assert corpora.embedded("held-out", CHEAP) == corpora.embedded("held-out", CHEAP)


def test_python_domain_is_code_without_documentation():
    whole = [
        source
        for source in corpora.embedded("held-out", ["python"])["python"]
        if len(source)
        < corpora._DOCUMENT_CHARACTERS  # Longer ones are cut, often in mid-statement.
    ]
    assert len(whole) > 20
    for source in whole[:20]:
        tree = ast.parse(source)
        assert not any(corpora._has_docstring(node) for node in ast.walk(tree))


def test_worked_exercises_are_right():
    text = "\n".join(corpora.embedded("held-out", ["mathematics"])["mathematics"][:20])
    products = re.findall(r"Compute (\d+) \* (\d+)\..*= (\d+)\.", text)
    divisors = re.findall(r"so gcd\((\d+), (\d+)\) = (\d+)\.", text)
    equations = re.findall(r"Solve (\d+)x \+ (\d+) = (-?\d+)\..*x = (-?\d+)\.$", text, re.M)
    slopes = re.findall(r"= (\d+)x\^3 \+ (\d+)x\^2 \+ (\d+)x .*f'\(1\) = (\d+)\.", text)
    series = re.findall(r"series ([\d +]+)\. The sum is (\d+)", text)
    assert min(map(len, (products, divisors, equations, slopes, series))) > 10
    assert all(int(a) * int(b) == int(c) for a, b, c in products)
    assert all(np.gcd(int(a), int(b)) == int(c) for a, b, c in divisors)
    assert all(int(a) * int(x) + int(b) == int(c) for a, b, c, x in equations)
    assert all(3 * int(a) + 2 * int(b) + int(c) == int(d) for a, b, c, d in slopes)
    assert all(sum(map(int, terms.split(" + "))) == int(total) for terms, total in series)


def test_pack_concatenates_closes_and_cuts():
    packed = corpora.pack(["abcd", "ef", "ghij"], Characters(), length=5)
    assert packed.dtype == np.int32
    assert packed.tolist() == [[97, 98, 99, 100, 0], [101, 102, 0, 103, 104]]


def test_local_files_become_domains(tmp_path):
    (tmp_path / "prose.txt").write_text("a" * 40)
    records = [{"text": "b\u2028" * 15, "dataset": None}, {"text": "c" * 30, "dataset": "other"}]
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    pd.DataFrame({"text": ["d" * 50]}).to_parquet(tmp_path / "table.parquet")
    packed = corpora.sequences(Characters(), tmp_path, per_domain=3, length=10)
    assert packed.datasets == sum(((d,) * 3 for d in ("mixed", "other", "prose", "table")), ())
    assert packed.token_ids.shape == (12, 10)
    assert [chr(row[0]) for row in packed.token_ids[::3]] == ["b", "c", "a", "d"]


def test_fingerprint_tells_tokens_and_labels_apart():
    tokens = np.arange(6).reshape(2, 3)
    prints = {
        corpora.Sequences(tokens, ("a", "b")).fingerprint(),
        corpora.Sequences(tokens, ("a", "c")).fingerprint(),
        corpora.Sequences(tokens[::-1], ("a", "b")).fingerprint(),
    }
    assert len(prints) == 3
    assert corpora.Sequences(tokens.astype(np.int64), ("a", "b")).fingerprint() in prints


def _write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (lambda d: d / "none.txt", "no corpus at"),
        (lambda d: _write(d / "a.pdf", b"%PDF"), "cannot read .pdf"),
        (lambda d: _write(d / "a.jsonl", b"{not json"), "not readable"),
        (lambda d: _write(d / "a.jsonl", b'{"body": "x"}'), "no string field 'text'"),
        (lambda d: _write(d / "a.jsonl", b"[1, 2]"), "no string field 'text'"),
        (lambda d: _write(d / "a.parquet", b"PAR1 not really"), "not readable"),
        (lambda d: _write(d / "a.txt", b"\xff\xfe\xfa"), "not readable"),
        (lambda d: _write(d / "a.txt", b"short"), "fills 0 sequences of 10 tokens, 2 are wanted"),
        (lambda d: {}, "holds no documents"),
    ],
)
def test_bad_corpora_end_in_one_line(tmp_path, corpus, message):
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        corpora.sequences(Characters(), corpus(tmp_path), per_domain=2, length=10)
    assert "\n" not in str(error.value)


def test_bad_arguments_end_in_one_line():
    with pytest.raises(CorpusError, match="split 'test' is unknown"):
        corpora.embedded("test")
    with pytest.raises(CorpusError, match="no domain 'poetry'"):
        corpora.embedded("train", ["poetry"])
    with pytest.raises(CorpusError, match="must be at least 1"):
        corpora.sequences(Characters(), {"a": ["text"]}, per_domain=0)
    tokenizer = Characters()
    tokenizer.eos_token_id = None
    with pytest.raises(CorpusError, match="no end-of-text token"):
        corpora.pack(["a"], tokenizer)
    with pytest.raises(CorpusError, match="there is no tokenizer"):
        corpora.pack(["a"], None)
