"""Fixtures shared by the tests."""

import os
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from hypothesis import HealthCheck, settings

# The first example of a test compiles kernels, which takes longer than any deadline.
# Some traces have to be thrown away; how many in a row is chance, and no failure.
settings.register_profile("lrc", deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
settings.load_profile("lrc")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden numbers and real traces that only developers and CI have."""
    folder = Path(os.environ.get("LRC_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip("no shared/ folder beside the checkout (set LRC_SHARED): developers only")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch: several add up numbers in no fixed order, so no two runs are equal."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short_corpus(monkeypatch):
    """Random tokens in place of the embedded corpus, which takes seconds to read."""
    from lrc import corpora, toy_shipping, toy_texts, toy_training

    random = np.random.default_rng(0)
    tokens = random.integers(0, toy_texts.VOCABULARY, (16, 32)).astype(np.int32)
    made = corpora.Sequences(tokens, tuple(corpora.DOMAINS) * 2)
    monkeypatch.setattr(toy_training, "training_sequences", lambda *_: made)
    for module in (toy_training, toy_shipping):
        monkeypatch.setattr(module, "held_out_sequences", lambda per_domain: made)
