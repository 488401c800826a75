"""Recording a corpus: forms of batches, files that survive anything, ranks, offloading."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from tiny_models import hook_count, random_tokens, record_pass, tiny_model, tiny_switch
from transformers import AutoModelForCausalLM

import lrc
from lrc.corpora import Sequences
from lrc.corpus_run import CorpusRun
from lrc.part_store import PartStore
from lrc.trace_file import TraceFile

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mixtral():
    return tiny_model("mixtral")


# --- Batches -------------------------------------------------------------------------------------


def test_all_forms_of_batches_give_the_same(mixtral):
    tokens = random_tokens(5, 7)
    labels = ["a", "b", "a", "b", "b"]
    mask = torch.ones_like(tokens)
    expected = record_pass(mixtral, input_ids=tokens)
    split = [slice(0, 2), slice(2, 5)]
    forms = {
        "tensor": tokens,
        "array": tokens.numpy().astype(np.int32),
        "lists": tokens.tolist(),
        "arrays": list(tokens.numpy()),
        "mapping": {"input_ids": tokens, "attention_mask": mask, "labels": tokens},
        "lists in a mapping": {"input_ids": tokens.tolist()},
        "batches": [{"input_ids": tokens[s], "attention_mask": mask[s]} for s in split],
        "array batches": [tokens[s].numpy() for s in split],
        "generator": (tokens[s] for s in split),
        "rows": [{"input_ids": row.tolist(), "dataset": "x"} for row in tokens],
        "labelled batches": [{"input_ids": tokens[s], "dataset": labels[s]} for s in split],
        "corpus": Sequences(tokens.numpy(), tuple(labels)),
    }
    for form, batches in forms.items():
        trace = lrc.record(mixtral, batches, progress=False, batch_size=2)
        np.testing.assert_array_equal(trace.experts, expected.experts, err_msg=form)
        np.testing.assert_array_equal(trace.token_ids, tokens, err_msg=form)
        if form == "rows":
            assert trace.dataset_names == ["x"]
        elif form in ("corpus", "labelled batches"):
            assert trace.datasets.tolist() == labels, form
        else:
            assert trace.datasets is None, form


def test_ragged_batches(mixtral):
    rows = [random_tokens(n, seed=n).tolist() for n in (3, 6, 2)]
    forms = (rows, {"input_ids": rows}, [{"input_ids": rows}], [np.array(row) for row in rows])
    for batches in forms:
        assert lrc.record(mixtral, batches, progress=False).lengths.tolist() == [3, 6, 2]
    padded = [{"input_ids": [*row, 0], "attention_mask": [1] * len(row) + [0]} for row in rows]
    assert lrc.record(mixtral, padded, progress=False).lengths.tolist() == [3, 6, 2]


def test_labels(mixtral):
    tokens = random_tokens(3, 4)
    for datasets in ("text", ["text"] * 3, iter(["text"] * 3)):
        trace = lrc.record(mixtral, tokens, datasets=datasets, progress=False, batch_size=2)
        assert trace.datasets.tolist() == ["text"] * 3
    for datasets, message in ((["a"] * 2, "only 2 labels"), (["a"] * 4, "more labels than the 3")):
        with pytest.raises(lrc.RecordError, match=message):
            lrc.record(mixtral, tokens, datasets=datasets, progress=False)
    with pytest.raises(lrc.RecordError, match="all sequences or none"):
        lrc.record(mixtral, [{"input_ids": tokens, "dataset": ["a"]}], progress=False)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ("some text", "type str"),
        (["some text"], "cannot read token ids"),
        (3, "type int"),
        ([], "is empty"),
        ([{"tokens": [1]}], "no input_ids"),
        ({"input_ids": [["a"]]}, "cannot read token ids"),
        (np.zeros((2, 3)), "must be integers"),
        (np.zeros((1, 1, 2, 3), int), "shape [1, 2, 3]"),
        ([[1, 2], [[1, 2]]], "mixed"),
        ([[3, 97]], "token id 97 after sequence 0 is not in the model's vocabulary of 97"),
        ([[-1, 3]], "token id -1"),
        ([{"input_ids": [[1]], "note": ["a"]}], "no array of numbers"),
    ],
)
def test_bad_batches(mixtral, batches, message):
    with pytest.raises(lrc.RecordError) as error:
        lrc.record(mixtral, batches, progress=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_batch_size(mixtral):
    with pytest.raises(lrc.RecordError, match="batch_size is 0"):
        lrc.record(mixtral, random_tokens(1, 3), batch_size=0)


def test_progress_bar(mixtral, capfd):
    lrc.record(mixtral, random_tokens(3, 4), progress=True)
    assert "3/3" in capfd.readouterr().err
    lrc.record(mixtral, random_tokens(3, 4), progress=False)
    assert capfd.readouterr().err == ""


# --- The file ------------------------------------------------------------------------------------

ROWS = [random_tokens(n, seed=n).tolist() for n in (5, 9, 2, 7, 7, 3, 8)]
ARGUMENTS = {"datasets": list("aabbcca"), "weights": True, "progress": False, "batch_size": 2}


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of a batch or two."""
    monkeypatch.setattr("lrc.trace_file.ROW_GROUP_IDS", 60)


def test_file_is_streamed_and_whole(mixtral, tmp_path, small_groups):
    out = tmp_path / "trace.parquet"
    trace = lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    assert trace.equals(lrc.record(mixtral, ROWS, **ARGUMENTS))
    assert trace.equals(lrc.load_trace(out))
    assert [file.name for file in tmp_path.iterdir()] == ["trace.parquet"]
    with TraceFile(out) as file:
        assert file.num_row_groups == 3
    trace.save(tmp_path / "saved.parquet")
    assert out.read_bytes() == (tmp_path / "saved.parquet").read_bytes()
    assert lrc.record(mixtral, ROWS, out=tmp_path / "more.parquet", load=False, **ARGUMENTS) is None
    assert out.read_bytes() == (tmp_path / "more.parquet").read_bytes()


def test_memory_holds_a_row_group_and_no_more(mixtral, tmp_path, monkeypatch):
    """Ids in the recorder stay below a row group and a batch; so do the parts on the disk."""
    tokens, limit, batch_ids = random_tokens(40, 10), 500, 2 * 10 * 3 * 2
    monkeypatch.setattr("lrc.trace_file.ROW_GROUP_IDS", limit)
    held, parts = [], []
    forward, add = CorpusRun._forward, PartStore.add

    def watch_forward(run, *batch):
        forward(run, *batch)
        held.append(run.recorder.num_ids)

    def watch_add(store, files, note):
        add(store, files, note)
        parts.append(lrc.load_trace(store.paths("trace.parquet")[-1]).experts.size)

    monkeypatch.setattr(CorpusRun, "_forward", watch_forward)
    monkeypatch.setattr(PartStore, "add", watch_add)
    lrc.record(mixtral, tokens, out=tmp_path / "t.parquet", batch_size=2, progress=False)
    assert limit <= max(held) < limit + batch_ids
    assert limit <= max(parts) < limit + batch_ids
    assert sum(parts) == 20 * batch_ids


def test_parts_are_cut_by_time_too(mixtral, tmp_path, monkeypatch):
    notes = []
    add = PartStore.add
    monkeypatch.setattr(
        PartStore, "add", lambda *args: (add(*args), notes.append(args[2]["batches"]))
    )
    lrc.record(mixtral, ROWS, out=tmp_path / "one.parquet", **ARGUMENTS)
    monkeypatch.setattr("lrc.keepers.PART_SECONDS", 0)
    lrc.record(mixtral, ROWS, out=tmp_path / "many.parquet", **ARGUMENTS)
    assert notes == [4, 1, 2, 3, 4]
    one, many = ((tmp_path / f"{name}.parquet").read_bytes() for name in ("one", "many"))
    assert one == many


def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    """SIGKILL before every operation on files and at random moments; LRC_KILLS asks for more."""
    kills = int(os.environ.get("LRC_KILLS", "10"))
    script = Path(__file__).with_name("killed_recording.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(kills)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lrc.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["row_groups"] >= 3
    assert seen["kills"] >= seen["events"] + kills >= 40


def test_failure_leaves_no_file_and_the_model_as_it_was(tmp_path):
    model = tiny_model("mixtral").train()
    batches = [torch.full((1, 4), 200), random_tokens(1, 4)]
    with pytest.raises(lrc.RecordError, match="vocabulary"):
        lrc.record(model, batches, out=tmp_path / "trace.parquet", progress=False)
    assert not list(tmp_path.iterdir())
    assert model.training
    assert hook_count(model) == 0


def interrupted(model, out, rows=ROWS, at=5, **changes):
    """Leave a recording unfinished: sequence `at` is not in the vocabulary."""
    broken = [*rows[:at], [1000], *rows[at + 1 :]]
    with pytest.raises(lrc.RecordError, match="vocabulary"):
        lrc.record(model, broken, out=out, **ARGUMENTS | changes)


def test_after_a_failure_it_goes_on(mixtral, tmp_path, monkeypatch):
    out, expected = tmp_path / "trace.parquet", tmp_path / "expected.parquet"
    lrc.record(mixtral, ROWS, out=expected, **ARGUMENTS)
    interrupted(mixtral, out)
    assert [path.name for path in tmp_path.glob("trace*")] == ["trace.parquet.parts"]
    ran = []
    forward = CorpusRun._forward
    monkeypatch.setattr(
        CorpusRun, "_forward", lambda run, *batch: (ran.append(batch[1]), forward(run, *batch))
    )
    lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    # The first batch is run to be compared, the second was recorded before the failure.
    assert ran == [["a", "a"], ["c", "c"], ["a"]]
    assert out.read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


OTHERS = {
    "tokens": ({"rows": [[5, 5, 5, 5, 6], *ROWS[1:]]}, "other tokens"),
    "lengths": ({"rows": [[5, 5], *ROWS[1:]]}, "other lengths"),
    "later tokens": ({"rows": [*ROWS[:3], ROWS[3][::-1], *ROWS[4:]]}, "the first 2 of them"),
    "fewer": ({"rows": ROWS[:2], "datasets": "a"}, "batches end after 1 of 2 recorded there"),
    "labels": ({"datasets": list("bbbbcca")}, "the first 2 of them"),
    "no labels": ({"datasets": None}, "was recorded with datasets"),
    "batch size": ({"batch_size": 3}, "the first 2 of them"),
    "weights": ({"weights": False}, "weights=True, not False"),
    "mode": ({"mode": "paper", "weights": False}, "mode='executed', not 'paper'"),
    "predictions": ({"predictions": False}, "predictions=True, not False"),
    "shard": ({"shard": (0, 1)}, None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_recording_is_not_continued(mixtral, tmp_path, name):
    changes, message = OTHERS[name]
    out = tmp_path / "trace.parquet"
    interrupted(mixtral, out)
    before = {path.name: path.read_bytes() for path in (tmp_path / "trace.parquet.parts").iterdir()}
    arguments = {"rows": ROWS} | ARGUMENTS | changes
    rows = arguments.pop("rows")
    if message is None:
        lrc.record(mixtral, rows, out=out, **arguments)
        return
    with pytest.raises(lrc.LrcError, match=message) as error:
        lrc.record(mixtral, rows, out=out, **arguments)
    assert "\n" not in str(error.value)
    after = {path.name: path.read_bytes() for path in (tmp_path / "trace.parquet.parts").iterdir()}
    assert after == before
    lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)


def test_another_model_does_not_continue(mixtral, tmp_path):
    out = tmp_path / "trace.parquet"
    interrupted(mixtral, out)
    with pytest.raises(lrc.RecordError, match=r"routes only \d+% of the first sequences' tokens"):
        lrc.record(tiny_model("mixtral", seed=1), ROWS, out=out, **ARGUMENTS)
    with pytest.raises(lrc.RecordError, match="architecture='MixtralForCausalLM', which is now"):
        lrc.record(tiny_model("olmoe"), ROWS, out=out, **ARGUMENTS)
    with pytest.raises(lrc.RecordError, match="dtype='float32', which is now 'bfloat16'"):
        lrc.record(tiny_model("mixtral", dtype=torch.bfloat16), ROWS, out=out, **ARGUMENTS)
    with pytest.raises(lrc.RecordError, match=r"experts, layers, top-k. = \(8, 3, 2\)"):
        lrc.record(tiny_model("mixtral", num_experts_per_tok=3), ROWS, out=out, **ARGUMENTS)
    lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)


def test_a_finished_file_is_returned_or_refused(mixtral, tmp_path):
    out, arguments = tmp_path / "trace.parquet", ARGUMENTS | {"datasets": "a"}
    trace = lrc.record(mixtral, ROWS, out=out, **arguments)
    before = out.read_bytes(), out.stat().st_mtime_ns
    assert lrc.record(mixtral, ROWS, out=out, **arguments).equals(trace)
    for model, rows, changes, message in (
        (mixtral, [*ROWS[:-1], [3, 4]], {}, "batches are not those recorded there"),
        (mixtral, [*ROWS[:6], [3, 4], ROWS[6]], {}, "batches are not those recorded there"),
        (mixtral, [*ROWS, [3, 4], [5]], {"batch_size": 2}, "batches are not those"),
        (mixtral, ROWS[:2], {}, "batches end after 1 of 4"),
        (mixtral, ROWS, {"datasets": "b"}, "batches are not those recorded there"),
        (mixtral, ROWS, {"weights": False}, "was recorded with weights"),
        (mixtral, ROWS, {"mode": "paper", "weights": False}, "mode='executed', which is now"),
        (tiny_model("mixtral", seed=1), ROWS, {}, "weights are others"),
    ):
        with pytest.raises(lrc.RecordError, match=message):
            lrc.record(model, rows, out=out, **arguments | changes)
    whole = lrc.record(mixtral, ROWS[:6], out=tmp_path / "six.parquet", **arguments)
    with pytest.raises(lrc.RecordError, match="is finished, but batches go on after the 6"):
        lrc.record(mixtral, ROWS, out=tmp_path / "six.parquet", **arguments)
    assert whole.equals(lrc.load_trace(tmp_path / "six.parquet"))
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    assert not list(tmp_path.glob("*.parts"))


def test_other_files_are_not_overwritten(mixtral, tmp_path):
    out = tmp_path / "trace.parquet"
    out.write_text("precious")
    with pytest.raises(lrc.TraceError, match="is there already and was not made by this call"):
        lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    assert out.read_text() == "precious"
    out.unlink()
    record_pass(mixtral, input_ids=random_tokens(1, 3)).save(out)
    with pytest.raises(lrc.TraceError, match="is there already and was not made by this call"):
        lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    with pytest.raises(lrc.TraceError, match="does not exist; create it"):
        lrc.record(mixtral, ROWS, out=tmp_path / "none" / "trace.parquet", **ARGUMENTS)
    with pytest.raises(lrc.TraceError, match="a folder; name a file in it"):
        lrc.record(mixtral, ROWS, out=tmp_path, **ARGUMENTS)


def test_two_processes_do_not_write_one_file(mixtral, tmp_path):
    out = tmp_path / "trace.parquet"
    interrupted(mixtral, out)
    parts = tmp_path / "trace.parquet.parts"
    holder = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, parts / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(lrc.TraceError, match="another process is recording there"):
            lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
        other.kill()
    lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix")
def test_a_full_disk_costs_nothing_recorded(mixtral, tmp_path, small_groups):
    import resource

    out = tmp_path / "trace.parquet"
    rows, arguments = [*ROWS, random_tokens(2500, seed=9).tolist()], ARGUMENTS | {"datasets": "a"}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, unlimited[1]))
    try:
        full = r"parts: cannot be written .*File too large.*3 finished parts are safe"
        with pytest.raises(lrc.TraceError, match=full) as error:
            lrc.record(mixtral, rows, out=out, **arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "\n" not in str(error.value)
    kept = list((tmp_path / "trace.parquet.parts").glob("*.parquet"))
    assert len(kept) == 3
    trace = lrc.record(mixtral, rows, out=out, **arguments)
    assert trace.equals(lrc.record(mixtral, rows, **arguments))


def test_no_right_to_write(mixtral, tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(lrc.TraceError, match=r"parts: cannot be written .Permission denied.$"):
        lrc.record(mixtral, ROWS, out=tmp_path / "trace.parquet", **ARGUMENTS)


def test_a_damaged_part_is_named(mixtral, tmp_path, small_groups):
    out = tmp_path / "trace.parquet"
    interrupted(mixtral, out)
    part = tmp_path / "trace.parquet.parts" / "000001.trace.parquet"
    good = part.read_bytes()
    part.write_bytes(good[:-1])
    with pytest.raises(lrc.TraceError, match="part 1 is damaged or missing; remove its files"):
        lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    part.write_bytes(good[:40] + bytes(20) + good[60:])
    with pytest.raises(lrc.TraceError, match=r"000001.trace.parquet: "):
        lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    for later in part.parent.glob("00000[1-9].*"):
        later.unlink()
    trace = lrc.record(mixtral, ROWS, out=out, **ARGUMENTS)
    assert trace.equals(lrc.record(mixtral, ROWS, **ARGUMENTS))


def test_foreign_files_in_the_folder_stay(mixtral, tmp_path):
    interrupted(mixtral, tmp_path / "trace.parquet")
    (tmp_path / "trace.parquet.parts" / "notes.txt").write_text("mine")
    lrc.record(mixtral, ROWS, out=tmp_path / "trace.parquet", **ARGUMENTS)
    assert [p.name for p in (tmp_path / "trace.parquet.parts").iterdir()] == ["notes.txt"]


# --- Weights that are elsewhere ------------------------------------------------------------------


def test_offloaded_weights():
    model, tokens = tiny_model("qwen2_moe"), random_tokens(2, 6)
    expected = lrc.record(model, tokens, progress=False)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    trace = lrc.record(model, tokens, progress=False)
    assert trace.equals(expected)


def test_weights_on_the_disk(tmp_path):
    """What ``device_map="auto"`` does with a model that is too large: some layers on the disk."""
    model, tokens = tiny_model("qwen2_moe"), random_tokens(4, 6)
    expected = lrc.record(model, tokens, batch_size=2, progress=False)
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu"}
    places |= {
        f"model.layers.{layer}": place for layer, place in enumerate(("cpu", "disk", "disk"))
    }
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert spread.hf_device_map["model.layers.2"] == "disk"
    assert any(p.device.type == "meta" for p in spread.model.layers[2].parameters())
    trace = lrc.record(spread, tokens, batch_size=2, out=tmp_path / "t.parquet", progress=False)
    np.testing.assert_array_equal(trace.experts, expected.experts)
    again = lrc.record(spread, tokens, batch_size=2, out=tmp_path / "t.parquet", progress=False)
    assert again.equals(trace)


# --- Encoder and decoder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def switch():
    return tiny_switch()


def seq2seq_batches():
    """Batches of sources and targets, each of its own length."""
    return [
        {
            "input_ids": random_tokens(2, n, seed=n),
            "decoder_input_ids": random_tokens(2, m, seed=m),
            "dataset": ["a", "b"],
        }
        for n, m in ((5, 3), (7, 4), (4, 6))
    ]


def test_each_stack_has_its_file(switch, tmp_path, small_groups):
    expected = lrc.record(switch, seq2seq_batches(), progress=False)
    assert set(expected) == {"encoder", "decoder"}
    out = tmp_path / "t.parquet"
    for _ in range(2):
        traces = lrc.record(switch, seq2seq_batches(), out=out, progress=False)
        assert set(traces) == set(expected)
        for stack, trace in traces.items():
            assert trace.equals(expected[stack])
            assert trace.equals(lrc.load_trace(tmp_path / f"t.{stack}.parquet"))
        names = ["t.decoder.parquet", "t.encoder.parquet"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    for rank in (0, 1):
        lrc.record(
            switch, seq2seq_batches(), out=tmp_path / "r.parquet", shard=(rank, 2), progress=False
        )
    for stack, trace in expected.items():
        assert lrc.load_trace(tmp_path / f"r.rank*of2.{stack}.parquet").equals(trace)


def test_a_pair_is_continued_wherever_it_stopped(switch, tmp_path, monkeypatch):
    """Killed after every renaming: of parts, and of the two files."""
    monkeypatch.setattr("lrc.keepers.PART_SECONDS", 0)
    expected = lrc.record(switch, seq2seq_batches(), out=tmp_path / "e.parquet", progress=False)
    renames = []
    put = os.replace

    def counted(*names):
        renames.append(names)
        put(*names)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted)
        lrc.record(switch, seq2seq_batches(), out=tmp_path / "u.parquet", progress=False)
    assert len(renames) == 1 + 3 * 3 + 2 * 2
    for stop in range(len(renames)):
        seen = []

        def killed(*names, seen=seen, stop=stop):
            if len(seen) == stop:
                raise KeyboardInterrupt
            seen.append(names)
            put(*names)

        out = tmp_path / f"{stop}.parquet"
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                lrc.record(switch, seq2seq_batches(), out=out, progress=False)
        traces = lrc.record(switch, seq2seq_batches(), out=out, progress=False)
        for stack, trace in traces.items():
            assert trace.equals(expected[stack])
            one, other = (tmp_path / f"{name}.{stack}.parquet" for name in (stop, "e"))
            assert one.read_bytes() == other.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_targets_alone_feed_the_decoder(switch):
    batch = {"input_ids": random_tokens(2, 5), "labels": random_tokens(2, 4, seed=1)}
    assert lrc.record(switch, batch, progress=False)["decoder"].shape[:2] == (2, 4)
