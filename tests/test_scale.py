"""Corpora in parts: files larger than memory and other machines give the same last bit."""

import itertools
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from unittest.mock import patch

import joblib
import numpy as np
import pandas as pd
import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import bootstrap, srp_bootstrap, trace_file
from lrc.bootstrap import Dealer, exact_product, exact_sum, resample_weights, strata_of_parts
from lrc.cache import policy_counts, sch_counts
from lrc.window_counts import window_counts

CALLS = {
    "srp": lambda source, **options: lrc.srp(source, (1, 3, 8), **options),
    "sch": lambda source, **options: lrc.sch(source, (2, 5), **options),
    "static": lambda source, **options: lrc.sch(source, (2, 5), definition="static", **options),
    "hit_rates": lambda source, **options: lrc.hit_rates(source, ("lru", "belady"), **options),
}


def save_in_small_groups(trace, path, ids):
    with patch.object(trace_file, "ROW_GROUP_IDS", ids):
        trace.save(path)
    return path


def same(table, other):
    pd.testing.assert_frame_equal(table, other, check_exact=True)


# --- The same call, any source -------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shards_and_files_give_the_same_bits(tmp_path_factory, data):
    trace = data.draw(traces(datasets=True))
    name = data.draw(st.sampled_from(sorted(CALLS)))
    levels = ("model", "layer", "expert") if name == "srp" else ("model", "layer")
    options = {
        "level": data.draw(st.sampled_from(levels)),
        "by_dataset": data.draw(st.booleans()),
        "bootstrap": data.draw(st.sampled_from([0, 7])),
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, trace.num_sequences), max_size=3)))
    bounds = itertools.pairwise([0, *cuts, trace.num_sequences])
    folder = tmp_path_factory.mktemp("shards")
    source = []
    for i, (start, stop) in enumerate(bounds):
        shard = trace.select(slice(start, stop))
        if data.draw(st.booleans()):
            ids = data.draw(st.sampled_from([1, 1 << 24]))
            shard = save_in_small_groups(shard, folder / f"{i}.parquet", ids)
        source.append(shard)
    with ExitStack() as stack:
        # Strata of several blocks, ranges of thresholds that do not suffice, sums in parts.
        stack.enter_context(patch.object(bootstrap, "BLOCK", data.draw(st.sampled_from([2, 512]))))
        stack.enter_context(patch.object(srp_bootstrap, "SUM_BYTES", 1000))
        stack.enter_context(patch.object(srp_bootstrap, "REACH", 0.1))
        stack.enter_context(joblib.parallel_config(backend="threading", n_jobs=2))
        same(CALLS[name](source, **options), CALLS[name](trace, **options))


@settings(max_examples=20, deadline=None)
@given(traces(datasets=True, min_length=1), st.sampled_from(["model", "layer"]), st.data())
def test_the_contract_of_engines_by_row_group(tmp_path_factory, trace, level, data):
    """Prompts are listed by sequence of the file, and are those of the sequences of each part."""
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    trace = lrc.Trace(
        *(trace.experts, trace.num_experts),
        **{"lengths": trace.lengths, "datasets": trace.datasets},
        meta={"prompt_tokens": prompts},
    )
    path = save_in_small_groups(trace, tmp_path_factory.mktemp("engine") / "trace.parquet", 1)
    assert lrc.load_trace(path).meta == trace.meta
    options = {"replay": "engine", "level": level, "by_dataset": data.draw(st.booleans())}
    options["bootstrap"] = data.draw(st.sampled_from([0, 5]))
    in_memory = lrc.hit_rates(trace, **options)
    pd.testing.assert_frame_equal(lrc.hit_rates(path, **options), in_memory, check_exact=True)
    counts = [
        policy_counts(trace.select([i]), replay="engine", level=level)
        for i in range(trace.num_sequences)
    ]
    table = sum(counts[1:], counts[0]).table()
    without = lrc.hit_rates(trace, replay="engine", level=level)
    pd.testing.assert_frame_equal(table, without, check_exact=True)


def test_paths_patterns_and_partial_statistics(tmp_path):
    trace = lrc.resolve_trace("toy:baseline").select(slice(12), layers=[0])
    trace.select(slice(5)).save(tmp_path / "a.parquet")
    trace.select(slice(5, 12)).save(tmp_path / "b.parquet")
    trace.save(tmp_path / "all [1].parquet")
    table = lrc.srp(trace, 16)
    same(lrc.srp(str(tmp_path / "?.parquet"), 16), table)
    same(lrc.srp([tmp_path / "b.parquet", str(tmp_path / "a.parquet")], 16), table)
    same(lrc.srp(str(tmp_path / "all [1].parquet"), 16), table)  # a name, not a pattern
    for count in (window_counts, sch_counts, policy_counts):
        same(count(str(tmp_path / "?.parquet")).table(), count(trace).table())


def test_shards_that_do_not_belong_together(tmp_path):
    trace = lrc.Trace(np.zeros((2, 3, 1, 1), int), 4, datasets=["a", "b"])
    path = tmp_path / "trace.parquet"
    trace.save(path)
    for others, message in [
        (lrc.Trace(np.zeros((2, 3, 2, 1), int), 4, datasets=["a", "b"]), "num_layers = 2, but"),
        (lrc.Trace(np.zeros((2, 3, 1, 1), int), 5, datasets=["a", "b"]), "num_experts = 5, but"),
        (lrc.Trace(np.zeros((2, 3, 1, 1), int), 4), "has dataset labels: give them to all"),
        (tmp_path / "other.parquet", "no such file"),
        (str(tmp_path / "x*.parquet"), "no file matches"),
        (tmp_path, "no such file"),
        (3, "not int"),
        ([], "an empty list of shards"),
    ]:
        for measure in (lrc.srp, lrc.sch, lrc.hit_rates):
            with pytest.raises(lrc.LrcError, match=message) as caught:
                measure([path, others])
            assert "\n" not in str(caught.value)


def test_a_damaged_row_group_is_found_in_whatever_process_reads_it(tmp_path):
    trace = lrc.resolve_trace("toy:baseline").select(slice(8))
    path = save_in_small_groups(trace, tmp_path / "trace.parquet", 1 << 14)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(lrc.TraceError, match=r"trace\.parquet: .*damaged"),
    ):
        lrc.srp(path)


def test_files_are_read_by_row_group_never_whole(tmp_path):
    trace = lrc.resolve_trace("toy:baseline").select(slice(32))
    path = save_in_small_groups(trace, tmp_path / "trace.parquet", 1 << 16)
    read = trace_file.TraceFile.read
    groups = []

    def count(self, *numbers):
        groups.append(numbers)
        return read(self, *numbers)

    with joblib.parallel_config(n_jobs=1), patch.object(trace_file.TraceFile, "read", count):
        lrc.srp(path)
    assert len(groups) == trace_file.TraceFile(path).num_row_groups == 8
    assert {len(numbers) for numbers in groups} == {1}


# --- Draws ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_parts_are_dealt_the_weights_of_the_whole(data):
    strata = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(strata)), max_size=6)))
    parts = [strata[i:j] for i, j in itertools.pairwise([0, *cuts, len(strata)])]
    seed = data.draw(st.integers(0, 99))
    with patch.object(bootstrap, "BLOCK", data.draw(st.sampled_from([1, 3, 8, 512]))):
        whole = resample_weights(strata, 5, seed)
        counts = [{label: part.count(label) for label in dict.fromkeys(part)} for part in parts]
        sizes, starts = strata_of_parts(counts)
        for part, start in zip(parts, starts, strict=True):
            dealer = Dealer(sizes, start, 5, seed)
            middle = len(part) // 2
            dealt = [dealer.deal(part[:middle]), dealer.deal(part[middle:])]
            assert (np.hstack(dealt) == whole[:, : len(part)]).all()
            whole = whole[:, len(part) :]


def test_draws_in_blocks_are_draws_with_replacement():
    strata = np.array(["a"] * 7 + ["b"] * 2)
    with patch.object(bootstrap, "BLOCK", 3):
        weights = resample_weights(strata, 40_000, seed=1)
    assert (weights[:, :7].sum(axis=1) == 7).all()
    assert (weights[:, 7:].sum(axis=1) == 2).all()
    # Moments of the multinomial: mean 1, variance 6/7, covariance -1/7, whatever the blocks.
    expected = np.where(np.eye(7, dtype=bool), 6 / 7, -1 / 7)
    assert np.cov(weights[:, :7].T) == pytest.approx(expected, abs=0.02)
    assert weights.mean(axis=0) == pytest.approx(np.ones(9), abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_products_and_sums_are_exact(data):
    rows, columns = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 5))
    largest = data.draw(st.sampled_from([3, 2**22, 2**40]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    counts = rng.integers(0, largest, (2, rows, columns))
    weights = rng.integers(0, 5, (2, 4, rows))
    total = None
    for count, weight in zip(counts, weights, strict=True):
        product = exact_product(count, weight.astype(np.float32))
        product.flags.writeable = False  # as if it came from another process
        total = exact_sum(total, product)
    expected = sum(
        c.T.astype(object) @ w.T.astype(object) for c, w in zip(counts, weights, strict=True)
    )
    assert np.vectorize(int)(total).tolist() == np.asarray(expected).tolist()
    if largest == 3:
        assert exact_product(counts[0], weights[0].astype(np.float32)).dtype == np.float32


# --- Clusters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_gives_the_same_bits_also_when_a_worker_is_killed(backend, package, tmp_path):
    pytest.importorskip(package, reason=f"{package} comes with requirements-test.txt")
    trace = lrc.resolve_trace("toy:baseline").select(slice(64))
    save_in_small_groups(trace.select(slice(40)), tmp_path / "a.parquet", 1 << 16)
    save_in_small_groups(trace.select(slice(40, 64)), tmp_path / "b.parquet", 1 << 16)
    places = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "cluster_measure.py", backend, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_lines_of_the_chapter_are_those_that_are_tested(tmp_path, monkeypatch):
    chapter = (ROOT / "book" / "scale.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)
    tested = (ROOT / "tests" / "cluster_measure.py").read_text(encoding="utf-8")
    for block, backend in zip(blocks[1:], ("dask", "ray"), strict=True):
        (setup,) = re.findall(r"with joblib\.parallel_config\(.*\):", block)
        assert f'backend="{backend}"' in setup
        assert setup in tested
    assert 'retry = {"max_restarts": 3, "max_task_retries": 3}' in chapter
    assert 'retry = {"max_restarts": 3, "max_task_retries": 3}' in tested
    # The first needs no cluster.
    (tmp_path / "traces").mkdir()
    trace = lrc.resolve_trace("toy:baseline").select(slice(4), layers=[0])
    trace.save(tmp_path / "traces" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks[0], names)
    same(names["table"], lrc.srp(trace, level=("model", "layer"), bootstrap=1000))
