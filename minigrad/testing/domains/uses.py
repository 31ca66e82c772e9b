"""Ops as a model uses them.

They are tied weights, matrices in a new memory layout, causal attention, and arrays of many rows.
The NumPy backend has special kernels for these cases, which are rare among the other examples.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import backend, ops
from ...engine.making import asarray
from ...op import REGISTRY
from ..laws.strategies import small_shapes as shapes
from .fused import _attention, _gelu, _layer_norm, attention_in_torch
from .linalg import product
from .table import constant, domain


# ── tied weights: the gradient of the embedding's rows is added to that of the head   (tying.2) ──
def _ids(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"ids": rng.integers(0, sizes[0][0], draw(shapes(most=2)))}


def _tied(weight: Any, ids: Any) -> Any:
    return np.sum(weight[ids][..., None, :] * weight, axis=-1)


_PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda s: [s])
domain("embedding_op", (_PAIR, "any", _ids), _tied,
       lambda t, weight, ids: weight[constant(t, ids)] @ weight.mT, label="tied",
       call=lambda weight, ids: REGISTRY["linear"](REGISTRY["embedding_op"](weight, ids), weight))


# ── matrices that get another memory layout once, for products with a few rows ──
@st.composite
def _rows(draw: Any) -> Any:
    return [(*draw(shapes(most=2, side=1)), draw(st.sampled_from([3, 1, 4, 5])))]


def _matrix(draw: Any, sizes: Any, rng: Any) -> Any:
    w = rng.standard_normal((sizes[0][-1], draw(st.sampled_from([5, 2, 1, 7])))).astype("float32")
    w = np.asfortranarray(w) if draw(st.booleans()) else w
    return {"w": w, "step": draw(st.sampled_from([1, 2]))}


def _columns(x: Any, w: Any, step: int) -> Any:
    """The backend of w, and every `step`-th column of w in the dtype of x, on w's device."""
    library = backend.of(w)
    if library.devices:
        library.at(w)
    return library, w.astype(x.dtype)[:, ::step]


def _packed(x: Any, w: Any, step: int) -> Any:
    """x @ w[:, ::step], computed with the packed panels of the backend if it has them."""
    library, matrix = _columns(x, w, step)
    panels = library.pack(matrix)
    if panels is None:
        return ops.linalg.matmul(x, asarray(matrix))
    return REGISTRY["packed_linear"](x, panels, size=matrix.shape[1])


def _laid_out(x: Any, w: Any, step: int) -> Any:
    library, matrix = _columns(x, w, step)
    return REGISTRY["matmul_op"](x, library.lay_out(matrix))


for _name, _call in {"packed_linear": _packed, "matmul_op": _laid_out}.items():
    domain(_name, (_rows(), "any", _matrix),
           lambda x, w, step: np.sum(x[..., :, None] * w[:, ::step], axis=-2),
           lambda t, x, w, step: x @ constant(t, w[:, ::step]).to(x.dtype),
           label="laid-out", call=_call)


# ── causal attention: as many queries as keys, one query, and only the last queries ──
@st.composite
def _causal(draw: Any, more: int | None) -> Any:
    """Shapes of q, k and v with `more` keys than queries; None: one query."""
    lead, n = draw(shapes(most=3, side=1)), draw(st.integers(1 if more is None else 2, 7))
    d, e = draw(st.sampled_from([2, 3, 1])), draw(st.integers(1, 2))
    keys = n + (more or 0)
    return [(*lead, 1 if more is None else n, d), (*lead, keys, d), (*lead, keys, e)]


def _dropped(draw: Any, sizes: Any, rng: Any) -> Any:
    n, m = sizes[0][-2], sizes[1][-2]
    mask = rng.random((n, m)) < 0.7 if n == 1 and rng.random() < 0.3 else None
    return {"mask": mask, "causal": True, "scale": draw(st.sampled_from([None, 0.7])),
            "p": draw(st.sampled_from([0.0, 0.3])), "key": draw(st.integers(0, 2**64 - 1))}


for _label, _more in {"causal": 0, "one-query": None, "cache": 2}.items():
    domain("attention", (_causal(_more), "any", _dropped), _attention, attention_in_torch,
           label=_label)


# ── a vector that is used in many rows: its gradient is a sum over them ──
@st.composite
def _many(draw: Any, vectors: int) -> Any:
    d = draw(st.integers(1, 4))
    return [(draw(st.integers(1, 11)), d), *[(d,)] * vectors]


domain("sum_to", (_many(0), "any", lambda draw, sizes, rng: {"shape": sizes[0][1:]}),
       lambda x, shape: x.sum(0),
       lambda t, x, shape: x.sum_to_size(shape), label="rows")
domain("gelu", (_many(1), "any", lambda draw, sizes, rng: {"approximate": "tanh"}), _gelu,
       lambda t, x, bias, approximate: t.nn.functional.gelu(x + bias, approximate=approximate),
       label="rows")
domain("layer_norm",
       (_many(2), ["spread", "any", "any"], lambda draw, sizes, rng: {"eps": 0.1}), _layer_norm,
       lambda t, x, w, b, eps: t.nn.functional.layer_norm(x, w.shape, w, b, eps), label="rows")


@st.composite
def _affine(draw: Any) -> Any:
    n, k, m = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    return [(m,), (n, k), (k, m)]


domain("addmm", (_affine(),),
       lambda b, x, w: product(x, w) + b, lambda t, b, x, w: x @ w + b, label="rows")
