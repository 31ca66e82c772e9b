"""A naive engine to hold minigrad to: reverse mode by topological order, and a bound on the error of every number.

Nothing is shared, freed or written over. A pull is written with the same functions as the values, so a gradient is a value
like any other and may be differentiated again. `error` bounds how far rounding can have taken `array` from the exact result,
by the usual rules: a sum adds errors, a product scales them, each operation adds eps times what it returns, and a sum of n
numbers n·eps times the sum of their magnitudes. What a real engine would keep, and lose, is only counted, by `walk`.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPS = float(np.finfo(np.float64).eps)
LIBM = 4.0                                              # NumPy's tanh, exp and powers are within 4 units in the last place
_birth = itertools.count()


class Gone(Exception):
    """A walk back needs what is gone, or was changed since."""


class Value:
    """An array, the bound on its error, the values it came from, and how a cotangent goes back to them.

    keeps: the parents whose arrays the pull reads. view: the array may share the memory of the first parent's.
    """

    def __init__(self, array: Any, error: Any = 0.0, parents: Sequence[Value] = (), pull: Callable[..., Any] | None = None, *,
                 keeps: Sequence[Value] = (), view: bool = False, leaf: bool = False, tracked: bool | None = None) -> None:
        self.array = np.asarray(array, np.float64)
        self.error = np.broadcast_to(error, self.array.shape)
        self.tracked = leaf or any(p.tracked for p in parents) if tracked is None else tracked
        self.parents, self.pull = (tuple(parents), pull) if self.tracked else ((), None)
        self.base: Value = parents[0].base if view else self
        self.leaf, self.version, self.grad, self.spent, self.birth = leaf, 0, None, False, next(_birth)
        self.watched = [(k.base, k.base.version) for k in keeps if k.tracked and k.base.leaf]

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)

    def __add__(self, other: Any) -> Value:
        a, b = self, as_value(other)
        out = a.array + b.array
        return Value(out, a.error + b.error + EPS * abs(out), (a, b), lambda g: (sum_to(g, a.shape), sum_to(g, b.shape)))

    def __mul__(self, other: Any) -> Value:
        a, b = self, as_value(other)
        out = a.array * b.array
        error = a.error * (abs(b.array) + b.error) + abs(a.array) * b.error + EPS * abs(out)
        return Value(out, error, (a, b), lambda g: (sum_to(g * b, a.shape), sum_to(g * a, b.shape)),
                     keeps=[b] * a.tracked + [a] * b.tracked)

    def __truediv__(self, other: Any) -> Value:
        a, b = self, as_value(other)
        out = a.array / b.array
        made = Value(out, (a.error + abs(out) * b.error) / abs(b.array) + EPS * abs(out), (a, b),
                     lambda g: (sum_to(g / b, a.shape), sum_to(-(g * made) / b, b.shape)), keeps=[b])
        return made

    def __matmul__(self, other: Value) -> Value:
        a, b = self, other
        p, q = abs(a.array), abs(b.array)
        return Value(a.array @ b.array, a.error @ (q + b.error) + p @ b.error + a.shape[-1] * EPS * (p @ q), (a, b),
                     lambda g: (sum_to(g @ transpose(b), a.shape), sum_to(transpose(a) @ g, b.shape)),
                     keeps=[b] * a.tracked + [a] * b.tracked)

    def __neg__(self) -> Value:
        return Value(-self.array, self.error, [self], lambda g: [-g])

    def __sub__(self, other: Any) -> Value:
        return self + -as_value(other)

    def __rsub__(self, other: Any) -> Value:
        return -self + other

    def __getitem__(self, index: Any) -> Value:
        return Value(self.array[index], self.error[index], [self], lambda g: [unslice(g, self.shape, index)], view=True)

    __radd__, __rmul__ = __add__, __mul__


def as_value(x: Any) -> Value:
    return x if isinstance(x, Value) else Value(x)


# ── elementwise ──
def tanh(x: Value) -> Value:
    out = np.tanh(x.array)
    made = Value(out, x.error + LIBM * EPS * abs(out), [x], lambda g: [g * (1.0 - made * made)])
    return made


def exp(x: Value) -> Value:
    out = np.exp(x.array)
    made = Value(out, out * (x.error + LIBM * EPS), [x], lambda g: [g * made])
    return made


def power(x: Value, c: float) -> Value:
    """xᶜ for positive x."""
    out = x.array ** c
    return Value(out, out * (abs(c) * x.error / x.array + LIBM * EPS), [x], lambda g: [g * (c * power(x, c - 1.0))], keeps=[x])


# ── what moves elements, and what sums them ──
def identity(x: Value) -> Value:
    return Value(x.array, x.error, [x], lambda g: [g], view=True)


def stop_gradient(x: Value) -> Value:
    return Value(x.array, x.error)


def reshape(x: Value, *, shape: Any) -> Value:
    return Value(x.array.reshape(shape), x.error.reshape(shape), [x], lambda g: [reshape(g, shape=x.shape)], view=True)


def transpose(x: Value) -> Value:
    return Value(x.array.swapaxes(-2, -1), x.error.swapaxes(-2, -1), [x], lambda g: [transpose(g)], view=True)


def unslice(g: Value, shape: Any, index: Any) -> Value:
    out, error = np.zeros(shape), np.zeros(shape)
    out[index], error[index] = g.array, g.error
    return Value(out, error, [g], lambda h: [h[index]])


def split(x: Value, *, sections: int, axis: int) -> tuple[Value, ...]:
    """Cuts of one node: what is lost with one of them is lost with all."""
    whole, n = identity(x), x.shape[axis] // sections
    return tuple(whole[(slice(None),) * axis + (slice(i * n, (i + 1) * n),)] for i in range(sections))


def broadcast_to(x: Value, *, shape: Any) -> Value:
    return Value(np.broadcast_to(x.array, shape), np.broadcast_to(x.error, shape), [x], lambda g: [sum_to(g, x.shape)], view=True)


def sum(x: Value, *, axis: Any = None, keepdims: bool = False) -> Value:
    out = x.array.sum(axis=axis, keepdims=keepdims)
    size = abs(x.array).sum(axis=axis, keepdims=keepdims) * x.array.size / max(1, out.size)
    kept = x.array.sum(axis=axis, keepdims=True).shape
    return Value(out, x.error.sum(axis=axis, keepdims=keepdims) + EPS * size, [x],
                 lambda g: [broadcast_to(reshape(g, shape=kept), shape=x.shape)])


def sum_to(x: Value, shape: Any) -> Value:
    if x.shape == shape:
        return x
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n != x.shape[lead + i])
    return reshape(sum(x, axis=axes, keepdims=True), shape=shape)


# ── unfused ──
def softmax(x: Value) -> Value:
    e = exp(x - Value(x.array.max(axis=-1, keepdims=True)))
    return e / sum(e, axis=-1, keepdims=True)


def layer_norm(x: Value, weight: Value, bias: Value) -> Value:
    """Replayed when it is walked, for minigrad keeps by-products that have no derivative."""
    def parts(x: Value, weight: Value, bias: Value) -> Value:
        n = float(x.shape[-1])
        centred = x - sum(x, axis=-1, keepdims=True) * (1.0 / n)
        return centred * power(sum(centred * centred, axis=-1, keepdims=True) * (1.0 / n) + 1e-5, -0.5) * weight + bias

    return replay(parts, x, weight, bias)


def replay(f: Callable[..., Value], *inputs: Value, tracked: bool | None = None) -> Value:
    """f(*inputs) as one node, which runs f again when a cotangent comes to it. f takes all it uses as an argument."""
    def pull(g: Value) -> list[Value]:
        roots = [identity(x) for x in inputs]
        return gradients(f(*roots), roots, g, since=roots[0].birth)

    out = f(*inputs)
    return Value(out.array, out.error, inputs, pull, keeps=inputs, tracked=tracked)


# ── the walk back ──
def reachable(output: Value, since: int = 0) -> list[Value]:
    """output and the tracked values it came from, the newest first; none older than `since`."""
    found, todo = {}, [output]
    while todo:
        v = todo.pop()
        if v.tracked and v not in found and v.birth >= since:
            found[v] = True
            todo += v.parents
    return sorted(found, key=lambda v: -v.birth)


def gradients(output: Value, inputs: Sequence[Value], cotangent: Any = 1.0, since: int = 0) -> list[Value]:
    """∂⟨cotangent, output⟩/∂input, zeros where there is none."""
    sums = {output: as_value(cotangent)}
    for v in reachable(output, since):
        if v.pull is not None and v in sums:
            for parent, g in zip(v.parents, v.pull(sums[v])):
                if parent.tracked:
                    sums[parent] = sums[parent] + g if parent in sums else g
    return [sums[x] if x in sums else Value(np.zeros(x.shape)) for x in inputs]


def walk(output: Value, targets: Sequence[Value] | None, retain: bool) -> None:
    """What a walk back costs: the residuals of all it passes, unless retained. Gone where they are gone, or are a changed leaf.

    Nothing older than the oldest target is passed. After Gone nobody knows what is left of the values passed: all count as spent.
    """
    oldest = min(t.birth for t in targets) if targets else -1
    passed = [v for v in reachable(output) if v.pull is not None and v.birth > oldest]
    gone = any(v.spent or any(leaf.version != then for leaf, then in v.watched) for v in passed)
    for v in passed:
        v.spent = v.spent or not retain
    if gone:
        raise Gone
