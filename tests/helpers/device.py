"""Where the tests of the GPU's code run: on the fake CuPy, or, with `pytest --backend cupy`, on a GPU.

    from device import DEVICE, HERE, counting

DEVICE is its name, HERE its backend. counting() gives the fake's Counts; on a GPU nothing is counted, and what it gives equals anything.
Mark such a test `device`: with --backend only those run.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from minigrad import backend
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda

DEVICE = os.environ.get("MINIGRAD_TEST_BACKEND", "fake")
fake_cupy.install()
HERE: Any = backend.get(DEVICE).backend
needs_compiler = pytest.mark.skipif(cuda.compiler() is None and DEVICE == "fake",
                                    reason="g++ is not installed: the kernels cannot be run on a CPU")


class Unknown:
    """A count that nobody made: equal to anything, and anything is in its limits."""

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any) -> Unknown:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def _yes(self, other: Any) -> bool:
        return True

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _yes   # type: ignore[assignment]

    def __ne__(self, other: Any) -> bool:
        return False


def kernel_test(f: Any) -> Any:
    """The marks of a test that holds kernels to NumPy: `device` and `kernels`."""
    return pytest.mark.device(pytest.mark.kernels(f))


@contextlib.contextmanager
def counting() -> Iterator[Any]:
    """As `fake_cupy.counting`, where that can be had."""
    if DEVICE.startswith("fake"):
        with fake_cupy.counting() as counts:
            yield counts
    else:
        yield Unknown()
