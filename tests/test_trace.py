"""The trace and its file: what is refused, what comes back, what is never lost in silence."""

import doctest
import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import Trace, TraceError, trace_file
from lrc.trace import concat_traces
from lrc.trace_file import TraceFile, TraceWriter, iter_trace

GOLDEN = ROOT / "tests" / "golden" / "top2_of_8" / "trace.parquet"


def small(**changes):
    """Two sequences (the second one token shorter), two layers, top-2 of 4 experts."""
    parts = {
        "experts": [
            [[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[3, 1], [0, -1]]],
            [[[2, 1], [1, 3]], [[0, 3], [-1, -1]], [[9, 9], [9, 9]]],
        ],
        "num_experts": 4,
        "lengths": [3, 2],
        "datasets": ["code", "law"],
        "token_ids": [[5, 6, 7], [8, 9, 99]],
        "predicted_ids": [[6, 7, 0], [9, 1, 99]],
        "weights": np.full((2, 3, 2, 2), 0.5),
        "meta": {"model": "toy", "layers": ["layers.0.mlp", "layers.1.mlp"], "top": (1, 2)},
    } | changes
    return Trace(parts.pop("experts"), parts.pop("num_experts"), **parts)


def changed(place, value):
    experts = np.array(small().experts)
    experts[place] = value
    return experts


# --- Building ---------------------------------------------------------------------------------


def test_what_a_trace_holds():
    trace = small()
    assert trace.shape == (2, 3, 2, 2)
    assert (trace.num_sequences, trace.num_layers, trace.top_k, trace.num_experts) == (2, 2, 2, 4)
    assert trace.num_tokens == 5
    assert trace.valid.tolist() == [[True] * 3, [True, True, False]]
    assert trace.dataset_names == ["code", "law"]
    assert trace.layer_names == ["layers.0.mlp", "layers.1.mlp"]
    assert trace.meta["top"] == [1, 2]
    dtypes = {name: array.dtype for name, array in trace._arrays()}
    assert dtypes["experts"] == np.int16
    assert dtypes["lengths"] == np.int64
    assert dtypes["token_ids"] == dtypes["predicted_ids"] == np.int32
    assert dtypes["weights"] == np.float16
    assert repr(trace) == (
        "<lrc.Trace: 2 sequences, 5 tokens, 2 layers, top-2 of 4 experts, 2 datasets>"
    )


def test_what_lies_past_a_length_is_blank():
    trace = small()
    assert (trace.experts[1, 2] == -1).all()
    assert trace.token_ids[1, 2] == trace.predicted_ids[1, 2] == -1
    assert (trace.weights[1, 2] == 0).all()
    assert trace.weights[0, 2, 1].tolist() == [0.5, 0]  # nor has an empty slot a weight
    # Whatever garbage a padded batch carried there.
    weights = np.full((2, 3, 2, 2), 0.5)
    weights[1, 2] = np.nan
    assert small(weights=weights).equals(trace)


def test_arrays_are_copies_and_cannot_be_written():
    given_ = np.zeros((1, 2, 1, 1), np.int16)
    trace = Trace(given_, 2)
    given_[0, 0] = 1
    assert (trace.experts == 0).all()
    for part in (trace, trace.select([0]), pickle.loads(pickle.dumps(trace))):
        with pytest.raises(ValueError, match="read-only"):
            part.experts[0, 0, 0, 0] = 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "uint64"])
def test_any_integers_do(dtype):
    experts = np.array([[[[0, 3]], [[1, 2]]]], dtype=dtype)
    assert Trace(experts, 4).experts.tolist() == experts.tolist()


def test_tensors_do():
    torch = pytest.importorskip("torch")
    trace = small()
    same = small(
        experts=torch.from_numpy(trace.experts.copy()),
        weights=torch.full((2, 3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True),
    )
    assert same.equals(trace)


def test_no_sequences_and_no_tokens():
    assert Trace(np.empty((0, 3, 2, 1), int), 4).num_tokens == 0
    assert Trace(np.empty((2, 0, 2, 1), int), 4).num_tokens == 0
    assert small().select([]).num_sequences == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts is 0, but must be from 1 to 32767"),
        ({"num_experts": 4.0}, "num_experts is 4.0, but must be an integer"),
        ({"num_experts": 1}, r"top_k from 1 to num_experts = 1"),
        ({"experts": [[1, 2]]}, r"experts has shape \[1, 2\], but must have 4 axes"),
        ({"experts": [[[[1]]], [[[1]], [[1]]]]}, "experts is ragged"),
        ({"experts": np.zeros((2, 3, 2, 2))}, "experts has dtype float64"),
        ({"experts": np.zeros((2, 3, 0, 2), int)}, "at least one layer"),
        (
            {"experts": changed((1, 1, 0, 1), 4)},
            r"experts\[sequence 1, token 1, layer 0, slot 1\] is 4, but ids run from 0 to 3",
        ),
        ({"experts": changed((0, 2, 1, 0), -2)}, r"token 2, layer 1, slot 0\] is -2"),
        (
            {"experts": changed((0, 2, 1, 0), 0).astype(np.int64) + 65536},
            r"sequence 0, token 0, layer 0, slot 0\] is 65536",
        ),
        ({"experts": changed((1, 0, 1, 1), 1)}, r"layer 1, slot 1\] is 1, which an earlier slot"),
        ({"lengths": [3]}, "lengths has 1 entries for 2 sequences"),
        ({"lengths": [3, 4]}, r"lengths\[1\] is 4, but must be from 0 to 3"),
        ({"lengths": [-1, 3]}, r"lengths\[0\] is -1"),
        ({"lengths": [2.5, 3]}, "lengths has dtype float64"),
        ({"datasets": ["code"]}, "datasets has 1 labels for 2 sequences"),
        ({"datasets": "co"}, "datasets is one text"),
        ({"datasets": ["code", None]}, r"datasets\[1\] is None"),
        ({"datasets": ["", "law"]}, r"datasets\[0\] is ''"),
        ({"token_ids": [[1, 2], [3, 4]]}, r"token_ids has shape \[2, 2\]"),
        ({"token_ids": [[1, 2, -2], [3, 4, 5]]}, r"token_ids\[sequence 0, token 2\] is -2"),
        ({"predicted_ids": [[1, 2, 3], [2**31, 4, 5]]}, r"sequence 1, token 0\] is 2147483648"),
        ({"weights": np.ones((2, 3, 2))}, r"weights has shape \[2, 3, 2\], but must have 4"),
        ({"weights": np.ones((2, 3, 2, 1))}, r"weights has shape \[2, 3, 2, 1\], but experts has"),
        ({"weights": np.full((2, 3, 2, 2), np.nan)}, r"layer 0, slot 0\] is nan"),
        ({"weights": np.full((2, 3, 2, 2), -0.1)}, r"is -0.1, but must be a number from 0"),
        ({"weights": np.full((2, 3, 2, 2), 1e6)}, r"is 1000000.0, but must be"),
        ({"meta": ["toy"]}, "meta is of type list"),
        ({"meta": {"loss": float("nan")}}, "meta cannot be kept as JSON"),
        ({"meta": {"model": object()}}, "meta cannot be kept as JSON: object is no JSON value"),
    ],
)
def test_faults_are_named_in_one_line(changes, message):
    with pytest.raises(TraceError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(traces(min_length=1), st.data())
def test_every_fault_is_found(trace, data):
    """One wrong id anywhere in a valid trace is refused, and its place named."""
    i = data.draw(st.integers(0, trace.num_sequences - 1))
    place = (
        i,
        data.draw(st.integers(0, int(trace.lengths[i]) - 1)),
        data.draw(st.integers(0, trace.num_layers - 1)),
        data.draw(st.integers(0, trace.top_k - 1)),
    )
    others = set(trace.experts[place[:3]].tolist()) - {-1, trace.experts[place]}
    wrong = data.draw(st.sampled_from([-2, -32768, trace.num_experts, 32767, *sorted(others)]))
    experts = trace.experts.copy()
    experts[place] = wrong
    # Of two equal ids the later one is named.
    slot = experts[place[:3]].tolist()[::-1].index(wrong)
    last = (*place[:3], trace.top_k - 1 - slot)
    message = "sequence {}, token {}, layer {}, slot {}".format(*last)
    with pytest.raises(TraceError, match=message):
        Trace(experts, trace.num_experts, lengths=trace.lengths)


# --- Parts ------------------------------------------------------------------------------------


def test_select():
    trace = small()
    part = trace.select(layers=[1])
    assert part.experts.tolist() == trace.experts[:, :, [1]].tolist()
    assert part.weights.shape == (2, 3, 1, 2)
    assert part.meta["layers"] == ["layers.1.mlp"]
    assert part.experts.flags.c_contiguous
    assert trace.select(layers=-1).equals(part)
    law = trace.select(datasets="law")
    assert law.equals(trace.select([1]))
    assert law.equals(trace.select(trace.lengths == 2))
    assert law.token_ids.tolist() == [[8, 9, -1]]
    assert trace.select([1, 0, 1]).datasets.tolist() == ["law", "code", "law"]
    assert trace.select(slice(None), layers=slice(2), datasets=["law", "code"]).equals(trace)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"datasets": "math"}, "dataset 'math' is not in the trace .it has code, law"),
        ({"sequences": [2]}, "cannot select sequences: index 2 is out of bounds"),
        ({"sequences": [True]}, "cannot select sequences"),
        ({"layers": "mlp"}, "cannot select layers"),
        ({"layers": []}, "name at least one"),
    ],
)
def test_select_says_what_is_missing(kwargs, message):
    with pytest.raises(TraceError, match=message):
        small().select(**kwargs)


def test_equals_tells_every_difference():
    trace = small()
    assert trace.equals(small())
    assert not trace.equals("trace")
    for changes in (
        {"experts": changed((0, 0, 0), [1, 0])},
        {"num_experts": 5},
        {"lengths": [3, 1]},
        {"datasets": ["code", "math"]},
        {"datasets": None},
        {"token_ids": None},
        {"predicted_ids": [[6, 7, 1], [9, 1, 0]]},
        {"weights": np.full((2, 3, 2, 2), 0.25)},
        {"meta": {}},
    ):
        assert not trace.equals(small(**changes))


@settings(max_examples=50, deadline=None)
@given(traces(), st.integers(0, 5))
def test_parts_join_to_the_whole(trace, cut):
    parts = [trace.select(slice(0, cut)), trace.select(slice(cut, None))]
    assert concat_traces(parts).equals(trace)


def test_joining_pads_and_refuses_what_does_not_fit():
    long = Trace(np.zeros((1, 5, 1, 1), int), 2, token_ids=[[1, 2, 3, 4, 5]])
    short = Trace(np.ones((1, 2, 1, 1), int), 2, token_ids=[[6, 7]])
    both = concat_traces([short, long])
    assert both.lengths.tolist() == [2, 5]
    assert both.token_ids.tolist() == [[6, 7, -1, -1, -1], [1, 2, 3, 4, 5]]
    assert both.experts[0, :, 0, 0].tolist() == [1, 1, -1, -1, -1]
    with pytest.raises(TraceError, match="trace 1 does not fit trace 0"):
        concat_traces([long, Trace(np.zeros((1, 5, 1, 1), int), 3)])
    with pytest.raises(TraceError, match="differ in what they hold"):
        concat_traces([long, Trace(np.zeros((1, 5, 1, 1), int), 2)])
    with pytest.raises(TraceError, match="no traces to join"):
        concat_traces([])


# --- The file ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from([1, 50, 1 << 24]))
def test_a_file_gives_back_the_trace(tmp_path_factory, trace, row_group_ids):
    folder = tmp_path_factory.mktemp("trace")
    with patch.object(trace_file, "ROW_GROUP_IDS", row_group_ids):
        trace.save(folder / "a.parquet")
        trace.save(folder / "b.parquet")
    assert lrc.load_trace(folder / "a.parquet").equals(trace)
    assert concat_traces(iter_trace(folder / "a.parquet")).equals(trace)
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_trace_without_sequences(tmp_path):
    trace = small().select([])
    trace.save(tmp_path / "trace.parquet")
    assert lrc.load_trace(tmp_path / "trace.parquet").equals(trace)


def test_others_read_the_columns(tmp_path):
    trace = small()
    trace.save(tmp_path / "trace.parquet")
    frame = pd.read_parquet(tmp_path / "trace.parquet")
    assert frame.columns.tolist() == list(trace_file.COLUMNS)
    assert frame["dataset"].tolist() == ["code", "law"]
    assert frame["tokens"].tolist() == [3, 2]
    for i, row in frame.iterrows():
        n = row["tokens"]
        assert (row["experts"].reshape(n, 2, 2) == trace.experts[i, :n]).all()
        assert (row["weights"].reshape(n, 2, 2) == trace.weights[i, :n]).all()
        assert (row["token_ids"] == trace.token_ids[i, :n]).all()
    header = json.loads(pq.read_schema(tmp_path / "trace.parquet").metadata[b"lrc"])
    assert (header["num_experts"], header["layers"], header["top_k"]) == (4, 2, 2)
    assert header["meta"] == trace.meta


def test_nothing_is_left_where_writing_cannot_begin(tmp_path):
    with (
        patch.object(trace_file.pq, "ParquetWriter", side_effect=OSError("disk full")),
        pytest.raises(TraceError, match=r"trace.parquet: cannot be written .disk full.$"),
    ):
        small().save(tmp_path / "trace.parquet")
    assert not list(tmp_path.iterdir())


def test_an_older_file_is_still_read():
    trace = lrc.load_trace(GOLDEN)
    assert trace.shape == (68, 80, 3, 2)
    assert trace.dataset_names == ["0", "1"]


def damaged_files(data, rng):
    """Copies of a file with a bit flipped, cut short, or with a piece gone or overwritten."""
    for at in rng.integers(0, len(data), 400):
        yield data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    for at in rng.integers(0, len(data), 30):
        yield data[:at]
        yield data[:at] + data[at + 1 :]
        yield data[:at] + bytes(min(20, len(data) - at)) + data[at + 20 :]


def test_damage_never_goes_unseen(tmp_path):
    trace = lrc.load_trace(GOLDEN).select(slice(20))
    path = tmp_path / "trace.parquet"
    with patch.object(trace_file, "ROW_GROUP_IDS", 5000):
        trace.save(path)
    data = path.read_bytes()
    refused = total = 0
    for damaged in damaged_files(data, np.random.default_rng(0)):
        total += 1
        path.write_bytes(damaged)
        try:
            loaded, message = lrc.load_trace(path), None
        except TraceError as error:
            loaded, message = None, str(error)
        # Bits that carry nothing (the writer's name, padding) may differ, content may not.
        if loaded is not None:
            assert loaded.equals(trace)
        else:
            refused += 1
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
    assert refused > 0.9 * total


def test_a_changed_value_is_seen(tmp_path):
    """A file whose Parquet is sound, but whose content is not what was saved."""
    path = tmp_path / "trace.parquet"
    small().save(path)
    table = pq.read_table(path)
    changes = {
        "dataset": ["code", "math"],
        "tokens": [2, 3],
        "token_ids": [[5, 6, 7], [8, 10]],
        "weights": [[0.5] * 12, [0.5] * 7 + [0.25]],
        "experts": [[0, 1] * 6, [1, 0] * 4],
    }
    for name, values in changes.items():
        i = table.schema.get_field_index(name)
        other = table.set_column(i, table.field(i), pa.array(values, table.field(i).type))
        pq.write_table(other, path)
        with pytest.raises(TraceError, match="damaged"):
            lrc.load_trace(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(TraceError, match="its checksum differs"):
        lrc.load_trace(path)
    header = json.loads(table.schema.metadata[b"lrc"])
    header["num_experts"] = 8
    pq.write_table(table.replace_schema_metadata({"lrc": json.dumps(header)}), path)
    with pytest.raises(TraceError, match="its checksum differs"):
        lrc.load_trace(path)
    pq.write_table(table.drop_columns("experts"), path)
    with pytest.raises(TraceError, match="column 'experts' is missing"):
        lrc.load_trace(path)


def test_ids_of_a_forged_file_are_checked(tmp_path):
    """Kernels index with ids: a right checksum alone must not let one pass."""
    path = tmp_path / "trace.parquet"
    bad = small()
    experts = bad.experts.copy()
    experts[0, 1, 0, 0] = 7
    bad.experts = experts
    bad.save(path)
    with pytest.raises(TraceError, match=r"experts\[sequence 0, token 1, layer 0, slot 0\] is 7"):
        lrc.load_trace(path)


def test_what_is_no_trace(tmp_path):
    with pytest.raises(TraceError, match="no such file"):
        lrc.load_trace(tmp_path / "none.parquet")
    with pytest.raises(TraceError, match="no such file"):
        lrc.load_trace(tmp_path)
    (tmp_path / "text").write_text("not Parquet")
    with pytest.raises(TraceError, match="no Parquet file"):
        lrc.load_trace(tmp_path / "text")
    pd.DataFrame({"experts": [1]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(TraceError, match=r"no trace .its schema has no key 'lrc'"):
        lrc.load_trace(tmp_path / "foreign.parquet")
    small().save(tmp_path / "new.parquet")
    table = pq.read_table(tmp_path / "new.parquet")
    pq.write_table(
        table.replace_schema_metadata({"lrc": '{"version": 99}'}), tmp_path / "new.parquet"
    )
    with pytest.raises(TraceError, match="trace format 99, but this lrc reads 1"):
        lrc.load_trace(tmp_path / "new.parquet")


def write(path, parts):
    with TraceWriter(path) as writer:
        for part in parts:
            writer.append(part)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "trace.parquet"
    small().save(path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="does not fit"):
        write(path, [small(), small().select(layers=0)])
    broken = small()
    broken.meta["loss"] = float("nan")
    with pytest.raises(TraceError, match="meta cannot"):
        broken.save(path)
    with pytest.raises(TraceError, match="nothing was appended"):
        write(path, [])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["trace.parquet"]
    with pytest.raises(TraceError, match="does not exist; create it"):
        small().save(tmp_path / "none" / "trace.parquet")
    with pytest.raises(TraceError, match="a folder; name a file in it"):
        small().save(tmp_path)


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    small().save(tmp_path / "trace.parquet")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 60), st.data())
def test_the_bytes_do_not_depend_on_the_parts(tmp_path_factory, trace, row_group_ids, data):
    """A row group ends with the sequence that fills it, however the sequences come."""
    folder = tmp_path_factory.mktemp("trace")
    places = st.lists(st.integers(0, trace.num_sequences), max_size=4).map(sorted)
    cuts = [0, *data.draw(places), trace.num_sequences]
    parts = [trace.select(slice(*pair)) for pair in itertools.pairwise(cuts)]
    with patch.object(trace_file, "ROW_GROUP_IDS", row_group_ids):
        trace.save(folder / "whole.parquet")
        write(folder / "parts.parquet", parts)
    assert (folder / "parts.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    ids = trace.lengths * trace.num_layers * trace.top_k
    with TraceFile(folder / "whole.parquet") as file:
        groups = [file.read(group) for group in range(file.num_row_groups)]
    assert sum(group.num_sequences for group in groups) == trace.num_sequences
    start = 0
    for n, group in enumerate(groups):
        inside = ids[start : start + group.num_sequences]
        assert inside[:-1].sum() < row_group_ids
        assert inside.sum() >= row_group_ids or n == len(groups) - 1
        start += group.num_sequences


def test_writing_in_parts(tmp_path):
    """Batches of different padding, read back whole or a row group at a time."""
    parts = [
        Trace(np.full((2, n, 1, 1), n % 3), 3, datasets=["a", "b"], meta={"model": "toy"})
        for n in (4, 9, 2)
    ]
    path = tmp_path / "trace.parquet"
    with patch.object(trace_file, "ROW_GROUP_IDS", 8):
        write(path, parts)
    whole = concat_traces(parts)
    assert lrc.load_trace(path).equals(whole)
    with TraceFile(path) as file:
        assert (file.num_sequences, file.num_row_groups, file.sequence_length) == (6, 4, 9)
        assert file.read(1).equals(whole.select([2]))
        assert file.read(3, 0).equals(whole.select([4, 5, 0, 1]))


# --- The package ------------------------------------------------------------------------------


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'datasets', 'matplotlib'}"
    code = f"import sys, lrc; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(lrc.__file__).parents[1])


def test_examples_in_docstrings():
    module = sys.modules["lrc.trace"]
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_lists_in_meta_follow_what_is_selected_and_joined():
    experts = np.zeros((3, 4, 2, 1), np.int16)
    meta = {"prompt_tokens": [1, 2, 3], "expert_bytes": [10, 20], "layers": ["a", "b"], "note": "x"}
    trace = Trace(experts, 5, meta=meta)
    part = trace.select([2, 0], layers=[1])
    assert part.meta == {
        "prompt_tokens": [3, 1], "expert_bytes": [20], "layers": ["b"], "note": "x"
    }  # fmt: skip
    assert trace.select(slice(1)).meta["expert_bytes"] == [10, 20]
    joined = concat_traces([trace, trace.select([1])])
    assert joined.meta["prompt_tokens"] == [1, 2, 3, 2]
    bare = Trace(experts, 5)
    assert "prompt_tokens" not in concat_traces([trace, bare]).meta
