"""Specialization and token counts against plain loops over tokens."""

from collections import Counter, defaultdict
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.vocabulary import KINDS

MEASURES = ["domain", "vocabulary_in", "vocabulary_predicted", "vocabulary_next"]


def plain_rates(trace, m):
    """Activation rate of (dataset, layer, expert) over all positions of all windows."""
    active, possible = Counter(), Counter()
    for i, length in enumerate(trace.lengths.tolist()):
        for start in range(length - m + 1):
            for t in range(start, start + m):
                possible[trace.datasets[i]] += 1
                for layer in range(trace.num_layers):
                    for expert in trace.experts[i, t, layer].tolist():
                        active[trace.datasets[i], layer, expert] += 1
    return {
        (dataset, layer, expert): active[dataset, layer, expert] / possible[dataset]
        for dataset in possible
        for layer in range(trace.num_layers)
        for expert in range(trace.num_experts)
    }


def plain_domain(trace, m):
    """Coefficient of variation over the datasets in which an expert is active."""
    by_expert = defaultdict(list)
    for (_, layer, expert), rate in plain_rates(trace, m).items():
        if rate > 1e-5:
            by_expert[layer, expert].append(rate)
    return {
        place: stdev(rates) / mean(rates) for place, rates in by_expert.items() if len(rates) > 1
    }


def plain_token_counts(trace):
    """Counter of (kind, layer, token id, expert)."""
    counter = Counter()
    for i, length in enumerate(trace.lengths.tolist()):
        for t in range(length):
            ids = {"in": trace.token_ids[i, t], "predicted": trace.predicted_ids[i, t]}
            if t + 1 < length:
                ids["next"] = trace.token_ids[i, t + 1]
            for layer in range(trace.num_layers):
                first = trace.experts[i, t, layer, 0]
                if first >= 0:
                    for kind, token in ids.items():
                        counter[kind, layer, int(token), int(first)] += 1
    return counter


def plain_vocabulary(trace, kind, min_count):
    """Mean share of the token ids whose main expert is (layer, expert)."""
    uses = defaultdict(dict)
    for (its_kind, layer, token, expert), count in plain_token_counts(trace).items():
        if its_kind == kind:
            uses[layer, token][expert] = count
    shares = defaultdict(list)
    for (layer, _), by_expert in uses.items():
        total = sum(by_expert.values())
        if total >= min_count:
            most = max(by_expert.values())
            main = min(expert for expert, count in by_expert.items() if count == most)
            shares[layer, main].append(most / total)
    return {place: mean(values) for place, values in shares.items()}


def as_dict(frame, column):
    present = frame[frame[column].notna()]
    return {(row.layer, row.expert): getattr(row, column) for row in present.itertuples()}


@given(traces(datasets=True, token_ids=True, min_length=3), st.integers(1, 6))
def test_equals_plain_loops(trace, min_count):
    found = lrc.specialization(trace, segment_length=3, min_count=min_count)
    assert len(found) == trace.num_layers * trace.num_experts
    if len(trace.dataset_names) > 1:
        assert as_dict(found, "domain") == pytest.approx(plain_domain(trace, 3), abs=1e-12)
    else:
        assert "domain" not in found
        assert "fewer than two datasets" in found.attrs["absent"]["domain"]
    for kind in KINDS:
        assert as_dict(found, f"vocabulary_{kind}") == pytest.approx(
            plain_vocabulary(trace, kind, min_count), abs=1e-12
        )
    for name, count in found.attrs["undefined"].items():
        assert count == found[name].isna().sum()
    scores = lrc.srp(trace, 3, level="expert")
    pd.testing.assert_frame_equal(
        found[["layer", "expert", "activation_rate", "srp"]],
        scores[["layer", "expert", "activation_rate", "srp"]],
    )


@given(traces(token_ids=True))
def test_token_counts_equal_plain_loops(trace):
    table = lrc.token_counts(trace).table
    found = {
        (KINDS[row.kind], row.layer, row.token_id, row.expert): row.count
        for row in table[["kind", "layer", "token_id", "expert", "count"]].itertuples(index=False)
    }
    assert found == plain_token_counts(trace)
    assert table.equals(table.sort_values(["kind", "layer", "token_id", "expert"]))


@given(traces(token_ids=True, max_sequences=4))
def test_token_counts_of_parts_add_up(trace):
    assume(trace.num_sequences > 1)
    parts = [lrc.token_counts(trace.select([i])) for i in range(trace.num_sequences)]
    for order in (parts, parts[::-1]):
        together = sum(order[1:], order[0])
        pd.testing.assert_frame_equal(together.table, lrc.token_counts(trace).table)


def example(**changes):
    """Two datasets of one sequence each, two layers, top-1 of 3 experts, worked by hand."""
    parts = {
        # Layer 0 follows the token, layer 1 the dataset.
        "experts": [
            [[[0], [2]], [[0], [2]], [[1], [2]], [[0], [2]]],
            [[[1], [1]], [[1], [1]], [[0], [1]], [[1], [2]]],
        ],
        "num_experts": 3,
        "datasets": ["code", "law"],
        "token_ids": [[7, 7, 8, 7], [8, 8, 8, 8]],
        "predicted_ids": [[7, 8, 8, 8], [8, 8, 8, 7]],
    }
    parts |= changes
    return lrc.Trace(parts.pop("experts"), parts.pop("num_experts"), **parts)


def test_worked_example():
    found = lrc.specialization(example(), segment_length=4, min_count=1)
    assert list(found) == ["layer", "expert", "activation_rate", "srp", *MEASURES]
    assert found["activation_rate"].tolist() == [0.5, 0.5, 0, 0, 0.375, 0.625]
    # Layer 0, expert 0: rates 3/4 and 1/4, mean 1/2, sample deviation sqrt(1/8).
    # Layer 1, expert 2: rates 1 and 1/4; expert 1 is active in one dataset only.
    assert as_dict(found, "domain") == pytest.approx(
        {
            (0, 0): np.sqrt(1 / 8) / 0.5,
            (0, 1): np.sqrt(1 / 8) / 0.5,
            (1, 2): np.sqrt(0.75**2 / 2) / 0.625,
        }
    )
    # Id 7 goes to expert 0 three times of three; id 8 to expert 1 four times of five.
    # In layer 1, id 7 goes to expert 2 always, id 8 to expert 1 three times of five.
    assert as_dict(found, "vocabulary_in") == {(0, 0): 1.0, (0, 1): 0.8, (1, 1): 0.6, (1, 2): 1.0}
    # Next ids: 7 after tokens routed to 0 and 1 (a tie, expert 0 has it), 8 after 0, 1, 1, 0.
    assert as_dict(found, "vocabulary_next") == {(0, 0): 0.5, (1, 2): 1.0, (1, 1): 0.75}
    assert found.attrs["undefined"] == {
        "domain": 3,
        "vocabulary_in": 2,
        "vocabulary_predicted": 3,
        "vocabulary_next": 3,
    }
    assert found.attrs["absent"] == {}


def test_rare_token_ids_are_left_out():
    found = lrc.specialization(example(), segment_length=4, min_count=4)
    assert as_dict(found, "vocabulary_in") == {(0, 1): 0.8, (1, 1): 0.6}  # id 7 has 3 uses
    default = lrc.specialization(example(), segment_length=4)
    assert default["vocabulary_in"].isna().all()  # nothing reaches the paper's 20 uses


def test_only_slot_0_counts():
    trace = lrc.Trace([[[[2, 0]], [[1, 0]]]], num_experts=3, token_ids=[[5, 5]])
    table = lrc.token_counts(trace).table.query("kind == 0")
    assert table["expert"].tolist() == [1, 2]


def test_unknown_token_ids_are_not_counted():
    counts = lrc.token_counts(example(token_ids=[[7, -1, 8, 7], [-1, -1, -1, -1]]))
    assert counts.table.query("kind == 0 and layer == 0")["count"].tolist() == [2, 1]
    assert set(counts.table["token_id"]) == {7, 8}


def test_absent_columns_say_why():
    found = lrc.specialization(
        example(datasets=None, token_ids=None, predicted_ids=None), segment_length=2
    )
    assert list(found) == ["layer", "expert", "activation_rate", "srp"]
    assert set(found.attrs["absent"]) == set(MEASURES)
    assert "no predicted_ids" in found.attrs["absent"]["vocabulary_predicted"]
    only_predicted = lrc.specialization(example(token_ids=None), segment_length=2)
    assert set(only_predicted.attrs["absent"]) == {"vocabulary_in", "vocabulary_next"}
    short = example(lengths=[4, 2])
    assert "windows of 4" in lrc.specialization(short, segment_length=4).attrs["absent"]["domain"]


def test_counts_stand_in_for_token_ids():
    full = example()
    counts = lrc.token_counts(full, min_count=3)
    bare = example(token_ids=None, predicted_ids=None)
    pd.testing.assert_frame_equal(
        lrc.specialization(bare, segment_length=2, counts=counts, min_count=3),
        lrc.specialization(full, segment_length=2, min_count=3),
    )


def test_counts_are_checked():
    counts = lrc.token_counts(example(), min_count=3)
    with pytest.raises(lrc.LrcError, match="3 times or more, so min_count=2 cannot be met"):
        lrc.specialization(example(), segment_length=2, counts=counts, min_count=2)
    with pytest.raises(lrc.LrcError, match="do not belong to this trace"):
        lrc.specialization(example(num_experts=4), segment_length=2, counts=counts)
    with pytest.raises(lrc.LrcError, match="cannot be added"):
        counts + counts
    many = lrc.token_counts(example())
    many.table["count"] = np.int32(2_000_000_000)
    with pytest.raises(lrc.LrcError, match=r"more than 2,147,483,647 times"):
        many + many
    with pytest.raises(lrc.LrcError, match="do not fit together"):
        lrc.token_counts(example()) + lrc.token_counts(example(predicted_ids=None))
    with pytest.raises(lrc.LrcError, match="kind 'out' was not counted"):
        counts.share("out")
    with pytest.raises(lrc.LrcError, match="neither token_ids nor predicted_ids"):
        lrc.token_counts(example(token_ids=None, predicted_ids=None))


def test_too_short_sequences_are_an_error():
    with pytest.raises(lrc.LrcError, match="no sequence has the 16 tokens"):
        lrc.specialization(example())


@given(trace=traces(token_ids=True), min_count=st.integers(1, 4))
def test_counts_survive_a_file(tmp_path_factory, trace, min_count):
    path = tmp_path_factory.mktemp("counts") / "counts.parquet"
    counts = lrc.token_counts(trace, min_count=min_count)
    counts.save(path)
    again = lrc.load_token_counts(path)
    pd.testing.assert_frame_equal(again.table, counts.table)
    assert repr(again) == repr(counts)
    assert (again.kinds, again.min_count) == (counts.kinds, min_count)
    assert [file.name for file in path.parent.iterdir()] == ["counts.parquet"]


def test_counts_files_are_checked(tmp_path):
    path = tmp_path / "counts.parquet"
    with pytest.raises(lrc.TraceError, match="no such file"):
        lrc.load_token_counts(path)
    with pytest.raises(lrc.TraceError, match=r"folder .* does not exist"):
        lrc.token_counts(example()).save(tmp_path / "nowhere" / "counts.parquet")
    path.write_bytes(b"no parquet")
    with pytest.raises(lrc.TraceError, match="no Parquet file"):
        lrc.load_token_counts(path)
    example().save(path)
    with pytest.raises(lrc.TraceError, match="no token counts"):
        lrc.load_token_counts(path)
    lrc.token_counts(example()).save(path)
    table = pq.read_table(path)
    changed = table.to_pandas()
    changed.loc[0, "count"] += 1
    pq.write_table(table.from_pandas(changed, schema=table.schema, preserve_index=False), path)
    with pytest.raises(lrc.TraceError, match="checksum differs"):
        lrc.load_token_counts(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "counts.parquet"
    lrc.token_counts(example()).save(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("lrc.vocabulary.pq.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        lrc.token_counts(example(datasets=None)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_toy_vocabulary_are_small(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = 2048
    likely = 1 / (np.arange(vocabulary) + 10)
    ids = rng.choice(vocabulary, (200, 512), p=likely / likely.sum())
    # Each id prefers a few experts, as in trained models.
    preferred = rng.integers(0, 64, (vocabulary, 6))
    first = preferred[ids, rng.integers(0, 6, ids.shape)]
    experts = np.stack([first, (first + 17) % 64], axis=-1)[:, :, None, :, None]
    trace = lrc.Trace(experts[..., 0], 64, token_ids=ids, predicted_ids=np.roll(ids, 1, axis=1))
    counts = lrc.token_counts(trace, min_count=20)
    counts.save(tmp_path / "counts.parquet")
    # A byte or less for a count, so that a whole family of models fits into a package.
    assert len(counts.table) > 30_000
    assert (tmp_path / "counts.parquet").stat().st_size < len(counts.table)
