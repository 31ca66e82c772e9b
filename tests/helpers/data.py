"""Where the tests find data that is too large to keep in the repository."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_data(name: str) -> Path:
    """The file `name` under $MINIGRAD_TEST_DATA, or under shared/data beside the repository; skips where there is none."""
    places = [os.environ.get("MINIGRAD_TEST_DATA"), ROOT.parent / "shared" / "data"]
    for place in places:
        if place and (path := Path(place) / name).exists():
            return path
    pytest.skip(f"{name} is not here; set MINIGRAD_TEST_DATA to a folder that holds it")


test_data.__test__ = False  # type: ignore[attr-defined]  # a helper, though pytest would take its name for a test
