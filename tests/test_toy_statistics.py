"""Statistics of toy runs: what follows from them is what follows from the trace."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from strategies import traces

import lrc
from lrc import toy_models, toy_shipping, toy_statistics, toy_training, toys
from lrc.toy_statistics import LENGTHS, MAIN_LENGTH, Run, of_trace


@pytest.fixture(scope="module")
def trace():
    """A made-up trace of three datasets, lopsided, sticky and ragged."""
    rng = np.random.default_rng(1)
    liking = rng.gumbel(size=(12, 1, 2, 10)) + rng.gumbel(size=(12, 90, 2, 10))
    experts = liking.argsort(axis=-1)[..., :3]
    lengths = rng.integers(70, 91, 12)
    return lrc.Trace(experts, 10, lengths=lengths, datasets=["b", "a", "c"] * 4)


def losses(steps=40):
    rows = [(step, "train", np.nan, 8 - step / 10) for step in range(4, steps + 1, 4)]
    rows += [(step, "held-out", d, 8.1234) for step in (20, steps) for d in ("a", "b")]
    table = pd.DataFrame(rows, columns=["step", "split", "dataset", "loss"])
    table.insert(1, "tokens", table["step"] * 64)
    return table.assign(model="baseline", seed=3)


@pytest.mark.parametrize("level", ["model", "layer"])
@pytest.mark.parametrize("m", LENGTHS)
def test_measures_are_those_of_the_trace(trace, m, level):
    found = of_trace(trace).measures(m, level=level)
    measured = lrc.excess(lrc.srp(trace, m, level=level), lrc.chance(trace, (m,), level=level))
    balance = lrc.local_balance(trace, m, level=level)
    pd.testing.assert_frame_equal(found, measured.merge(balance), check_exact=True)


def test_interval_is_that_of_the_trace(trace):
    found = of_trace(trace).measures(bootstrap=200, seed=5)
    expected = lrc.srp(trace, MAIN_LENGTH, bootstrap=200, seed=5)
    for end in ("ci_low", "ci_high"):
        assert found[end].item() == pytest.approx(expected[end].item(), abs=1e-12)


def test_datasets_and_caches_are_those_of_the_trace(trace):
    statistics = of_trace(trace)
    expected = lrc.excess(
        lrc.srp(trace, MAIN_LENGTH, by_dataset=True),
        lrc.chance(trace, (MAIN_LENGTH,), by_dataset=True),
    )
    columns = ["dataset", "srp", "chance", "excess"]
    pd.testing.assert_frame_equal(statistics.by_domain(), expected[columns])
    hits = lrc.hit_rates(trace, ("lru",), level="layer")
    pd.testing.assert_frame_equal(statistics.hit_rates(), hits)


@given(traces(min_length=64, max_tokens=70, max_sequences=3, datasets=True))
def test_counts_are_consistent(trace):
    assume(trace.lengths.min() >= 64)
    check_sums(of_trace(trace))


def check_sums(statistics):
    """Counts of one kind add up to those of another."""
    counts = statistics.counts()
    for i, m in enumerate(statistics.segment_lengths):
        histogram = counts.histogram(i)[0, :, 0]  # [layers, m + 1]
        num_experts = statistics.activations.shape[-1]
        assert (histogram.sum(axis=1) == counts.windows[0, i] * num_experts).all()
        activations = statistics.activations[i]
        assert (histogram @ np.arange(m + 1) == activations.sum(axis=-1)).all()
        if m == MAIN_LENGTH:
            assert (statistics.by_sequence.sum(axis=0) == histogram.sum(axis=0)).all()
            if statistics.by_dataset is not None:
                assert (statistics.by_dataset.sum(axis=0) == activations).all()


def test_a_run_is_read_back_as_it_was(trace, tmp_path):
    run = Run("baseline", 3, 40, losses(), {0: of_trace(trace, brief=True), 40: of_trace(trace)})
    toy_statistics.save(run, tmp_path / "run.parquet")
    found = toy_statistics.read(tmp_path / "run.parquet")
    assert (found.model, found.seed, found.steps) == ("baseline", 3, 40)
    assert list(found.snapshots) == [0, 40]
    assert found.loss == run.loss == 8.1234
    pd.testing.assert_frame_equal(found.losses, run.losses[list(found.losses)], check_dtype=False)
    for step, statistics in run.snapshots.items():
        for name in ("windows", "activations", "by_sequence", "by_dataset", "lru_hits"):
            ours, theirs = (getattr(s, name) for s in (statistics, found.snapshots[step]))
            assert (ours is None) == (theirs is None)
            assert np.array_equal(ours, theirs)
        assert found.snapshots[step].datasets == statistics.datasets
        assert found.snapshots[step].lengths == statistics.lengths
    assert found.snapshots[0].measures()["srp"].item() == lrc.srp(trace, MAIN_LENGTH)["srp"].item()


def test_course_has_every_step(trace):
    run = Run("baseline", 3, 40, losses(), {0: of_trace(trace, brief=True), 40: of_trace(trace)})
    course = run.course(bootstrap=20)
    assert course["step"].tolist() == [0, 40]
    for _, row in course.iterrows():
        expected = run.snapshots[row["step"]].measures(bootstrap=20).iloc[0]
        assert row.drop("step").to_dict() == expected.to_dict()
    assert run.course(level="layer")[["step", "layer"]].to_numpy().tolist() == [
        [step, layer] for step in (0, 40) for layer in (0, 1)
    ]


def test_what_was_not_kept_is_said(trace, tmp_path):
    brief = of_trace(trace, brief=True)
    with pytest.raises(lrc.LrcError, match="segment_length is 4, but only 16 were counted"):
        brief.measures(4)
    with pytest.raises(lrc.LrcError, match="have no by_dataset: it is kept of finished runs only"):
        brief.by_domain()
    with pytest.raises(lrc.LrcError, match="intervals need level='model' and segments of 16"):
        of_trace(trace).measures(64, bootstrap=10)
    with pytest.raises(lrc.LrcError, match="this trace has no labels"):
        of_trace(lrc.Trace(trace.experts, 10))
    with pytest.raises(lrc.TraceError, match="no such file"):
        toy_statistics.read(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(lrc.TraceError, match="no statistics of a toy run, or damaged"):
        toy_statistics.read(tmp_path / "bad.parquet")
    with pytest.raises(lrc.LrcError, match="of toy 'baseline' with seed 9 and 400 steps, only of"):
        toy_statistics.load("baseline", 9)


def test_shipped_statistics_are_consistent():
    for name, seed, steps in toy_statistics.shipped():
        run = toy_statistics.load(name, seed, steps)
        assert (run.model, run.seed, run.steps) == (name, seed, steps)
        config = toys.config(name)
        for statistics in run.snapshots.values():
            check_sums(statistics)
            assert statistics.top_k == config.num_experts_per_tok
            assert statistics.activations.shape[1:] == (toys.LAYERS, config.num_experts)
            assert len(statistics.by_sequence) == 96
        assert run.losses["step"].max() == steps


def test_statistics_of_a_run_are_those_of_its_model(tmp_path, short_corpus, one_thread):
    """From training to shipping, with biases: SRP is what a trace of the saved model has."""
    preset = toy_training.Preset(steps=3, batch=2)
    folder = toy_training.train("bias_0.01", 1, tmp_path / "runs", preset, snapshots=True)
    assert toy_shipping.ship_statistics(tmp_path / "runs", tmp_path) == [("bias_0.01", 1, 3)]
    run = toy_statistics.read(tmp_path / "statistics" / "bias_0.01-1-3.parquet")
    model = toy_models.load(folder, biased=True)
    assert any(router.selection_bias.any() for router in toy_models.biased_routers(model))
    traced = lrc.record(model, toy_training.held_out_sequences(12), progress=False)
    assert list(run.snapshots) == [0, 1, 2, 3]
    assert run.steps == 3
    assert run.end.measures(4)["srp"].item() == lrc.srp(traced, 4)["srp"].item()
    untrained = lrc.load_trace(folder.parent / "snapshots" / "0.parquet")
    assert run.snapshots[0].measures()["srp"].item() == lrc.srp(untrained, 16)["srp"].item()
