"""Local balance against loops over windows, and against its chance level."""

from statistics import mean

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plain import activity
from strategies import traces

import lrc
from lrc.local_balance import local_balance, local_balance_of_counts
from lrc.window_counts import window_counts


def plain_windows(trace, m, layers):
    """Loads of every window as rows, one entry an expert of the layers."""
    rows = []
    for sequence in range(trace.num_sequences):
        active = [row for layer in layers for row in activity(trace, sequence, layer)]
        for start in range(int(trace.lengths[sequence]) - m + 1):
            rows.append([sum(row[start : start + m]) for row in active])
    return rows


@given(traces(min_length=3, max_tokens=12), st.integers(1, 3), st.sampled_from(["model", "layer"]))
def test_measures_follow_their_definitions(trace, m, level):
    every = list(range(trace.num_layers))
    groups = [every] if level == "model" else [[layer] for layer in every]
    windows = [plain_windows(trace, m, group) for group in groups]
    assume(all(any(map(any, rows)) for rows in windows))
    table = local_balance(trace, m, level=level)
    for rows, found in zip(windows, table.to_dict("records"), strict=True):
        total = sum(map(sum, rows))
        overlap = sum(f * f for row in rows for f in row) / (m * total)
        rates = [mean(loads) / m for loads in zip(*rows, strict=True)]
        average = mean(rates)
        assert found["overlap"] == pytest.approx(overlap)
        assert found["share"] == pytest.approx(average)
        overall = sum(rate * rate for rate in rates) / sum(rates)
        assert found["uneven"] == pytest.approx(overall - average)
        # E f^2 of binomial counts, over m times their mean.
        independent = sum(m * r * (1 - r) + (m * r) ** 2 for r in rates) / (m * m * sum(rates))
        assert found["memory"] == pytest.approx(overlap - independent)
        parts = found["share"] + found["uneven"] + found["sampling"] + found["memory"]
        assert parts == pytest.approx(found["overlap"])
        if len(rates) > 1:
            squares = [
                sum((f - m * average) ** 2 for f in row) / (len(rates) - 1) / (m * average) ** 2
                for row in rows
            ]
            # Near zero, rounding errors of q / r - 1 come out as their root.
            assert found["load_cv"] == pytest.approx(mean(squares) ** 0.5, abs=1e-7)


@given(traces(min_length=3), st.integers(1, 3))
def test_overlap_is_that_of_pairs_of_tokens(trace, m):
    expected = lrc.segment_overlap(trace, m)
    assume(expected["overlap"].item() > 0)
    assert local_balance(trace, m)["overlap"].item() == pytest.approx(expected["overlap"].item())


def test_coefficient_is_that_of_balance_where_windows_are_alike():
    """With one window the root of the mean square is the mean."""
    trace = lrc.Trace([[[[0, 1]], [[0, 2]], [[0, 1]]]], num_experts=4)
    found = local_balance(trace, 3, level="layer")["load_cv"].item()
    assert found == pytest.approx(lrc.balance(trace, 3)["load_cv"].item())


def test_independent_tokens_have_no_memory():
    rng = np.random.default_rng(0)
    experts = rng.random((40, 300, 1, 16)).argsort(axis=-1)[..., :4]
    table = local_balance(lrc.Trace(experts, num_experts=16), (4, 16, 64))
    assert table["memory"].abs().max() < 2e-3
    assert np.allclose(table["load_cv"], table["chance_load_cv"], rtol=0.01)
    assert (table["sampling"].diff().dropna() < 0).all()


@given(traces(min_length=2, datasets=True))
def test_datasets_are_measured_by_themselves(trace):
    parts = {name: trace.select(datasets=name) for name in trace.dataset_names}
    assume(all((part.experts[part.valid] >= 0).any() for part in parts.values()))
    table = local_balance(trace, 1, by_dataset=True).set_index("dataset")
    assert list(table.index) == sorted(parts)
    for name, part in parts.items():
        assert table.loc[name].to_dict() == local_balance(part, 1).iloc[0].to_dict()


def test_what_cannot_be_measured_is_said():
    trace = lrc.Trace([[[[0]], [[-1]]]], num_experts=2)
    with pytest.raises(lrc.LrcError, match="no sequence is as long as a window"):
        local_balance(trace, 3)
    with pytest.raises(lrc.LrcError, match="layer 0: no expert is ever active"):
        local_balance(lrc.Trace([[[[-1]]]], num_experts=2), 1, level="layer")
    with pytest.raises(lrc.LrcError, match="level is 'expert'"):
        local_balance(trace, 1, level="expert")
    with pytest.raises(lrc.LrcError, match="level is 'expert'"):
        local_balance_of_counts(window_counts(trace, 1, level="expert"), None)
