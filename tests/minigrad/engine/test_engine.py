"""Random programs in minigrad and in the naive engine, side by side: every value, every gradient, every refusal.

A bound is the naive engine's own bound on the error of the number. That allows eps for each rounding, twice what one
costs, so it covers one evaluation of ours and one of the naive engine's by the same formula; FORMULAS allows for ours
being another formula with up to that many times the roundings (layer_norm's rule by hand has four products where the
parts have two, and each reduction is followed by a division).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import minigrad as mg
from minigrad.engine.graph import recording, state

FORMULAS = 4.0
SEED = 11
LARGEST, BLURRED = 4.0, 1e-6                            # beyond these a value is squeezed by tanh, or not used further
SHAPES = [(), (3,), (2, 3), (2, 1), (3, 3), (2, 2, 3), (2,), (1, 3)]
P = 0.5                                                 # of dropout: its scale 2 is exact

at = st.integers(0, 12)                                 # which value: 0 is the newest
seeds = st.integers(0, 10**6)


def _row(lib: Any, c: Any, size: int) -> Any:
    """A vector of `size` made from c."""
    return lib.broadcast_to(lib.reshape(lib.tanh(lib.sum(c)), shape=(1,)), shape=(size,))


def _norm(lib: Any, t: Any, c: Any) -> Any:
    flat = lib.reshape(t, shape=(1, *t.shape) if t.ndim < 2 else t.shape)
    if t.ndim == 0:
        flat = lib.reshape(t, shape=(1, 1))
    row = _row(lib, c, flat.shape[-1])
    return lib.reshape(lib.layer_norm(flat, row, row), shape=t.shape)


def _halves(lib: Any, t: Any, c: Any) -> Any:
    """One part of three is used, twice, and the others are dropped."""
    middle = lib.split(lib.broadcast_to(lib.reshape(lib.sum(t), shape=(1,)), shape=(6,)), sections=3, axis=0)[1]
    return lib.tanh(t * lib.sum(middle * middle) + lib.sum(c))


def _soft(lib: Any, t: Any, c: Any) -> Any:
    return lib.softmax(lib.reshape(t, shape=(1,)) if t.ndim == 0 else t) * lib.sum(c)


PROGRAMS: dict[str, Callable[..., Any]] = {             # of a value and one that is captured; each depends on both
    "product": lambda lib, t, c: lib.tanh(t * lib.sum(c)) + t,
    "norm": _norm, "halves": _halves, "soft": _soft,
    "captured": lambda lib, t, c: lib.tanh(c) * lib.sum(t * t),
    "views": lambda lib, t, c: lib.sum(lib.reshape(t, shape=(-1,))[::-1] * lib.reshape(t, shape=(-1,))) * lib.exp(lib.tanh(c)),
}
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": lambda lib, a, b: a + b, "sub": lambda lib, a, b: a - b, "mul": lambda lib, a, b: a * b,
    "div": lambda lib, a, b: a / lib.exp(lib.tanh(b)), "twice": lambda lib, a, b: (a + a) * b,
    "both": lambda lib, a, b: a * b + b * a,
}
UNARY: dict[str, Callable[..., Any]] = {
    "neg": lambda lib, a: -a, "tanh": lambda lib, a: lib.tanh(a), "exp": lambda lib, a: lib.exp(-lib.tanh(a)),
    "identity": lambda lib, a: _identity(lib)(a), "square": lambda lib, a: a * a, "shift": lambda lib, a: 1.0 - a * 0.5,
    "softmax": lambda lib, a: lib.softmax(a) if a.ndim else lib.tanh(a),
    "sum": lambda lib, a: lib.sum(a), "last": lambda lib, a: lib.sum(a, axis=-1) if a.ndim else a + 0.0,
    "first": lambda lib, a: lib.sum(a, axis=0, keepdims=True) if a.ndim else a + 0.0,
    "flat": lambda lib, a: lib.reshape(a, shape=(-1,)), "T": lambda lib, a: _turned(lib, a) if a.ndim > 1 else lib.tanh(a),
    "flip": lambda lib, a: a[::-1] if a.ndim else lib.reshape(a, shape=(1, 1)), "rest": lambda lib, a: a[1:] if a.ndim and a.shape[0] > 1
    else -a, "column": lambda lib, a: a[..., :1] if a.ndim else -a, "wide": lambda lib, a: lib.broadcast_to(a, shape=(2, *a.shape)),
}


def _identity(lib: Any) -> Any:
    return mg.ops.shape.identity if lib is mg else naive.identity


def _turned(lib: Any, a: Any) -> Any:
    """The last two axes exchanged; `transpose` alone is refused for three axes."""
    return a.mT if lib is mg else naive.transpose(a)


def _product(lib: Any, a: Any, b: Any) -> Any:
    """A matrix product where the shapes allow one, as they are or with b transposed."""
    if a.ndim < 2 or b.ndim < 2 or (a.ndim > 2 and b.ndim > 2):
        return lib.sum(a) * b
    if a.shape[-1] == b.shape[-2]:
        return a @ b
    return a @ _turned(lib, b) if a.shape[-1] == b.shape[-1] else a * lib.sum(b)


@dataclass(eq=False)
class Pair:
    """One value in both engines, and what its bits were."""

    ours: Any
    theirs: Any
    bits: Any


def _close(ours: Any, theirs: naive.Value, what: str) -> None:
    a, b = np.asarray(ours), theirs.array
    assert a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.dtype}{a.shape} against {b.dtype}{b.shape}"
    excess = abs(a - b) - FORMULAS * theirs.error
    assert (excess <= 0.0).all(), f"{what}: off by {abs(a - b).max():.3g} where {FORMULAS * theirs.error.max():.3g} is allowed\n{a}\n{b}"


class Programs(RuleBasedStateMachine):
    """Whatever is computed, in whatever order: minigrad does what the naive engine does."""

    @initialize(seed=seeds, shapes=st.lists(st.sampled_from(SHAPES), min_size=2, max_size=3))
    def start(self, seed: int, shapes: Any) -> None:
        mg.random.manual_seed(SEED)
        self.drawn = 0
        self.pool: list[Pair] = []
        self.leaves: list[Pair] = []
        self.given: list[tuple[Any, Any]] = []          # cotangents and a copy of each
        self.pinned: set[Any] = set()                   # leaves whose change nobody could notice: see `put`
        for i, shape in enumerate(shapes):
            self.leaf(shape, seed + i)

    # ── helpers ──
    def pick(self, i: int) -> Pair:
        return self.pool[-1 - i % len(self.pool)]

    def tracked(self, i: int) -> Pair:
        """One of the values that want a gradient: leaves do."""
        wanted = [p for p in [*self.leaves, *self.pool] if p.theirs.tracked]
        return wanted[-1 - i % len(wanted)]

    def put(self, ours: Any, theirs: naive.Value) -> None:
        """Take a result into the pool, squeezed if it is large."""
        if abs(theirs.array).max(initial=0.0) > LARGEST:
            ours, theirs = mg.tanh(ours), naive.tanh(theirs)
        pair = Pair(ours, theirs, ours.numpy().copy())
        self.check(pair)
        if theirs.error.max(initial=0.0) < BLURRED and theirs.array.size <= 40 and theirs.ndim <= 3:
            self.pool.append(pair)
            if not theirs.tracked:                      # a constant has no way to its leaf's version
                self.pinned |= {p for p in self.leaves if np.shares_memory(p.ours.array, ours.array)}

    def check(self, pair: Pair) -> None:
        _close(pair.ours.array, pair.theirs, "value")
        assert pair.ours.requires_grad == pair.theirs.tracked
        np.testing.assert_array_equal(pair.ours.array, pair.bits, "a value was written to")

    def refused(self, output: naive.Value, targets: Any, retain: bool) -> bool:
        """Whether a walk must be refused. What it may have half walked is not looked at again."""
        try:
            naive.walk(output, targets, retain)
        except naive.Gone:
            if not retain:
                passed = {v for v in naive.reachable(output) if v.pull is not None}
                self.pool = [p for p in self.pool if passed.isdisjoint(naive.reachable(p.theirs))]
            return True
        return False

    def cotangent(self, shape: Any, seed: int) -> Any:
        g = np.random.default_rng(seed).standard_normal(shape)
        self.given.append((g, g.copy()))
        return g

    def next_key(self) -> int:
        self.drawn += 1
        return mg.random.fold_in(mg.random.key(SEED), self.drawn)

    # ── values ──
    @rule(shape=st.sampled_from(SHAPES), seed=seeds)
    @precondition(lambda self: len(self.leaves) < 5)
    def leaf(self, shape: Any, seed: int) -> None:
        a = np.random.default_rng(seed).uniform(-1.0, 1.0, shape)
        pair = Pair(mg.Tensor(a).requires_grad_(), naive.Value(a.copy(), leaf=True), a.copy())
        self.leaves.append(pair)
        self.pool.append(pair)

    @rule(shape=st.sampled_from(SHAPES), seed=seeds)
    def constant(self, shape: Any, seed: int) -> None:
        a = np.random.default_rng(seed).uniform(-1.0, 1.0, shape)
        self.put(mg.Tensor(a), naive.Value(a.copy()))

    @rule(name=st.sampled_from(list(UNARY)), a=at)
    def unary(self, name: str, a: int) -> None:
        x = self.pick(a)
        self.put(UNARY[name](mg, x.ours), UNARY[name](naive, x.theirs))

    @rule(name=st.sampled_from(list(ELEMENTWISE)), a=at, b=at)
    def elementwise(self, name: str, a: int, b: int) -> None:
        x, y = self.pick(a), self.pick(b)
        try:
            np.broadcast_shapes(x.ours.shape, y.ours.shape)
        except ValueError:
            with pytest.raises(mg.ShapeError):
                ELEMENTWISE[name](mg, x.ours, y.ours)
            return
        self.put(ELEMENTWISE[name](mg, x.ours, y.ours), ELEMENTWISE[name](naive, x.theirs, y.theirs))

    @rule(a=at, b=at)
    def product(self, a: int, b: int) -> None:
        x, y = self.pick(a), self.pick(b)
        self.put(_product(mg, x.ours, y.ours), _product(naive, x.theirs, y.theirs))

    @rule(name=st.sampled_from(list(PROGRAMS)), a=at, b=at)
    def program(self, name: str, a: int, b: int) -> None:
        x, y = self.pick(a), self.pick(b)
        self.put(PROGRAMS[name](mg, x.ours, y.ours), PROGRAMS[name](naive, x.theirs, y.theirs))

    @rule(a=at, axis=st.integers(0, 2), keep=st.sets(st.integers(0, 2), min_size=1))
    def split(self, a: int, axis: int, keep: Any) -> None:
        """Some of the parts; the others are dropped."""
        x = self.pick(a)
        if x.ours.ndim == 0:
            return
        axis %= x.ours.ndim
        n = x.ours.shape[axis]
        sections = next(k for k in (3, 2, 1) if n % k == 0)
        theirs = naive.split(x.theirs, sections=sections, axis=axis)
        for i, (p, q) in enumerate(zip(mg.split(x.ours, sections=sections, axis=axis), theirs)):
            if i in keep:
                self.put(p, q)

    @rule(a=at)
    def dropout(self, a: int) -> None:
        x = self.pick(a)
        self.put(mg.dropout(x.ours, p=P), self.masked(x.theirs, self.next_key()))

    def masked(self, x: naive.Value, key: int) -> naive.Value:
        return x * naive.Value(mg.random.keep_mask(np, key, x.shape, P)) * (1.0 / (1.0 - P))

    # ── constants ──
    @rule(a=at, how=st.sampled_from(["detach", "stop_gradient"]))
    def detach(self, a: int, how: str) -> None:
        x = self.pick(a)
        self.put(x.ours.detach() if how == "detach" else mg.stop_gradient(x.ours), naive.stop_gradient(x.theirs))

    @rule(name=st.sampled_from(list(PROGRAMS)), a=at, b=at, raising=st.booleans())
    def island(self, name: str, a: int, b: int, raising: bool) -> None:
        """Results of a no_grad block are constants, also where an error ended it."""
        x, y = self.pick(a), self.pick(b)
        try:
            with mg.no_grad():
                ours = PROGRAMS[name](mg, x.ours, y.ours)
                if raising:
                    raise KeyError
        except KeyError:
            pass
        self.put(ours, naive.stop_gradient(PROGRAMS[name](naive, x.theirs, y.theirs)))

    # ── gradients ──
    @rule(name=st.sampled_from(list(PROGRAMS)), a=at, b=at, island=st.booleans(), inner=st.booleans())
    def nested(self, name: str, a: int, b: int, island: bool, inner: bool) -> None:
        """value_and_grad of a program that captures another value: differentiable when its argument is, and outside no_grad."""
        x, c = self.pick(a), self.pick(b)

        def f(lib: Any, t: Any, c: Any) -> Any:
            if inner:                                   # the inner variable is not the outer one, which it meets in a product
                at = lib.sum(c)
                grad = mg.grad(lambda s: s * s * lib.sum(t)) if lib is mg else _naive_grad(lambda s: s * s * lib.sum(t))
                c = lib.tanh(c * grad(at))
            return lib.sum(PROGRAMS[name](lib, t, c))

        with recording(not island):
            ours = mg.value_and_grad(lambda t: f(mg, t, c.ours))(x.ours)
        live = x.theirs.tracked and not island
        root = naive.identity(x.theirs) if x.theirs.tracked else naive.Value(x.theirs.array, x.theirs.error, leaf=True)
        y = f(naive, root, c.theirs)
        (g,) = naive.gradients(y, [root])
        for p, q in zip(ours, (y, g)):
            self.put(p, q if live else naive.stop_gradient(q))

    @rule(a=at, chosen=st.lists(at, min_size=1, max_size=3), seed=seeds, mode=st.sampled_from(["plain", "retain", "create"]),
          leaves=st.booleans())
    def gradient(self, a: int, chosen: Any, seed: int, mode: str, leaves: bool) -> None:
        """gradients() by any values that want one, leaves or results, on the way or not, once or twice."""
        out = self.tracked(a)
        inputs = [self.leaves[i % len(self.leaves)] if leaves else self.tracked(i) for i in chosen]
        g = self.cotangent(out.ours.shape, seed)
        how = {"create_graph": mode == "create", "retain_graph": mode == "retain"}
        if self.refused(out.theirs, [p.theirs for p in inputs], mode != "plain"):
            with pytest.raises(mg.GraphError, match=r"again|retain_graph=True"):
                mg.gradients(out.ours, [p.ours for p in inputs], g, **how)
            return
        ours = mg.gradients(out.ours, [p.ours for p in inputs], g, **how)
        theirs = naive.gradients(out.theirs, [p.theirs for p in inputs], g)
        for i, (p, q) in enumerate(zip(ours, theirs)):
            _close(p.array, q, "gradient")
            if mode == "create":
                self.put(mg.tanh(p), naive.tanh(q))
            else:
                assert not p.requires_grad
                self.alone(p.array, [r.array for r in ours[:i]])

    @rule(a=at, seed=seeds, retain=st.booleans(), wrapped=st.booleans())
    def backward(self, a: int, seed: int, retain: bool, wrapped: bool) -> None:
        """.backward() adds into .grad of every leaf, or raises and adds nothing."""
        self.walk(self.tracked(a), seed, retain, wrapped)

    @rule(seed=seeds)
    def survey(self, seed: int) -> None:
        """Every value is walked back from; nothing is used up."""
        for pair in list(self.pool):
            if pair.theirs.tracked:
                self.walk(pair, seed, True, False)

    def walk(self, out: Pair, seed: int, retain: bool, wrapped: bool) -> None:
        g: Any = None if out.ours.shape == () and seed % 2 else self.cotangent(out.ours.shape, seed)
        if self.refused(out.theirs, None, retain):
            with pytest.raises(mg.GraphError):
                out.ours.backward(g, retain_graph=retain)
            return
        out.ours.backward(mg.Tensor(g) if wrapped and g is not None else g, retain_graph=retain)
        reached = [v for v in naive.reachable(out.theirs) if v.leaf]
        for v, d in zip(reached, naive.gradients(out.theirs, reached, 1.0 if g is None else g)):
            v.grad = naive.stop_gradient(d if v.grad is None else v.grad + d)

    @rule(i=at)
    def zero(self, i: int) -> None:
        leaf = self.leaves[i % len(self.leaves)]
        leaf.ours.grad = leaf.theirs.grad = None

    # ── checkpoint ──
    @rule(name=st.sampled_from(list(PROGRAMS)), a=at, b=at, drop=st.booleans(), twice=st.booleans())
    def checkpoint(self, name: str, a: int, b: int, drop: bool, twice: bool) -> None:
        """A program whose inside is forgotten, with dropout inside, one value captured, perhaps in a checkpoint of its own."""
        x, c = self.pick(a), self.pick(b)
        keys = [self.next_key() for _ in range(2 * drop)]

        def f(t: Any) -> Any:
            t = mg.dropout(t, p=P) if drop else t
            wrap = mg.checkpoint if twice else lambda f: f
            t = wrap(lambda t: PROGRAMS[name](mg, t, c.ours))(t)
            return mg.dropout(t, p=P) if drop else t

        def g(t: naive.Value, c: naive.Value) -> naive.Value:
            t = self.masked(t, keys[0]) if drop else t
            t = naive.replay(lambda t, c: PROGRAMS[name](naive, t, c), t, c, tracked=True) if twice else PROGRAMS[name](naive, t, c)
            return self.masked(t, keys[1]) if drop else t

        theirs = naive.replay(g, x.theirs, c.theirs, tracked=True)
        self.put(mg.checkpoint(f)(x.ours), theirs)

    # ── changes ──
    @rule(i=at, how=st.sampled_from(["step", "assign", "changed"]))
    def change(self, i: int, how: str) -> None:
        """Another value for a leaf. Views of it change with it where it was written in place."""
        leaf = self.leaves[i % len(self.leaves)]
        if leaf in self.pinned:
            return
        p, q = leaf.ours, leaf.theirs
        views = [v for v in self.pool if np.shares_memory(v.ours.array, p.array)]
        for v in self.pool:                             # a view of one number is a copy here
            if v not in views and np.shares_memory(v.theirs.array, q.array):
                v.theirs.array = v.theirs.array.copy()
        if how == "step":
            kept, p.grad = p.grad, mg.Tensor(np.full(p.shape, 0.25))
            mg.optim.SGD([p], lr=0.5).step()
            p.grad = kept
            q.array[...] -= 0.125
        elif how == "changed":
            p.array[...] *= 0.5
            p.changed()
            q.array[...] *= 0.5
        else:
            p.assign(p.array * 0.75)
            q.array = np.asarray(q.array * 0.75)
            views = [leaf]
        q.version += 1
        for v in views:
            v.bits = v.ours.numpy().copy()

    # ── what holds after every step ──
    def alone(self, array: Any, others: Any) -> None:
        """`array` shares memory with nothing that anyone else holds."""
        grads = [p.ours.grad.array for p in self.leaves if p.ours.grad is not None]
        held = [p.ours.array for p in self.pool] + [g for g, _ in self.given] + grads
        assert not any(np.shares_memory(array, other) for other in [*held, *others] if other is not array), "memory is shared"

    @invariant()
    def values_stand(self) -> None:
        for pair in [*self.pool, *self.leaves]:
            self.check(pair)
        for g, copy in self.given:
            np.testing.assert_array_equal(g, copy, "a cotangent was written to")

    @invariant()
    def gradients_add_up(self) -> None:
        for leaf in self.leaves:
            assert (leaf.ours.grad is None) == (leaf.theirs.grad is None)
            if leaf.theirs.grad is not None:
                _close(leaf.ours.grad.array, leaf.theirs.grad, ".grad")
                self.alone(leaf.ours.grad.array, [])

    @invariant()
    def contexts_are_left(self) -> None:
        """Recording goes on, nothing is being differentiated, and the stream is where the draws have taken it."""
        assert state.recording and state.depth == 0
        assert mg.random.get_state() == (mg.random.key(SEED), self.drawn)


def _naive_grad(f: Callable[..., Any]) -> Callable[..., Any]:
    def df(x: naive.Value) -> naive.Value:
        root = naive.identity(x) if x.tracked else naive.Value(x.array, x.error, leaf=True)
        return naive.gradients(f(root), [root])[0]

    return df


Programs.TestCase.settings = settings(stateful_step_count=50)
TestPrograms = Programs.TestCase
