"""A call of an op, and its part of the backward pass.

An op is a kernel, which computes its value, and a rule for the gradient of each argument. A rule is
a function of the cotangent `g` and, by name, of what it needs of the forward pass: any argument of
the op, the result `out`, the shape of an argument (`a_shape`, for which no data is saved), a
setting, or a by-product that the kernel returned in `Saved`. Only what a rule's signature names is
saved for backward. Rules are written with ops, so the same text runs on bare arrays in an ordinary
backward pass and on Tensors when the gradient itself is differentiated.

A backend may have a faster kernel for an op or for a rule (`Backend.kernels`). The faster kernel
returns NotImplemented in a case that it does not support; then the op's own text runs.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import backend, widen
from ..backend.base import FLOATS, Backend, Saved, half
from . import checks, live, refusals, several
from .declaration import REGISTRY, Declaration, Rule
from .graph import Node, Walk, state
from .saved import SOURCES, Plan, unshared_settings
from .tensor import Tensor
from .touched import constant


class Op(Declaration):
    """An op of the registry; call it with Tensors (recorded) or bare arrays (computed only)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.plan = functools.cache(functools.partial(Plan, self))      # by the wanted gradients

    # ── forward ──
    def __call__(self, *args: Any, **settings: Any) -> Any:
        """The kernel's result as a Tensor, with a node if an argument wants a gradient."""
        args, settings = checks.bound(self, args, settings)
        arrays = [a.array if isinstance(a, Tensor) else a for a in args]
        nodes = [a.node if isinstance(a, Tensor) and i in self.typed else None
                 for i, a in enumerate(args)]           # None: no gradient is wanted
        here, dtype = checks.placed(self, arrays, nodes)
        wide = (dtype is None or dtype.itemsize == 2) and widen.needed_for(self, here, arrays)
        out = self._computed(here, arrays, nodes, settings, wide)
        return self._wrapped(here, out, dtype, wide, args, nodes, settings)

    def _computed(self, here: Backend, arrays: Sequence[Any], nodes: Sequence[Any],
                  settings: dict[str, Any], wide: bool) -> Any:
        """The kernel's result for these arrays; its errors become minigrad's errors."""
        given = {**settings, "wants": self._wanted(nodes)} if self.asks else settings
        try:
            if self.check is not None:
                self.check(*arrays, **settings)
            return run(here, self.name, self.kernel, tuple(arrays), wide, (here,), given)
        except Exception as error:
            refusals.translate(self, here, arrays, settings, error)
            raise

    def _wanted(self, nodes: Sequence[Any]) -> tuple[bool, ...]:
        """Which arguments want a gradient."""
        return tuple([state.recording and n is not None for n in nodes])

    def _wrapped(self, here: Backend, out: Any, dtype: Any, wide: bool, args: Sequence[Any],
                 nodes: Sequence[Any], settings: dict[str, Any]) -> Any:
        """A kernel's result as the call returns it: a Tensor, unless all arguments are arrays."""
        out, extra = (out.out, out.extra) if type(out) is Saved else (out, None)
        if type(out) is tuple:
            return several.wrapped(self, out, dtype if wide else None, args, nodes, settings)
        if type(out) not in here.array_types and backend.known.get(type(out), here) is here:
            out = here.adopt(out)                       # a scalar becomes a 0-d array
        y = widen.rounded(self, out, args) if wide else out     # the rules get the unrounded `out`
        if y.dtype.kind not in FLOATS or not (state.recording and any(nodes)):
            return self._constant(y, dtype, args, nodes, settings)
        return Tensor(y, self._record(args, nodes, out, extra, settings, y.shape, y.dtype))

    def _constant(self, out: Any, dtype: Any, args: Sequence[Any], nodes: Sequence[Any],
                  settings: dict[str, Any]) -> Any:
        """A result that requires no gradient: a Tensor if an argument is one, else an array."""
        if dtype is not None and dtype.kind in "iu":
            checks.of_integers(self, args, settings, out)
        return constant(out, nodes) if any(isinstance(a, Tensor) for a in args) else out

    def recorded(self, out: Any, *args: Any, **settings: Any) -> Any:
        """The Tensor of a call whose result was computed elsewhere.

        args: Tensors. settings: all of them. out: the result, as the kernel would return it.
        """
        here, nodes = backend.of(args[0].array), [a.node for a in args]
        return self._wrapped(here, out, None, False, args, nodes, settings)

    def _record(self, args: Sequence[Any], nodes: Sequence[Any], out: Any, extra: Any,
                settings: Any, shape: Any, dtype: Any) -> Node:
        """The node of a call; it saves only the residuals that the rules for its gradients name."""
        plan = self.plan(tuple([n is not None for n in nodes]))
        saved = tuple([SOURCES[kind](self, at, args, out, extra) for kind, at in plan.sources])
        static = unshared_settings(settings, self.loose)
        return Node(self, plan, tuple(nodes), saved, static, shape, dtype, plan.version(nodes))

    # ── backward ──
    def pullback(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
        """Send the share Jᵢᵀ g of each argument that wants a gradient to its node   (reverse.3).

        g: the cotangent of the node's output; for several outputs a dict of the cotangents that
        arrived, by the output's number.
        """
        if node.version != node.plan.version(node.parents):
            raise refusals.changed(node)
        if walk.live or type(g) is dict:                # not one bare array
            passed = several.pullback if type(g) is dict else live.pullback
            return passed(self, node, saved, g, walk)
        self._shares(node, saved, g, backend.of(g).at(g), walk)

    def _shares(self, node: Node, saved: Any, g: Any, here: Backend, walk: Walk) -> None:
        """Run the rule of each argument that wants a gradient, or the one rule for all of them."""
        for i, rule in node.plan.rules:
            self._share(node, i, rule, node.plan.given(rule, node, saved), g, here, walk)

    def _share(self, node: Node, i: int | None, rule: Rule, given: tuple[Any, ...], g: Any,
               here: Backend, walk: Walk) -> None:
        """Send the result of a rule: the gradient of argument i, or of all arguments (None)."""
        wide = (node.dtype.itemsize == 2 or self.widens) and widen.needed(self, here)
        key = rule.key if type(g) in backend.known else ""  # a backend's rules take bare arrays
        made = run(here, key, rule.function, (g, *given), wide)
        if made is None:
            raise refusals.no_result(self, rule)
        for k, part in [(i, made)] if i is not None else wanted_parts(node, made):
            self._send(node, k, part, g, walk)

    def _send(self, node: Node, i: int, part: Any, g: Any, walk: Walk) -> None:
        """Send the gradient of argument i, in the shape and dtype of that argument."""
        parent: Any = node.parents[i]
        if type(part) is not type(g) or part.shape != parent.shape or part.dtype != parent.dtype:
            part = self._fitted(node, i, part, walk.live)
        walk.send(parent, part)

    def _fitted(self, node: Node, i: int, gp: Any, live: bool) -> Any:
        """A rule's result for argument i, in the argument's shape and dtype.

        It is a Tensor in a live pass, and an array in any other.
        """
        parent: Any = node.parents[i]
        if self.elementwise and gp.shape != parent.shape:       # broadcasting is undone
            gp = REGISTRY["sum_to"](gp, shape=parent.shape)
        if type(gp) is Tensor and not live:
            gp = gp.array
        if gp.dtype != parent.dtype and half(parent.dtype) and gp.dtype == "float32":
            gp = widen.narrowed(gp, parent.dtype)
        if gp.shape != parent.shape or gp.dtype != parent.dtype:
            raise refusals.wrong_gradient(self, i, gp, parent)
        if type(gp) is Tensor:
            return gp
        here = backend.of(gp)
        gp = gp if type(gp) in here.array_types else here.adopt(gp)
        return Tensor(gp) if live else gp


def run(here: Backend, key: str, plain: Callable[..., Any], given: tuple[Any, ...], wide: bool,
        xp: tuple[Backend, ...] = (), settings: Mapping[str, Any] = {}) -> Any:
    """The result of `plain`, an op's kernel or rule, or of the backend's faster kernel for it.

    wide: floats of 16 bits are converted to float32 first.
    """
    ready = widen.widened(given) if wide and not here.takes_half else given
    kernel = here.kernels.get(key)
    out = NotImplemented if kernel is None else kernel(*xp, *ready, **settings)
    if out is NotImplemented:
        out = plain(*xp, *(widen.widened(ready) if wide else ready), **settings)
    return out


def wanted_parts(node: Node, made: Sequence[Any]) -> list[tuple[int, Any]]:
    """From a joint rule's result: each argument that wants a gradient, and its gradient."""
    return [(k, part) for k, part in enumerate(made)
            if k < len(node.parents) and node.parents[k] is not None]
