"""Our toy experiments: tables are what the shipped statistics say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lrc import toy_comparison, toy_statistics, toys
from lrc.toy_experiments import answers, experiment_runs, final_losses, seed_yardstick


def test_runs_are_what_the_statistics_give():
    runs = experiment_runs(bootstrap=20)
    expected = [run[:2] for run in toy_statistics.shipped() if run[2] == toys.SHORT]
    assert list(zip(runs["model"], runs["seed"], strict=True)) == expected
    run = toy_statistics.load("bias_0.01")
    row = runs.set_index("model").loc["bias_0.01"]
    measured = run.end.measures(bootstrap=20).iloc[0]
    assert row[measured.index].to_dict() == measured.to_dict()
    rates = run.end.hit_rates().query("cache_size == 16")
    assert len(rates) == toys.LAYERS
    assert row["hit_rate"] == rates["hit_rate"].mean()
    assert row["loss"] == run.loss


def test_every_question_has_its_baseline_and_an_answer():
    runs = experiment_runs()
    for question, names in toys.QUESTIONS.items():
        assert "baseline" in names
        table = answers(runs, question, ["srp"])
        assert set(table["model"]) == set(runs["model"]) & set(names) - {"baseline"}


def test_answers_are_differences_from_the_baseline():
    runs = pd.DataFrame(
        {"model": ["baseline", "baseline", "bias_0.01", "mixed"], "srp": [0.4, 0.6, 0.75, 0.1]}
    )
    table = answers(runs, "bias", ["srp"])
    assert table[["model", "srp"]].to_numpy().tolist() == [["bias_0.01", 0.25]]
    assert table["change"].item() == "fast bias, no loss"
    assert answers(runs, "z-loss", ["srp"]).empty


def test_yardstick_is_that_of_two_runs():
    runs = toy_comparison.toy_balance()
    deviation, freedom = toy_comparison.seed_noise(runs, "srp")
    expected = stats.t.ppf(0.975, freedom) * deviation * np.sqrt(2)
    assert seed_yardstick(["srp"])["srp"] == pytest.approx(expected)


def test_final_losses_are_those_of_the_domains():
    table = final_losses(["baseline", "mixed"])
    assert list(table.index) == ["baseline", "mixed"]
    for name in table.index:
        assert table.loc[name].mean() == pytest.approx(toy_statistics.load(name).loss)
