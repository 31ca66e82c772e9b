"""Settings of the test run: how hard Hypothesis searches, and how many threads PyTorch may take.

HYPOTHESIS_PROFILE is quick (the default), ci (the same examples every time) or thorough.
"""
from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# no deadline and no too_slow: a busy machine is no counterexample
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, **_PATIENT)
settings.register_profile("ci", max_examples=50, derandomize=True, print_blob=True, **_PATIENT)
settings.register_profile("thorough", max_examples=1000, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

TORCH_THREADS = 2


def pytest_runtest_setup(item: pytest.Item) -> None:
    """PyTorch, once a test module has imported it, keeps to two threads; it is not imported for that."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads") and torch.get_num_threads() != TORCH_THREADS:
        torch.set_num_threads(TORCH_THREADS)
