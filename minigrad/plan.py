"""What one application of an op saves for backward: which residuals its rules name, and how their values stay true until then."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .backend import known
from .graph import Leaf

if TYPE_CHECKING:
    from .op import Op

IMMUTABLE = frozenset((int, float, bool, type(None), str, slice, type(...)))


class Rule:
    """∂op/∂argument as text: a function of g and named residuals.

    key: its name among a backend's kernels; into: that of the one that adds the gradient to a sum it is given first. A rule of one argument
    writes over that; of a joint rule it is the first argument's, and its first gradient is then the new one.
    """

    __slots__ = ("function", "needs", "key", "into", "wants")

    def __init__(self, function: Callable[..., Any], key: str) -> None:
        names = tuple(inspect.signature(function).parameters)[1:]
        self.function, self.key, self.into = function, key, f"{key}+"
        self.wants = "wants" in names                   # a joint rule may ask which gradients are wanted
        self.needs = tuple(n for n in names if n != "wants")


class Plan:
    """What one application keeps, given which arguments want gradients; worked out once per combination.

    steps: for each rule to run, the argument it is for (None: all of them), the rule, and where what it is given lies. given: the
    residuals that go to one rule and to nobody else, so that it may give them away.
    """

    __slots__ = ("wanted", "names", "sources", "steps", "watched", "replay", "given")

    def __init__(self, op: Op, wanted: tuple[bool, ...]) -> None:
        keep: dict[str, None] = {}
        rules = [(None, op.joint)] if op.joint else [(i, op.rules[op.args[i]]) for i, w in enumerate(wanted) if w]
        for _, rule in rules:
            keep.update((n, None) for n in rule.needs if n not in op.settings)
        self.replay = op.definition is not None and any(op.source(n)[0] == "extra" for n in keep)
        if self.replay:                                 # a by-product has no derivative: the definition is run again
            keep.update((n, None) for n in op.args)
        self.wanted, self.names = wanted, tuple(keep)
        self.sources = tuple(op.source(n) for n in keep)
        kept = tuple(at for kind, at in self.sources if kind == "arg")
        self.watched = tuple(range(len(wanted))) if ("args", None) in self.sources else kept
        self.steps = tuple((i, rule, self._places(rule.needs, op)) for i, rule in rules)
        self.given = tuple(k for k, (kind, n) in enumerate(self.sources)
                           if kind == "extra" and not op.joint and [n in rule.needs for _, rule in rules].count(True) == 1)

    def _places(self, needs: tuple[str, ...], op: Op) -> slice | tuple[int | str, ...]:
        """Where a rule's arguments are: a run of residuals, or places among them and names of settings."""
        places = tuple(n if n in op.settings else self.names.index(n) for n in needs)
        run = tuple(range(k := self.names.index(needs[0]), k + len(needs))) if needs and needs[0] in self.names else ()
        return slice(run[0], run[-1] + 1) if places == run and run else places


def unshared(value: Any) -> Any:
    """`value` without an array or a list that its owner can still write: these are copied, also inside tuples and lists."""
    kind = type(value)
    if kind is tuple:
        return value if IMMUTABLE.issuperset(map(type, value)) else tuple(map(unshared, value))
    if kind is list:
        return list(map(unshared, value))
    here = known.get(kind)
    return here.array(value) if here is not None and kind not in here.scalar_types else value


def versions(watched: Iterable[int], nodes: Any) -> int:
    """The sum of the versions of the leaves that the watched nodes are, or are views of.

    Versions only grow, so equal sums mean equal versions.
    """
    total = 0
    for i in watched:
        node = nodes[i] if i < len(nodes) else None
        if node is not None:
            leaf = node if type(node) is Leaf else node.leaf
            if leaf is not None:
                total += leaf.version
    return total
