"""The paper's corpora, with local files of the documented columns in place of the hub.

The loading is real: `datasets` streams JSON lines and Parquet from a folder; only the address of
the hub is exchanged for that of the folder.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
from tiny_tokenizers import tiny_tokenizer

import lrc
from lrc import corpora
from lrc.corpora import PAPER, CorpusError

TOKENIZER = tiny_tokenizer("bos")
REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"

# As the repositories document their records.
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "ask", "image": None, "mimeType": None}]},
    {"role": "assistant", "content": [{"type": "text", "text": "say", "image": None}]},
]
RECORDS = {
    "lmarena": {"id": "1", "model_a": "x", "conversation_a": TURNS, "conversation_b": TURNS[:1]},
    "math": {"problem": "sum", "generated_solution": "two", "expected_answer": "2"},
    "code": {"id": "1", "input": "write", "output": "done", "domain": "generic"},
    "science": {"input": "why", "output": "so", "expected_answer": "A"},
}
TEXTS = {
    "lmarena": "ask\n\nsay",
    "math": "sum\n\ntwo",
    "code": "write\n\ndone",
    "science": "why\n\nso",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hub of local files: a folder a repository. Returns the list of what was asked for."""
    asked = []
    for key, corpus in PAPER.items():
        folder = tmp_path / corpus.repository
        folder.mkdir(parents=True, exist_ok=True)
        if corpus.file:
            # The type of a field of `meta` changes within a file, as it does in RedPajama's.
            records = [
                {"text": f"{key}\u2028{i}", "meta": {"date": 1917 if i else None}} for i in range(9)
            ]
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            (folder / corpus.file).write_text("\n".join(lines), "utf-8")
        else:
            rows = [RECORDS[key]] * 9
            pd.DataFrame(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    load_dataset = datasets.load_dataset

    def load(path, **options):
        asked.append({"path": path, **options})
        if "data_files" in options:
            url = options["data_files"]
            options["data_files"] = url.replace("hf://datasets", str(tmp_path))
        else:
            path = str(tmp_path / path)
        return load_dataset(path, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_are_those_that_the_paper_names():
    published = lrc.published.table("datasets")
    assert list(PAPER) == published["key"].tolist()
    assert [corpus.name for corpus in PAPER.values()] == published["name"].tolist()
    sources = [
        corpus.repository.split("/")[1] if corpus.file else corpus.repository
        for corpus in PAPER.values()
    ]
    assert sources == published["hf_source"].tolist()


def test_the_book_says_where_they_come_from():
    chapter = Path(lrc.__file__).parents[1] / "book" / "trace_your_model.md"
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+)` \|$", chapter.read_text("utf-8"), re.M)
    assert [(key, repository, tuple(fields.split("`, `"))) for key, repository, fields in rows] == [
        (corpus.key, corpus.repository, corpus.columns) for corpus in PAPER.values()
    ]


@pytest.mark.parametrize("key", PAPER)
def test_asks_the_hub_for_the_right_texts(hub, key):
    documents = list(PAPER[key])
    assert len(documents) == 9
    assert set(documents) == (
        {TEXTS[key]} if key in TEXTS else {f"{key}\u2028{i}" for i in range(9)}
    )
    (asked,) = hub
    assert asked["split"] == "train"
    assert asked["streaming"] is True
    if key in TEXTS:
        assert asked["path"] == PAPER[key].repository
        assert "data_files" not in asked
    else:
        name = "cc_2023-06" if key == "cc2306" else key
        assert asked["data_files"] == f"hf://datasets/{REDPAJAMA}/{name}_sample.jsonl"


def test_all_eleven_in_one_call(hub):
    made = corpora.sequences(TOKENIZER, "paper", per_domain=2, length=8)
    assert made.datasets == tuple(key for key in PAPER for _ in range(2))
    assert made.token_ids.shape == (22, 8)
    for key, row in zip(PAPER, made.token_ids[::2], strict=True):
        assert row.tolist() == corpora.pack([*PAPER[key]], TOKENIZER, 8)[0].tolist()
    some = corpora.sequences(TOKENIZER, ["math", "c4"], per_domain=1, length=8)
    assert some.datasets == ("math", "c4")


def test_a_stream_reads_a_corpus_when_its_turn_comes(hub):
    stream = corpora.sequences(TOKENIZER, ["c4", "math"], per_domain=3, length=8, lazy=True)
    assert (len(stream), hub) == (6, [])
    sequences = iter(stream)
    assert [next(sequences)["dataset"] for _ in range(3)] == ["c4"] * 3
    assert len(hub) == 1
    assert next(sequences)["dataset"] == "math"
    assert len(hub) == 2


def test_a_changed_repository_is_named(hub, monkeypatch):
    monkeypatch.setitem(
        PAPER, "math", corpora.PaperCorpus("math", "M", PAPER["math"].repository, ("question",))
    )
    with pytest.raises(CorpusError, match="no field 'question', only problem, generated_solution"):
        corpora.sequences(TOKENIZER, "math")


def test_text_of_odd_records():
    arena = PAPER["lmarena"]
    assert arena.text({"conversation_a": [{"role": "user", "content": "plain"}]}) == "plain"
    assert arena.text({"conversation_a": [{"role": "user", "content": [{"image": "x"}]}]}) == ""
    assert PAPER["code"].text({"input": None, "output": "only"}) == "only"


@pytest.mark.parametrize("key", ["c4", "math"])
def test_without_a_hub_ends_in_one_line(key, tmp_path):
    """Real call in a process of its own: the switch is read when the libraries are loaded."""
    program = (
        "from tiny_tokenizers import tiny_tokenizer\n"
        "from lrc import corpora\n"
        "try:\n"
        f"    corpora.sequences(tiny_tokenizer('bos'), {key!r})\n"
        "except corpora.CorpusError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = run.stdout.splitlines()
    assert f"corpus {key!r} cannot be read from {PAPER[key].repository}" in line
    assert "offline" in line.lower()
    assert "download it and give the folder" in line
    assert not run.stderr
