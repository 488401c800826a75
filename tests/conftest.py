"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a test compiles kernels, which takes longer than any deadline.
settings.register_profile("lrc", deadline=None)
settings.load_profile("lrc")

ROOT = Path(__file__).resolve().parent.parent


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
