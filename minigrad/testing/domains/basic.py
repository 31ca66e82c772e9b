"""The domains of the ops that compute elementwise, move elements, and reduce."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ... import ops
from ...engine.making import asarray
from ...engine.tensor import Tensor
from ...op import REGISTRY
from .. import fake_cupy
from ..laws.strategies import SIDE, Example, examples, together
from ..laws.strategies import small_shapes as shapes
from .table import ANY, AXES, FULL, LINES, axis_of, constant, domain, one_of

assert ops                                      # the registry is full only once they are imported


# ── elementwise ──
def _pick(a: Any, b: Any, first: Callable[[Any, Any], Any]) -> Any:
    return np.where(first(np.real(a), np.real(b)), a, b)


def erf(z: Any) -> Any:
    """2/√π e^(−z²) Σ 2ⁿ z^(2n+1)/(2n+1)!!   (Abramowitz, Stegun 7.1.6).

    All terms have one sign, for complex z as well.
    """
    z = np.asarray(z)
    term = total = z
    for n in range(1, 200):
        term = term * (2 * z * z / (2 * n + 1))
        total = total + term
    pi = np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)
    return 2.0 / np.sqrt(pi) * np.exp(-z * z) * total


# where erf goes over from one formula to another, by a rounding
SEAMS = (-4.0, -0.46875, 0.46875, 4.0)
PAIRS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "add": (lambda a, b: a + b, "any", "add"),
    "sub": (lambda a, b: a - b, "any", "sub"),
    "mul": (lambda a, b: a * b, "any", "mul"),
    "div": (lambda a, b: a / b, ("any", "nonzero"), "div"),
    "power": (lambda a, b: a ** b, ("positive", "any"), "pow"),
    "maximum": (lambda a, b: _pick(a, b, np.greater), ("spread", "halves"), "maximum"),
    "minimum": (lambda a, b: _pick(a, b, np.less), ("spread", "halves"), "minimum"),
}
for _name, (_oracle, _kinds, _torch) in PAIRS.items():
    domain(_name, (together(2), _kinds), _oracle, _torch)
for _name in ("add", "sub", "mul", "div"):
    _f = PAIRS[_name][0]
    domain(_name, (ANY, "any", one_of(c=[2, -0.5, 3.0])),
           lambda x, c, f=_f: f(x, c), lambda _, x, c, f=_f: f(x, c),
           label="scalar-right", call=lambda x, c, op=_name: REGISTRY[op](x, c))
    domain(_name, (ANY, "nonzero", one_of(c=[2, -0.5, 3.0])),
           lambda x, c, f=_f: f(c, x), lambda _, x, c, f=_f: f(c, x),
           label="scalar-left", call=lambda x, c, op=_name: REGISTRY[op](c, x))
for _label, _kind, _exponents, _smooth in [("whole", "nonzero", [0, 1, 2, 3, -1, -2.0], True),
                                           ("root", "positive", [0.5, -1.5, 2.5], True),
                                           ("at-zero", "ties", [0, 1, 2, 3], False)]:
    domain("power", (ANY, _kind, one_of(c=_exponents)),
           lambda x, c: x ** c if c != 0 else x * 0.0 + 1.0, lambda _, x, c: x ** c,
           label=_label, call=lambda x, c: REGISTRY["power"](x, c), smooth=3 if _smooth else 0)
# PyTorch takes b a^(b−1) for 0 where b = 0, and with it its derivative by b, which is 1/a;
# where a = 0 its second derivative is NaN
domain("power", (together(2), ["positive", "counts"]), lambda a, b: a ** b, "pow",
       label="whole-array", torch_orders=1)
domain("power", (together(2), "counts"), lambda a, b: a ** b, "pow",        # 0⁰ among them
       label="corner", smooth=0, torch_orders=1)
domain("power", (ANY, "positive", one_of(c=[0, 0.0])),
       lambda x, c: x * 0.0, lambda _, x, c: c ** x,
       label="zero-base", call=lambda x, c: REGISTRY["power"](c, x), torch_orders=1)
domain("power", (ANY, "counts", one_of(c=[0, 0.0])),                        # 0⁰ among them
       lambda x, c: np.where(x == 0, x + 1.0, x * 0.0), lambda _, x, c: c ** x,
       label="zero-base-corner", call=lambda x, c: REGISTRY["power"](c, x),
       smooth=0, torch_orders=1)
domain("power", (ANY, "any", one_of(c=[2, 0.5, 1.0])),
       lambda x, c: np.exp(x * np.log(np.longdouble(c))), lambda _, x, c: c ** x,
       label="scalar-base", call=lambda x, c: REGISTRY["power"](c, x))
for _name in ("maximum", "minimum"):
    domain(_name, (together(2), "ties"), PAIRS[_name][0], _name, label="ties", smooth=0)
domain("maximum", (ANY, "any", None, (0.0,)),
       lambda x: np.where(np.real(x) > 0, x, 0.0), lambda t, x: t.maximum(x, t.zeros_like(x)),
       label="scalar", call=lambda x: REGISTRY["maximum"](x, 0.0))
_ONE: list[tuple[str, Callable[..., Any], str, tuple[float, ...]]] = [
    ("neg", lambda x: -x, "any", ()), ("exp", np.exp, "any", ()), ("log", np.log, "positive", ()),
    ("sqrt", np.sqrt, "positive", ()), ("expm1", np.expm1, "any", ()),
    ("log1p", np.log1p, "positive", ()), ("sin", np.sin, "any", ()), ("cos", np.cos, "any", ()),
    ("tanh", np.tanh, "any", ()), ("erf", erf, "any", SEAMS),
    ("sigmoid", lambda x: 1.0 / (1.0 + np.exp(-x)), "any", (0.0,)),
    ("relu", lambda x: np.where(np.real(x) > 0, x, 0.0), "any", (0.0,)),
    ("abs", lambda x: np.where(np.real(x) > 0, x, -x), "any", (0.0,)),
]
for _name, _oracle, _kind, _avoid in _ONE:
    domain(_name, (ANY, _kind, None, _avoid), _oracle, _name)
_KINKS: dict[str, Callable[..., Any]] = {"relu": lambda x: np.maximum(x, 0.0), "abs": np.abs}
for _name, _oracle in _KINKS.items():
    domain(_name, (ANY, "ties"), _oracle, _name, label="kink", smooth=0)
domain("sign", (ANY, "ties"), lambda x: np.sign(x), lambda t, x: t.sign(x).detach())


def _condition(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"condition": np.asarray(rng.random(sizes[-1]) < 0.5)}


# the third array lends its shape to the condition, and is no part of the result
domain("where", (together(3), "any", _condition),
       lambda a, b, _, condition: np.where(condition, a, b),
       lambda t, a, b, _, condition: t.where(constant(t, condition), a, b),
       call=lambda a, b, _, condition: REGISTRY["where"](condition, a, b))
domain("where", (ANY, "any", _condition), lambda a, condition: np.where(condition, a, 0.5),
       lambda t, a, condition: t.where(constant(t, condition), a, t.full((), 0.5, dtype=a.dtype)),
       label="scalar", call=lambda a, condition: REGISTRY["where"](condition, a, 0.5))
_BOUNDS = [{"min": -0.5, "max": 0.5}, {"min": None, "max": 0.0},
           {"min": -1.0, "max": None}, {"min": 0, "max": 1}]


def _clipped(x: Any, min: Any, max: Any) -> Any:
    low = x if min is None else np.where(np.real(x) < min, min, x)
    return low if max is None else np.where(np.real(low) > max, max, low)


_EDGES = (-1.0, -0.5, 0.0, 0.5, 1.0)
domain("clip", (ANY, "any", lambda d, s, r: d(st.sampled_from(_BOUNDS)), _EDGES), _clipped,
       lambda t, x, min, max: t.clamp(x, min, max))
domain("clip", (ANY, "ties", lambda d, s, r: d(st.sampled_from(_BOUNDS))), _clipped,
       lambda t, x, min, max: t.clamp(x, min, max), label="kink", smooth=0)


def _inside(x: Any, min: Any, max: Any) -> Any:
    return (x >= (-math.inf if min is None else min)) & (x <= (math.inf if max is None else max))


_ALL = [*_BOUNDS, {"min": None, "max": None}]
domain("inside", (ANY, "ties", lambda d, s, r: d(st.sampled_from(_ALL))), _inside,
       lambda t, x, min, max: _inside(x, min, max))
_ORDERS = {"equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
           "greater_equal": "ge"}
for _name, _torch in _ORDERS.items():
    domain(_name, (together(2), "ties"), getattr(np, _name), _torch)
domain("astype", (ANY, "any", one_of(dtype=["float32", "float64", "float16"])), lambda x, dtype: x,
       lambda t, x, dtype: x.to(getattr(t, dtype)), smooth=1)
domain("astype", (ANY, "any", one_of(dtype=["int64", "bool"])), lambda x, dtype: x.astype(dtype),
       lambda t, x, dtype: x.to(getattr(t, dtype)), label="whole")


# ── shape ──
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
    """There, squared, and back: each gradient must come to the device of its value."""
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
    """Shapes that differ along the last axis alone."""
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


def _one_axis(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"axis": axis_of(draw, len(sizes[0]))}


def _widths(draw: Any, sizes: Any, rng: Any) -> Any:
    widths = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in sizes[0]]
    return {"widths": widths, "value": draw(st.sampled_from([0.0, -1.5]))}


def _padded(t: Any, x: Any, widths: Any, value: float) -> Any:
    return t.nn.functional.pad(x, [n for pair in reversed(widths) for n in pair], value=value)


domain("flip", (LINES, "any", _one_axis),
       lambda x, axis: np.flip(x, axis), lambda t, x, axis: t.flip(x, [axis]), call=ops.index.flip)
for _name in ("pad", "pad_op"):
    domain(_name, (ANY, "any", _widths),
           lambda x, widths, value: np.pad(x, widths or 0, constant_values=value), _padded,
           call=ops.index.pad if _name == "pad" else None)


def _sorted(x: Any, axis: int) -> Any:
    """By the real parts."""
    return np.take_along_axis(x, np.argsort(np.real(x), axis=axis), axis)


def _largest(x: Any, axis: int, k: int) -> Any:
    last = range(x.shape[axis] - k, x.shape[axis])
    return np.flip(np.take(_sorted(x, axis), last, axis), axis)


def _how_many(draw: Any, sizes: Any, rng: Any) -> Any:
    axis = axis_of(draw, len(sizes[0]))
    return {"axis": axis, "k": draw(st.integers(0, sizes[0][axis]))}


domain("argsort",
       (LINES, "ties", lambda d, s, r: {**_one_axis(d, s, r), "descending": d(st.booleans())}),
       lambda x, axis, descending: np.argsort(-x if descending else x, axis=axis, kind="stable"),
       lambda t, x, axis, descending: t.sort(
           x, dim=axis, descending=descending, stable=True).indices)
domain("sort", (LINES, "spread", _one_axis), _sorted,
       lambda t, x, axis: t.sort(x, dim=axis).values,
       call=lambda x, axis: ops.index.sort(x, axis).values)
domain("topk", (AXES, "spread", _how_many), _largest,
       lambda t, x, axis, k: t.topk(x, k, dim=axis).values,
       call=lambda x, axis, k: ops.index.topk(x, k, axis).values)


# ── reductions ──
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
    domain(_name, (LINES, "any", _one_axis), np.cumsum, lambda t, x, axis: t.cumsum(x, dim=axis),
           call=_call)
for _name in ("argmax", "argmin"):
    domain(_name,
           (AXES, "ties", lambda d, s, r: {**_one_axis(d, s, r), "keepdims": d(st.booleans())}),
           getattr(np, _name),
           lambda t, x, axis, keepdims, f=_name: getattr(t, f)(x, dim=axis, keepdim=keepdims))
