"""The domains of the functions that are composed of ops."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import fused, ops
from ..laws.strategies import small_shapes as shapes
from . import fused as of_fused
from . import index, linalg
from .reduce import dims, reduced
from .shape import alike
from .table import ANY, AXES, FULL, LINES, axis_of, constant, domain


def _matmul(a: Any, b: Any) -> Any:
    out = linalg.product(a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None])
    return out.reshape((np.ones(a.shape) @ np.ones(b.shape)).shape)


def _spelled(*xs: Any, subscripts: str) -> Any:
    """einsum with spaces in the subscripts; without "->" the letters that occur once are kept."""
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    once = "".join(sorted(c for c in set(inputs) if inputs.count(c) == 1 and c != ","))
    return linalg._einsum(*xs, subscripts=f"{inputs}->{output if arrow else once}")


domain("matmul", (linalg.matrices(vectors=True),), _matmul, "matmul", call=ops.linalg.matmul)
domain("einsum", linalg.einsums([*linalg.PRODUCTS, "ij,jk", "ba", "i , i"]), _spelled,
       lambda t, *xs, subscripts: t.einsum(subscripts, *xs),
       call=lambda *xs, subscripts: ops.linalg.einsum(subscripts, *xs))


def _prod(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    axes = [axis] if isinstance(axis, int) else dims(x, axis)
    for a in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(dim=a, keepdim=keepdims)
    return x


domain("prod", (ANY, "ties", reduced),
       lambda x, axis, keepdims: np.prod(x, axis=axis, keepdims=keepdims), _prod,
       call=ops.reduce.prod)
domain("stack",
       (st.builds(lambda s, n: [s] * n, shapes(most=2), st.integers(1, 3)), "any",
        lambda d, s, r: {"axis": d(st.integers(-len(s[0]) - 1, len(s[0])))}),
       lambda *xs, axis: np.stack(xs, axis), lambda t, *xs, axis: t.stack(xs, dim=axis),
       call=lambda *xs, axis: ops.shape.stack(xs, axis=axis))
domain("concat", (alike(),), lambda *xs: np.concatenate(xs, -1), lambda t, *xs: t.cat(xs, dim=-1),
       call=lambda *xs: ops.shape.concat(xs, axis=-1))


def _parts(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    n = sizes[0][axis]
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=2)))
    by_size = [b - a for a, b in zip([0, *cuts], [*cuts, n])]
    equal = [k for k in range(1, max(2, n + 1)) if n % k == 0]
    return {"axis": axis, "sections": draw(st.one_of(st.just(by_size), st.sampled_from(equal)))}


def _split(x: Any, sections: Any, axis: int) -> Any:
    ends = np.cumsum(sections)[:-1] if isinstance(sections, list) else sections
    return np.concatenate([p.reshape(-1) for p in np.split(x, ends, axis)])


def _split_in_torch(t: Any, x: Any, sections: Any, axis: int) -> Any:
    if isinstance(sections, int):
        sections = [x.shape[axis] // sections] * sections
    return t.split(x, sections, dim=axis)


def _split_by_ops(x: Any, sections: Any, axis: int) -> Any:
    name = "sizes" if isinstance(sections, list) else "sections"
    return ops.shape.split(x, axis=axis, **{name: sections})


domain("split", (LINES, "any", _parts), _split, _split_in_torch, call=_split_by_ops)


def _taken(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    return {"axis": axis, "indices": rng.integers(0, sizes[0][axis], draw(shapes(most=2)))}


def _take(t: Any, x: Any, indices: Any, axis: int) -> Any:
    at = axis % x.ndim
    rows = t.index_select(x, at, constant(t, indices).reshape(-1))
    return rows.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1:]))


def _taken_flat(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"indices": rng.integers(0, math.prod(sizes[0]), draw(shapes(most=2)))}


domain("take", (AXES, "any", _taken), lambda x, indices, axis: np.take(x, indices, axis), _take,
       call=ops.index.take)
domain("take", (FULL, "any", _taken_flat),
       lambda x, indices: np.take(x, indices),
       lambda t, x, indices: t.take(x, constant(t, indices)),
       label="flat", call=ops.index.take)
domain("embedding", (index.TABLE, "any", index.ids_of),
       lambda weight, ids: weight[ids], index._rows_in_torch,
       call=lambda weight, ids: ops.index.embedding(ids, weight))
domain("dropout", (ANY, "any", of_fused._drops), of_fused._dropped, of_fused._dropped_in_torch,
       call=fused.dropout)
domain("stop_gradient", (ANY,), None, lambda t, x: x.detach() * x,
       call=lambda x: ops.shape.stop_gradient(x) * x, smooth=0)
