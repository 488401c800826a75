"""Tokens per second: the model of a step, and its fit to logs."""

import numpy as np
import pandas as pd
import pytest

import lrc
from lrc.throughput import Device, fit


def test_a_step_computes_and_waits_for_what_it_loads():
    device = Device(compute_ms=10, bandwidth=1e6, latency_ms=2)
    assert device.step_ms([0, 3], [0, 5000]).tolist() == [10, 10 + 6 + 5]
    hidden = Device(compute_ms=10, bandwidth=1e6, latency_ms=2, overlap=0.5)
    assert hidden.step_ms([0, 1, 3], [0, 1000, 5000]).tolist() == [10, 10, 10 + 11 - 5]


def test_prompts_are_left_out_of_the_speed():
    trace = lrc.Trace([[[[0]], [[1]], [[0]]], [[[1]], [[1]], [[1]]]], 2)
    device = Device(compute_ms=10, bandwidth=1e3, spread=(0.5, 2.0))
    replayed = lrc.replay(trace, cache_size=1, prompt_tokens=[2, 0], expert_bytes=10)
    # Step 1 of the first text loads nothing (its prompt ended with 0 or 1 in the one slot).
    steps = replayed.by_step()
    single = steps.drop(index=0)
    mean = (10 * len(single) + 10 * single["loads"].sum()) / len(single)
    low, expected, high = device.tokens_per_second(replayed)
    assert expected == pytest.approx(1e3 / mean)
    assert (low, high) == (pytest.approx(expected / 2), pytest.approx(expected * 2))


def test_the_wait_is_that_of_a_cache_that_holds_nothing():
    trace = lrc.Trace([[[[0, 1]], [[1, 2]], [[0, 2]]], [[[1, 0]], [[1, 0]], [[1, 2]]]], 3)
    device = Device(compute_ms=10, bandwidth=1e3, latency_ms=2)
    replayed = lrc.replay(trace, cache_size=2, prompt_tokens=[2, 0], expert_bytes=10)
    # Two experts a token, each 2 ms and 10 ms of loading.
    assert device.wait(replayed) == pytest.approx(2 * 12 / 10)
    with pytest.raises(lrc.LrcError, match="compute_ms is 0"):
        Device(0, 1e3).wait(replayed)


def test_a_fit_finds_the_device_that_made_the_log():
    rng = np.random.default_rng(0)
    loads = rng.integers(1, 40, 60)
    num_bytes = loads * rng.choice([2_000_000, 3_000_000], 60)
    wall = Device(80, 2.5e9, 0.25).step_ms(loads, num_bytes)
    odd = wall.copy()
    odd[::9] *= 7  # steps that waited for something else
    for times, spread in ((wall, 1e-6), (odd, 10)):
        found = fit(times, num_bytes, loads)
        assert found.compute_ms == pytest.approx(80, rel=1e-3)
        assert found.bandwidth == pytest.approx(2.5e9, rel=1e-3)
        assert found.latency_ms == pytest.approx(0.25, rel=1e-2)
        assert found.spread[1] - found.spread[0] < spread


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0] * 5, [1] * 5), "5 steps are too few"),
        (([1.0] * 9, [1] * 8), "num_bytes must be finite numbers, one for each of 9"),
        (([1.0] * 8 + [np.nan], [1] * 9), "wall_ms must be finite"),
        ((np.arange(9.0)[::-1], np.arange(9)), "no bandwidth shows"),
    ],
)
def test_logs_that_cannot_be_fitted(arguments, says):
    with pytest.raises(lrc.LrcError, match=says):
        fit(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("compute_ms", -1), ("bandwidth", 0), ("latency_ms", "3"), ("overlap", 1.5), ("overlap", -1)],
)
def test_devices_that_cannot_be(name, value):
    with pytest.raises(lrc.LrcError, match=name):
        Device(**({"compute_ms": 1, "bandwidth": 1} | {name: value}))


@pytest.mark.parametrize(("phone", "within"), [("qwen", 0.15), ("gemma", 0.15)])
def test_phones_are_predicted_from_half_of_their_steps(shared, phone, within):
    """Fitted on even steps, the median step among the odd ones is off by less than that."""
    log = pd.read_csv(shared / "traces" / "phone" / f"{phone}.metrics", comment="#").dropna()
    known, held_out = log[::2], log[1::2]
    device = fit(known["wall_ms"], known["read_bytes"], compute_ms=known["compute_ms"])
    predicted = device.step_ms(0, held_out["read_bytes"])
    assert np.median(np.abs(predicted / held_out["wall_ms"] - 1)) < within
