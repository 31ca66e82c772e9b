"""The domains of `minigrad.ops.linalg`, and of products with packed weights."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ..laws.strategies import LAYOUTS, SIDE, Example, values
from ..laws.strategies import small_shapes as shapes
from .table import domain


@st.composite
def matrices(draw: Any, vectors: bool = False) -> Any:
    """The shapes of two arguments of @, whose batch axes broadcast.

    vectors: an argument may also have only one axis.
    """
    n, k, m = draw(SIDE), draw(SIDE), draw(SIDE)
    batches = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3)
    batch = draw(batches).input_shapes
    a = (k,) if vectors and draw(st.booleans()) else (*batch[0], n, k)
    b = (k,) if vectors and draw(st.booleans()) else (*batch[1], k, m)
    return [a, b]


@st.composite
def _affine(draw: Any, order: str) -> Any:
    k, m, x = draw(SIDE), draw(SIDE), draw(shapes(most=2))
    shape = {"x": (*x, k), "w": (k, m), "t": (m, k), "b": (m,)}
    return [shape[c] for c in order]


def product(a: Any, b: Any) -> Any:
    """The matrix product of a and b, computed as the sum Σ_k a_ik b_kj."""
    return np.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


PRODUCTS = ["ij,jk->ik", "bij,bjk->bik", "i,i->", "ij->ji", "ij->", "ij->j", "i,j->ij",
            "abc,dbc->ad", "ij,jk,kl->il", "ijk,k->ij", "ij,ij->i", ",i->i", "ij,ij,ij->ij",
            "ab,c->bc"]


@st.composite
def einsums(draw: Any, patterns: Any) -> Example:
    """Operands for one of the patterns."""
    pattern = draw(st.sampled_from(patterns))
    length = {c: draw(SIDE) for c in pattern if c.isalpha()}
    sizes = [tuple(length[c] for c in term.strip()) for term in pattern.split("->")[0].split(",")]
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    arrays = tuple(values(rng, s) for s in sizes)
    return Example(arrays, {"subscripts": pattern}, tuple(draw(LAYOUTS) for _ in sizes), seed)


def _einsum(*xs: Any, subscripts: str) -> Any:
    """einsum from its definition.

    Each operand gets one axis for each letter. They are multiplied, and summed over the letters
    that are not in the output.
    """
    inputs, output = subscripts.split("->")
    letters = sorted(set(inputs) - {","})
    total: Any = 1.0
    for term, x in zip(inputs.split(","), xs):
        order = np.transpose(x, [term.index(c) for c in sorted(term)])
        total = total * order.reshape([x.shape[term.index(c)] if c in term else 1 for c in letters])
    length = {c: n for term, x in zip(inputs.split(","), xs) for c, n in zip(term, x.shape)}
    total = np.broadcast_to(total, [length[c] for c in letters])
    summed = np.sum(total, axis=tuple(i for i, c in enumerate(letters) if c not in output))
    kept = [c for c in letters if c in output]
    return np.transpose(summed, [kept.index(c) for c in output])


domain("matmul_op", (matrices(),), product, "matmul")
domain("addmm", (_affine("bxw"),),
       lambda b, x, w: np.sum(x[..., :, None] * w, axis=-2) + b, lambda t, b, x, w: x @ w + b)
domain("linear", (_affine("xtb"),),
       lambda x, w, b: np.sum(x[..., None, :] * w, axis=-1) + b, lambda t, x, w, b: x @ w.T + b)
domain("linear", (_affine("xt"),),
       lambda x, w: np.sum(x[..., None, :] * w, axis=-1), lambda t, x, w: x @ w.T, label="no-bias")
domain("einsum_op", einsums(PRODUCTS), _einsum,
       lambda t, *xs, subscripts: t.einsum(subscripts, *xs))


@st.composite
def _paneled(draw: Any, bias: bool) -> Any:
    """Shapes of x [..., q·c], of panels [P, q, c, w] and of a bias.

    The bias may be shorter than P·w: then part of the last panel is not used.
    """
    P, q, c, w = (draw(st.integers(1, 3)) for _ in range(4))
    columns = P * w - draw(st.integers(0, w - 1))
    return [(*draw(shapes(most=2)), q * c), (P, q, c, w), *([(columns,)] if bias else [])]


def _size(draw: Any, sizes: Any, rng: Any) -> Any:
    """The size of the result: that of the bias, or without a bias any up to P·w."""
    columns = sizes[1][0] * sizes[1][3]
    return {"size": sizes[2][0] if len(sizes) > 2 else draw(st.integers(0, columns))}


def _packed(x: Any, panels: Any, bias: Any = 0.0, *, size: int) -> Any:
    """y_j = Σ_st x_(s·c+t) panels_(⌊j/w⌋, s, t, j mod w) + b_j, one column after the other."""
    _, q, c, w = panels.shape
    cut = x.reshape(*x.shape[:-1], q, c)
    columns = [np.sum(cut * panels[j // w, :, :, j % w], axis=(-2, -1)) for j in range(size)]
    return (np.stack(columns, axis=-1) if size else np.zeros((*x.shape[:-1], 0), x.dtype)) + bias


def _packed_in_torch(t: Any, x: Any, panels: Any, bias: Any = 0.0, *, size: int) -> Any:
    P, q, c, w = panels.shape
    return x @ panels.movedim(0, 2).reshape(q * c, P * w)[:, :size] + bias


domain("packed_linear", (_paneled(True), "any", _size), _packed, _packed_in_torch)
domain("packed_linear", (_paneled(False), "any", _size), _packed, _packed_in_torch, label="no-bias")
