"""`lrc.recommendation`: what it says of a size is what the replay finds, and JSON says the same."""

import json

import numpy as np
import pytest

import lrc
from lrc.published_sizing import published_curve, published_shape, readings
from lrc.recommendation import POLICIES, cause, recommend
from lrc.throughput import Device

TOY = lrc.toys.load_trace("baseline").select(slice(0, None, 8))  # 12 texts of 8 domains
EXPERT = TOY.meta["expert_bytes"]
DEVICE = Device(2, 2e9, 0.01, spread=(0.8, 1.25))


@pytest.fixture(scope="module")
def found():
    return recommend(TOY, 100 * EXPERT + 5, device=DEVICE, bootstrap=100)


def test_it_is_judged_on_texts_that_it_was_not_chosen_on(found):
    judged, known = TOY.select(slice(1, None, 2)), TOY.select(slice(0, None, 2))
    level = "model" if found.layout == "shared" else "layer"
    size = found.split or found.slots
    again = lrc.replay(judged, found.policy, cache_size=size, level=level)
    assert found.hit_rate == again.hit_rate
    assert (found.slots, found.num_bytes) == (100, 100 * EXPERT)
    assert found.tokens_per_second[1] == pytest.approx(DEVICE.tokens_per_second(again)[1])
    shared = found.choices[found.choices["layout"] == "shared"]
    assert shared["policy"].tolist() == list(POLICIES)
    for row in shared.itertuples():
        assert row.hit_rate == lrc.replay(known, row.policy, cache_size=100).hit_rate


def test_ranges_hold_what_is_expected(found):
    low, high = found.interval
    assert low < found.hit_rate < high
    slow, expected, fast = found.tokens_per_second
    # Wider than the device's own spread: texts differ too.
    assert slow < expected / 1.25
    assert fast > expected / 0.8
    assert found.parts["share"].sum() == pytest.approx(1)


def test_other_sizes_are_those_of_a_shared_cache(found):
    sizes = found.sizes.set_index("size")
    assert sizes["slots"].tolist() == [100, 50, 64, 256]
    judged = TOY.select(slice(1, None, 2))
    for name in ("half of it", "twice the active experts", "all experts"):
        again = lrc.replay(judged, found.policy, cache_size=int(sizes.loc[name, "slots"]))
        assert sizes.loc[name, "hit_rate"] == again.hit_rate
    assert sizes["megabytes"].tolist() == pytest.approx((sizes["slots"] * EXPERT / 1e6).tolist())


def test_the_sentence_and_json_say_the_same(found, tmp_path):
    found.save(tmp_path / "answer.json")
    plain = json.loads((tmp_path / "answer.json").read_text())
    assert plain["sentence"] == found.sentence()
    assert plain["slots"] == 100
    assert plain["interval"] == list(found.interval)
    assert len(plain["curve"]) == len(found.curve)
    assert plain["knee"] is None or plain["knee"] == found.knee
    assert [file.name for file in tmp_path.iterdir()] == ["answer.json"]
    for number in ("100 experts", "2.76 MB", f"{found.hit_rate:.1%}"):
        assert number in found.sentence()


def test_a_file_that_cannot_be_written_leaves_nothing(found, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(lrc.LrcError, match="cannot be written"):
        found.save(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_several_tokens_a_step():
    single = recommend(TOY, 128 * EXPERT, device=DEVICE, bootstrap=0)
    draft = recommend(TOY, 128 * EXPERT, device=DEVICE, draft_tokens=4, bootstrap=0)
    joined = lrc.unions.join_steps(TOY, draft_tokens=4).select(slice(1, None, 2))
    level = "model" if draft.layout == "shared" else "layer"
    again = lrc.replay(joined, draft.policy, cache_size=draft.split or 128, level=level)
    assert draft.hit_rate == again.hit_rate
    assert draft.tokens_per_second[1] == pytest.approx(4 * DEVICE.tokens_per_second(again)[1])
    assert draft.tokens_per_second[1] > single.tokens_per_second[1]
    assert any("Drafts" in sentence for sentence in draft.unsaid)


def test_a_single_text_has_no_interval_and_says_so():
    found = recommend(TOY.select([0]), 100 * EXPERT)
    assert found.interval is None
    assert found.tokens_per_second is None
    assert any("too few texts" in sentence for sentence in found.unsaid)
    assert json.loads(found.to_json())["interval"] is None


def test_a_budget_below_a_slot_for_every_layer_is_shared():
    found = recommend(TOY, 20 * EXPERT, bootstrap=0)
    assert (found.layout, found.split) == ("shared", None)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"hits": 0.9999}, "Hardly anything"),
        (
            {"hits": 0.5, "capacity": 0.3, "policy": 0.2, "compulsory": 0.0, "forced": 0.0},
            r"50.0% of the uses miss: 30.0% for the model's routing \(.*\), 20.0% for the policy",
        ),
        ({"hits": 0.5, "forced": 0.5}, "50.0% for too small a cache"),
    ],
)
def test_the_cause_names_what_is_missed(shares, says):
    import re

    assert re.search(says, cause(shares))


# --- Published models -----------------------------------------------------------------------------


def test_every_published_model_gets_an_answer():
    models = lrc.curves.of_published_models()["model"].unique()
    assert len(models) == 22
    for model in models:
        shape = published_shape(model)
        size = lrc.expert_bytes.of_published(model).num_bytes()[0]
        budget = 2 * shape.top_k * shape.num_layers * size
        found = recommend(model, budget, device=DEVICE)
        row = lrc.curves.at_ratios(lrc.curves.of_published_models(), 2)
        row = row[row["model"] == model].set_index("policy")["hit_rate"]
        assert found.hit_rate == pytest.approx(row[found.policy], abs=1e-9)
        assert found.interval[0] <= found.hit_rate <= found.interval[1]
        assert found.sizes["size"].iloc[0] == "recommended"
        assert found.parts["share"].sum() == pytest.approx(1)
        assert any("eleven corpora" in sentence for sentence in found.unsaid)
        json.loads(found.to_json())


def test_the_speed_of_a_published_model_is_that_of_its_mean_loads():
    found = lrc.size_cache("olmoe", cache_size=256, device=DEVICE, expert_bytes=10**7)
    loads = (1 - found.hit_rate) * 8 * 16
    expected = 1e3 / (2 + loads * (0.01 + 1e7 / 2e9 * 1e3))
    assert found.tokens_per_second[1] == pytest.approx(expected)
    assert found.tokens_per_second[0] < expected / 1.25
    assert found.split is None
    assert json.loads(found.to_json())["unsaid"] == list(found.unsaid)


def test_readings_rise_and_stay_within_the_error():
    curve = published_curve("qwen3", "lru")
    drawn = readings(curve, 50, 0)
    assert (np.diff(drawn, axis=1) >= 0).all()
    assert (np.abs(drawn - curve["hit_rate"].to_numpy()) <= 0.0051).all()
    assert (drawn[:, -1] == 1).all()


def test_the_knee_of_a_published_curve_has_an_interval():
    found = lrc.size_cache("qwen3", bootstrap=100)
    knee = found.knee.set_index("criterion").loc["gain"]
    assert knee["low"] <= knee["cache_ratio"] <= knee["high"]
    bent = lrc.curves.bends(lrc.curves.of_published_models(), "gain")
    bent = bent[(bent["model"] == "qwen3") & (bent["policy"] == "lru")]
    assert knee["cache_ratio"] == bent["cache_ratio"].item()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"trace": "gpt5"}, "no published curves of 'gpt5': choose from powermoe"),
        ({"trace": "nllb"}, "say which stack: nllb encoder or nllb decoder"),
        ({"trace": "olmoe", "policy": "sieve"}, "published are only lru, lfu, belady"),
        ({"trace": "olmoe", "level": "layer"}, "one cache shared by all layers"),
        ({"trace": "olmoe", "draft_tokens": 2}, "token by token"),
        ({"trace": "olmoe", "budget_bytes": 5}, "already take"),
        ({"trace": "olmoe", "budget_bytes": 10**14}, "no cache is needed"),
        ({"trace": "olmoe", "expert_bytes": 1.5}, "whole bytes of one expert"),
        ({"trace": "olmoe", "expert_bytes": 0}, "at least one byte"),
        ({"trace": "olmoe", "target": 0.5, "cache_size": 9}, "give one of target"),
    ],
)
def test_published_sizes_that_cannot_be(arguments, says):
    with pytest.raises(lrc.LrcError, match=says) as caught:
        lrc.size_cache(**arguments)
    assert "\n" not in str(caught.value)
