"""The BLAS that NumPy brought along: how many threads it uses, and how to hold it to one."""
from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

_PREFIXES = ("scipy_openblas_", "openblas_")
_SUFFIXES = ("64_", "")


@functools.cache
def library() -> tuple[Any, str, str] | None:
    """The loaded OpenBLAS with the prefix and suffix of its names, or None when NumPy uses another BLAS."""
    here = os.path.dirname(np.__file__)
    places = (os.path.join(here, "..", "numpy.libs"), os.path.join(here, ".dylibs"))
    for path in sorted(found for place in places for found in glob.glob(os.path.join(place, "*openblas*"))):
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                if hasattr(found, f"{prefix}set_num_threads{suffix}"):
                    return found, prefix, suffix
    return None


def call(name: str, *args: Any, restype: Any = ctypes.c_int) -> Any:
    """Call the OpenBLAS function `name` (without prefix and suffix); None where there is no OpenBLAS."""
    found = library()
    if found is None:
        return None
    f = getattr(found[0], f"{found[1]}{name}{found[2]}")
    f.restype = restype
    return f(*args)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block BLAS uses one thread, for several threads call it at once."""
    was = call("get_num_threads")
    if was is None or was == 1:
        yield
        return
    call("set_num_threads", 1)
    try:
        yield
    finally:
        call("set_num_threads", was)
