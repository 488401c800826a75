"""The embedded corpus, local files and packing."""

import ast
import json
import re
import tracemalloc
from itertools import islice

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import tiny_tokenizer

import lrc
from lrc import corpora
from lrc.corpora import CorpusError, embedded_corpus

CHEAP = ("javascript", "readme", "licence", "translation", "mathematics")


class Characters:
    """A tokenizer whose tokens are characters: what it packs can be read back."""

    eos_token_id = 0

    def __call__(self, documents, verbose=True):
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
        < embedded_corpus._DOCUMENT_CHARACTERS  # Longer ones are cut, often in mid-statement.
    ]
    assert len(whole) > 20
    for source in whole[:20]:
        tree = ast.parse(source)
        assert not any(embedded_corpus._has_docstring(node) for node in ast.walk(tree))


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
    for hidden in (".hidden", "cache-0123456789abcdef.arrow"):
        (tmp_path / hidden).write_bytes(b"\xff")
    pd.DataFrame({"text": ["d" * 50]}).to_parquet(tmp_path / "table.parquet")
    packed = corpora.sequences(Characters(), tmp_path, per_domain=3, length=10)
    assert packed.datasets == sum(((d,) * 3 for d in ("mixed", "other", "prose", "table")), ())
    assert packed.token_ids.shape == (12, 10)
    assert [chr(row[0]) for row in packed.token_ids[::3]] == ["b", "c", "a", "d"]


def _sources(folder, column):
    """The same four records in every kind of file, dataset and mapping."""
    texts = {"x": ["a" * 20, "c" * 20], "y": ["b" * 20, "d" * 20]}
    records = [
        {column: texts[label][i], "dataset": label, "other": 1} for i in range(2) for label in "xy"
    ]
    dataset = datasets.Dataset.from_list(records)
    (folder / "list.json").write_text(json.dumps(records))
    (folder / "lines.ndjson").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    pd.DataFrame(records).to_parquet(folder / "table.parquet", row_group_size=1)
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "table.arrow")) as writer:
        writer.write_table(dataset.data.table)
        writer.finalize()
    yield from ((name, folder / name) for name in ("list.json", "lines.ndjson"))
    yield from ((name, str(folder / name)) for name in ("table.parquet", "table.arrow"))
    yield "Dataset", dataset
    yield "IterableDataset", dataset.to_iterable_dataset()
    yield "generator", datasets.IterableDataset.from_generator(lambda: iter(records))
    yield "dict", texts
    by_label = {
        label: datasets.Dataset.from_dict({column: documents}) for label, documents in texts.items()
    }
    yield "dict of datasets", by_label
    yield "list", [{"x": texts["x"]}, {"y": by_label["y"]}]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("column", ["text", "body"])
def test_every_kind_of_source_gives_the_same(tmp_path, lazy, column):
    expected = [("x", "a" * 20 + "\0" + "c" * 9), ("y", "b" * 20 + "\0" + "d" * 9)]
    options = {"per_domain": 1, "length": 30, "column": column, "lazy": lazy}
    for name, corpus in _sources(tmp_path, column):
        made = corpora.sequences(Characters(), corpus, **options)
        made = made.load() if lazy else made
        texts = ["".join(map(chr, row)) for row in made.token_ids]
        assert list(zip(made.datasets, texts, strict=True)) == expected, name


def test_a_split_is_chosen_not_guessed():
    dataset = datasets.Dataset.from_dict({"text": ["a" * 40]})
    both = datasets.DatasetDict(train=dataset, test=dataset)
    with pytest.raises(CorpusError, match=r"DatasetDict of splits 'train', 'test': choose one"):
        corpora.sequences(Characters(), both, per_domain=1, length=10)
    made = corpora.sequences(Characters(), both, split="test", per_domain=1, length=10)
    assert made.token_ids.tolist() == [[97] * 10]


def test_embedded_stream_is_the_embedded_corpus():
    tokenizer = tiny_tokenizer("none")
    stream = corpora.sequences(tokenizer, split="train", per_domain=2, length=64, lazy=True)
    assert stream.recipe["domains"] == list(corpora.DOMAINS)
    first = [one["input_ids"].tolist() for one in islice(stream, 2)]
    documents = corpora.embedded("train", ["python"])["python"]
    assert first == corpora.pack(documents[:9], tokenizer, 64)[:2].tolist()


def test_a_stream_can_be_read_again(tmp_path):
    (tmp_path / "d.txt").write_text("d" * 99)
    corpus = [{label: [label * 30] * 9 for label in "abc"}, tmp_path]
    stream = corpora.sequences(Characters(), corpus, per_domain=4, length=20, lazy=True)
    passes = [[(one["dataset"], one["input_ids"].tolist()) for one in stream] for _ in range(2)]
    assert passes[0] == passes[1]
    assert len(passes[0]) == len(stream) == 16
    assert [domain for domain, _ in passes[0][::4]] == ["a", "b", "c", "d"]
    loaded = stream.load()
    assert loaded.token_ids.tolist() == [ids for _, ids in passes[0]]
    assert loaded.recipe == stream.recipe


def test_domains_whose_turn_has_not_come_are_not_read():
    class Unread:
        def __iter__(self):
            raise AssertionError("read")

    corpus = {"a": ["b" * 30], "b": Unread()}
    stream = iter(corpora.sequences(Characters(), corpus, per_domain=1, length=20, lazy=True))
    assert next(stream)["dataset"] == "a"
    with pytest.raises(AssertionError, match="read"):
        next(stream)


def test_a_stream_holds_little_in_memory(tmp_path):
    with (tmp_path / "long.jsonl").open("w") as file:
        for _ in range(1_000):
            file.write(json.dumps({"text": "a" * 5_000}) + "\n")  # 5 MB
    stream = corpora.sequences(Characters(), tmp_path, per_domain=9_000, length=512, lazy=True)
    tracemalloc.start()
    count = sum(1 for _ in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 9_000
    assert peak < 8e6  # A batch of documents and its tokens; all tokens alone take 18 MB.


def test_recipes_tell_corpora_apart(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 50)

    def recipe(tokenizer="none", corpus=tmp_path, per_domain=2, length=10, **options):
        tokenizer = tiny_tokenizer(tokenizer)
        made = corpora.sequences(
            tokenizer, corpus, per_domain=per_domain, length=length, lazy=True, **options
        )
        return json.dumps(made.recipe)

    others = [
        recipe(tokenizer="bos"),
        recipe(tokenizer="t5"),
        recipe(corpus={"a": ["a" * 50]}),
        recipe(corpus="c4"),
        recipe(corpus="embedded"),
        recipe(corpus="embedded", split="train"),
        recipe(per_domain=1),
        recipe(length=9),
    ]
    assert len({recipe(), *others}) == len(others) + 1
    assert recipe() == recipe()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("out", [False, True])
def test_recording_keeps_tokens_predictions_and_domains(tmp_path, lazy, out):
    model = tiny_model("mixtral")
    corpus = {"x": ["abc def " * 9], "y": ["hgf edc " * 9]}
    tokenizer = tiny_tokenizer("none")
    made = corpora.sequences(tokenizer, corpus, per_domain=3, length=16, lazy=lazy)
    path = tmp_path / "trace.parquet" if out else None
    trace = lrc.record(model, made, out=path, batch_size=2, progress=False)
    loaded = made.load() if lazy else made
    with torch.no_grad():
        logits = model(torch.from_numpy(loaded.token_ids).long()).logits
    assert np.array_equal(trace.token_ids, loaded.token_ids)
    assert tuple(trace.datasets) == loaded.datasets == ("x",) * 3 + ("y",) * 3
    assert np.array_equal(trace.predicted_ids, logits.argmax(-1))
    uses = lrc.token_counts(trace).table.groupby(["kind", "layer"])["count"].sum()
    expected = [96] * trace.num_layers * 2 + [90] * trace.num_layers  # The last has no next.
    assert uses.tolist() == expected


def test_fingerprint_tells_tokens_and_labels_apart():
    tokens = np.arange(6).reshape(2, 3)
    prints = {
        corpora.Sequences(tokens, ("a", "b")).fingerprint(),
        corpora.Sequences(tokens, ("a", "c")).fingerprint(),
        corpora.Sequences(tokens[::-1], ("a", "b")).fingerprint(),
    }
    assert len(prints) == 3
    assert corpora.Sequences(tokens.astype(np.int64), ("a", "b")).fingerprint() in prints


def test_recording_of_a_stream_goes_on_where_the_stream_broke(tmp_path):
    class Breaks:
        broken = False

        def __iter__(self):
            yield "hgf edc " * 4
            if not self.broken:
                self.broken = True
                raise CorpusError("the line is dead")
            yield "hgf edc " * 40

    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer("none")
    breaks = Breaks()
    corpus = {"x": ["abc def " * 40], "y": breaks}
    stream = corpora.sequences(tokenizer, corpus, per_domain=6, length=16, lazy=True)
    options = {"batch_size": 2, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora.packing, "_BATCH_DOCUMENTS", 1)
        with pytest.raises(CorpusError, match="the line is dead"):
            lrc.record(model, stream, out=tmp_path / "broken.parquet", **options)
        assert breaks.broken
        trace = lrc.record(model, stream, out=tmp_path / "broken.parquet", **options)
        lrc.record(model, stream.load(), out=tmp_path / "whole.parquet", **options)
    assert list(trace.datasets) == ["x"] * 6 + ["y"] * 6
    assert (tmp_path / "broken.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_the_progress_of_a_stream_has_an_end(capsys):
    stream = corpora.sequences(
        tiny_tokenizer("none"), {"x": ["abc " * 40]}, per_domain=4, length=16, lazy=True
    )
    lrc.record(tiny_model("mixtral"), stream)
    assert "4/4" in capsys.readouterr().err


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
        (lambda d: _write(d / "a.json", b'{"text": "x"}'), "no list of records"),
        (lambda d: _write(d / "a.arrow", b"ARROW1"), "not readable"),
        (
            lambda d: _write(d / "a.jsonl", b'{"text": "x"}\n{"text": "y", "dataset": "z"}'),
            "record 1 has a field 'dataset', but the first has not",
        ),
        (lambda d: [{"a": ["x"]}, {"a": ["y"]}], "domain 'a' is in two of the corpora"),
        (lambda d: datasets.Dataset.from_dict({"body": ["x"]}), "no column 'text', only body"),
        (lambda d: 3, "corpus is of type int"),
        (lambda d: [], "holds no documents"),
        (lambda d: {"a": "one string"}, "documents are one string"),
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
    for options in ({"per_domain": 0}, {"length": 0}, {"per_domain": "3"}, {"length": 2.5}):
        with pytest.raises(CorpusError, match="must be a whole number, at least 1"):
            corpora.sequences(Characters(), {"a": ["text"]}, **options)
    with pytest.raises(CorpusError, match="can be read only once"):
        corpora.sequences(Characters(), {"a": iter(["text"])}, lazy=True)
