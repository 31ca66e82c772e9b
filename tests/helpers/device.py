"""Where the tests of the GPU's code run: on the fake CuPy, or, with `pytest --backend cupy`, on a GPU.

    from device import DEVICE, HERE, counting

DEVICE is its name, HERE its backend. counting() gives the fake's Counts. On a GPU only our own launches can be counted, and the other
counts are `Unknown`. `--uncounted` runs the tests so on the fake CuPy too. Mark such a test `device`: with --backend only those run.
"""
from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from minigrad import backend
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda

DEVICE = os.environ.get("MINIGRAD_TEST_BACKEND", "fake")
UNCOUNTED = "MINIGRAD_TEST_UNCOUNTED" in os.environ
fake_cupy.install()
HERE: Any = backend.get(DEVICE).backend
needs_compiler = pytest.mark.skipif(cuda.compiler() is None and DEVICE == "fake",
                                    reason="g++ is not installed: the kernels cannot be run on a CPU")


class Unknown:
    """A count that nobody made: it equals any number and table, is within any limits, and has no element."""

    __hash__ = None  # type: ignore[assignment]

    def _yes(self, other: Any) -> bool:
        return True

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _yes   # type: ignore[assignment]

    def __ne__(self, other: Any) -> bool:
        return False

    def __getitem__(self, name: str) -> Unknown:
        return self

    def __contains__(self, name: str) -> bool:
        return False


class GPUCounts:
    """As `fake_cupy.Counts`: launches are those of `HERE.launch`, and nothing else is known."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.syncs = self.uploads = self.allocations = self.bytes = self.replays = self.dtypes = Unknown()


def kernel_test(f: Any) -> Any:
    """The marks of a test that holds kernels to NumPy: `device` and `kernels`."""
    return pytest.mark.device(pytest.mark.kernels(f))


@contextlib.contextmanager
def counting() -> Iterator[Any]:
    """As `fake_cupy.counting`, as far as a GPU can be counted."""
    if DEVICE.startswith("fake") and not UNCOUNTED:
        with fake_cupy.counting() as counts:
            yield counts
        return
    counts, launch = GPUCounts(), HERE.launch

    def counted(name: str, *args: Any, **options: Any) -> None:
        launch(name, *args, **options)
        counts.launches[name] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HERE, "launch", counted)
        yield counts
