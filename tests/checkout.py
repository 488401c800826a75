"""Where the checkout lies. Not in conftest.py: pytest loads several files of that name."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
