"""`lrc.offload_costs`: overheads, and their correlation with hit rates, as the paper has them."""

import numpy as np
import pandas as pd
import pytest

import lrc
from lrc import offload_costs, published, toys


@pytest.mark.parametrize("mode", ["old_doc", "new_gen"])
def test_the_papers_correlations_come_out_of_its_published_times(mode):
    found = offload_costs.cost_correlations(
        offload_costs.published_overheads(mode), offload_costs.published_hit_rates()
    )
    found = found[found["measure"] == "LRU"].set_index("cache_ratio")
    assert (found["models"] == 8).all()
    printed = published.table("correlations", "HEAD").set_index(["pair", "rho"])["value"]
    for kind in offload_costs.KINDS:
        for ratio in (1.0, 2.0, 3.0):
            value = printed[f"LRU_hit_rate_vs_{kind}/{mode}", str(ratio)]
            assert found.loc[ratio, kind] == pytest.approx(value, abs=1e-5)


def test_overheads_are_times_above_those_of_the_same_model():
    times = pd.DataFrame(
        {
            "model": ["a", "b", "a"],
            "cache_ratio": [np.inf, np.inf, 2.0],
            "decode_ms": [10.0, 7.0, 15.0],
            "prefill_ms": [1.0, 9.0, 4.0],
        }
    )
    row = offload_costs.overheads(times).iloc[0]
    assert len(offload_costs.overheads(times)) == 1
    assert (row["decode_overhead"], row["decode_overhead_ratio"]) == (5, 0.5)
    assert (row["prefill_overhead"], row["prefill_overhead_ratio"]) == (3, 3)
    with pytest.raises(lrc.LrcError, match="missing of a"):
        offload_costs.overheads(times[1:])


def test_several_policies_are_not_mixed():
    costs = offload_costs.published_overheads()
    with pytest.raises(lrc.LrcError, match="choose a policy"):
        offload_costs.cost_correlations(
            pd.concat([costs, costs]), offload_costs.published_hit_rates()
        )


def test_what_was_measured_is_what_a_replay_predicts():
    """Hit rates and loads in the file are those of the shipped traces; only times were measured."""
    from benchmarks import offload

    table = offload_costs.measured()
    assert set(table["model"]) == set(toys.VARIANTS)
    assert (table[["prefill_ms", "decode_ms", "compute_ms", "predicted_ms"]] > 0).all(axis=None)
    assert len(set(table["machine"])) == 1
    for row in table[table["cache_ratio"] < np.inf].itertuples():
        trace = offload.shortened(toys.load_trace(row.model))
        replayed = lrc.replay(
            trace, row.policy, cache_size=row.cache_size, prompt_tokens=offload.PROMPT
        )
        assert row.hit_rate == pytest.approx(replayed.hit_rate, rel=1e-5)
        steps = replayed.by_step()
        assert row.loads == pytest.approx(steps[steps["step"] > 0]["loads"].mean(), rel=1e-5)
