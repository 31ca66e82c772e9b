"""Settings of the test run: how hard Hypothesis searches, and how many threads PyTorch may take.

HYPOTHESIS_PROFILE is quick (the default), ci (the same examples every time), few, kernels or thorough. --backend NAME runs the tests marked
`device` on that backend, and no others. With --uncounted the fake CuPy counts only launches, as on a GPU.
"""
from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# no deadline and no too_slow: a busy machine is no counterexample
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=12, **_PATIENT)
settings.register_profile("ci", max_examples=50, derandomize=True, print_blob=True, **_PATIENT)
settings.register_profile("few", max_examples=8, derandomize=True, **_PATIENT)
settings.register_profile("kernels", max_examples=200, **_PATIENT)
settings.register_profile("thorough", max_examples=1000, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1      # one of several processes, which has one thread
TORCH_THREADS = 1 if BESIDE else 2

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:   # as shells start what goes into the background; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--backend", metavar="NAME", help="run the tests marked `device` on cupy, cupy:N or fake, and no others")
    parser.addoption("--uncounted", action="store_true", help="with --backend fake: count only launches, as on a GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: Any) -> None:
    """`pytest` alone runs in a process for each core, up to eight, where pytest-xdist is installed; -n 0 keeps it in one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow"
    alone = config.getoption("usepdb") or config.option.capture == "no" or config.getoption("--backend") is not None
    worker = hasattr(config, "workerinput")             # one of those processes, which comes by here too
    if whole and not alone and not worker and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = min(8, os.cpu_count() or 1)


def pytest_configure(config: Any) -> None:
    """The device has a name before test modules are imported, and in the processes of pytest-xdist. UsageError where it cannot be had.

    Processes beside each other have a BLAS thread each.
    """
    if BESIDE:
        from minigrad.backend.numpy import blas

        blas.call("set_num_threads", 1)
    name = config.getoption("--backend")
    if name is None:
        return
    import minigrad as mg

    if name.startswith("fake"):
        from minigrad.testing import fake_cupy

        fake_cupy.install()
    try:
        mg.backend.get(name)
    except mg.MinigradError as error:
        raise pytest.UsageError(f"--backend {name}: {error}") from None
    os.environ["MINIGRAD_TEST_BACKEND"] = name
    if config.getoption("--uncounted"):
        os.environ["MINIGRAD_TEST_UNCOUNTED"] = "1"


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    if config.getoption("--backend") is not None:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("device") is None])
        items[:] = [item for item in items if item.get_closest_marker("device") is not None]


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

    The first device of the fake CuPy, the current one at the start of a process, is so again.
    """
    if (fake := sys.modules.get("minigrad.testing.fake_cupy.fake")) is not None:
        fake.Device(0).use()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads") and torch.get_num_threads() != TORCH_THREADS:
        torch.set_num_threads(TORCH_THREADS)
