"""Specialization over many models: the published tables, the toys, and claims about both."""

import numpy as np
import pandas as pd
import pytest

import lrc
from lrc import specialists, toys


def test_published_correlations_come_out_of_the_published_experts():
    experts = specialists.published_experts()
    assert len(experts) == 23_648
    assert {"nllb encoder", "nllb decoder", "switch encoder", "olmoe"} <= set(experts["model"])
    here = lrc.correlation(experts, specialists.MEASURES[:3], by="model")
    paper = specialists.published_correlations()
    both = here.merge(paper, on=["model", "measure"])
    assert len(both) == len(here) == 22 + 18 + 18
    assert (both["correlation_x"] - both["correlation_y"]).abs().max() < 1e-4
    grin = paper.query("model == 'grin' and measure == 'domain'")
    assert grin["correlation"].round(2).tolist() == [0.82]  # Section 4.2 of the paper
    assert (paper["measure"] == "vocabulary_next").sum() == 18


def table(model, seed=0, experts=400):
    """Experts whose SRP grows with their use, and with domain specialization at equal use."""
    random = np.random.default_rng(seed)
    use, domain = random.random(experts), random.random(experts)
    columns = {"layer": np.arange(experts) % 4, "expert": np.arange(experts) // 4}
    columns |= {"activation_rate": use, "domain": domain - 3 * use, "vocabulary_in": -domain}
    columns |= {name: random.random(experts) for name in specialists.MEASURES[2:]}
    return pd.DataFrame({"model": model, **columns, "srp": domain / 3 + 3 * use})


def test_compare_holds_equal_what_it_says():
    found = specialists.compare(table("Baseline")).set_index(["measure", "compared"])
    domain = found.loc["domain"]
    assert domain.loc["all experts", "correlation"] < -0.8
    assert domain.loc["same use", "correlation"] > 0.8
    assert domain.loc["same use and layer", "correlation"] > 0.8
    # A layer of its own SRP changes nothing of what is compared within layers.
    moved = table("Baseline")
    moved.loc[moved["layer"] == 0, ["srp", "domain"]] += [50, -50]
    moved = specialists.compare(moved, ["domain"]).set_index("compared")
    assert moved.loc["same use", "correlation"] < -0.8
    assert moved.loc["same use and layer", "correlation"] == pytest.approx(
        domain.loc["same use and layer", "correlation"]
    )
    assert (domain["ci_low"] <= domain["correlation"]).all()
    assert list(found.index.levels[0].sort_values()) == sorted(specialists.MEASURES)
    alone = specialists.compare(table("Baseline").drop(columns=list(specialists.MEASURES)))
    assert alone.empty


def test_tally_counts_signs():
    compared = pd.DataFrame(
        {
            "model": ["a", "b", "a", "b", "c"],
            "measure": ["vocabulary_in"] * 2 + ["domain"] * 3,
            "compared": "all experts",
            "correlation": [0.3, -0.5, 0.2, 0.4, -0.1],
            "ci_low": [-0.3, -0.6, 0.1, -0.1, -0.2],
            "ci_high": [0.1, -0.4, 0.3, 0.6, 0.1],
        }
    )
    assert specialists.tally(compared).to_numpy().tolist() == [
        ["domain", "all experts", 3, 2, 1, 0, 0, 0.2],
        ["vocabulary_in", "all experts", 2, 1, 0, 1, 1, -0.1],
    ]


def test_toy_findings_of_a_family_that_shows_something_else():
    names = [variant.label for variant in toys.VARIANTS.values()]
    family = pd.concat([table(name, seed) for seed, name in enumerate(names)])
    family.loc[family["model"] == "NoLB", "domain"] += 10
    found = specialists.toy_findings(family).set_index("claim")
    assert len(found) == 10
    first = found.loc["domain correlates positively with SRP"]
    assert first[["paper", "here", "agrees"]].tolist() == ["10 of 10", "0 of 10", "no"]
    assert first["same_use_and_layer"] == "10 of 10"
    assert found.loc["input token correlates negatively", "paper"] == "9 of 10"
    most = found.loc["no balancing loss: most domain-specialized"]
    assert most.tolist() == ["1 of 1", "1 of 1", "yes", ""]
    few = specialists.toy_findings(family[family["model"].isin(["Baseline", "1ShrExp"])])
    assert len(few) == 7  # Extremes are left out while variants are missing.
    assert few["here"].str.endswith((" of 2", " of 1")).all()


def test_toys_are_measured_run_by_run(monkeypatch):
    traces = {
        (name, seed): lrc.Trace(
            np.random.default_rng(seed).permuted(np.tile(np.arange(4), (6, 20, 1, 1)), axis=-1)[
                ..., :2
            ],
            4,
            datasets=list("aabbcc"),
            token_ids=np.full((6, 20), 7),
        )
        for name, seed in [("baseline", 0), ("baseline", 1), ("no_balance", 0)]
    }
    monkeypatch.setattr(toys, "shipped", lambda: list(traces))
    monkeypatch.setattr(toys, "load_trace", lambda name, seed: traces[name, seed])
    monkeypatch.setattr(
        toys, "load_counts", lambda name, seed: lrc.token_counts(traces[name, seed])
    )
    every = specialists.toy_experts(4, all_seeds=True)
    assert every.groupby(["model", "seed"], sort=False).size().to_dict() == {
        ("Baseline", 0): 4,
        ("Baseline", 1): 4,
        ("NoLB", 0): 4,
    }
    pd.testing.assert_frame_equal(
        specialists.toy_experts(4), every[every["seed"] == 0].reset_index(drop=True)
    )
    expected = lrc.specialization(traces["baseline", 1], segment_length=4)
    found = every.query("model == 'Baseline' and seed == 1")["srp"]
    assert found.tolist() == pytest.approx(expected["srp"].tolist())


def bursts(by_domain, sequences=32, tokens=64, experts=12):
    """Each sequence prefers experts: those of its domain, or its own."""
    random = np.random.default_rng(5)
    domain = np.arange(sequences) % 4
    taste = random.normal(size=(4 if by_domain else sequences, 1, experts))
    taste = taste[domain] if by_domain else taste
    odds = 2 * taste + random.gumbel(size=(sequences, tokens, experts))
    chosen = np.argsort(-odds, axis=-1)[:, :, None, :3]
    return lrc.Trace(chosen, experts, datasets=domain.astype(str))


def test_random_domains_are_as_good_as_domains_that_mean_nothing():
    domains, texts = (
        specialists.random_domains(bursts(by_domain), repeats=10, stratum=4).set_index("quantity")
        for by_domain in (True, False)
    )
    assert list(domains.index) == [
        "domain specialization",
        "correlation, all experts",
        "correlation, same use",
        "correlation, same use and layer",
    ]
    mean = "domain specialization"
    assert domains.loc[mean, "real"] > 1.5 * domains.loc[mean, "highest"]
    assert texts.loc[mean, "real"] == pytest.approx(texts.loc[mean, "random"], rel=0.3)
    assert (texts["highest"] >= texts["random"]).all()


def test_random_domains_of_a_trace_without_domains():
    trace = lrc.Trace(np.zeros((2, 20, 1, 1), int), 3)
    assert specialists.random_domains(trace).empty


def test_beyond_rate_is_the_chance_level_of_each_expert():
    trace = lrc.toys.load_trace("baseline")
    experts = lrc.srp(trace, 16, level="expert")
    known = lrc.excess(experts, lrc.chance(experts, (16,), level="expert"))
    found = specialists.beyond_rate(experts, 16)
    for column in ("chance", "excess"):
        assert found[column].to_numpy() == pytest.approx(known[column].to_numpy(), abs=1e-12)
    ends = pd.DataFrame({"activation_rate": [0.0, 1.0], "srp": [0.0, 1.0]})
    assert specialists.beyond_rate(ends)["excess"].tolist() == [0.0, 0.0]


def test_compare_takes_another_outcome():
    experts = specialists.beyond_rate(specialists.published_experts().query("model == 'grin'"))
    found = specialists.compare(experts, ["domain"], outcome="excess", by="model", bootstrap=0)
    plain = experts["domain"].corr(experts["excess"])
    row = found.query("compared == 'all experts'")
    assert row["correlation"].item() == pytest.approx(plain)
