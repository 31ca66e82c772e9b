"""A call of an op, and its part of the backward pass.

An op is a kernel, which computes its value, and a rule for the gradient of each argument. A rule is
a function of the cotangent `g` and, by name, of what it needs of the forward pass: any argument of
the op, the result `out`, the shape of an argument (`a_shape`, for which no data need be saved), a
setting, or a by-product that the kernel returned in `Saved`. Its signature is the list of what is
saved, and nothing else is. Rules are written with ops, so the same text runs on bare arrays in an
ordinary backward pass and on Tensors when the gradient itself is differentiated.

A backend may have a faster kernel for an op or for a rule (`Backend.kernels`). It returns
NotImplemented in a case that it is not for, and then the op's own text is run.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import backend
from ..backend.base import FLOATS, Backend, Saved, half
from ..widen import narrowed, widened
from . import checks
from .declaration import REGISTRY, Declaration, Rule
from .graph import PICK, Node, Walk, recording, state, touch
from .saved import Plan, unshared_settings
from .tensor import Tensor


class Op(Declaration):
    """An op of the registry; call it with Tensors (recorded) or bare arrays (computed only)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.plans: dict[Any, Any] = {}                 # by which arguments want gradients

    # ── forward ──
    def __call__(self, *args: Any, **settings: Any) -> Any:
        args, settings = checks.bound(self, args, settings)
        arrays = [a.array if isinstance(a, Tensor) else a for a in args]
        nodes = [a.node if isinstance(a, Tensor) and i in self.typed else None
                 for i, a in enumerate(args)]           # None: no gradient is wanted
        here, dtype = checks.placed(self, arrays, nodes)
        wide = (dtype is None or dtype.itemsize == 2) and self._widens(here, arrays)
        out = self._computed(here, arrays, nodes, settings, wide)
        return self._wrapped(here, out, dtype, wide, args, arrays, nodes, settings)

    def _widens(self, here: Backend, arrays: Sequence[Any]) -> bool:
        """Whether these are floats of 16 bits that are computed with in float32; a Python number
        among them always asks for it."""
        halves = any(type(a) not in checks.SCALARS and half(a.dtype) for a in arrays)
        alone = self.narrow or self.name in here.half_ops
        return halves and (not alone or any(type(a) in (int, float) for a in arrays))

    def _computed(self, here: Backend, arrays: Sequence[Any], nodes: Sequence[Any],
                  settings: dict[str, Any], wide: bool) -> Any:
        """What the backend's kernel makes of the arrays, or else the op's own."""
        kernel, out = here.kernels.get(self.name), NotImplemented
        given = {**settings, "wants": self._wanted(nodes)} if self.asks else settings
        try:
            if self.check is not None:
                self.check(*arrays, **settings)
            ready = widened(tuple(arrays)) if wide else arrays
            if kernel is not None:
                out = kernel(here, *(arrays if here.takes_half else ready), **given)
            return self.kernel(here, *ready, **given) if out is NotImplemented else out
        except Exception as error:
            checks.translate(self, here, arrays, settings, error)
            raise

    def _wrapped(self, here: Backend, out: Any, dtype: Any, wide: bool, args: Sequence[Any],
                 arrays: Sequence[Any], nodes: Sequence[Any], settings: dict[str, Any]) -> Any:
        """A kernel's result as the call returns it: a Tensor where an argument is one, recorded
        where one wants a gradient."""
        out, extra = (out.out, out.extra) if type(out) is Saved else (out, None)
        if type(out) is tuple:
            outs = tuple(narrowed(o, dtype) for o in out) if wide else out
            return self._several(outs, args, arrays, nodes, settings)
        if type(out) not in here.array_types and backend.known.get(type(out), here) is here:
            out = here.adopt(out)                       # a scalar where a 0-d array is meant
        exact = out                                     # rules are given it before it is rounded
        if wide and not self.widens and out.dtype.kind == "f":
            out = narrowed(out, next(a.dtype for a in arrays
                                     if hasattr(a, "dtype") and half(a.dtype)))
        if (dtype is not None and dtype.kind in "iu" and out.dtype.kind in FLOATS
                and self.differentiable and "dtype" not in settings):
            raise checks.float_of_integers(self, arrays, out.dtype)
        if not any(isinstance(a, Tensor) for a in args):
            return out
        if out.dtype.kind not in FLOATS or not any(self._wanted(nodes)):
            touch(nodes)
            return Tensor(out)
        node = self._record(arrays, nodes, exact, extra, settings, out.shape, out.dtype, args)
        return Tensor(out, node)

    def _wanted(self, nodes: Sequence[Any]) -> tuple[bool, ...]:
        """Which arguments want a gradient."""
        return tuple([state.recording and n is not None for n in nodes])

    def _several(self, outs: tuple[Any, ...], args: Any, arrays: Any, nodes: Any,
                 settings: Any) -> Any:
        """Several results: a node of the whole op, and one for each result, which sends to it."""
        if not any(isinstance(a, Tensor) for a in args):
            return outs
        if not any(self._wanted(nodes)):
            touch(nodes)
            return tuple(Tensor(o) for o in outs)
        shapes = tuple(o.shape for o in outs)
        whole = self._record(arrays, nodes, None, None, settings, shapes, outs[0].dtype, args)
        return tuple(Tensor(o, Node(PICK, None, (whole,), (i,), {}, o.shape, o.dtype))
                     for i, o in enumerate(outs))

    def recorded(self, out: Any, *args: Any, **settings: Any) -> Any:
        """The Tensor of a call with these Tensors and all settings, whose result was computed
        elsewhere: `out`, as the kernel gives it."""
        arrays, nodes = [a.array for a in args], [a.node for a in args]
        return self._wrapped(backend.of(arrays[0]), out, None, False, args, arrays, nodes, settings)

    def _record(self, arrays: Sequence[Any], nodes: Sequence[Any], out: Any, extra: Any,
                settings: Any, shape: Any, dtype: Any, args: Sequence[Any]) -> Node:
        """The node of a call. args: as they were given, bare arrays and Tensors."""
        plan = self._plan(nodes)
        saved = plan.collect(self, arrays, args, out, extra)
        if self.loose:
            settings = unshared_settings(settings, self.loose)
        return Node(self, plan, tuple(nodes), saved, settings, shape, dtype, plan.version(nodes))

    def _plan(self, nodes: Sequence[Any]) -> Plan:
        """What is saved where these arguments want gradients; made once for each combination."""
        wanted = tuple([n is not None for n in nodes])
        if wanted not in self.plans:
            self.plans[wanted] = Plan(self, wanted)
        return self.plans[wanted]

    # ── backward ──
    def pullback(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
        """Send each wanted argument's share Jᵢᵀ g to its parent   (reverse.3).

        g: the cotangent of the node's output; of several outputs, those that arrived, by number.
        """
        plan = node.plan
        if node.version != plan.version(node.parents):
            raise checks.changed(node)
        some = next(iter(g.values())) if type(g) is dict else g
        some = some.array if walk.live else some
        here = backend.of(some)
        here.at(some)
        if type(g) is dict:
            g = self._gathered(node, g, here, walk.live)
        if walk.live and plan.replay:
            return self._replay(node, saved, g, walk)
        values = self._alive(node, saved) if walk.live else saved
        for i, rule in plan.rules:
            self._share(node, i, rule, plan.given(rule, node, values), g, saved, here, walk)

    def _share(self, node: Node, i: int | None, rule: Rule, given: tuple[Any, ...], g: Any,
               saved: tuple[Any, ...], here: Backend, walk: Walk) -> None:
        """Run a rule and send its result: the gradient of argument i, or those of all (None)."""
        result = self._slope(node, rule, given, g, here, walk.live)
        parts = [(i, result)] if i is not None else list(enumerate(result))
        for k, part in parts:
            if k < len(node.parents) and node.parents[k] is not None:
                self._send(node, k, self._fitted(node, k, part, walk.live), g, saved, walk)

    def _slope(self, node: Node, rule: Rule, given: tuple[Any, ...], g: Any, here: Backend,
               live: bool) -> Any:
        """What a rule gives: by the backend's kernel where it has one, which takes bare arrays."""
        wide = self._widens_back(node, here)
        kernel = None if live or type(g) is tuple else here.kernels.get(rule.key)
        out: Any = NotImplemented
        if kernel is not None:
            narrow = not wide or here.takes_half
            out = kernel(g, *given) if narrow else kernel(widened(g), *widened(given))
        if out is NotImplemented:
            out = rule.function(widened(g), *widened(given)) if wide else rule.function(g, *given)
        if out is None:
            raise checks.no_result(self, rule)
        return out

    def _widens_back(self, node: Node, here: Backend) -> bool:
        """Whether the rules are given float32 in place of floats of 16 bits."""
        alone = self.narrow or self.name in here.half_ops
        return (node.dtype.itemsize == 2 or self.widens) and not alone

    def _fitted(self, node: Node, i: int, gp: Any, live: bool) -> Any:
        """A rule's result for argument i as it is sent: of the argument's shape and dtype, a Tensor
        in a live pass and else an array."""
        parent: Any = node.parents[i]
        if self.elementwise and gp.shape != parent.shape:       # broadcasting is undone
            gp = REGISTRY["sum_to"](gp, shape=parent.shape)
        if type(gp) is Tensor and not live:
            gp = gp.array
        if gp.dtype != parent.dtype and half(parent.dtype) and gp.dtype == "float32":
            gp = narrowed(gp, parent.dtype)
        if gp.shape != parent.shape or gp.dtype != parent.dtype:
            raise checks.wrong_gradient(self, i, gp, parent)
        if type(gp) is Tensor:
            return gp
        here = backend.of(gp)
        gp = gp if type(gp) in here.array_types else here.adopt(gp)
        return Tensor(gp) if live else gp

    def _send(self, node: Node, i: int, gp: Any, g: Any, saved: Any, walk: Walk) -> None:
        parent: Any = node.parents[i]
        walk.send(parent, gp)

    def _gathered(self, node: Node, slots: dict[int, Any], here: Backend,
                  live: bool) -> tuple[Any, ...]:
        """The cotangents of all outputs; zeros for those that nothing was computed from."""
        def zeros(shape: Any) -> Any:
            array = here.zeros(shape, dtype=node.dtype)
            return Tensor(array) if live else array

        return tuple(slots[i] if i in slots else zeros(shape) for i, shape in enumerate(node.shape))

    def _alive(self, node: Node, saved: tuple[Any, ...]) -> tuple[Any, ...]:
        """The residuals for ∂(Jᵀ g): what has a place in the graph as its Tensors   (reverse.6)."""
        values = list(saved)
        for k, (kind, at) in enumerate(node.plan.sources):
            if kind == "arg" and at < len(node.parents) and node.parents[at] is not None:
                values[k] = Tensor(saved[k], node.parents[at])
            elif kind == "args":
                values[k] = tuple(Tensor(a, p) for a, p in zip(saved[k], node.parents))
            elif kind == "out":
                values[k] = Tensor(saved[k], node)
                if saved[k].dtype != node.dtype:        # it was saved before it was rounded
                    rounded = Tensor(narrowed(saved[k], node.dtype), node)
                    values[k] = REGISTRY["astype"].recorded(saved[k], rounded, dtype="float32")
        return tuple(values)

    def _replay(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
        """Run the definition again, recorded   (reverse.7); its nodes are the newest, so the
        backward pass goes on through them."""
        values = dict(zip(node.plan.names, saved))
        inputs = [Tensor(values[a], p) if hasattr(values[a], "dtype") else values[a]
                  for a, p in zip(self.args, node.parents)]
        assert self.definition is not None
        with recording(True):
            out = self.definition(*inputs, **node.static)
        walk.send(out.node, g)
