"""The domains of `minigrad.ops.shape`."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ... import ops
from ...engine.making import asarray
from ...engine.tensor import Tensor
from ...op import REGISTRY
from .. import fake_cupy
from ..laws.strategies import SIDE, Example, examples
from ..laws.strategies import small_shapes as shapes
from .table import ANY, LINES, axis_of, domain

assert ops                                      # importing the ops fills the registry


def _reshaped(draw: Any, sizes: Any, rng: Any) -> Any:
    shape = draw(st.permutations([*sizes[0], *[1] * draw(st.integers(0, 2))]))
    at = draw(st.integers(0, len(shape))) if np.prod(sizes[0]) and shape else len(shape)
    return {"shape": tuple(-1 if i == at else n for i, n in enumerate(shape))}


def _two_axes(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"axis0": axis_of(draw, len(sizes[0])), "axis1": axis_of(draw, len(sizes[0]))}


def _span(draw: Any, shapes: Any, rng: Any) -> dict[str, int]:
    """Two axes, the first not after the second."""
    first = draw(st.integers(0, len(shapes[0]) - 1))
    return {"start_dim": first, "end_dim": draw(st.integers(first, len(shapes[0]) - 1))}


def _order(draw: Any, sizes: Any, rng: Any) -> Any:
    order = draw(st.permutations(range(len(sizes[0]))))
    return {"axes": tuple(a - len(sizes[0]) * draw(st.booleans()) for a in order)}


def _moved(x: Any) -> Any:
    """x moved to another device, squared there, and moved back.

    Each gradient must be on the device of its value.
    """
    here = Tensor(asarray(x)).device
    there = "numpy" if here != "numpy" else f"{fake_cupy.install().name}:0"
    y = REGISTRY["to_op"](x, device=there, source=here)
    return REGISTRY["to_op"](y * y, device=here, source=there)


domain("identity", (ANY,), lambda x: x, "clone")


def _stays(x: Any) -> Any:
    here = Tensor(asarray(x)).device
    return REGISTRY["to_op"](x, device=here, source=here)


domain("to_op", (ANY,), lambda x: x, "clone", call=_stays)
domain("to_op", (ANY,), lambda x: x * x, "square", call=_moved, label="two-devices")
domain("reshape", (ANY, "any", _reshaped), lambda x, shape: np.reshape(x, shape), "reshape")
domain("transpose_op", (LINES, "any", _two_axes),
       lambda x, axis0, axis1: np.swapaxes(x, axis0, axis1),
       lambda t, x, axis0, axis1: x.transpose(axis0, axis1))
domain("transpose", (LINES, "any", _two_axes),
       lambda x, axis0, axis1: np.swapaxes(x, axis0, axis1),
       lambda t, x, axis0, axis1: x.transpose(axis0, axis1), call=ops.shape.transpose)


def _flattened(x: Any, start_dim: int, end_dim: int) -> Any:
    length = int(np.prod(x.shape[start_dim:end_dim + 1]))
    return np.reshape(x, (*x.shape[:start_dim], length, *x.shape[end_dim + 1:]))


domain("flatten", (LINES, "any", _span), _flattened,
       lambda t, x, start_dim, end_dim: x.flatten(start_dim, end_dim), call=ops.shape.flatten)
domain("squeeze",
       (LINES, "any", lambda draw, shapes, rng: {"dim": draw(st.integers(0, len(shapes[0]) - 1))}),
       lambda x, dim: x.reshape(x.shape[:dim] + x.shape[dim + 1:]) if x.shape[dim] == 1 else x,
       lambda t, x, dim: x.squeeze(dim), call=ops.shape.squeeze)
domain("unsqueeze",
       (ANY, "any", lambda draw, shapes, rng: {"dim": draw(st.integers(0, len(shapes[0])))}),
       lambda x, dim: np.expand_dims(x, dim),
       lambda t, x, dim: x.unsqueeze(dim), call=ops.shape.unsqueeze)
domain("permute", (ANY, "any", _order),
       lambda x, axes: np.transpose(x, axes), lambda t, x, axes: x.permute(axes))


@st.composite
def _grown(draw: Any) -> Example:
    b = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    e = draw(examples(st.just([b.input_shapes[0]])))
    return Example(e.arrays, {"shape": tuple(b.result_shape)}, e.layouts, e.seed)


@st.composite
def _shrunk(draw: Any) -> Example:
    b = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    e = draw(examples(st.just([b.result_shape])))
    return Example(e.arrays, {"shape": tuple(b.input_shapes[0])}, e.layouts, e.seed)


def _sum_to(x: Any, shape: Any) -> Any:
    lead = x.ndim - len(shape)
    ones = (lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1)
    return np.sum(x, axis=(*range(lead), *ones), keepdims=True).reshape(shape)


domain("broadcast_to", _grown(),
       lambda x, shape: np.broadcast_to(x, shape), lambda t, x, shape: x.broadcast_to(shape))
domain("sum_to", _shrunk(), _sum_to, lambda t, x, shape: x.sum_to_size(shape))


def _expanded(draw: Any, sizes: Any, rng: Any) -> Any:
    ndim = len(sizes[0]) + draw(st.integers(0, 2))
    axes = draw(st.permutations(range(ndim)))[:ndim - len(sizes[0])]
    return {"axis": tuple(a - ndim * draw(st.booleans()) for a in axes), "ndim": ndim}


def _unsqueezed(t: Any, x: Any, axis: Any, ndim: int) -> Any:
    for a in sorted(a % ndim for a in axis):
        x = x.unsqueeze(a)
    return x


domain("expand", (ANY, "any", _expanded),
       lambda x, axis, ndim: np.expand_dims(x, axis), _unsqueezed)
domain("expand", (st.just([()]), "any", lambda d, s, r: {"axis": None, "ndim": d(SIDE)}),
       lambda x, axis, ndim: x.reshape((1,) * ndim),
       lambda t, x, axis, ndim: x.reshape((1,) * ndim), label="all")
MATRICES = shapes(least=2).map(lambda s: [s])
for _name in ("tril", "triu"):
    _f = getattr(np, _name)
    domain(_name, (MATRICES, "any", lambda d, s, r: {"diagonal": d(st.integers(-3, 3))}),
           lambda x, diagonal, f=_f: f(x, diagonal), _name)


@st.composite
def alike(draw: Any) -> Any:
    """Shapes that differ only in the last axis."""
    start, n = draw(shapes(most=2)), draw(st.integers(1, 3))
    return [(*start, draw(SIDE)) for _ in range(n)]


def _ends(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    ends = draw(st.lists(st.integers(0, sizes[0][axis]), max_size=2))
    return {"axis": axis, "ends": tuple(sorted(ends))}


domain("concat_op", (alike(), "any", lambda d, s, r: {"axis": -1}),
       lambda *xs, axis: np.concatenate(xs, axis),
       lambda t, *xs, axis: t.cat(xs, dim=axis))
domain("split_op", (LINES, "any", _ends),
       lambda x, ends, axis: np.concatenate([p.reshape(-1) for p in np.split(x, ends, axis)]),
       lambda t, x, ends, axis: t.tensor_split(x, list(ends), dim=axis))
