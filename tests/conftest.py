"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden numbers and real traces that only developers and CI have."""
    folder = Path(os.environ.get("LRC_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip("no shared/ folder beside the checkout (set LRC_SHARED): developers only")
    return folder
