"""The table of cases: every op and composed function beside PyTorch's, with inputs that Hypothesis draws."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg
from minigrad import ops, random
from minigrad.op import REGISTRY

# At most 3³ = 27 elements meet in one sum, and no derivative of second order is a chain of more than about 40 roundings:
# an error of 27·40 ≈ 1000 half-units, each of the size of the largest number on the way.
TERMS = 1000


def close(ours: Any, theirs: Any, *, terms: float = TERMS, scale: float = 1.0, what: str = "") -> None:
    """|ours − theirs| ≤ terms · eps · (the largest magnitude on the way), shape and dtype alike; NaN equals NaN."""
    a, b = np.asarray(ours), theirs.numpy(force=True) if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
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


# ── inputs ──
def values(rng: np.random.Generator, shape: Any, kind: str) -> Any:
    """Random numbers of a kind: any, positive, nonzero, ties (few values, often equal) or spread (far apart)."""
    x = rng.standard_normal(shape)
    if kind == "positive":
        x = np.exp(0.5 * x)
    elif kind == "nonzero":
        x = np.where(x < 0, -0.5 - np.abs(x), 0.5 + np.abs(x))
    elif kind == "ties":
        x = rng.integers(-2, 3, shape) * 0.5
    elif kind == "spread":
        x = rng.uniform(-0.2, 0.2, shape) + rng.permutation(x.size).reshape(x.shape)
    return np.asarray(x, np.float64)


def layout(array: Any, how: str) -> Any:
    """The same values with other strides."""
    if array.ndim == 0 or how == "C":
        return array
    if how == "F":
        return np.asfortranarray(array)
    if how == "reversed":
        return np.flip(np.flip(array).copy())
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


LAYOUTS = st.sampled_from(["C", "F", "reversed", "strided"])
SIDE = st.integers(0, 3)


@dataclass
class Inputs:
    """Arrays that want gradients, and everything else."""

    arrays: list[Any]
    static: dict[str, Any]
    rng: np.random.Generator


@dataclass(frozen=True)
class Case:
    """ours(*Tensors, **static) must equal theirs(*torch tensors, **static)."""

    label: str
    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    inputs: st.SearchStrategy[Inputs]
    terms: float = TERMS


CASES: list[Case] = []
COMPOSED: list[Case] = []


@st.composite
def _inputs(draw: Any, shapes: Any, kinds: Any, static: Any) -> Inputs:
    sizes = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = [kinds] * len(sizes) if isinstance(kinds, str) else kinds
    arrays = [layout(values(rng, s, k), draw(LAYOUTS)) for s, k in zip(sizes, kinds)]
    return Inputs(arrays, static(draw, sizes, rng) if static else {}, rng)


def case(name: str, theirs: Callable[..., Any], shapes: Any, kinds: Any = "any", static: Any = None, *,
         ours: Callable[..., Any] | None = None, label: str = "", composed: bool = False, terms: float = TERMS) -> None:
    """Add to the table. shapes: a strategy of a list of shapes; static(draw, shapes, rng): the other arguments."""
    table = COMPOSED if composed else CASES
    if ours is None:
        ours = getattr(mg, name) if composed else REGISTRY[name]
    table.append(Case(f"{name}{'-' if label else ''}{label}", name, ours, theirs, _inputs(shapes, kinds, static), terms))


def shapes(least: int = 0, most: int = 3, side: int = 0) -> st.SearchStrategy[Any]:
    return hnp.array_shapes(min_dims=least, max_dims=most, min_side=side, max_side=3)


ONE = shapes().map(lambda s: [s])
FULL = shapes(side=1).map(lambda s: [s])                # no axis of size 0
FULL1 = shapes(least=1, side=1).map(lambda s: [s])      # and at least one axis


def together(n: int) -> st.SearchStrategy[Any]:
    """n shapes that broadcast against each other."""
    return hnp.mutually_broadcastable_shapes(num_shapes=n, max_dims=3, min_side=0, max_side=3).map(
        lambda b: list(b.input_shapes))


def torched(x: Any) -> Any:
    """A constant array as a torch tensor."""
    return torch.from_numpy(np.array(x, order="C"))


def axis_of(draw: Any, ndim: int) -> int:
    return draw(st.integers(-ndim, ndim - 1))


# ── elementwise ──
case("add", torch.add, together(2))
case("sub", torch.sub, together(2))
case("mul", torch.mul, together(2))
case("div", torch.div, together(2), ["any", "nonzero"])
case("maximum", torch.maximum, together(2), "ties")
case("minimum", torch.minimum, together(2), "ties")
case("power", torch.pow, together(2), ["positive", "any"])
for _op, _f in {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
                "div": lambda a, b: a / b}.items():
    case(_op, lambda x, c, f=_f: f(x, c), ONE, "any", lambda d, s, r: {"c": d(st.sampled_from([2, -0.5, 3.0]))},
         ours=lambda x, c, op=_op: REGISTRY[op](x, c), label="scalar-right")
    case(_op, lambda x, c, f=_f: f(c, x), ONE, "nonzero", lambda d, s, r: {"c": d(st.sampled_from([2, -0.5, 3.0]))},
         ours=lambda x, c, op=_op: REGISTRY[op](c, x), label="scalar-left")
case("power", lambda x, c: x ** c, ONE, "nonzero", lambda d, s, r: {"c": d(st.sampled_from([0, 1, 2, 3, -1, -2.0]))},
     ours=lambda x, c: REGISTRY["power"](x, c), label="scalar-exponent")
case("power", lambda x, c: x ** c, ONE, "positive", lambda d, s, r: {"c": d(st.sampled_from([0.5, -1.5, 2.5]))},
     ours=lambda x, c: REGISTRY["power"](x, c), label="root")
case("power", lambda x, c: x ** c, ONE, "ties", lambda d, s, r: {"c": d(st.sampled_from([0, 1, 2, 3]))},
     ours=lambda x, c: REGISTRY["power"](x, c), label="at-zero")
case("power", lambda x, c: c ** x, ONE, "any", lambda d, s, r: {"c": d(st.sampled_from([2, 0.5, 1.0]))},
     ours=lambda x, c: REGISTRY["power"](c, x), label="scalar-base")
case("maximum", lambda x: torch.maximum(x, torch.zeros_like(x)), ONE, "ties",
     ours=lambda x: REGISTRY["maximum"](x, 0.0), label="scalar")
for _name, _theirs, _kind in [
    ("neg", torch.neg, "any"), ("exp", torch.exp, "any"), ("log", torch.log, "positive"), ("sqrt", torch.sqrt, "positive"),
    ("tanh", torch.tanh, "any"), ("erf", torch.erf, "any"), ("sigmoid", torch.sigmoid, "any"), ("relu", torch.relu, "ties"),
    ("abs", torch.abs, "ties"), ("sign", lambda x: torch.sign(x).detach(), "ties"),
]:
    case(_name, _theirs, ONE, _kind)


def _condition(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"condition": rng.random(sizes[2]) < 0.5}


case("where", lambda a, b, _, condition: torch.where(torched(condition), a, b), together(3), "any", _condition,
     ours=lambda a, b, _, condition: REGISTRY["where"](condition, a, b))
case("where", lambda a, condition: torch.where(torched(condition), a, torch.full((), 0.5, dtype=a.dtype)), ONE, "any",
     lambda d, s, r: {"condition": r.random(s[0]) < 0.5},
     ours=lambda a, condition: REGISTRY["where"](condition, a, 0.5), label="scalar")
_BOUNDS = st.sampled_from([(-0.5, 0.5), (None, 0.0), (-1.0, None), (0, 1)])
case("clip", lambda x, bounds: torch.clamp(x, *bounds), ONE, "ties", lambda d, s, r: {"bounds": d(_BOUNDS)},
     ours=lambda x, bounds: REGISTRY["clip"](x, min=bounds[0], max=bounds[1]))


def _inside(x: Any, bounds: Any) -> Any:
    low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
    return (x >= low) & (x <= high)


case("inside", _inside, ONE, "ties", lambda d, s, r: {"bounds": d(st.one_of(_BOUNDS, st.just((None, None))))},
     ours=lambda x, bounds: REGISTRY["inside"](x, min=bounds[0], max=bounds[1]))
case("not_", lambda x: torch.logical_not(x > 0), ONE, "ties", ours=lambda x: REGISTRY["not_"](x > 0.0))
for _name, _theirs in {"equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le,
                       "greater": torch.gt, "greater_equal": torch.ge}.items():
    case(_name, _theirs, together(2), "ties")
case("astype", lambda x, to: x.to(getattr(torch, to)), ONE, "any",
     lambda d, s, r: {"to": d(st.sampled_from(["float32", "float64", "int64", "float16"]))},
     ours=lambda x, to: REGISTRY["astype"](x, dtype=to))


# ── shape ──
def _reshaped(draw: Any, sizes: Any, rng: Any) -> Any:
    shape = draw(st.permutations([*sizes[0], *[1] * draw(st.integers(0, 2))]))
    at = draw(st.integers(0, len(shape))) if np.prod(sizes[0]) and shape else len(shape)
    return {"shape": tuple(-1 if i == at else n for i, n in enumerate(shape))}


case("identity", lambda x: x.clone(), ONE)
case("to_op", lambda x, **_: x.clone(), ONE, static=lambda d, s, r: {"device": "numpy", "source": "numpy"})
case("to_op", lambda x: x.clone(), ONE, ours=lambda x: REGISTRY["to_op"](x, device="numpy", source="numpy"))
case("reshape", lambda x, shape: x.reshape(shape), ONE, "any", _reshaped)
case("transpose", lambda x, axis0, axis1: x.transpose(axis0, axis1), shapes(least=1).map(lambda s: [s]), "any",
     lambda d, s, r: {"axis0": axis_of(d, len(s[0])), "axis1": axis_of(d, len(s[0]))})
case("permute", lambda x, axes: x.permute(axes), ONE, "any", lambda d, s, r: {
    "axes": tuple(a - len(s[0]) * d(st.booleans()) for a in d(st.permutations(range(len(s[0])))))})
_BROADCAST = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3)
_PAIR = _BROADCAST.map(lambda b: [b.input_shapes[0], b.result_shape])
case("broadcast_to", lambda x, like: x.broadcast_to(like.shape), _PAIR, "any",
     ours=lambda x, like: REGISTRY["broadcast_to"](x, shape=like.shape))
case("sum_to", lambda like, x: x.sum_to_size(like.shape), _PAIR, "any",
     ours=lambda like, x: REGISTRY["sum_to"](x, shape=like.shape))


def _reduced(draw: Any, sizes: Any, rng: Any) -> Any:
    ndim = len(sizes[0])
    axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True)) if ndim else []
    axes = [a - ndim * draw(st.booleans()) for a in axes]
    axis = draw(st.sampled_from([None, tuple(axes), axes[0]])) if axes else None
    return {"axis": axis, "keepdims": draw(st.booleans())}


def _dims(x: Any, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


def _expanded(draw: Any, sizes: Any, rng: Any) -> Any:
    ndim = len(sizes[0]) + draw(st.integers(0, 2))
    axes = draw(st.permutations(range(ndim)))[:ndim - len(sizes[0])]
    return {"axis": tuple(a - ndim * draw(st.booleans()) for a in axes), "ndim": ndim}


def _unsqueezed(x: Any, axis: Any, ndim: int) -> Any:
    for a in sorted(a % ndim for a in axis):
        x = x.unsqueeze(a)
    return x


case("expand", _unsqueezed, ONE, "any", _expanded)
case("expand", lambda x, ndim: x.reshape((1,) * ndim), st.just([()]), "any", lambda d, s, r: {"ndim": d(SIDE)},
     ours=lambda x, ndim: REGISTRY["expand"](x, axis=None, ndim=ndim), label="all")
_MATRIX = shapes(least=2).map(lambda s: [s])
for _name in ("tril", "triu"):
    case(_name, getattr(torch, _name), _MATRIX, "any", lambda d, s, r: {"diagonal": d(st.integers(-3, 3))})


@st.composite
def _alike(draw: Any, least: int = 1) -> Any:
    """Shapes that differ along the last axis alone."""
    start, n = draw(shapes(least=least - 1, most=2)), draw(st.integers(1, 3))
    return [(*start, draw(SIDE)) for _ in range(n)]


case("concat_op", lambda *xs: torch.cat(xs, dim=-1), _alike(), "any", ours=lambda *xs: REGISTRY["concat_op"](*xs, axis=-1))


def _ends(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    return {"axis": axis, "ends": tuple(sorted(draw(st.lists(st.integers(0, sizes[0][axis]), max_size=2))))}


def _backwards(parts: Any, axis: int) -> Any:
    return mg.concat([part * float(i + 1) for i, part in enumerate(parts)][::-1], axis=axis)


def _backwards_torch(parts: Any, axis: int) -> Any:
    return torch.cat([part * float(i + 1) for i, part in enumerate(parts)][::-1], dim=axis)


case("split_op", lambda x, ends, axis: _backwards_torch(torch.tensor_split(x, list(ends), dim=axis), axis),
     shapes(least=1).map(lambda s: [s]), "any", _ends,
     ours=lambda x, ends, axis: _backwards(REGISTRY["split_op"](x, ends=ends, axis=axis), axis))

# ── reductions ──
for _name, _theirs, _shapes in [("sum", torch.sum, ONE), ("mean", torch.mean, FULL)]:
    case(_name, lambda x, axis, keepdims, f=_theirs: f(x, dim=_dims(x, axis), keepdim=keepdims), _shapes, "any", _reduced)
for _name, _theirs in {"max": torch.amax, "min": torch.amin, "logsumexp": torch.logsumexp}.items():
    case(_name, lambda x, axis, keepdims, f=_theirs: f(x, dim=_dims(x, axis), keepdim=keepdims), FULL, "ties", _reduced)
case("var", lambda x, axis, keepdims, correction: torch.var(x, dim=_dims(x, axis), keepdim=keepdims, correction=correction),
     FULL, "any", lambda d, s, r: {**_reduced(d, s, r), "correction": d(st.sampled_from([0, 0.5]))})


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


def _picked(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"index": draw(_index(sizes[0]))}


def _flat(shape: Any, index: Any) -> Any:
    """Where in the flattened array each picked element lies."""
    return np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape)[index])


case("getitem", lambda x, index: x.reshape(-1)[torched(_flat(x.shape, index))], ONE, "any", _picked)


def _unslice(x: Any, index: Any) -> Any:
    at = torched(_flat(x.shape, index))
    g = x.reshape(-1)[at]
    return torch.zeros(x.numel(), dtype=x.dtype).index_add(0, at.reshape(-1), (g * g).reshape(-1)).reshape(x.shape)


def _unslice_ours(x: Any, index: Any) -> Any:
    g = REGISTRY["getitem"](x, index=index)
    return REGISTRY["unslice"](g * g, shape=x.shape, index=index)


case("unslice", _unslice, ONE, "any", _picked, ours=_unslice_ours)


def _ids(draw: Any, sizes: Any, rng: Any) -> Any:
    kind = draw(st.sampled_from([np.int64, np.int32, np.uint32]))
    return {"ids": rng.integers(0, sizes[0][0], draw(shapes(most=2))).astype(kind)}


_TABLE = st.tuples(st.integers(1, 3), SIDE).map(lambda s: [s])
case("embedding_op", lambda weight, ids: weight[torched(ids.astype(np.int64))], _TABLE, "any", _ids)


@st.composite
def _rows_and_ids(draw: Any) -> Any:
    return [(*draw(shapes(most=2)), draw(SIDE))]


case("scatter_rows", lambda x, ids: torch.zeros(4, x.shape[-1], dtype=x.dtype).index_add(
    0, torched(ids).reshape(-1), x.reshape(ids.size, x.shape[-1])),
    _rows_and_ids(), "any", lambda d, s, r: {"ids": r.integers(0, 4, s[0][:-1])},
    ours=lambda x, ids: REGISTRY["scatter_rows"](x, ids, rows=4))


def _places(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    at = axis % len(sizes[0])
    shape = tuple(draw(SIDE) if i == at else draw(st.integers(0, n)) for i, n in enumerate(sizes[0]))
    return {"axis": axis, "index": rng.integers(0, sizes[0][at], shape)}


case("gather", lambda x, index, axis: torch.gather(x, axis, torched(index)), FULL1, "any", _places)


def _scatter(x: Any, index: Any, axis: int, add: Any, like: Any) -> Any:
    source = like(np.linspace(-1.0, 1.0, index.size).reshape(index.shape), x)
    first = x.reshape(-1)[:1] if hasattr(x, "new_zeros") else x.reshape(-1)[0:1]
    return add(x, axis, index, source * first * first)  # the source depends on x too


case("scatter_add", lambda x, index, axis: _scatter(
    x, index, axis, lambda a, d, i, s: a.scatter_add(d, torched(i), s.reshape(i.shape)),
    lambda v, x: torched(v).to(x.dtype)), FULL1, "any", _places,
    ours=lambda x, index, axis: _scatter(x, index, axis, lambda a, d, i, s: REGISTRY["scatter_add"](a, i, s, axis=d),
                                         lambda v, x: mg.tensor(v, dtype=x.dtype)))


# ── products ──
@st.composite
def _matrices(draw: Any, vectors: bool = False) -> Any:
    n, k, m = draw(SIDE), draw(SIDE), draw(SIDE)
    batch = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3)).input_shapes
    a = (k,) if vectors and draw(st.booleans()) else (*batch[0], n, k)
    b = (k,) if vectors and draw(st.booleans()) else (*batch[1], k, m)
    return [a, b]


@st.composite
def _affine(draw: Any, order: str) -> Any:
    k, m, x = draw(SIDE), draw(SIDE), draw(shapes(most=2))
    shape = {"x": (*x, k), "w": (k, m), "t": (m, k), "b": (m,)}
    return [shape[c] for c in order]


_PRODUCTS = ["ij,jk->ik", "bij,bjk->bik", "i,i->", "ij->ji", "ij->", "ij->j", "i,j->ij", "abc,dbc->ad", "ij,jk,kl->il",
             "ijk,k->ij", "ij,ij->i", ",i->i", "ij,ij,ij->ij", "ab,c->bc"]


@st.composite
def _einsum_inputs(draw: Any, patterns: Any) -> Inputs:
    pattern = draw(st.sampled_from(patterns))
    length = {c: draw(SIDE) for c in pattern if c.isalpha()}
    sizes = [tuple(length[c] for c in term.strip()) for term in pattern.split("->")[0].split(",")]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Inputs([layout(values(rng, s, "any"), draw(LAYOUTS)) for s in sizes], {"subscripts": pattern}, rng)


case("matmul_op", torch.matmul, _matrices())
case("addmm", lambda b, x, w: x @ w + b, _affine("bxw"))
case("linear", lambda x, w, b: x @ w.T + b, _affine("xtb"))
case("linear", lambda x, w: x @ w.T, _affine("xt"), label="no-bias")
CASES.append(Case("einsum_op", "einsum_op", REGISTRY["einsum_op"], lambda *xs, subscripts: torch.einsum(subscripts, *xs),
                  _einsum_inputs(_PRODUCTS)))

# ── fused ──
_ALONG = FULL1, "any", lambda d, s, r: {"axis": axis_of(d, len(s[0]))}
case("softmax", lambda x, axis: torch.softmax(x, axis), *_ALONG)
case("log_softmax", lambda x, axis: torch.log_softmax(x, axis), *_ALONG)
case("softmax", lambda x: torch.softmax(x, -1), st.just([(0, 2)]), label="size-0")
case("gelu", lambda x, approximate: F.gelu(x, approximate=approximate), ONE, "any",
     lambda d, s, r: {"approximate": d(st.sampled_from(["none", "tanh"]))})


@st.composite
def _normed(draw: Any) -> Any:
    d = draw(st.integers(1, 3))
    return [(*draw(shapes(most=2)), d), (d,), (d,)]


case("layer_norm", lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps), _normed(), ["spread", "any", "any"],
     lambda d, s, r: {"eps": d(st.sampled_from([1e-5, 0.1]))})


def _targets(draw: Any, sizes: Any, rng: Any) -> Any:
    targets = np.asarray(rng.integers(0, sizes[0][-1], sizes[0][:-1]))
    if targets.size > 1 and draw(st.booleans()):
        targets[rng.random(targets.shape) < 0.4] = -100
        targets.flat[0] = 0                             # one at least counts
    return {"targets": targets}


case("cross_entropy", lambda x, targets: F.cross_entropy(x.reshape(-1, x.shape[-1]), torched(targets).reshape(-1)),
     FULL1, "any", _targets)


def softmax_attention(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = True, scale: float | None = None, p: float = 0.0,
                      key: int = 0) -> Any:
    """Attention in PyTorch from its definition: the causal diagonal ends at the last key, rows without keys give zeros."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if causal:
        seen = seen.tril(k.shape[-2] - q.shape[-2])
    if mask is not None:
        seen = seen & torched(mask)
    seen = seen.broadcast_to(scores.shape)
    weights = torch.softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), -1).masked_fill(~seen, 0.0)
    if p > 0.0:
        keep = random.keep_mask(mg.backend.cpu, key, tuple(weights.shape), p)
        weights = weights * torched(keep) / (1.0 - p)
    return weights @ v


@st.composite
def _heads(draw: Any) -> Any:
    lead, tq, tk, d, e = draw(shapes(most=2)), *[draw(st.integers(1, 3)) for _ in range(4)]
    return [(*lead, tq, d), (*lead, tk, d), (*lead, tk, e)]


def _attended(draw: Any, sizes: Any, rng: Any) -> Any:
    mask = rng.random((sizes[0][-2], sizes[1][-2])) < 0.6 if draw(st.booleans()) else None
    return {"mask": mask, "causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.7])),
            "p": draw(st.sampled_from([0.0, 0.3])), "key": draw(st.integers(0, 2**64 - 1))}


case("attention", softmax_attention, _heads(), "any", _attended)
case("dropout_op", lambda x, p, key: x * torched(random.keep_mask(mg.backend.cpu, key, tuple(x.shape), p)) / (1.0 - p), ONE, "any",
     lambda d, s, r: {"p": d(st.sampled_from([0.1, 0.5])), "key": d(st.integers(0, 2**64 - 1))})

# ── composed of other ops ──
case("matmul", torch.matmul, _matrices(vectors=True), composed=True)
COMPOSED.append(Case("einsum", "einsum", lambda *xs, subscripts: mg.einsum(subscripts, *xs),
                     lambda *xs, subscripts: torch.einsum(subscripts, *xs),
                     _einsum_inputs([*_PRODUCTS, "ij,jk", "ba", "i , i"])))


def _prod(x: Any, axis: Any, keepdims: bool) -> Any:
    for a in sorted((a % x.ndim for a in ([axis] if isinstance(axis, int) else _dims(x, axis))), reverse=True):
        x = x.prod(dim=a, keepdim=keepdims)
    return x


case("prod", _prod, ONE, "ties", _reduced, composed=True)
case("stack", lambda *xs, axis: torch.stack(xs, dim=axis),
     st.builds(lambda s, n: [s] * n, shapes(most=2), st.integers(1, 3)), "any",
     lambda d, s, r: {"axis": d(st.integers(-len(s[0]) - 1, len(s[0])))},
     ours=lambda *xs, axis: mg.stack(list(xs), axis=axis), composed=True)
case("concat", lambda *xs: torch.cat(xs, dim=-1), _alike(), "any", ours=lambda *xs: mg.concat(xs, axis=-1), composed=True)


def _parts(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    n = sizes[0][axis]
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=2)))
    by_size = [b - a for a, b in zip([0, *cuts], [*cuts, n])]
    equal = [k for k in range(1, max(2, n + 1)) if n % k == 0]
    return {"axis": axis, "sections": draw(st.one_of(st.just(by_size), st.sampled_from(equal)))}


def _split_torch(x: Any, sections: Any, axis: int) -> Any:
    sizes = [x.shape[axis] // sections] * sections if isinstance(sections, int) else sections
    return _backwards_torch(torch.split(x, sizes, dim=axis), axis)


case("split", _split_torch, shapes(least=1).map(lambda s: [s]), "any", _parts,
     ours=lambda x, sections, axis: _backwards(mg.split(x, sections, axis=axis), axis), composed=True)


def _taken(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    return {"axis": axis, "indices": rng.integers(0, sizes[0][axis], draw(shapes(most=2)))}


def _take_torch(x: Any, indices: Any, axis: int) -> Any:
    at = axis % x.ndim
    picked = torch.index_select(x, at, torched(indices).reshape(-1))
    return picked.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1:]))


case("take", _take_torch, FULL1, "any", _taken, composed=True)
case("embedding", lambda weight, ids: weight[torched(ids.astype(np.int64))], _TABLE, "any", _ids,
     ours=lambda weight, ids: mg.embedding(ids, weight), composed=True)
case("dropout", lambda x, p, key: x * torched(random.keep_mask(mg.backend.cpu, key, tuple(x.shape), p)) / (1.0 - p), ONE, "any",
     lambda d, s, r: {"p": d(st.sampled_from([0.1, 0.5])), "key": d(st.integers(0, 2**64 - 1))}, composed=True)
case("stop_gradient", lambda x: x.detach() * x, ONE, "any", ours=lambda x: mg.stop_gradient(x) * x, composed=True)

assert ops  # the registry is full only once minigrad.ops has been imported
