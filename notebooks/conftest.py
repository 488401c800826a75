"""For pytest, which compares a new run of each notebook with its committed outputs."""

import os
from pathlib import Path

import pytest

from lrc import public_traces

# Developers and CI have them beside the checkout, as in tests/conftest.py.
BESIDE = Path(__file__).resolve().parent.parent.parent / "shared"
TRACES = Path(os.environ.get("LRC_SHARED", BESIDE)) / "traces"
if TRACES.is_dir():
    os.environ.setdefault("LRC_TRACES", str(TRACES))


def pytest_collection_modifyitems(items):
    """Skip notebooks that need public traces which are not here: none is fetched for a test."""
    reasons: dict[Path, str] = {}
    for item in items:
        path = Path(item.path)
        if path.suffix == ".ipynb":
            if path not in reasons:
                reasons[path] = ", ".join(public_traces.missing_for(path))
            if reasons[path]:
                told = f"needs public traces that are not on this machine: {reasons[path]}"
                item.add_marker(pytest.mark.skip(told))
