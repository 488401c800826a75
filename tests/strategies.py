"""Hypothesis strategies shared by the tests."""

import numpy as np
from hypothesis import strategies as st

from lrc import Trace

LABELS = ("code", "law", "math")


@st.composite
def traces(
    draw,
    *,
    max_sequences=5,
    max_tokens=24,
    max_layers=3,
    max_experts=9,
    min_length=0,
    datasets=None,
    token_ids=None,
    weights=None,
):
    """Random valid traces: any E, k (up to k = E), T (down to one token), ragged, -1 slots.

    `datasets`, `token_ids` and `weights` say whether the trace has them (None: either);
    `token_ids` stands for the predicted ids too. Sequences are `min_length` tokens long or more.
    """
    num_sequences = draw(st.integers(1, max_sequences), label="sequences")
    num_tokens = draw(st.integers(max(1, min_length), max(1, max_tokens)), label="tokens")
    num_layers = draw(st.integers(1, max_layers), label="layers")
    num_experts = draw(st.integers(1, max_experts), label="experts")
    top_k = draw(st.integers(1, num_experts), label="top_k")
    missing = draw(st.sampled_from([0.0, 0.0, 0.2, 0.9]), label="share of -1 slots")
    repeats = draw(st.sampled_from([0.0, 0.7]), label="chance that a token repeats the last")
    ragged = draw(st.booleans(), label="ragged")
    has_datasets, has_tokens, has_weights = (
        draw(st.booleans()) if wanted is None else wanted
        for wanted in (datasets, token_ids, weights)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))

    # An order of all experts for every token; the first top_k of it are used.
    shape = (num_sequences, num_tokens, num_layers)
    experts = rng.random((*shape, num_experts)).argsort(axis=-1)[..., :top_k]
    for t in range(1, num_tokens):
        same = rng.random((num_sequences, num_layers)) < repeats
        experts[:, t][same] = experts[:, t - 1][same]
    experts[rng.random(experts.shape) < missing] = -1

    lengths = None
    if ragged:
        lengths = rng.integers(min_length, num_tokens, num_sequences, endpoint=True)
    ids = rng.integers(0, 5, (2, num_sequences, num_tokens)) if has_tokens else (None, None)
    return Trace(
        experts,
        num_experts,
        lengths=lengths,
        datasets=rng.choice(LABELS, num_sequences).tolist() if has_datasets else None,
        token_ids=ids[0],
        predicted_ids=ids[1],
        weights=-np.sort(-rng.random(experts.shape), axis=-1) if has_weights else None,
        meta={"layers": [f"model.layers.{layer}.mlp" for layer in range(num_layers)]},
    )
