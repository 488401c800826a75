"""Traces that others published: found, fetched from a stand-in of the repositories, refused."""

import hashlib
import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest

import lrc
from lrc import public_traces

ROOT = Path(__file__).resolve().parent.parent

LAYERS, TOP_K, EXPERTS = 3, 2, 8
LABELS = ["code", "code", "law"]
LENGTHS = [5, 4, 7]


def texts():
    """Routing of three texts, and weights that float16 holds, in falling order."""
    random = np.random.default_rng(0)
    ids = [np.argsort(random.random((length, LAYERS, EXPERTS)))[..., :TOP_K] for length in LENGTHS]
    weights = [
        -np.sort(-random.integers(1, 512, (length, LAYERS, TOP_K)) / 512) for length in LENGTHS
    ]
    return ids, weights


def write_esft(root):
    """As deepseek-ai/ESFT: a folder a domain, a file a layer, a line a text."""
    for label in dict.fromkeys(LABELS):
        folder = root / "results" / "expert_scores" / label
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
        for layer in range(LAYERS):
            lines = [
                "\t".join([*map(str, i[:, layer].ravel()), "", *map(str, w[:, layer].ravel())])
                for i, w, at in zip(*texts(), LABELS, strict=True)
                if at == label
            ]
            (folder / f"expert_weights_{layer + 1}.txt").write_text("\n".join(lines) + "\n")


def write_fingerprints(root):
    """As the fingerprints of gpt-oss: a file a generation, in folders whose names hold spaces."""
    for number, (ids, weights, label) in enumerate(zip(*texts(), LABELS, strict=True)):
        folder = root / "data" / label / f"Question ({number}) & answer"
        folder.mkdir(parents=True)
        (folder / "True_False_examples.json").write_text(
            json.dumps(fingerprint(ids, weights, label))
        )
        (folder / "False_False_examples.json").write_text("{")


def fingerprint(ids, weights, label):
    tokens = [
        {
            f"token_{10 + place}": {
                f"layer_{layer}": {"selected_experts": row, "selected_probs": probs}
                for layer, (row, probs) in enumerate(zip(*both, strict=True))
            }
        }
        for place, both in enumerate(zip(ids.tolist(), weights.tolist(), strict=True))
    ]
    text = ["a"] * (10 + len(ids) + 1)
    return {"dataset": label, "full_text": text, "generated_only": text[10:], "router_data": tokens}


def write_phone(root):
    """As Helldez/BigMoeOnEdge: the routing of one text, and the device's log."""
    folder = root / public_traces._PHONE
    folder.mkdir(parents=True)
    ids, weights = (part[0] for part in texts())
    head = f"# route_trace v1\n# model=/x/m.gguf arch=moe n_layer={LAYERS} n_expert={EXPERTS} "
    head += f"n_expert_used={TOP_K}\n"
    head += "".join(f"# layer={layer} expert_bytes=10\n" for layer in range(LAYERS))
    rows = [
        f"0,1,{t},{layer},{slot},{ids[t, layer, slot]},{weights[t, layer, slot]},0,10\n"
        for t in range(len(ids))
        for layer in range(LAYERS)
        for slot in range(TOP_K)
    ]
    table = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n" + "".join(rows)
    (folder / "qwen.route.csv").write_text(head + table)
    log = "step,wall_ms,read_bytes,cache_hit_pct\n1,5.5,30,0.0\n2,4.5,20,12.5\n"
    (folder / "qwen.metrics").write_text(log + "# summary tokens=2 cache_budget_MiB=4.0\n")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Tiny repositories in place of the real ones, each at a commit: folder by trace."""
    monkeypatch.delenv("LRC_TRACES", raising=False)
    registries = tmp_path / "registries"
    registries.mkdir()
    monkeypatch.setattr(public_traces, "_REGISTRIES", registries)
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    sizes = (len(LENGTHS), sum(LENGTHS), LAYERS, TOP_K, EXPERTS)
    options = {"num_experts": EXPERTS, "top_k": TOP_K}
    made = {}
    for name, write, entry, only in [
        ("deepseek-v2-lite", write_esft, "results/expert_scores", "expert_weights_*.txt"),
        ("gpt-oss-20b", write_fingerprints, None, "True_False_examples.json"),
        ("phone-qwen", write_phone, f"{public_traces._PHONE}/qwen.route.csv", "qwen.*"),
    ]:
        phone = name == "phone-qwen"
        source = public_traces._Source(
            model=f"Tiny {name}",
            repository=f"someone/{name}-repository",
            commit=f"{len(made)}" * 40,
            licence="MIT",
            megabytes=1,
            entry=entry,
            sizes=(1, LENGTHS[0], *sizes[2:]) if phone else sizes,
            options={} if phone else options,
        )
        monkeypatch.setitem(public_traces._SOURCES, name, source)
        root = tmp_path / "hub" / source.repository / source.commit
        write(root)
        files = [p for p in sorted(root.rglob("*")) if p.match(only)]
        (registries / f"{name}.txt").write_text(
            "".join(
                f"{shlex.quote(p.relative_to(root).as_posix())} "
                f"{hashlib.sha256(p.read_bytes()).hexdigest()}\n"
                for p in files
            )
        )
        made[name] = root
    return made


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A server on this machine that stands in for GitHub's: the paths it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(urlsplit(self.path).path)

    handler = partial(Handler, directory=tmp_path / "hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(public_traces, "_HOST", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


@pytest.fixture
def unreachable(published, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(public_traces, "_HOST", f"http://127.0.0.1:{port}")


def same(trace, count=3):
    ids, weights = texts()
    return trace.lengths.tolist() == LENGTHS[:count] and all(
        np.array_equal(trace.experts[i, : LENGTHS[i]], ids[i])
        and np.array_equal(trace.weights[i, : LENGTHS[i]], weights[i])
        for i in range(count)
    )


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "gpt-oss-20b", "phone-qwen"])
class TestEachFormat:
    def test_is_fetched_once(self, published, hub, name):
        assert not public_traces.is_here(name)
        assert not hub
        trace = lrc.resolve_trace(f"public:{name}")
        assert same(trace, trace.num_sequences)
        assert trace.meta["model"] == f"Tiny {name}"
        assert trace.meta["source"].startswith(f"someone/{name}-repository@")
        asked = len(hub)
        assert asked == len(public_traces._registry(name))
        assert all(path.startswith(f"/someone/{name}-repository/") for path in hub)
        assert public_traces.is_here(name)
        again = public_traces.load(name)
        assert np.array_equal(again.experts, trace.experts)
        assert len(hub) == asked

    def test_is_found_as_a_clone_or_below_its_name(
        self, published, hub, name, tmp_path, monkeypatch
    ):
        for folder in (f"{name}-repository", name):
            root = tmp_path / f"below-{folder}"
            root.mkdir()
            (root / folder).symlink_to(published[name], target_is_directory=True)
            monkeypatch.setenv("LRC_TRACES", str(root))
            assert public_traces.is_here(name)
            trace = public_traces.load(name)
            assert same(trace, trace.num_sequences)
        assert not hub

    def test_a_changed_file_is_refused(self, published, hub, name, tmp_path, monkeypatch):
        path = published[name] / list(public_traces._registry(name))[-1]
        path.write_bytes(path.read_bytes() + b" ")
        (tmp_path / name).symlink_to(published[name], target_is_directory=True)
        monkeypatch.setenv("LRC_TRACES", str(tmp_path))
        with pytest.raises(
            lrc.TraceError, match=r"is not the file of someone/.* at commit"
        ) as error:
            public_traces.load(name)
        assert "\n" not in str(error.value)
        monkeypatch.delenv("LRC_TRACES")
        with pytest.raises(lrc.LrcError, match=r"hash.*set LRC_TRACES") as error:
            public_traces.load(name)
        assert "\n" not in str(error.value)
        assert not public_traces.is_here(name)

    def test_a_hub_out_of_reach_ends_in_one_line(self, unreachable, name):
        with pytest.raises(
            lrc.ParameterError, match=r"^trace: .*cannot be fetched.*LRC_TRACES"
        ) as e:
            lrc.resolve_trace(f"public:{name}")
        assert "\n" not in str(e.value)


def write_npz(path, **changes):
    ids, weights = texts()
    arrays = {
        "expert_ids": np.concatenate(ids).astype(np.uint8),
        "weights": np.concatenate(weights).astype(np.float16),
        "offsets": np.cumsum([0, *LENGTHS]),
        "dataset": np.array(LABELS),
        "num_experts": np.array(EXPERTS),
    }
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **(arrays | changes))


def test_short_form_in_a_folder(published, unreachable, tmp_path, monkeypatch):
    path = tmp_path / "gpt-oss-20b" / "gpt-oss-20b.npz"
    write_npz(path)
    monkeypatch.setenv("LRC_TRACES", str(tmp_path))
    assert public_traces.is_here("gpt-oss-20b")
    assert same(public_traces.load("gpt-oss-20b"))
    # The order of the texts does not depend on the file.
    ids, weights = texts()
    turn = [2, 0, 1]
    turned = {
        "expert_ids": np.concatenate([ids[i] for i in turn]).astype(np.uint8),
        "weights": np.concatenate([weights[i] for i in turn]).astype(np.float16),
        "offsets": np.cumsum([0, *(LENGTHS[i] for i in turn)]),
        "dataset": np.array([LABELS[i] for i in turn]),
    }
    write_npz(path, **turned)
    assert same(public_traces.load("gpt-oss-20b"))
    for change, message in [
        ({"offsets": np.array([0, 5])}, "sum up to 5"),
        ({"num_experts": np.array(9)}, "says 9 experts"),
        ({"dataset": np.array(["code"])}, "1 labels for 3 sequences"),
        ({"offsets": np.array([0, 5, 16]), "dataset": np.array(["a", "b"])}, "incomplete file"),
    ]:
        write_npz(path, **change)
        with pytest.raises(lrc.TraceError, match=rf"public:gpt-oss-20b, .*{message}"):
            public_traces.load("gpt-oss-20b")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(lrc.TraceError, match=r"public:gpt-oss-20b, .*gpt-oss-20b\.npz"):
        public_traces.load("gpt-oss-20b")


def test_log_of_a_phone(published, hub, tmp_path, monkeypatch):
    table = public_traces.metrics("phone-qwen")
    assert table["cache_hit_pct"].tolist() == [0.0, 12.5]
    assert table.attrs == {"tokens": 2.0, "cache_budget_MiB": 4.0}
    folder = tmp_path / "phone"
    folder.mkdir()
    for path in (published["phone-qwen"] / public_traces._PHONE).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("LRC_TRACES", str(tmp_path))
    assert same(public_traces.load("phone-qwen"), 1)
    assert public_traces.metrics("phone-qwen").equals(table)
    (folder / "qwen.metrics").write_text("step,wall_ms\n1,2\n")
    with pytest.raises(lrc.TraceError, match="no log of a phone's engine"):
        public_traces.metrics("phone-qwen")
    (folder / "qwen.metrics").unlink()
    with pytest.raises(lrc.TraceError, match="cannot be read"):
        public_traces.metrics("phone-qwen")
    with pytest.raises(lrc.LrcError, match="without a device's log; those of phone-qwen"):
        public_traces.metrics("gpt-oss-20b")


def test_an_interrupted_download_goes_on(published, hub, monkeypatch):
    name = "gpt-oss-20b"
    path = published[name] / list(public_traces._registry(name))[-1]
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(lrc.LrcError, match=r"404.*what has come is kept"):
        public_traces.load(name)
    path.write_bytes(content)
    hub.clear()
    assert same(public_traces.load(name))
    assert len(hub) == 1


def test_unknown_names_are_explained():
    for call in (public_traces.load, public_traces.is_here, public_traces.metrics):
        with pytest.raises(lrc.LrcError, match="no public trace 'gpt'; there are deepseek-v2-lite"):
            call("gpt")
    with pytest.raises(lrc.ParameterError, match="trace: there is no public trace 'gpt'"):
        lrc.resolve_trace("public:gpt")


def test_a_notebook_fetches_only_when_told(published, hub):
    with pytest.raises(lrc.ParameterError, match=r"phone-qwen \(1 MB\); run it with -p download"):
        public_traces.require("phone-qwen")
    assert not hub
    public_traces.require("phone-qwen", download=True)
    assert hub
    public_traces.require("phone-qwen")


def test_a_notebook_that_cannot_fetch_ends_in_one_line(unreachable):
    with pytest.raises(lrc.ParameterError, match="cannot be fetched"):
        public_traces.require("phone-qwen", download=True)


@pytest.mark.parametrize("there", [True, False])
def test_nbval_skips_notebooks_whose_traces_are_not_here(tmp_path, there):
    """As `make test` runs it, with a notebook whose committed output is wrong."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "notebooks" / "conftest.py").read_bytes())
    cell = nbformat.v4.new_code_cell("6 * 7")
    cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "41"})]
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    book.metadata["lrc"] = {"public_traces": ["phone-qwen"]}
    nbformat.write(book, tmp_path / "x.ipynb")
    if there:
        (tmp_path / "phone").mkdir()
        (tmp_path / "phone" / "qwen.route.csv").write_text("")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run(
        [*command, "--nbval", "--nbval-current-env", "-rs", "x.ipynb"],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    if there:
        assert "1 failed" in done.stdout
    else:
        assert "1 skipped" in done.stdout, done.stdout
        assert "needs public traces that are not on this machine: phone-qwen" in done.stdout


def clean_environment(folder):
    names = {"LRC_TRACES": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return {**os.environ, **names, "PYTHONPATH": str(ROOT)}


class TestFingerprints:
    """What the reader of gpt-oss's fingerprints refuses."""

    @pytest.fixture
    def document(self):
        ids, weights = texts()
        return fingerprint(ids[0], weights[0], "law")

    def test_a_file_and_a_folder(self, tmp_path, document):
        path = tmp_path / "a" / "True_False_examples.json"
        path.parent.mkdir()
        path.write_text(json.dumps(document))
        for source in (path, tmp_path, [path]):
            trace = lrc.load_routes(source, num_experts=EXPERTS)
            assert same(trace, 1)
            assert trace.meta["source"] == "fingerprint"
            assert trace.meta["prompt_tokens"] == [0]
            assert trace.datasets.tolist() == ["law"]

    def test_damage_is_named(self, tmp_path, document):
        path = tmp_path / "True_False_examples.json"

        def lose_token(d):
            del d["router_data"][2]

        def lose_layer(d):
            del d["router_data"][1]["token_11"]["layer_2"]

        def lose_slot(d):
            d["router_data"][1]["token_11"]["layer_2"]["selected_experts"].pop()

        def lose_weights(d):
            for token in d["router_data"]:
                for layers in token.values():
                    for layer in layers.values():
                        layer["selected_probs"].pop()

        def empty(d):
            d["router_data"] = []

        def lose_text(d):
            del d["full_text"]

        for damage, message in [
            (lose_token, "token 12 is missing"),
            (lose_layer, "damaged.*layer_2"),
            (lose_slot, "differ in their numbers of selected_experts"),
            (lose_weights, "other numbers of experts than of probabilities"),
            (empty, "an object for each token"),
            (lose_text, "damaged.*full_text"),
        ]:
            broken = json.loads(json.dumps(document))
            damage(broken)
            path.write_text(json.dumps(broken))
            with pytest.raises(lrc.TraceError, match=message) as error:
                lrc.load_routes(path, num_experts=EXPERTS)
            assert "\n" not in str(error.value)
        path.write_text(json.dumps(document)[:-9])
        with pytest.raises(lrc.TraceError, match="no JSON, or cut short"):
            lrc.load_routes(path, num_experts=EXPERTS)


@pytest.mark.parametrize("name", public_traces.names())
def test_the_registries_name_every_file(name):
    source = public_traces._SOURCES[name]
    registry = public_traces._registry(name)
    assert all(len(known) == 64 for known in registry.values())
    if source.entry:
        assert any(path.startswith(source.entry) for path in registry)
    count = {"deepseek-v2-lite": 4 * 26, "gpt-oss-20b": 282}.get(name, 2)
    assert len(registry) == count


@pytest.mark.parametrize("name", public_traces.names())
def test_the_real_ones(shared, monkeypatch, name):
    monkeypatch.setenv("LRC_TRACES", str(shared / "traces"))
    trace = public_traces.load(name)
    used = trace.experts[trace.valid]
    if name.startswith("phone"):
        log = public_traces.metrics(name)
        assert log["cache_hit_pct"].iloc[-1] == pytest.approx(log.attrs["cache_hit_pct"], abs=0.05)
        assert (used[trace.meta["prompt_tokens"][0] :] >= 0).all()
    else:
        assert (used >= 0).all()
        assert trace.datasets.tolist() == sorted(trace.datasets)
