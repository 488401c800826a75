"""What the interactive pages show equals the tables it was made from."""

import importlib.util
import json
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

import lrc
from lrc import architectures, curves, published, toy_comparison, toys

SCRIPT = Path(__file__).resolve().parent.parent / "book" / "interactive.py"


@pytest.fixture(scope="module")
def interactive():
    spec = importlib.util.spec_from_file_location("interactive", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(interactive):
    """What the explorer's script reads, of all published models and two of our toys."""
    few = [("baseline", 0), ("baseline", 1), ("fewer_experts", 0)]
    whole = interactive.of_toys
    interactive.of_toys = lambda: whole(few)
    try:
        return json.loads(json.dumps(interactive.explorer(), allow_nan=False))
    finally:
        interactive.of_toys = whole


def curve(data, entry, policy):
    line = entry["curves"][policy]
    ratios = data["grids"][line["grid"]]
    rates = [rate / data["unit"] for rate in line["rates"]]
    return pd.DataFrame({"cache_ratio": ratios, "hit_rate": rates})


def of_kind(data, kind):
    return {entry["key"]: entry for entry in data["models"] if entry["kind"] == kind}


def test_every_model_has_one_kind_of_evidence(data):
    models = published.table("models").query("main == 1")["key"]
    assert {key.split()[0] for key in of_kind(data, "published")} == set(models)
    assert set(of_kind(data, "toy")) == {"toy:baseline", "toy:fewer_experts"}
    assert len(data["models"]) == len({entry["key"] for entry in data["models"]}) == 24
    assert all(entry["label"] != entry["key"] for entry in data["models"])


@pytest.mark.parametrize("place", range(4))
def test_published_scores_are_those_of_the_table(data, place):
    table = architectures.published_models(data["lengths"][place], parts=True).set_index("model")
    for key, entry in of_kind(data, "published").items():
        for measure in ("srp", "chance", "excess"):
            shown = entry[measure][place]
            if key not in table.index:
                assert shown is None
            else:
                assert shown == pytest.approx(table.loc[key, measure], abs=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_published_curves_are_of_one_vintage(data, place):
    """All of HEAD, whose SCH looks ahead; v1.0 has other rules and must not be mixed in."""
    length = data["lengths"][place]
    tables = {
        "sch": published.table("sch_model", vintage="HEAD").query("seg_len == @length"),
        **{
            policy: published.table("chr_model", vintage="HEAD").query("policy == @name")
            for policy, name in {"lru": "LRU", "lfu": "LFU", "belady": "Belady"}.items()
        },
    }
    for policy, table in tables.items():
        assert len(table), policy
        rates = table.rename(columns={"sch": "hit_rate"})
        for key, entry in of_kind(data, "published").items():
            model, _, part = key.partition(" ")
            own = rates[(rates["model"] == model) & (rates["is_decoder"] == (part != "encoder"))]
            shown = curve(data, entry, policy if policy != "sch" else f"sch{length}")
            known = own.set_index("rho")["hit_rate"]
            assert len(known) <= len(shown) <= len(known) + 1  # and all experts, if not there
            for point in shown.itertuples():
                wanted = known.get(point.cache_ratio, 1.0)
                assert point.hit_rate == pytest.approx(wanted, abs=1e-6)


def test_toys_are_means_over_their_seeds(data):
    entry = of_kind(data, "toy")["toy:baseline"]
    assert entry["seeds"] == 2
    traces = [toys.load_trace("baseline", seed) for seed in (0, 1)]
    for place, length in enumerate(data["lengths"]):
        srp = [lrc.srp(trace, length)["srp"].item() for trace in traces]
        assert entry["srp"][place] == pytest.approx(sum(srp) / 2, abs=1e-6)
        rates = sum(lrc.sch(trace, length)["hit_rate"] for trace in traces) / 2
        shown = curve(data, entry, f"sch{length}")
        assert shown["hit_rate"].tolist() == pytest.approx(rates.tolist(), abs=1e-6)
    lru = sum(lrc.hit_rates(trace, "lru")["hit_rate"] for trace in traces) / 2
    assert curve(data, entry, "lru")["hit_rate"].tolist() == pytest.approx(lru.tolist(), abs=1e-6)


def test_toys_have_the_scores_of_the_comparison(data, monkeypatch):
    monkeypatch.setattr(toys, "shipped", lambda: [("fewer_experts", 0)])
    row = toy_comparison.toy_runs(16).iloc[0]
    entry = of_kind(data, "toy")["toy:fewer_experts"]
    for measure in ("srp", "chance", "excess"):
        assert entry[measure][data["lengths"].index(16)] == pytest.approx(row[measure], abs=1e-6)


@pytest.mark.parametrize("percent", [50, 77, 80, 90, 99])
def test_the_smallest_cache_can_be_found_in_whole_numbers(data, percent):
    """The script compares millionths, rounded down, with the percentage: no case is lost."""
    table = curves.of_published_models(16)
    found = curves.smallest(table, percent / 100).set_index(["model", "policy"])["cache_ratio"]
    for key, entry in of_kind(data, "published").items():
        for policy in ("sch", "lru", "lfu", "belady"):
            line = entry["curves"][policy if policy != "sch" else "sch16"]
            reached = [rate >= percent * data["unit"] / 100 for rate in line["rates"]]
            ratio = data["grids"][line["grid"]][reached.index(True)]
            assert ratio == pytest.approx(found[key, policy], abs=1e-6)


@pytest.mark.parametrize("criterion", ["chord", "gain"])
def test_bends_are_those_of_the_table(data, criterion):
    table = curves.bends(curves.of_published_models(16), criterion)
    table = table.set_index(["model", "policy"])["cache_ratio"]
    for key, entry in of_kind(data, "published").items():
        for policy in ("sch", "lru", "lfu", "belady"):
            shown = entry["curves"][policy if policy != "sch" else "sch16"][criterion]
            wanted = table[key, policy]
            assert (shown is None) if pd.isna(wanted) else shown == pytest.approx(wanted, abs=1e-6)


def test_windows_show_the_published_maps(interactive):
    shown = interactive.windows()
    grin, jamba, mixed = (case["routing"] for case in shown["cases"])
    for routing, name in ((grin, "case_grin_layer21_github"), (jamba, "case_jamba_layer25_github")):
        table = published.table(name)
        for place, experts in enumerate(routing):
            row = table.iloc[place][[f"e{expert}" for expert in range(16)]].astype(int)
            assert experts == [expert for expert in range(16) if row[f"e{expert}"]]
    assert sorted(mixed) == sorted(grin)
    assert mixed != grin


def test_what_is_written_is_the_same_every_time_and_small(interactive, data, tmp_path, monkeypatch):
    monkeypatch.setattr(interactive, "explorer", lambda: data)
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written = interactive.write(tmp_path / name)
        contents.append({str(place): path.read_bytes() for place, path in written.items()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "book/_static/explorer-data.js",
        "book/_static/window-data.js",
        "book/figures/fig-explorer.png",
    }
    assert sum(map(len, contents[0].values())) < 500_000


def test_the_figure_of_the_readme_is_what_its_command_draws(interactive, tmp_path):
    interactive.save(interactive.maps_figure(), tmp_path / "maps.png")
    committed = SCRIPT.parent / "_static" / "published-maps.png"
    drawn, kept = (matplotlib.image.imread(path) for path in (tmp_path / "maps.png", committed))
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 1e-3  # letters may differ by a shade between machines
    assert "book/_static/published-maps.png" in (SCRIPT.parents[1] / "README.md").read_text()
