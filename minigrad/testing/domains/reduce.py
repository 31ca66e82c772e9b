"""The domains of `minigrad.ops.reduce`."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import ops
from ..laws.strategies import small_shapes as shapes
from .table import ANY, AXES, FULL, LINES, domain, one_axis

assert ops                                      # importing the ops fills the registry


def reduced(draw: Any, sizes: Any, rng: Any) -> Any:
    ndim = len(sizes[0])
    axes = []
    if ndim:
        axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
        axes = [a - ndim * draw(st.booleans()) for a in axes]
    axis = draw(st.sampled_from([None, tuple(axes), axes[0]])) if axes else None
    return {"axis": axis, "keepdims": draw(st.booleans())}


def dims(x: Any, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


def _in_torch(name: str) -> Callable[..., Any]:
    return lambda t, x, axis, keepdims, **more: getattr(t, name)(
        x, dim=dims(x, axis), keepdim=keepdims, **more)


def _variance(x: Any, axis: Any, keepdims: bool, correction: float) -> Any:
    centred = x - np.mean(x, axis=axis, keepdims=True)
    total = np.sum(centred * centred, axis=axis, keepdims=keepdims)
    return total / (x.size / max(1, total.size) - correction)


def _extreme(x: Any, axis: Any, keepdims: bool, sign: int) -> Any:
    """The element whose real part is the largest (sign 1) or smallest (−1); there are no ties."""
    top = np.max(sign * np.real(x), axis=axis, keepdims=True)
    return np.sum(np.where(sign * np.real(x) == top, x, 0.0), axis=axis, keepdims=keepdims)


domain("sum", (ANY, "any", reduced),
       lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims), _in_torch("sum"))
domain("mean", (FULL, "any", reduced),
       lambda x, axis, keepdims: np.mean(x, axis=axis, keepdims=keepdims), _in_torch("mean"))
for _name, _sign, _f in [("max", 1, np.max), ("min", -1, np.min)]:
    domain(_name, (FULL, "spread", reduced),
           lambda x, axis, keepdims, s=_sign: _extreme(x, axis, keepdims, s),
           _in_torch(f"a{_name}"))
    domain(_name, (FULL, "ties", reduced),
           lambda x, axis, keepdims, f=_f: f(x, axis=axis, keepdims=keepdims),
           _in_torch(f"a{_name}"), label="ties", smooth=0)
domain("logsumexp", (FULL, "any", reduced),
       lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims)),
       _in_torch("logsumexp"))


def _corrected(draw: Any, sizes: Any, rng: Any) -> Any:
    return {**reduced(draw, sizes, rng), "correction": draw(st.sampled_from([0, 0.5]))}


domain("var", (FULL, "any", _corrected), _variance, _in_torch("var"))
SEVERAL = shapes(least=1, side=2).map(lambda s: [s])
domain("std", (SEVERAL, "spread", lambda d, s, r: {**reduced(d, s, r), "correction": 0}),
       lambda x, axis, keepdims, correction: np.sqrt(_variance(x, axis, keepdims, correction)),
       _in_torch("std"), call=ops.reduce.std)
domain("norm", (FULL, "nonzero", reduced),
       lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
       lambda t, x, axis, keepdims: t.linalg.vector_norm(x, dim=dims(x, axis), keepdim=keepdims))
for _name, _call in {"cumsum_op": None, "cumsum": ops.reduce.cumsum}.items():
    domain(_name, (LINES, "any", one_axis), np.cumsum, lambda t, x, axis: t.cumsum(x, dim=axis),
           call=_call)
for _name in ("argmax", "argmin"):
    domain(_name,
           (AXES, "ties", lambda d, s, r: {**one_axis(d, s, r), "keepdims": d(st.booleans())}),
           getattr(np, _name),
           lambda t, x, axis, keepdims, f=_name: getattr(t, f)(x, dim=axis, keepdim=keepdims))
