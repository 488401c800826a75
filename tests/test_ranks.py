"""Several processes record one corpus: their shards are, together, the trace of one process."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_rank import ARGUMENTS, ROWS
from tiny_models import random_tokens, tiny_model

import lrc
from lrc import trace_file
from lrc.trace_file import TraceWriter, iter_trace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny_model("mixtral")


def test_two_processes_of_torchrun(model, tmp_path):
    script = Path(__file__).with_name("recording_rank.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, script, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lrc.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    names = ["trace.rank0of2.parquet", "trace.rank1of2.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    union = lrc.load_trace(tmp_path / "trace.rank*of2.parquet")
    single = lrc.record(model, ROWS, out=tmp_path / "single.parquet", **ARGUMENTS)
    assert union.equals(single)
    with TraceWriter(tmp_path / "joined.parquet") as writer:
        for part in iter_trace(tmp_path / "trace.rank*of2.parquet"):
            writer.append(part)
    joined, one = ((tmp_path / f"{name}.parquet").read_bytes() for name in ("joined", "single"))
    assert joined == one


def record_shards(model, rows, world, folder, **arguments):
    paths = []
    for rank in range(world):
        lrc.record(model, rows, out=folder / "t.parquet", shard=(rank, world), **arguments)
        paths.append(folder / f"t.rank{rank}of{world}.parquet")
    return paths


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    world=st.integers(1, 4),
    batch_size=st.integers(1, 3),
    row_group_ids=st.sampled_from([1, 100, 1 << 24]),
)
def test_union_is_the_trace_of_one_process(
    tmp_path_factory, lengths, world, batch_size, row_group_ids
):
    model = test_union_is_the_trace_of_one_process.model
    rows = [random_tokens(n, seed=i).tolist() for i, n in enumerate(lengths)]
    arguments = {"batch_size": batch_size, "progress": False}
    folder = tmp_path_factory.mktemp("shards")
    single = lrc.record(model, rows, **arguments)
    with patch.object(trace_file, "ROW_GROUP_IDS", row_group_ids):
        batches = -(-len(rows) // batch_size)
        if batches < world:
            with pytest.raises(lrc.RecordError, match="none is left for process"):
                record_shards(model, rows, world, folder, **arguments)
            return
        paths = record_shards(model, rows, world, folder, **arguments)
        if world > 1:
            assert lrc.load_trace(paths[::-1]).equals(single)
            assert lrc.load_trace(str(folder / "t.rank*.parquet")).equals(single)
            # Measures need no order: they add up.
            parts = [lrc.load_trace(path) for path in paths]
            assert sum(part.num_tokens for part in parts) == single.num_tokens
        else:
            assert lrc.load_trace(folder / "t.parquet").equals(single)


test_union_is_the_trace_of_one_process.model = tiny_model("mixtral")


def test_a_shard_is_continued_by_its_own_process(model, tmp_path, monkeypatch):
    monkeypatch.setattr("lrc.keepers.PART_SECONDS", 0)
    broken = [*ROWS[:6], [1000], *ROWS[7:]]
    for rank in (0, 1):
        options = ARGUMENTS | {"out": tmp_path / "t.parquet", "shard": (rank, 2)}
        if rank == 1:
            with pytest.raises(lrc.RecordError, match="vocabulary"):
                lrc.record(model, broken, **options)
        lrc.record(model, ROWS, **options)
    expected = lrc.record(model, ROWS, **ARGUMENTS)
    assert lrc.load_trace(tmp_path / "t.rank*.parquet").equals(expected)


def test_shards_say_what_is_wrong(model, tmp_path):
    two = record_shards(model, ROWS, 2, tmp_path, **ARGUMENTS)
    three = record_shards(model, ROWS, 3, tmp_path, **ARGUMENTS)
    for paths, message in (
        ([two[0]], "of its 2 shards number 1 is missing"),
        (three[1:], "of its 3 shards number 0 is missing"),
        ([two[0], two[0]], "is shard 0, and so is"),
        ([two[0], three[1]], "is no shard of the recording that"),
        ([], "no such files"),
        (tmp_path / "none*.parquet", "no such files"),
    ):
        with pytest.raises(lrc.TraceError, match=message):
            lrc.load_trace(paths)
    whole = tmp_path / "whole.parquet"
    lrc.record(model, ROWS, out=whole, **ARGUMENTS)
    with pytest.raises(lrc.TraceError, match="is no shard of a recording"):
        lrc.load_trace([whole])
    part = lrc.load_trace(two[0]).select(slice(3))
    part.save(tmp_path / "part.parquet")
    with pytest.raises(lrc.TraceError, match="does not hold its share of the 6 batches"):
        lrc.load_trace([tmp_path / "part.parquet", two[1]])
    # A name is a name, whatever is in it.
    odd = tmp_path / "a[1].parquet"
    whole.rename(odd)
    assert lrc.load_trace(odd).num_sequences == len(ROWS)
    # Nor is the other shard taken for one's own.
    two[1].rename(tmp_path / "u.rank0of2.parquet")
    with pytest.raises(lrc.TraceError, match="is there already and another shard"):
        lrc.record(model, ROWS, out=tmp_path / "u.parquet", shard=(0, 2), **ARGUMENTS)


def test_who_this_process_is(model, monkeypatch):
    tokens = random_tokens(5, 4)

    def lengths(**arguments):
        trace = lrc.record(model, tokens, batch_size=1, progress=False, **arguments)
        return trace.num_sequences, trace.meta.get("shard", {}).get("batch_sizes")

    assert lengths() == (5, None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lengths() == (2, [1, 1])
    assert lengths(shard=(0, 1)) == (5, None)
    assert lengths(shard=(0, 3)) == (2, [1, 1])
    np.testing.assert_array_equal(
        lrc.record(model, tokens, batch_size=1, progress=False).token_ids, tokens[1::2]
    )
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(lrc.RecordError, match="RANK='one', which is no number"):
        lengths()
    for shard in ((2, 2), (-1, 2), 3, ("a", 1), (0, 0)):
        with pytest.raises(lrc.RecordError, match="must be the number of this process"):
            lengths(shard=shard)


def test_a_model_that_needs_all_processes_is_not_split(monkeypatch):
    model = tiny_model("mixtral")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model._tp_size = 2
    with pytest.raises(lrc.RecordError, match="spread over 2 processes"):
        lrc.record(model, random_tokens(2, 3), progress=False)
    assert lrc.record(model, random_tokens(2, 3), progress=False, shard=(0, 1)).num_sequences == 2
