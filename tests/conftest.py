"""Settings of the test run: how hard Hypothesis searches, and how many threads PyTorch may take.

HYPOTHESIS_PROFILE is quick (the default), ci (the same examples every time) or thorough.
"""
from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# no deadline and no too_slow: a busy machine is no counterexample
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, **_PATIENT)
settings.register_profile("ci", max_examples=50, derandomize=True, print_blob=True, **_PATIENT)
settings.register_profile("thorough", max_examples=1000, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

TORCH_THREADS = 2


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped, and for what reason; nothing is left out silently."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(r.longrepr[2].removeprefix("Skipped: ") for r in skipped if isinstance(r.longrepr, tuple))
    if reasons:
        terminalreporter.section("skipped, by reason")
        for reason, n in reasons.most_common():
            terminalreporter.line(f"{n} × {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """PyTorch, once a test module has imported it, keeps to two threads; it is not imported for that.

    The first device of the double of CuPy, the current one at the start of a process, is so again.
    """
    if (double := sys.modules.get("minigrad.testing.double")) is not None:
        double.Device(0).use()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads") and torch.get_num_threads() != TORCH_THREADS:
        torch.set_num_threads(TORCH_THREADS)
