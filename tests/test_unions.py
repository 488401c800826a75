"""Several tokens in one step, against dictionaries; and what is known of unions."""

import numpy as np
import plain_replay
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.unions import join_steps, unions


def members(trace, batch_size, seed):
    order = list(range(trace.num_sequences))
    if batch_size > 1:
        order = np.random.default_rng(seed).permutation(trace.num_sequences).tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@given(traces(min_length=1, max_tokens=9), st.data())
def test_a_step_holds_the_union_of_its_tokens(trace, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    batch_size = data.draw(st.integers(1, trace.num_sequences))
    draft = data.draw(st.integers(1, min(4, trace.experts.shape[1])))
    joined = join_steps(
        trace, batch_size=batch_size, draft_tokens=draft, prompt_tokens=prompts, seed=1
    )
    batches = members(trace, batch_size, 1)
    wanted, tokens = plain_replay.joined_steps(trace, prompts, batches, draft)
    for b in range(len(batches)):
        assert joined.lengths[b] == 1 + max(step for batch, step in tokens if batch == b)
        for step in range(joined.lengths[b]):
            for layer in range(trace.num_layers):
                found = joined.experts[b, step, layer]
                expected = wanted.get((b, step, layer), {})
                assert found[found >= 0].tolist() == list(expected)
                if trace.weights is not None:
                    weights = joined.weights[b, step, layer][: len(expected)]
                    assert weights.tolist() == pytest.approx(list(expected.values()), rel=2e-3)
    prompted = [any(prompts[s] for s in batch) for batch in batches]
    assert joined.meta["prompt_tokens"] == [int(p) for p in prompted]
    plain = {key: n for key, n in tokens.items() if key[1] > 0 or not prompted[key[0]]}
    steps = sum(joined.lengths.tolist()) - sum(prompted)
    assert joined.meta["step_tokens"] == pytest.approx(sum(plain.values()) / max(steps, 1))


@given(traces(min_length=1))
def test_one_token_a_step_changes_no_replay(trace):
    joined = join_steps(trace)
    asked, same = lrc.requests.requests(trace), lrc.requests.requests(joined, 0)
    assert same.ids.tolist() == asked.ids.tolist()
    assert same.starts.tolist() == asked.starts.tolist()


@given(traces(min_length=1), st.data())
def test_a_prompt_is_the_first_step(trace, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    joined = join_steps(trace, prompt_tokens=prompts)
    asked = lrc.requests.requests(trace, prompts)
    assert lrc.requests.requests(joined).ids.tolist() == asked.ids.tolist()


@given(traces(min_length=1), st.sampled_from(["texts", "tokens"]), st.data())
def test_unions_are_means_over_full_steps(trace, across, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    if not any(
        (trace.experts[s, p:n] >= 0).any()
        for s, (p, n) in enumerate(zip(prompts, trace.lengths, strict=True))
    ):
        return
    table = unions(trace, (1, 2, 3), across, prompt_tokens=prompts, seed=2)
    counted = [
        trace.experts[s, t, j]
        for s in range(trace.num_sequences)
        for t in range(prompts[s], int(trace.lengths[s]))
        for j in range(trace.num_layers)
    ]
    rates = np.zeros((trace.num_layers, trace.num_experts))
    for number, chosen in enumerate(counted):
        rates[number % trace.num_layers, chosen[chosen >= 0]] += 1
    rates /= len(counted) / trace.num_layers
    for row in table.itertuples():
        n = row.tokens
        batches = members(trace, n if across == "texts" else 1, 2)
        draft = n if across == "tokens" else 1
        experts, tokens = plain_replay.joined_steps(trace, prompts, batches, draft)
        sizes = [
            len(experts[b, step, j])
            for (b, step), together in tokens.items()
            for j in range(trace.num_layers)
            if together == n and (step or not any(prompts[s] for s in batches[b]))
        ]
        assert row.experts == pytest.approx(np.mean(sizes))
        assert row.independent == pytest.approx((1 - (1 - rates) ** n).sum(axis=1).mean())
        assert row.ratio == pytest.approx(row.experts / row.independent)


def test_tokens_of_a_text_share_more_than_tokens_of_several():
    toy = lrc.toys.load_trace("baseline")
    draft, batch = unions(toy, (4,)), unions(toy, (4,), "texts")
    assert draft["ratio"].item() < batch["ratio"].item() < 1.02
    assert draft["independent"].item() == batch["independent"].item()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": 3}, "batch_size is 3, but there are only 2 texts of the trace"),
        ({"draft_tokens": -1}, "draft_tokens is -1"),
        ({"draft_tokens": 9}, "draft_tokens is 9, but there are only 2 tokens of its longest"),
    ],
)
def test_sizes_that_cannot_be(sizes, says):
    trace = lrc.Trace([[[[0]], [[1]]], [[[1]], [[1]]]], 2)
    with pytest.raises(lrc.LrcError, match=says):
        join_steps(trace, **sizes)


def test_nothing_to_join():
    trace = lrc.Trace([[[[0]], [[1]]]], 2)
    with pytest.raises(lrc.LrcError, match="no token after a prompt uses an expert"):
        unions(trace, prompt_tokens=2)
    with pytest.raises(lrc.LrcError, match="across is 'layers'"):
        unions(trace, across="layers")
