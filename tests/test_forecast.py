"""Forecasts of a device's speed, on logs whose device is known."""

import numpy as np
import pytest

import lrc
from lrc.forecast import foretell
from lrc.throughput import Device


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    num_bytes = rng.integers(1, 60, 200) * 3_000_000
    wall = Device(80, 2e9).step_ms(0, num_bytes) * rng.choice([0.9, 1.0, 1.1, 1.6], 200)
    return wall, num_bytes


def test_what_does_not_change_is_foretold(log):
    wall, num_bytes = log
    found = foretell(wall, num_bytes, np.arange(200) < 100)
    assert found.error < 0.15
    assert found.covered == pytest.approx(0.8, abs=0.15)
    low, expected, high = found.tokens_per_second
    assert low < found.measured < high
    assert expected == pytest.approx(found.measured, rel=0.1)


def test_only_known_steps_are_used(log):
    wall, num_bytes = log
    known = np.arange(200) % 2 == 0
    other = wall.copy()
    other[~known] *= 3
    first, second = (foretell(times, num_bytes, known) for times in (wall, other))
    assert first.device == second.device
    assert first.tokens_per_second == second.tokens_per_second
    assert second.measured == pytest.approx(first.measured / 3)
    assert second.covered == 0


def test_the_speed_counts_slow_steps():
    num_bytes = np.tile([1_000_000, 2_000_000, 3_000_000, 4_000_000], 20)
    wall = 10.0 + num_bytes / 1e5
    wall[::5] *= 5
    found = foretell(wall, num_bytes, np.arange(80) < 40)
    assert found.tokens_per_second[1] == pytest.approx(found.measured, rel=0.05)
    typical = 1e3 / found.steps.loc[~found.steps["known"], "predicted_ms"].mean()
    assert typical > 1.3 * found.measured


@pytest.mark.parametrize("known", [np.ones(200, bool), np.ones(3, bool)])
def test_nothing_to_foretell(log, known):
    with pytest.raises(lrc.LrcError, match="some of them False"):
        foretell(*log, known)
