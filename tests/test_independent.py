"""Traces without memory: the rates asked for, nothing else, and the chance level of SRP."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrc
from lrc.independent import independent


def table(rates):
    return pd.DataFrame(
        {"layer": layer, "expert": expert, "activation_rate": rate}
        for layer, row in enumerate(rates)
        for expert, rate in enumerate(row)
    )


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(5, 9), st.integers(0, 99))
def test_every_token_takes_k_experts_at_the_rates_asked_for(top_k, num_experts, seed):
    weights = np.random.default_rng(seed).uniform(0.2, 1, (2, num_experts))
    rates = weights * top_k / weights.sum(axis=1, keepdims=True)
    if rates.max() > 1:
        return
    trace = independent(table(rates), sequences=20, tokens=500, seed=seed)
    assert trace.experts.shape == (20, 500, 2, top_k)  # Trace itself refuses repeated experts.
    for layer in range(2):
        seen = np.bincount(trace.experts[:, :, layer].ravel(), minlength=num_experts) / 10_000
        assert np.abs(seen - rates[layer]).max() < 5 * np.sqrt(0.25 / 10_000)


def test_a_certain_expert_is_always_there_and_an_unused_one_never():
    trace = independent(table([[1, 0.25, 0.75, 0]]), sequences=2, tokens=50)
    assert (trace.experts == 0).any(axis=-1).all()
    assert not (trace.experts == 3).any()


def test_srp_of_a_drawn_trace_is_the_chance_level():
    rates = table([[0.7, 0.5, 0.4, 0.2, 0.1, 0.1], [0.4, 0.4, 0.3, 0.3, 0.3, 0.3]])
    trace = independent(rates, sequences=40, tokens=400)
    expected = lrc.chance(rates, (4, 16))["srp"]
    assert lrc.srp(trace, (4, 16))["srp"].to_numpy() == pytest.approx(expected, abs=0.005)


def test_seeds_repeat():
    rates = table([[0.5, 0.5, 0.5, 0.5]])
    first, second, other = (independent(rates, tokens=20, seed=seed) for seed in (1, 1, 2))
    assert (first.experts == second.experts).all()
    assert (first.experts != other.experts).any()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (table([[0.5, 0.6]]), "1.100 to 1.100"),
        (table([[0.5, 0.5], [1.0, 1.0]]), "1.000 to 2.000"),
        (table([[1.5, 0.5]]), "between 0 and 1"),
        (table([[0.5, 0.5]]).iloc[:1], "0.500 to 0.500"),
        (table([[0.5, 0.5], [1.0]]), "same experts"),
        (table([[1.0]]).drop(columns="layer"), "no column 'layer'"),
    ],
)
def test_says_what_is_wrong(rates, message):
    with pytest.raises(lrc.LrcError, match=message):
        independent(rates)
