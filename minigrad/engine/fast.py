"""The same engine in fewer steps and less memory.

The other files are the definition. Each method here has the same result to the bit, with one
exception below. `MINIGRAD_EXPLICIT=1`, or `explicit()` around some code, runs everything on the
definition.

* Arguments of one backend and dtype, the usual case, are checked in one loop (`FastOp`).
* The positions of the residuals are computed once (`Quick`).
* A backend's kernel may add a gradient to the sum so far (`_share`). If it does so in 16 bits, on a
  GPU, it rounds once and the definition twice: this is the exception.
* A sum whose memory nothing else uses is added to in place (`FastWalk`, `Shares`); a residual that
  only one rule reads may be the gradient itself, without a copy (`Quick.donated`).
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from heapq import heappush
from operator import itemgetter
from typing import Any

from .. import backend
from ..backend import known
from ..backend.base import FLOATS, Backend, Saved
from ..locks import lock
from ..widen import needed, widened
from . import checks, graph, refusals
from .declaration import SCALARS, Rule
from .graph import Node, Walk, state
from .op import Op, wanted_parts
from .saved import Plan, unshared_settings
from .tensor import Tensor
from .touched import constant


class Quick:
    """What is computed once for a plan.

    pick: takes the residuals from (*arguments, result); None if a residual comes from elsewhere.
    steps: each rule of an argument, with the positions of its residuals, or the names of its
    settings. donated: residuals that only one rule reads; it may return that array as the gradient
    without a copy.
    """

    __slots__ = ("plan", "pick", "steps", "donated")

    def __init__(self, op: Op, plan: Plan) -> None:
        n, kinds = len(plan.wanted), {kind for kind, _ in plan.sources}
        places = [(n if kind == "out" else at, kind == "shape") for kind, at in plan.sources]
        self.plan = plan
        self.pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
        last = max([at for kind, at in plan.sources if kind == "arg"], default=0)
        if kinds <= {"arg", "out", "shape"} and last < n:
            self.pick = _picked(places)
        self.steps = tuple((i, rule, self._places(rule.needs, op))
                           for i, rule in plan.rules if i is not None)
        needs = [rule.needs for _, rule in plan.rules]
        self.donated = frozenset(
            k for k, (kind, name) in enumerate(plan.sources)
            if kind == "extra" and not op.joint and sum(name in names for names in needs) == 1)

    def _places(self, needs: tuple[str, ...], op: Op) -> slice | tuple[Any, ...]:
        places = tuple(n if n in op.settings else self.plan.names.index(n) for n in needs)
        first = places[0] if places else 0
        if isinstance(first, int) and places == tuple(range(first, first + len(places))):
            return slice(first, first + len(places))    # one after the other
        return places


def _picked(places: list[tuple[int, bool]]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function that returns the elements of a tuple at these positions, or their shapes."""
    at = [k for k, shape in places if not shape]
    if len(at) == len(places) > 1:
        return itemgetter(*at)
    if len(at) == len(places) == 1:
        return lambda pool: (pool[at[0]],)
    if not places:
        return lambda pool: ()
    return lambda pool: tuple([getattr(pool[k], "shape", ()) if shape else pool[k]
                               for k, shape in places])


class FastOp(Op):
    """An op that uses the fast path if it applies, and the definition if not."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.plans: dict[Any, Quick] = {}               # by a plan, or by the wanted gradients
        # the arguments without a rule, as bits: they may have any dtype, and want no gradient
        self.constants = sum(1 << i for i in range(len(self.args)) if i not in self.typed)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """The result if the arrays have one dtype and one backend, and that has a single device.

        In any other case, and after any error, the definition is called; it also raises the errors.
        """
        given: Any = self.settings
        arguments = args
        if settings or len(args) > self.most:
            arguments, given = checks.bound(self, args, settings)
        arrays: list[Any] = []
        nodes: list[Node | None] = []
        here: Any = None
        dtype: Any = None
        tensors = bare = False
        wants, bit, constants = 0, 1, self.constants
        for a in arguments:
            node = None
            if isinstance(a, Tensor):
                tensors, node, a = True, a.node, a.array
                if bit & constants:
                    node = None
                elif node is not None:
                    wants |= bit
            elif type(a) not in SCALARS:
                bare = True
            arrays.append(a)
            nodes.append(node)
            kind = type(a)
            if kind in known:
                if here is None:
                    here = known[kind]
                elif known[kind] is not here:
                    return super().__call__(*args, **settings)
                if not bit & constants:
                    if dtype is None:
                        dtype = a.dtype
                    elif a.dtype is not dtype:
                        return super().__call__(*args, **settings)
            elif kind not in SCALARS:
                return super().__call__(*args, **settings)
            bit += bit
        if dtype is None or here.devices or dtype.itemsize == 2:
            return super().__call__(*args, **settings)
        own = given
        if self.asks:
            own = {**given, "wants": self._wanted(nodes)}
        kernel = here.kernels.get(self.name)
        out: Any = NotImplemented
        try:
            if self.check is not None:
                self.check(*arrays, **given)
            if kernel is not None:
                out = kernel(here, *arrays, **own)
            if out is NotImplemented:
                out = self.kernel(here, *arrays, **own) if own else self.kernel(here, *arrays)
        except Exception:
            return super().__call__(*args, **settings)
        made, extra = out, None
        if type(out) not in here.array_types:
            if type(out) is Saved:
                out, extra = out.out, out.extra
            if type(out) in known:
                out = known[type(out)].adopt(out)       # a scalar becomes a 0-d array
        if type(out) not in here.array_types or out.dtype is not dtype:
            return self._wrapped(here, made, dtype, False, arguments, nodes, given)
        if not tensors:
            return out
        if not (wants and state.recording) or dtype.kind not in FLOATS:
            return constant(out, nodes) if wants else Tensor(out)
        wants |= bit                                    # the highest bit: the number of arguments
        quick = self.plans.get(wants) or self._prepared(wants, nodes)
        plan = quick.plan
        if quick.pick is None or bare:
            node = self._record(arguments, nodes, out, extra, given, out.shape, dtype)
            return Tensor(out, node)
        version = plan.version(nodes) if plan.watched else 0
        if self.loose and given is not self.settings:
            given = unshared_settings(given, self.loose)
        saved = quick.pick((*arrays, out))
        return Tensor(out, Node(self, plan, tuple(nodes), saved, given, out.shape, dtype, version))

    def _prepared(self, key: Any, nodes: Sequence[Node | None]) -> Quick:
        """Compute the Quick of a call with these nodes, and store it under the key.

        key: a plan, or the arguments that want gradients, as bits.
        """
        quick = self.plans[key] = Quick(self, self.plan(tuple([n is not None for n in nodes])))
        return quick

    def pullback(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Any) -> None:
        """`Op.pullback`, in fewer steps for one output whose rules run on plain arrays."""
        plan, parents = node.plan, node.parents
        here: Any = known.get(type(g))
        if (here is None or self.joint or self.widens or node.dtype.itemsize == 2 or here.devices
                or type(walk) is not FastWalk):         # the pass started on the definition
            if type(walk) is FastWalk and not walk.live:
                walk = Shares(self, node, saved, g, walk)
            return super().pullback(node, saved, g, walk)
        if plan.watched and node.version != plan.version(parents):
            raise refusals.changed(node)
        kernels = here.kernels
        quick = self.plans.get(plan) or self._prepared(plan, parents)
        for i, rule, places in quick.steps:
            parent: Any = parents[i]
            given = saved[places] if type(places) is slice else [
                saved[k] if type(k) is int else node.static[k] for k in places]
            if rule.into in kernels and (total := walk.total(parent)) is not None \
                    and kernels[rule.into](total, g, *given) is not NotImplemented:
                continue
            kernel, part = kernels.get(rule.key), NotImplemented
            if kernel is not None:
                part = kernel(g, *given)
            if part is NotImplemented:
                part = rule.function(g, *given)
            if (type(part) not in here.array_types or part.shape != parent.shape
                    or part.dtype is not parent.dtype):
                if part is None:
                    raise refusals.no_result(self, rule)
                part = self._fitted(node, i, part, False)
                here = backend.of(part)
            fresh = part is not g and here.owns(part)
            for s in saved if fresh else ():
                if s is part:
                    fresh = self._fresh(node, saved, part)
            walk.send(parent, part, fresh)

    def _share(self, node: Node, i: int | None, rule: Rule, given: tuple[Any, ...], g: Any,
               here: Backend, walk: Any) -> None:
        own = type(walk) is Shares and type(g) is not tuple
        into = here.kernels.get(rule.into) if own else None
        first = node.parents[i or 0]
        total = None
        if into is not None and first is not None:
            total = walk.of.total(first) if i is not None else walk.of.so_far(first)
        if into is not None and total is not None:
            wide = ((node.dtype.itemsize == 2 or self.widens) and needed(self, here)
                    and not here.takes_half)
            made = into(total, widened(g), *widened(given)) if wide else into(total, g, *given)
            if made is not NotImplemented and i is not None:
                return
            if made is not NotImplemented:              # a joint rule: the first is the new sum
                walk.of.replace(first, made[0])
                for k, part in wanted_parts(node, made):
                    if k:
                        self._send(node, k, part, g, walk)
                return
        super()._share(node, i, rule, given, g, here, walk)

    def _fresh(self, node: Node, saved: tuple[Any, ...], gp: Any) -> bool:
        """Whether nothing else uses gp's memory: gp is no view, and no residual read elsewhere."""
        quick = self.plans.get(node.plan) or self._prepared(node.plan, node.parents)
        held = [k for k, s in enumerate(saved)
                if s is gp and (node.saved is not None or k not in quick.donated)]
        return not held and backend.of(gp).owns(gp)


class FastWalk(Walk):
    """A Walk that adds in place. ours: the nodes whose sum is in memory that nothing else uses."""

    __slots__ = ("ours",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ours: set[Node] = set()

    def send(self, node: Node, g: Any, fresh: bool = False) -> None:
        if node not in self.sums and node.id >= self.oldest:
            self.sums[node] = g
            heappush(self.heap, (self.turns.get(node, -node.id), node))
            if fresh and node.dtype.itemsize != 2:
                self.ours.add(node)
        else:
            super().send(node, g)

    def added(self, node: Node, a: Any, b: Any) -> Any:
        if node in self.ours:
            a += b
            return a
        if not self.live:
            self.ours.add(node)                         # the next line makes a new sum
        return super().added(node, a, b)

    def so_far(self, node: Node) -> Any:
        """The node's sum so far if it has the node's dtype; None if there is no such sum."""
        total = self.sums.get(node)
        return total if total is not None and total.dtype == node.dtype else None

    def total(self, node: Node) -> Any:
        """The node's sum so far if a kernel may overwrite it; None if not."""
        return self.so_far(node) if node in self.ours else None

    def replace(self, node: Node, g: Any) -> None:
        """Set the node's sum to g, whose memory nothing else uses."""
        self.sums[node] = g
        self.ours.add(node)


class Shares:
    """The FastWalk `of` for one node whose shares are computed by the definition's pullback.

    It finds out for each share whether anything else uses the share's memory.
    """

    __slots__ = ("op", "node", "saved", "g", "of", "live")

    def __init__(self, op: FastOp, node: Node, saved: Any, g: Any, of: FastWalk) -> None:
        self.op, self.node, self.saved, self.g, self.of = op, node, saved, g, of
        self.live = False

    def send(self, parent: Node, part: Any) -> None:
        fresh = part is not self.g and self.op._fresh(self.node, self.saved, part)
        self.of.send(parent, part, fresh)


# ── the switch ──
_switching = lock()
_blocks: list[bool] = []                                # for each open block: was the fast path on
_FAST = {name: vars(FastOp)[name] for name in ("__call__", "pullback", "_share")}


def use(fast: bool) -> None:
    """From now on use the fast path, or the definition, in all threads."""
    for name, method in _FAST.items():
        if fast:
            setattr(FastOp, name, method)
        elif name in vars(FastOp):
            delattr(FastOp, name)                       # then the definition's method is found
    graph.walk_of = FastWalk if fast else Walk


@contextlib.contextmanager
def explicit() -> Iterator[None]:
    """Inside the block everything runs on the engine's definition, in all threads.

    That is slower; the numbers are the same to the bit.
    """
    with _switching:
        _blocks.append(graph.walk_of is FastWalk)
        use(False)
    try:
        yield
    finally:
        with _switching:
            was = _blocks[0]                            # the state before the first open block
            _blocks.pop()
            if not _blocks:
                use(was)


use(not os.environ.get("MINIGRAD_EXPLICIT"))
