"""Measures taken while a model runs are those of its trace, to the last bit."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from tiny_models import random_tokens, record_pass, tiny_model, tiny_switch

import lrc
from lrc.live_measures import LiveMeasures

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [random_tokens(n, seed=n).tolist() for n in (9, 5, 12, 7, 7, 3, 11)]
LABELS = list("abacbca")
MEASURES = {
    "srp": {"segment_lengths": (2, 4), "level": "layer", "by_dataset": True},
    "sch": {"segment_lengths": [4], "level": "model"},
    "hit_rates": {"policies": ("lru", "belady"), "level": "layer"},
}
ARGUMENTS = {"datasets": LABELS, "batch_size": 2, "progress": False}


@pytest.fixture(scope="module")
def model():
    return tiny_model("mixtral")


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of a batch or two."""
    monkeypatch.setattr("lrc.trace_file.ROW_GROUP_IDS", 90)


def assert_same(live, trace, measures=MEASURES):
    """The tables of measures taken live are those of the trace, to the last bit."""
    assert live.tables().keys() == measures.keys()
    for name, options in measures.items():
        expected = getattr(lrc, name)(trace, **options)
        assert len(expected)
        pd.testing.assert_frame_equal(live[name], expected, check_exact=True)


# --- Counting -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(traces(datasets=True), st.lists(st.integers(0, 5), max_size=3).map(sorted), st.data())
def test_parts_add_up_to_the_whole(tmp_path_factory, trace, cuts, data):
    measures = {
        "srp": data.draw(
            st.fixed_dictionaries(
                {
                    "level": st.sampled_from(["model", "layer", "expert"]),
                    "by_dataset": st.booleans(),
                }
            )
        ),
        "sch": {"definition": data.draw(st.sampled_from(["lookahead", "static"]))},
        "hit_rates": True,
    }
    live, other = LiveMeasures(**measures), LiveMeasures(**measures)
    for n, (start, stop) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
        (live if n % 2 else other).add(trace.select(slice(start, stop)))
    path = tmp_path_factory.mktemp("measures") / "m.npz"
    live.save(path)
    total = other + lrc.load_measures(path)
    assert (total.num_sequences, total.num_tokens) == (trace.num_sequences, trace.num_tokens)
    for name, options in measures.items():
        expected = getattr(lrc, name)(trace, **({} if options is True else options))
        pd.testing.assert_frame_equal(total[name], expected, check_exact=True)


def test_what_cannot_be_measured():
    for options, message in (
        ({}, "nothing to measure"),
        ({"srp": None, "sch": False}, "nothing to measure"),
        ({"srp": 4}, "srp is 4, but must be True or a dict"),
        ({"srp": {"segments": 4}}, "cannot be taken while recording with 'segments'; options are"),
        ({"sch": {"bootstrap": 100}}, "'bootstrap', which needs the sequences: record a trace"),
        ({"srp": {"level": "token"}}, "level is 'token'"),
        ({"srp": {"segment_lengths": 0}}, "segment_lengths is 0"),
        ({"hit_rates": {"policies": "fifo"}}, "policy 'fifo' is unknown"),
    ):
        with pytest.raises(lrc.LrcError, match=message):
            LiveMeasures(**options)
    live = LiveMeasures(srp=True)
    with pytest.raises(lrc.LrcError, match="'sch' was not measured, but srp"):
        live["sch"]
    with pytest.raises(lrc.LrcError, match="nothing was measured yet"):
        live["srp"]
    with pytest.raises(lrc.LrcError, match="of different kinds cannot be added: srp and sch"):
        live + LiveMeasures(sch=True)
    live.add(lrc.Trace([[[[0]]]], 2))
    with pytest.raises(lrc.LrcError, match="different kinds cannot be added"):
        live.add(lrc.Trace([[[[0]]]], 3))
    assert repr(live) == "<lrc.LiveMeasures: srp of 1 tokens of 1 sequences>"


def test_files_that_hold_no_measures(tmp_path):
    live = LiveMeasures(srp={"segment_lengths": np.array([2, 4])})
    live.add(lrc.Trace(np.zeros((1, 8, 1, 1), int), 2, meta={"model": "toy"}))
    live.save(tmp_path / "m.npz")
    good = (tmp_path / "m.npz").read_bytes()
    assert lrc.load_measures(tmp_path / "m.npz").meta == {"model": "toy"}
    with pytest.raises(lrc.TraceError, match="no such file"):
        lrc.load_measures(tmp_path / "none.npz")
    for bad in (b"", b"text", good[: len(good) // 2]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(lrc.TraceError, match="holds no measures, or is damaged") as error:
            lrc.load_measures(tmp_path / "bad.npz")
        assert "\n" not in str(error.value)
    with pytest.raises(lrc.TraceError, match="cannot be written"):
        live.save(tmp_path / "none" / "m.npz")


# --- While a model runs --------------------------------------------------------------------------


def test_measures_without_a_trace(model, tmp_path, small_groups):
    trace = lrc.record(model, ROWS, **ARGUMENTS)
    live = lrc.measure(model, ROWS, **MEASURES, **ARGUMENTS)
    assert_same(live, trace)
    assert live.meta == trace.meta
    saved = lrc.measure(model, ROWS, out=tmp_path / "m.npz", **MEASURES, **ARGUMENTS)
    assert_same(saved, trace)
    assert_same(lrc.load_measures(tmp_path / "m.npz"), trace)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_with_a_recorder_of_ones_own(model):
    live = LiveMeasures(**MEASURES)
    tokens = random_tokens(4, 9)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        for part in tokens.split(2):
            model(part)
            live.add(recorder.trace(["a", "b"]))
            recorder.clear()
    trace = record_pass(model, input_ids=tokens)
    labelled = lrc.Trace(trace.experts, trace.num_experts, datasets=list("abab"))
    assert_same(live, labelled)


def test_no_more_than_a_row_group_is_held(model, monkeypatch):
    monkeypatch.setattr("lrc.trace_file.ROW_GROUP_IDS", 300)
    sizes = []
    add = LiveMeasures.add
    monkeypatch.setattr(
        LiveMeasures,
        "add",
        lambda live, trace: (sizes.append(trace.experts.size), add(live, trace)),
    )
    lrc.measure(model, random_tokens(30, 10), srp=True, batch_size=2, progress=False)
    assert sizes == [360] * 5


def test_what_a_gpu_ran_is_counted_on_it(model, tmp_path, monkeypatch):
    """The way to the device; that counts are the same there is `test_gpu.py`'s."""
    sent = []
    monkeypatch.setattr("lrc.measuring._counted_on", lambda model: "cuda:0")
    monkeypatch.setattr(lrc.Trace, "to", lambda trace, device: (sent.append(device), trace)[1])
    for out in (None, tmp_path / "m.npz"):
        live = lrc.measure(model, ROWS, srp={"segment_lengths": 4}, out=out, progress=False)
        assert "cuda:0" in sent
        sent.clear()
        assert len(live["srp"]) == 1


def test_interrupted_measures_go_on(model, tmp_path, small_groups, monkeypatch):
    out = tmp_path / "m.npz"
    with pytest.raises(lrc.RecordError, match="vocabulary"):
        lrc.measure(model, [*ROWS[:5], [1000], ROWS[6]], out=out, **MEASURES, **ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz.parts"]
    for other, message in (
        (MEASURES | {"srp": None}, "measures="),
        (MEASURES | {"srp": {"segment_lengths": 2}}, "measures="),
    ):
        with pytest.raises(lrc.TraceError, match=message):
            lrc.measure(model, ROWS, out=out, **other, **ARGUMENTS)
    with pytest.raises(lrc.RecordError, match="weights are others"):
        lrc.measure(tiny_model("mixtral", seed=1), ROWS, out=out, **MEASURES, **ARGUMENTS)
    trace = lrc.record(model, ROWS, **ARGUMENTS)
    assert_same(lrc.measure(model, ROWS, out=out, **MEASURES, **ARGUMENTS), trace)
    lrc.measure(model, ROWS, out=tmp_path / "n.npz", **MEASURES, **ARGUMENTS)
    assert out.read_bytes() == (tmp_path / "n.npz").read_bytes()
    assert_same(lrc.measure(model, ROWS, out=out, **MEASURES, **ARGUMENTS), trace)
    with pytest.raises(lrc.RecordError, match="batches are not those recorded there"):
        lrc.measure(model, ROWS[::-1], out=out, **MEASURES, **ARGUMENTS)
    half = tiny_model("mixtral", dtype=torch.bfloat16)
    with pytest.raises(lrc.RecordError, match="dtype='float32', which is now 'bfloat16'"):
        lrc.measure(half, ROWS, out=out, **MEASURES, **ARGUMENTS)
    with pytest.raises(lrc.TraceError, match="is there already and was not made by this call"):
        lrc.measure(model, ROWS, out=out, sch=True, **ARGUMENTS)


def test_processes_add_up(model, tmp_path):
    trace = lrc.record(model, ROWS, **ARGUMENTS)
    for rank in (0, 1, 2):
        out = tmp_path / "m.npz"
        lrc.measure(model, ROWS, out=out, shard=(rank, 3), **MEASURES, **ARGUMENTS)
    live = lrc.load_measures(tmp_path / "m.rank*of3.npz")
    assert_same(live, trace)
    assert live.meta == trace.meta
    os.remove(tmp_path / "m.rank1of3.npz")
    with pytest.raises(lrc.TraceError, match="of its 3 shards number 1 is missing"):
        lrc.load_measures(tmp_path / "m.rank*of3.npz")


def test_each_stack_has_its_measures(tmp_path):
    switch = tiny_switch()
    batch = {"input_ids": random_tokens(3, 9), "decoder_input_ids": random_tokens(3, 6, seed=1)}
    expected = lrc.record(switch, batch, progress=False)
    for out in (None, tmp_path / "m.npz"):
        live = lrc.measure(switch, batch, srp={"segment_lengths": 4}, out=out, progress=False)
        assert set(live) == {"encoder", "decoder"}
        for stack, trace in expected.items():
            assert_same(live[stack], trace, {"srp": {"segment_lengths": 4}})
    names = ["m.decoder.npz", "m.encoder.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
