"""Which tokens an expert received, told from rows alone: against the selection that made them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lrc
from lrc.expert_rows import ids_of_pairs, match_rows


def pairs_of(tokens, used):
    """What `match_rows` finds, as boolean [tokens, experts], when experts get the rows they use."""
    received = [(expert, tokens[used[:, expert]]) for expert in range(used.shape[1])]
    found = np.zeros(used.shape, int)
    at, experts = match_rows(tokens, received)
    np.add.at(found, (at.numpy(), experts.numpy()), 1)
    return found


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 70)),
    dtype=dtypes,
)
def test_every_row_finds_its_token(seed, shape, dtype):
    num_tokens, num_experts, width = shape
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_tokens, width, generator=generator).to(dtype)
    # Distinct by one column at least, wherever it is.
    tokens[:, seed % width] = torch.arange(num_tokens).to(dtype)
    used = torch.rand(num_tokens, num_experts, generator=generator) < 0.3
    np.testing.assert_array_equal(pairs_of(tokens, used), used)


@given(
    seed=st.integers(0, 10_000),
    num_tokens=st.integers(1, 30),
    kinds=st.integers(1, 5),
    num_experts=st.integers(1, 6),
)
def test_identical_tokens_without_drops(seed, num_tokens, kinds, num_experts):
    """Equal rows need the same experts, so all of them are found."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(kinds, (num_tokens,), generator=generator)
    tokens = torch.randn(kinds, 16, generator=generator)[which]
    used = (torch.rand(kinds, num_experts, generator=generator) < 0.5)[which]
    np.testing.assert_array_equal(pairs_of(tokens, used), used)


def test_a_column_that_differs_is_found_wherever_it_is():
    tokens = torch.zeros(2, 100)
    for column in range(100):
        tokens[1] = 0
        tokens[1, column] = 1
        used = torch.tensor([[True, False], [False, True]])
        np.testing.assert_array_equal(pairs_of(tokens, used), used)


def test_of_identical_tokens_others_tell_which_was_dropped():
    a, b, c = torch.randn(3, 16)
    tokens = torch.stack([a, b, a, c, a])
    for kept in ([0, 1, 3], [1, 2, 3], [1, 3, 4], [0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]):
        used = torch.zeros(5, 1, dtype=torch.bool)
        used[kept] = True
        np.testing.assert_array_equal(pairs_of(tokens, used), used)
    with pytest.raises(lrc.RecordError, match="expert 0 received 1 of 3 identical tokens"):
        match_rows(tokens, [(0, a[None])])


def test_free_places_and_signed_zeros():
    tokens = torch.randn(4, 16)
    tokens[:, 3] = 0.0
    buffer = torch.zeros(6, 16)
    buffer[1:3] = tokens[[2, 0]]
    buffer[1:3, 3] = -0.0
    at, experts = match_rows(tokens, [(1, torch.empty(0, 16)), (5, buffer)])
    assert (at.tolist(), experts.tolist()) == ([2, 0], [5, 5])


def test_rows_in_another_dtype_and_shape():
    tokens = torch.randn(4, 16)
    at, _ = match_rows(tokens, [(0, tokens[None, [3, 1]].bfloat16())])
    assert at.tolist() == [3, 1]


def test_rows_that_are_no_tokens_are_refused():
    tokens = torch.randn(4, 16)
    with pytest.raises(lrc.RecordError, match="expert 3 was called with rows that are no tokens"):
        match_rows(tokens, [(0, tokens[:2]), (3, 2 * tokens[1:3])])
    twice = match_rows(tokens, [(2, tokens[[1, 3, 1]])])
    with pytest.raises(lrc.RecordError, match="expert 2 was called with the same token twice"):
        ids_of_pairs(*twice, 4, 8)


def test_no_expert_was_called():
    at, experts = match_rows(torch.randn(3, 4), [])
    assert len(at) == len(experts) == 0
    assert ids_of_pairs(at, experts, 3, 8).tolist() == [[-1]] * 3


def test_ids_ascend_and_are_filled_up():
    pairs = torch.tensor([2, 0, 2, 0, 2]), torch.tensor([7, 1, 0, 5, 3])
    expected = [[1, 5, -1], [-1, -1, -1], [0, 3, 7]]
    assert ids_of_pairs(*pairs, 3, 8).tolist() == expected
    assert ids_of_pairs(*pairs, 3, 8, slots=4).tolist() == [[*row, -1] for row in expected]
