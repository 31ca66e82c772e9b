"""Ops as a model uses them: a table that is a matrix too, and matrices laid out anew for products of a few rows."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import backend, ops
from ...op import REGISTRY
from ...tensor import asarray
from ..strategies import shapes
from .table import constant, domain


# ── the table of a model is its head: the gradient of the product is there when the rows come to it   (tying.2) ──
def _ids(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"ids": rng.integers(0, sizes[0][0], draw(shapes(most=2)))}


def _tied(weight: Any, ids: Any) -> Any:
    return np.sum(weight[ids][..., None, :] * weight, axis=-1)


domain("embedding_op", (st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda s: [s]), "any", _ids), _tied,
       lambda t, weight, ids: weight[constant(t, ids)] @ weight.mT, label="tied",
       call=lambda weight, ids: REGISTRY["linear"](REGISTRY["embedding_op"](weight, ids), weight))


# ── matrices that are laid out once, for products of a few rows ──
@st.composite
def _rows(draw: Any) -> Any:
    return [(*draw(shapes(most=2, side=1)), draw(st.integers(1, 5)))]


def _matrix(draw: Any, sizes: Any, rng: Any) -> Any:
    w = rng.standard_normal((sizes[0][-1], draw(st.integers(1, 5))))
    return {"w": np.asfortranarray(w) if draw(st.booleans()) else w}


def _packed(x: Any, w: Any) -> Any:
    """x @ w by the panels of the backend, where it makes any."""
    panels = backend.of(w).pack(w.astype(x.dtype))
    return ops.linalg.matmul(x, asarray(w.astype(x.dtype))) if panels is None else REGISTRY["packed_linear"](x, panels, size=w.shape[1])


def _laid_out(x: Any, w: Any) -> Any:
    return REGISTRY["matmul_op"](x, backend.of(w).lay_out(w.astype(x.dtype)))


for _name, _call in {"packed_linear": _packed, "matmul_op": _laid_out}.items():
    domain(_name, (_rows(), "any", _matrix), lambda x, w: np.sum(x[..., :, None] * w, axis=-2),
           lambda t, x, w: x @ constant(t, w).to(x.dtype), label="laid-out", call=_call)
