"""The same engine in fewer steps and less memory. Each method here means what the definition's
means, to the bit; `MINIGRAD_EXPLICIT=1`, or `explicit()` around some code, runs everything on the
definition.

* Arguments that are all alike, as nearly always, need no search for the one backend (`FastOp`).
* Where residuals lie is worked out once (`Quick`).
* A backend's kernel may add a gradient to the sum that has arrived already (`_share`). Where it
  does so in 16 bits, on a GPU, it rounds once and the definition twice: the one difference.
* A sum that nobody else holds is added to in place (`FastWalk`, `Shares`); a residual that only one
  rule reads may be the gradient itself, without a copy (`Quick.donated`).
"""
from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from heapq import heappush
from operator import itemgetter
from typing import Any

from .. import backend
from ..backend import known
from ..backend.base import FLOATS, Backend, Saved
from ..widen import needed, widened
from . import checks, graph, refusals
from .declaration import SCALARS, Rule
from .graph import Node, Walk, state
from .op import Op, wanted_parts
from .saved import Plan, unshared_settings
from .tensor import Tensor
from .touched import constant


class Quick:
    """What is worked out once about a plan.

    pick: gives the residuals of (*arguments, result), where all of them are among these, or None.
    steps: each rule of an argument, with where what it is given lies among the residuals, or the
    names of settings. donated: residuals that only one rule reads; it may return that array as the
    gradient.
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
    """The function that gives the elements at these places, or their shapes."""
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
    """An op that takes the short way where there is one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.plans: dict[Any, Quick] = {}               # by a plan, or by who wants a gradient
        # arguments without a rule, as bits: what they are needs no dtype, and wants no gradient
        self.constants = sum(1 << i for i in range(len(self.args)) if i not in self.typed)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Of arrays of one dtype of a library without devices, beside numbers; else it is the
        definition that is called, which also says what is refused, and why."""
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
                out = known[type(out)].adopt(out)       # a scalar where a 0-d array is meant
        if type(out) not in here.array_types or out.dtype is not dtype:
            return self._wrapped(here, made, dtype, False, arguments, nodes, given)
        if not tensors:
            return out
        if not (wants and state.recording) or dtype.kind not in FLOATS:
            return constant(out, nodes) if wants else Tensor(out)
        wants |= bit                                    # and how many arguments there are
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
        """What is known of the plan of a call with these nodes. It is kept beside the plans, by
        this key: a plan, or which arguments want gradients, as bits."""
        quick = self.plans[key] = Quick(self, self.plan(tuple([n is not None for n in nodes])))
        return quick

    def pullback(self, node: Node, saved: tuple[Any, ...], g: Any, walk: Any) -> None:
        """Of one output whose rules are run on arrays as they are; else the definition's."""
        plan, parents = node.plan, node.parents
        here: Any = known.get(type(g))
        if (here is None or self.joint or self.widens or node.dtype.itemsize == 2 or here.devices
                or type(walk) is not FastWalk):         # a pass that began on the definition
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
            if made is not NotImplemented:              # of a joint rule: the first is the new sum
                walk.of.replace(first, made[0])
                for k, part in wanted_parts(node, made):
                    if k:
                        self._send(node, k, part, g, walk)
                return
        super()._share(node, i, rule, given, g, here, walk)

    def _fresh(self, node: Node, saved: tuple[Any, ...], gp: Any) -> bool:
        """Whether nobody else holds gp's memory: no view, and no residual that is read."""
        quick = self.plans.get(node.plan) or self._prepared(node.plan, node.parents)
        held = [k for k, s in enumerate(saved)
                if s is gp and (node.saved is not None or k not in quick.donated)]
        return not held and backend.of(gp).owns(gp)


class FastWalk(Walk):
    """ours: the nodes whose sum nobody else holds, so that it is added to in place."""

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
            self.ours.add(node)                         # of the sum that is made now
        return super().added(node, a, b)

    def so_far(self, node: Node) -> Any:
        """node's sum so far, if there is one of the node's dtype, else None."""
        total = self.sums.get(node)
        return total if total is not None and total.dtype == node.dtype else None

    def total(self, node: Node) -> Any:
        """The same, if it may be written over."""
        return self.so_far(node) if node in self.ours else None

    def replace(self, node: Node, g: Any) -> None:
        """g, which nobody else holds, in the place of node's sum."""
        self.sums[node] = g
        self.ours.add(node)


class Shares:
    """The FastWalk `of`, as the definition's pullback of one node sends its shares to it: whether
    nobody else holds a share is found out on the way."""

    __slots__ = ("op", "node", "saved", "g", "of", "live")

    def __init__(self, op: FastOp, node: Node, saved: Any, g: Any, of: FastWalk) -> None:
        self.op, self.node, self.saved, self.g, self.of = op, node, saved, g, of
        self.live = False

    def send(self, parent: Node, part: Any) -> None:
        fresh = part is not self.g and self.op._fresh(self.node, self.saved, part)
        self.of.send(parent, part, fresh)


# ── the switch ──
_switching = threading.Lock()
_blocks: list[bool] = []                                # whether each open one found the fast path
_FAST = {name: vars(FastOp)[name] for name in ("__call__", "pullback", "_share")}


def use(fast: bool) -> None:
    """Run on the fast path from here on, or on the definition, in all threads."""
    for name, method in _FAST.items():
        if fast:
            setattr(FastOp, name, method)
        elif name in vars(FastOp):
            delattr(FastOp, name)                       # and so the definition's is found
    graph.walk_of = FastWalk if fast else Walk


@contextlib.contextmanager
def explicit() -> Iterator[None]:
    """Inside the block everything runs on the engine's definition, in all threads: slower, and the
    same numbers to the bit."""
    with _switching:
        _blocks.append(graph.walk_of is FastWalk)
        use(False)
    try:
        yield
    finally:
        with _switching:
            was = _blocks[0]                            # before the first one of all threads
            _blocks.pop()
            if not _blocks:
                use(was)


use(not os.environ.get("MINIGRAD_EXPLICIT"))
