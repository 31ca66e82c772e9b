"""The domains of `minigrad.ops.index`."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ... import ops
from ...op import REGISTRY
from ..laws.strategies import LAYOUTS, SIDE, Example, values
from ..laws.strategies import small_shapes as shapes
from .table import ANY, AXES, LINES, axis_of, constant, domain, one_axis


def _widths(draw: Any, sizes: Any, rng: Any) -> Any:
    widths = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in sizes[0]]
    return {"widths": widths, "value": draw(st.sampled_from([0.0, -1.5]))}


def _padded(t: Any, x: Any, widths: Any, value: float) -> Any:
    return t.nn.functional.pad(x, [n for pair in reversed(widths) for n in pair], value=value)


domain("flip", (LINES, "any", one_axis),
       lambda x, axis: np.flip(x, axis), lambda t, x, axis: t.flip(x, [axis]), call=ops.index.flip)
for _name in ("pad", "pad_op"):
    domain(_name, (ANY, "any", _widths),
           lambda x, widths, value: np.pad(x, widths or 0, constant_values=value), _padded,
           call=ops.index.pad if _name == "pad" else None)


def _sorted(x: Any, axis: int) -> Any:
    """x sorted by the real parts of its numbers."""
    return np.take_along_axis(x, np.argsort(np.real(x), axis=axis), axis)


def _largest(x: Any, axis: int, k: int) -> Any:
    last = range(x.shape[axis] - k, x.shape[axis])
    return np.flip(np.take(_sorted(x, axis), last, axis), axis)


def _how_many(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    return {"axis": axis, "k": draw(st.integers(0, sizes[0][axis]))}


domain("argsort",
       (LINES, "ties", lambda d, s, r: {**one_axis(d, s, r), "descending": d(st.booleans())}),
       lambda x, axis, descending: np.argsort(-x if descending else x, axis=axis, kind="stable"),
       lambda t, x, axis, descending: t.sort(
           x, dim=axis, descending=descending, stable=True).indices)
domain("sort", (LINES, "spread", one_axis), _sorted,
       lambda t, x, axis: t.sort(x, dim=axis).values,
       call=lambda x, axis: ops.index.sort(x, axis).values)
domain("topk", (AXES, "spread", _how_many), _largest,
       lambda t, x, axis, k: t.topk(x, k, dim=axis).values,
       call=lambda x, axis, k: ops.index.topk(x, k, axis).values)


@st.composite
def _index(draw: Any, shape: Any) -> Any:
    how = draw(st.sampled_from(["basic", "integers", "mask", "mixed"]))
    if how == "basic" or not shape or 0 in shape:
        return draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if how == "mask":
        return rng.random(shape[:draw(st.integers(1, len(shape)))]) < 0.5
    rows = rng.integers(-shape[0], shape[0], draw(shapes(most=2)))
    if how == "mixed" and len(shape) > 1:
        return (slice(None, None, -1), rng.integers(0, shape[1], draw(shapes(least=1, most=2))))
    return rows


def _flat(shape: Any, index: Any) -> Any:
    """The index of each selected element in the flattened array."""
    return np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape)[index])


def _unslice(x: Any, shape: Any, index: Any) -> Any:
    out = np.zeros(shape, x.dtype)
    np.add.at(out, index, x)
    return out


@st.composite
def _sliced(draw: Any) -> Example:
    shape = draw(shapes())
    index, seed = draw(_index(shape)), draw(st.integers(0, 2**32 - 1))
    g = values(np.random.default_rng(seed), _flat(shape, index).shape)
    return Example((g,), {"shape": shape, "index": index}, (draw(LAYOUTS),), seed)


domain("getitem", (ANY, "any", lambda d, s, r: {"index": d(_index(s[0]))}),
       lambda x, index: x[index],
       lambda t, x, index: x.reshape(-1)[constant(t, _flat(x.shape, index))])
domain("unslice", _sliced(), _unslice,
       lambda t, x, shape, index: t.zeros(math.prod(shape), dtype=x.dtype).index_add(
           0, constant(t, _flat(shape, index)).reshape(-1), x.reshape(-1)).reshape(shape))


def ids_of(draw: Any, sizes: Any, rng: Any) -> Any:
    kind = draw(st.sampled_from([np.int64, np.int32, np.uint32]))
    return {"ids": rng.integers(0, sizes[0][0], draw(shapes(most=2))).astype(kind)}


TABLE = st.tuples(st.integers(1, 3), SIDE).map(lambda s: [s])


def _rows_in_torch(t: Any, weight: Any, ids: Any) -> Any:
    return weight[constant(t, ids.astype(np.int64))]


domain("embedding_op", (TABLE, "any", ids_of), lambda weight, ids: weight[ids], _rows_in_torch)


def _added_rows(x: Any, ids: Any, rows: int) -> Any:
    out = np.zeros((rows, x.shape[-1]), x.dtype)
    np.add.at(out, ids.reshape(-1), x.reshape(ids.size, x.shape[-1]))
    return out


domain("scatter_rows",
       (st.tuples(shapes(most=2), SIDE).map(lambda s: [(*s[0], s[1])]), "any",
        lambda d, s, r: {"ids": r.integers(0, 4, s[0][:-1]), "rows": 4}), _added_rows,
       lambda t, x, ids, rows: t.zeros(rows, x.shape[-1], dtype=x.dtype).index_add(
           0, constant(t, ids).reshape(-1), x.reshape(ids.size, x.shape[-1])))


def _indices(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    at = axis % len(sizes[0])
    n = sizes[0]
    shape = tuple(draw(SIDE) if i == at else draw(st.integers(0, n[i])) for i in range(len(n)))
    return {"axis": axis, "index": rng.integers(0, sizes[0][at], shape)}


def _gathered(x: Any, index: Any, axis: int) -> Any:
    grid = np.indices(index.shape)
    return x[tuple(index if i == axis % x.ndim else grid[i] for i in range(x.ndim))]


@st.composite
def _scattered(draw: Any) -> Example:
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = draw(shapes(least=1, side=1))
    where = _indices(draw, [shape], rng)
    arrays = values(rng, shape), values(rng, where["index"].shape)
    return Example(arrays, where, (draw(LAYOUTS), draw(LAYOUTS)), seed)


def _scatter(x: Any, source: Any, index: Any, axis: int) -> Any:
    out, grid = np.array(x), np.indices(index.shape)
    np.add.at(out, tuple(index if i == axis % x.ndim else grid[i] for i in range(x.ndim)), source)
    return out


domain("gather", (AXES, "any", _indices), _gathered,
       lambda t, x, index, axis: t.gather(x, axis, constant(t, index)))
domain("scatter_add", _scattered(), _scatter,
       lambda t, x, source, index, axis: x.scatter_add(axis, constant(t, index), source),
       call=lambda x, source, index, axis: REGISTRY["scatter_add"](x, index, source, axis=axis))
