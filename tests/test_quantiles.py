"""Quantiles of rows against numpy's, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrc import kernels

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=3)


def bits(values):
    return np.where(np.isnan(values), np.nan, values).view(np.int64)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 60))),
    PROBABILITIES,
    st.sampled_from([1, 64]),
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_any_floats(values, probabilities, rows):
    # numpy leaves open which of 0 and -0 comes first.
    values = values + 0.0
    expected = np.quantile(values, probabilities, axis=1)
    assert (bits(kernels.quantiles(values, probabilities)) == bits(expected)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.sampled_from([33, 1000, 1001]), PROBABILITIES)
def test_rates_with_many_ties_and_outliers(seed, n, probabilities):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.5, 0.01, (8, n))
    values[1] = 0.3
    values[2] = rng.integers(0, 3, n) / 3
    values[3, : n // 2] = 0
    values[4, :3] = 1e300
    values[5] = rng.random(n) ** 40
    values[6] = -values[5]
    values[7] = np.sort(values[7])
    expected = np.quantile(values, probabilities, axis=1)
    assert (bits(kernels.quantiles(values, probabilities)) == bits(expected)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.sampled_from([np.float32, np.float64]))
def test_rates_of_growing_caches(seed, dtype):
    rng = np.random.default_rng(seed)
    new_hits = rng.integers(0, 9, (12, 50)) * rng.integers(0, 2, (12, 1))
    before, uses = rng.integers(0, 9, 50).astype(float), rng.integers(200, 300, 50).astype(float)
    rates = (before + new_hits.cumsum(axis=0)) / uses
    found = kernels.quantiles_of_rates(new_hits.astype(dtype), before, uses, (0.1, 0.9))
    assert (bits(found) == bits(np.quantile(rates, (0.1, 0.9), axis=1))).all()
