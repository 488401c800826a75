"""What a change of architecture does in our toys, against what a seed does."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lrc
from lrc.architectures import published_toys
from lrc.toy_comparison import (
    TOY_FINDINGS,
    noise_of_difference,
    over_seeds,
    seed_noise,
    toy_balance,
    toy_findings,
    toy_runs,
)


@pytest.fixture
def runs():
    """Made-up runs: two variants with several seeds, two with one."""
    rng = np.random.default_rng(0)
    models = ["baseline"] * 3 + ["no_balance"] * 3 + ["dense_first", "one_shared"]
    table = pd.DataFrame({"model": models, "seed": [0, 1, 2, 0, 1, 2, 0, 0]})
    base = table["model"].map({"baseline": 0.4, "no_balance": 0.6, "dense_first": 0.405})
    table["srp"] = base.fillna(0.2) + np.array([-1, 0, 1, 0, 1, -1, 0, 0]) / 100
    table["ci_low"], table["ci_high"] = table["srp"] - 0.003, table["srp"] + 0.002
    for name in ("chance", "excess", "activation_sd", "loss"):
        table[name] = table["srp"] / 2 + rng.normal(0, 0.01, len(table))
    return table


@pytest.fixture
def paper():
    table = pd.DataFrame({"model": list(lrc.toys.VARIANTS), "srp": 0.4, "excess": 0.2, "loss": 2.4})
    table.loc[table["model"] != "baseline", ["srp", "excess", "loss"]] += 0.05
    return table


def test_interval_over_seeds_is_the_t_interval(runs):
    table = over_seeds(runs).set_index("model")
    assert table["seeds"].to_dict() == {
        "baseline": 3,
        "no_balance": 3,
        "dense_first": 1,
        "one_shared": 1,
    }
    for model in ("baseline", "no_balance"):
        own = runs.loc[runs["model"] == model, "srp"]
        expected = stats.ttest_1samp(own, 0).confidence_interval(0.95)
        assert table.loc[model, "ci_low"] == pytest.approx(expected.low)
        assert table.loc[model, "ci_high"] == pytest.approx(expected.high)
        assert table.loc[model, "srp"] == pytest.approx(own.mean())


def test_a_single_seed_keeps_its_interval_over_texts(runs):
    table = over_seeds(runs).set_index("model")
    own = runs.set_index("model").loc["dense_first"]
    assert table.loc["dense_first", ["ci_low", "ci_high"]].tolist() == [own.ci_low, own.ci_high]
    other = over_seeds(runs, "loss").set_index("model")
    assert other.loc["dense_first", ["ci_low", "ci_high"]].isna().all()
    assert not other.loc["baseline", ["ci_low", "ci_high"]].isna().any()


def test_seed_noise_is_pooled(runs):
    deviation, freedom = seed_noise(runs)
    groups = [runs.loc[runs["model"] == model, "srp"] for model in ("baseline", "no_balance")]
    assert freedom == 4
    assert deviation == pytest.approx(np.sqrt(np.mean([group.var() for group in groups])))
    single = runs[runs["seed"] == 0]
    assert np.isnan(seed_noise(single)[0])
    assert seed_noise(single)[1] == 0


def test_noise_of_a_difference_is_that_of_a_t_test(runs, paper):
    """For two variants with three seeds each, and no others: Student's two-sample interval."""
    pair = runs[runs["model"].isin(["baseline", "no_balance"])]
    table = toy_findings(pair, paper).set_index(["measure", "finding"])
    row = table.loc[("srp", "no balancing loss: higher")]
    groups = [pair.loc[pair["model"] == model, "srp"] for model in ("no_balance", "baseline")]
    expected = stats.ttest_ind(*groups).confidence_interval(0.95)
    assert row["ours"] - row["noise"] == pytest.approx(expected.low)
    assert row["ours"] + row["noise"] == pytest.approx(expected.high)


def test_verdicts(runs, paper):
    table = toy_findings(runs, paper)
    assert len(table) == sum(len(finding.measures) for finding in TOY_FINDINGS)
    scores = table[table["measure"] == "srp"].set_index("finding")["agrees"]
    assert scores["no balancing loss: higher"] == "yes"
    assert scores["one shared expert: lower"] == "no"  # The paper here says it rises.
    assert scores["first layer dense: higher"] == "within noise"
    assert scores["strong balancing loss: lower"] == "-"
    alone = toy_findings(runs[runs["seed"] == 0], paper).set_index(["measure", "finding"])
    assert alone.loc[("srp", "no balancing loss: higher"), "agrees"] == "one seed"


def test_findings_are_the_paper_s():
    """Each says what the published figures show."""
    paper = published_toys().set_index("model")
    for finding in TOY_FINDINGS:
        measure = "loss" if finding.measures == ("loss",) else "srp"
        difference = paper.loc[finding.variant, measure] - paper.loc[finding.reference, measure]
        assert finding.text.endswith(": higher" if difference > 0 else ": lower"), finding


def test_runs_are_what_the_measures_give():
    runs = toy_runs()
    assert list(zip(runs["model"], runs["seed"], strict=True)) == lrc.toys.shipped()
    name, seed = lrc.toys.shipped()[-1]
    trace = lrc.toys.load_trace(name, seed)
    row = runs.iloc[-1]
    assert row["srp"] == lrc.srp(trace, 16)["srp"].item()
    assert row["chance"] == lrc.chance(trace, (16,))["srp"].item()
    losses = lrc.toys.losses()
    losses = losses[(losses["model"] == name) & (losses["seed"] == seed)]
    last = losses[(losses["split"] == "held-out") & (losses["step"] == losses["step"].max())]
    assert row["loss"] == pytest.approx(last["loss"].mean())
    assert 0 < row["topic"] < 1
    assert "ci_low" not in runs


def test_balance_of_runs_is_what_the_measures_give():
    runs = toy_balance((4, 16))
    pairs = runs[["model", "seed"]].drop_duplicates()
    assert list(pairs.itertuples(index=False, name=None)) == lrc.toys.shipped()
    trace = lrc.toys.load_trace("over_balance", 2)
    row = runs.query("model == 'over_balance' and seed == 2 and segment_length == 16").iloc[0]
    assert row["srp"] == lrc.srp(trace, 16)["srp"].item()
    assert row["memory"] == lrc.local_balance(trace, 16)["memory"].item()
    loads = lrc.balance(trace, level="model", segment_length=16)
    assert row["global_cv"] == pytest.approx(loads["load_cv"].item())


def test_noise_of_a_difference_grows_as_seeds_are_few():
    assert np.isnan(noise_of_difference(np.nan, 0, 1, 1))
    whole = noise_of_difference(0.01, 10, 3, 3)
    assert whole == pytest.approx(stats.t.ppf(0.975, 10) * 0.01 * (2 / 3) ** 0.5)
    assert noise_of_difference(0.01, 10, 1, 3) > whole
