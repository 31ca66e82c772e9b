"""The domains of the ops that pick, multiply and fuse."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ... import backend, fused, random
from ...op import REGISTRY
from ..laws.strategies import LAYOUTS, SIDE, Example, values
from ..laws.strategies import small_shapes as shapes
from .basic import SEAMS, erf
from .table import ANY, AXES, axis_of, constant, domain, one_of


# ── picking ──
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
    """Where in the flattened array each picked element lies."""
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


def _places(draw: Any, sizes: Any, rng: Any) -> Any:
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
    where = _places(draw, [shape], rng)
    arrays = values(rng, shape), values(rng, where["index"].shape)
    return Example(arrays, where, (draw(LAYOUTS), draw(LAYOUTS)), seed)


def _scatter(x: Any, source: Any, index: Any, axis: int) -> Any:
    out, grid = np.array(x), np.indices(index.shape)
    np.add.at(out, tuple(index if i == axis % x.ndim else grid[i] for i in range(x.ndim)), source)
    return out


domain("gather", (AXES, "any", _places), _gathered,
       lambda t, x, index, axis: t.gather(x, axis, constant(t, index)))
domain("scatter_add", _scattered(), _scatter,
       lambda t, x, source, index, axis: x.scatter_add(axis, constant(t, index), source),
       call=lambda x, source, index, axis: REGISTRY["scatter_add"](x, index, source, axis=axis))


# ── products ──
@st.composite
def matrices(draw: Any, vectors: bool = False) -> Any:
    """Shapes that @ takes: batches that broadcast, and 1-d arguments if asked."""
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


def _product(a: Any, b: Any) -> Any:
    """A B without a matrix product: Σ_k a_ik b_kj."""
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
    """Every operand with one axis for each letter, multiplied, and summed over the letters that do
    not come out."""
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


domain("matmul_op", (matrices(),), _product, "matmul")
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
    """x [..., q·c], panels [P, q, c, w], and a bias that leaves out some of the last panel."""
    P, q, c, w = (draw(st.integers(1, 3)) for _ in range(4))
    columns = P * w - draw(st.integers(0, w - 1))
    return [(*draw(shapes(most=2)), q * c), (P, q, c, w), *([(columns,)] if bias else [])]


def _size(draw: Any, sizes: Any, rng: Any) -> Any:
    """That of the bias; without one any that the panels hold."""
    columns = sizes[1][0] * sizes[1][3]
    return {"size": sizes[2][0] if len(sizes) > 2 else draw(st.integers(0, columns))}


def _packed(x: Any, panels: Any, bias: Any = 0.0, *, size: int) -> Any:
    """y_j = Σ_st x_(s·c+t) panels_(⌊j/w⌋, s, t, j mod w) + b_j, a column at a time."""
    _, q, c, w = panels.shape
    cut = x.reshape(*x.shape[:-1], q, c)
    columns = [np.sum(cut * panels[j // w, :, :, j % w], axis=(-2, -1)) for j in range(size)]
    return (np.stack(columns, axis=-1) if size else np.zeros((*x.shape[:-1], 0), x.dtype)) + bias


def _packed_in_torch(t: Any, x: Any, panels: Any, bias: Any = 0.0, *, size: int) -> Any:
    P, q, c, w = panels.shape
    return x @ panels.movedim(0, 2).reshape(q * c, P * w)[:, :size] + bias


domain("packed_linear", (_paneled(True), "any", _size), _packed, _packed_in_torch)
domain("packed_linear", (_paneled(False), "any", _size), _packed, _packed_in_torch, label="no-bias")


# ── fused ──
def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x)
    return e / np.sum(e, axis=axis, keepdims=True)


def _along(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"axis": axis_of(draw, len(sizes[0]))}


domain("softmax", (AXES, "any", _along), _softmax, lambda t, x, axis: t.softmax(x, axis))
domain("softmax", (st.just([(0, 2)]),), _softmax, lambda t, x: t.softmax(x, -1), label="size-0")
domain("log_softmax", (AXES, "any", _along),
       lambda x, axis: np.log(_softmax(x, axis)), lambda t, x, axis: t.log_softmax(x, axis))
_WIDE_PI = np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)


def _gelu(x: Any, bias: Any = 0.0, *, approximate: str) -> Any:
    x = x + bias
    if approximate == "tanh":
        cubic = x + np.longdouble("0.044715") * x ** 3
        return x * (1.0 + np.tanh(np.sqrt(2.0 / _WIDE_PI) * cubic)) / 2.0
    return x * (1.0 + erf(x / np.sqrt(np.longdouble(2.0)))) / 2.0


APPROXIMATE = one_of(approximate=["none", "tanh"])
domain("gelu", (ANY, "any", APPROXIMATE, [s * math.sqrt(2.0) for s in SEAMS]), _gelu,
       lambda t, x, approximate: t.nn.functional.gelu(x, approximate=approximate))


@st.composite
def _biased(draw: Any) -> Any:
    d = draw(st.integers(1, 4))
    return [(*draw(shapes(most=2)), d), (d,)]


domain("gelu", (_biased(), "any", APPROXIMATE), _gelu,
       lambda t, x, bias, approximate: t.nn.functional.gelu(x + bias, approximate=approximate),
       label="bias")


@st.composite
def _normed(draw: Any) -> Any:
    d = draw(st.integers(1, 3))
    return [(*draw(shapes(most=2)), d), (d,), (d,)]


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    mean = np.sum(x, axis=-1, keepdims=True) / x.shape[-1]
    variance = np.sum((x - mean) ** 2, axis=-1, keepdims=True) / x.shape[-1]
    return (x - mean) / np.sqrt(variance + np.longdouble(eps)) * weight + bias


def _eps(draw: Any, sizes: Any, rng: Any) -> Any:
    """Over one number the variance is 0, and 1/√ε multiplies roundings: there ε is not small."""
    return {"eps": draw(st.sampled_from([1e-5, 0.1]))} if sizes[0][-1] > 1 else {"eps": 0.1}


domain("layer_norm", (_normed(), ["spread", "any", "any"], _eps), _layer_norm,
       lambda t, x, w, b, eps: t.nn.functional.layer_norm(x, w.shape, w, b, eps))


def _add_layer_norm(x: Any, y: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = x + y
    parts = y, _layer_norm(y, weight, bias, eps)
    return np.concatenate([part.reshape(-1) for part in parts])


# the numbers of a sum may lie close together, as one number does
domain("add_layer_norm", (_normed().map(lambda s: [s[0], *s]), "any", one_of(eps=[0.1, 1.0])),
       _add_layer_norm,
       lambda t, x, y, w, b, eps: (x + y, t.nn.functional.layer_norm(x + y, w.shape, w, b, eps)),
       call=fused.add_layer_norm)


def _targets(draw: Any, sizes: Any, rng: Any) -> Any:
    targets = np.asarray(rng.integers(0, sizes[0][-1], sizes[0][:-1]))
    if targets.size > 1 and draw(st.booleans()):
        targets[rng.random(targets.shape) < 0.4] = -100
        targets.flat[-1] = -100                         # one at least does not count
        targets.flat[0] = 0                             # and one does
    return {"targets": targets}


def _cross_entropy(x: Any, targets: Any) -> Any:
    rows, ids = np.log(_softmax(x)).reshape(-1, x.shape[-1]), targets.reshape(-1)
    kept = np.flatnonzero(ids != -100)
    return -np.sum(rows[kept, ids[kept]]) / len(kept)


def cross_entropy_in_torch(t: Any, x: Any, targets: Any) -> Any:
    return t.nn.functional.cross_entropy(x.reshape(-1, x.shape[-1]),
                                         constant(t, targets).reshape(-1))


domain("cross_entropy", (AXES, "any", _targets), _cross_entropy, cross_entropy_in_torch)
domain("cross_entropy", (shapes(least=2, side=2).map(lambda s: [s]), "any", _targets),
       _cross_entropy, cross_entropy_in_torch, label="several-rows")


@st.composite
def _classified(draw: Any) -> Any:
    d = draw(st.integers(1, 3))
    return [(*draw(shapes(most=2, side=1)), d), (draw(st.integers(1, 4)), d)]


def _classes(draw: Any, sizes: Any, rng: Any) -> Any:
    return _targets(draw, [(*sizes[0][:-1], sizes[1][0])], rng)


def _of_linear(x: Any, weight: Any, targets: Any) -> Any:
    return _cross_entropy(np.sum(x[..., None, :] * weight, axis=-1), targets)


domain("linear_cross_entropy", (_classified(), "any", _classes), _of_linear,
       lambda t, x, weight, targets: cross_entropy_in_torch(t, x @ weight.mT, targets))


@st.composite
def _side_by_side(draw: Any) -> Any:
    heads, parts = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lead, T, d = draw(shapes(most=2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return [(*lead, T, parts * heads * d)]


def _cuts(draw: Any, sizes: Any, rng: Any) -> Any:
    width = sizes[0][-1]
    parts = draw(st.sampled_from([n for n in (1, 2, 3) if width % n == 0]))
    heads = draw(st.sampled_from([n for n in (1, 2, 3) if width // parts % n == 0]))
    return {"parts": parts, "heads": heads}


def _split_heads(x: Any, parts: int, heads: int) -> Any:
    width = x.shape[-1] // parts
    d = width // heads
    cut = [[x[..., p * width + h * d:p * width + (h + 1) * d] for h in range(heads)]
           for p in range(parts)]
    return np.concatenate([np.stack(part, axis=-3).reshape(-1) for part in cut])


def _join_heads(*xs: Any) -> Any:
    return np.concatenate([x[..., h, :, :] for x in xs for h in range(x.shape[-3])], axis=-1)


def _split_heads_in_torch(t: Any, x: Any, parts: int, heads: int) -> Any:
    return tuple(part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in x.chunk(parts, -1))


domain("split_heads", (_side_by_side(), "any", _cuts), _split_heads, _split_heads_in_torch)
EQUAL = shapes(least=3, most=4, side=1).flatmap(
    lambda s: st.integers(1, 3).map(lambda n: [s] * n))
domain("join_heads", (EQUAL,), _join_heads,
       lambda t, *xs: t.cat([x.transpose(-3, -2).flatten(-2) for x in xs], -1))


def _attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any, p: float,
               key: int) -> Any:
    """The causal diagonal ends at the last key; a query that sees no key gets zeros."""
    n, m = q.shape[-2], k.shape[-2]
    scale = 1.0 / np.sqrt(np.longdouble(q.shape[-1])) if scale is None else np.longdouble(scale)
    scores = _product(q, np.swapaxes(k, -1, -2)) * scale
    seen = np.arange(m) <= np.arange(n)[:, None] + (m - n) if causal else np.ones((n, m), bool)
    seen = seen if mask is None else seen & mask
    e = np.where(seen, np.exp(scores), 0.0)
    total = np.sum(e, axis=-1, keepdims=True)
    weights = e / np.where(total == 0.0, 1.0, total)
    if p > 0.0:
        weights = _dropped(weights, p, key)
    return _product(weights, v)


def attention_in_torch(t: Any, q: Any, k: Any, v: Any, mask: Any = None, causal: bool = True,
                       scale: float | None = None, p: float = 0.0, key: int = 0) -> Any:
    """Attention in PyTorch from its definition; rows without keys give zeros."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = t.ones(scores.shape[-2:], dtype=t.bool)
    if causal:
        seen = seen.tril(k.shape[-2] - q.shape[-2])
    if mask is not None:
        seen = seen & constant(t, mask)
    seen = seen.broadcast_to(scores.shape)
    scores = scores.masked_fill(~seen, t.finfo(scores.dtype).min)
    weights = t.softmax(scores, -1).masked_fill(~seen, 0.0)
    if p > 0.0:
        weights = _dropped_in_torch(t, weights, p, key)
    return weights @ v


@st.composite
def _heads(draw: Any) -> Any:
    lead, tq, tk, d, e = draw(shapes(most=2)), *[draw(st.integers(1, 3)) for _ in range(4)]
    return [(*lead, tq, d), (*lead, tk, d), (*lead, tk, e)]


def _attended(draw: Any, sizes: Any, rng: Any) -> Any:
    mask = rng.random((sizes[0][-2], sizes[1][-2])) < 0.6 if draw(st.booleans()) else None
    return {"mask": mask, "causal": draw(st.booleans()),
            "scale": draw(st.sampled_from([None, 0.7])), "p": draw(st.sampled_from([0.0, 0.3])),
            "key": draw(st.integers(0, 2**64 - 1))}


def _dropped(x: Any, p: float, key: int) -> Any:
    return x * random.keep_mask(backend.cpu, key, tuple(x.shape), p) / (1.0 - np.longdouble(p))


domain("attention", (_heads(), "any", _attended), _attention, attention_in_torch)


def _drops(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"p": draw(st.sampled_from([0.1, 0.5])), "key": draw(st.integers(0, 2**64 - 1))}


def _dropped_in_torch(t: Any, x: Any, p: float, key: int) -> Any:
    return x * constant(t, random.keep_mask(backend.cpu, key, tuple(x.shape), p)) / (1.0 - p)


domain("dropout_op", (ANY, "any", _drops), _dropped, _dropped_in_torch)
