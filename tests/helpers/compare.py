"""close(): the assertion that two results agree to so many roundings."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np

from minigrad import Tensor

# At most 3³ = 27 elements meet in one sum, and no derivative of second order is a chain of more than about 40 roundings:
# an error of 27·40 ≈ 1000 half-units, each of the size of the largest number on the way.
TERMS = 1000


def _host(x: Any) -> Any:
    """The numbers of a Tensor of either kind, which may require a gradient, or of anything that NumPy takes."""
    torch = sys.modules.get("torch")
    return x.numpy(force=True) if torch and isinstance(x, torch.Tensor) else np.asarray(x.numpy() if isinstance(x, Tensor) else x)


def close(ours: Any, theirs: Any, *, terms: float = TERMS, scale: float = 1.0, what: str = "") -> None:
    """|ours − theirs| ≤ terms · eps · (the largest magnitude on the way), shape and dtype alike; NaN equals NaN."""
    a, b = _host(ours), _host(theirs)
    assert a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.dtype}{a.shape} against {b.dtype}{b.shape}"
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=what)
        np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=what)
    if a.dtype.kind != "f":
        np.testing.assert_array_equal(a, b, err_msg=what)
        return
    largest = max(scale, float(np.abs(b[finite]).max(initial=0.0)))
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    bound = terms * float(np.finfo(a.dtype).eps) * largest
    assert error <= bound, f"{what}: off by {error:.3g}, more than {bound:.3g}\nours {a}\ntheirs {b}"
