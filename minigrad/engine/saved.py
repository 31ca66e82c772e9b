"""What a call saves for backward: the residuals that its rules name, and their versions."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..backend import known
from . import refusals
from .declaration import Rule
from .graph import Node, leaf_under
from .tensor import Tensor

if TYPE_CHECKING:
    from .op import Op

IMMUTABLE = frozenset((int, float, bool, type(None), str, slice, type(...)))

# How a residual is taken from the op, an index or name, the arguments, the result and by-products.
SOURCES: dict[str, Callable[[Any, Any, Any, Any, Any], Any]] = {
    "arg": lambda op, i, args, out, extra: own(args[i]) if i < len(args) else None,
    "shape": lambda op, i, args, out, extra: getattr(args[i], "shape", ()),
    "dtype": lambda op, i, args, out, extra: args[i].dtype,
    "args": lambda op, _, args, out, extra: tuple(map(own, args)),
    "shapes": lambda op, _, args, out, extra: tuple(a.shape for a in args),
    "out": lambda op, _, args, out, extra: out,
    "extra": lambda op, name, args, out, extra: by_product(op, name, extra),
}


class Plan:
    """What a call saves; it depends on the op and on which arguments want gradients.

    rules: the rule of each argument that wants a gradient, or one rule for all: (None, joint).
    names: of the residuals. sources: where each residual comes from. watched: the arguments that
    are saved; a later change of one makes the gradient wrong. replay: a second derivative runs the
    op's definition again, because a by-product is not part of the graph.
    """

    def __init__(self, op: Op, wanted: tuple[bool, ...]) -> None:
        self.wanted = wanted
        self.rules: list[tuple[int | None, Rule]] = [(None, op.joint)] if op.joint else [
            (i, op.rules[op.args[i]]) for i, w in enumerate(wanted) if w]
        names = [n for _, rule in self.rules for n in rule.needs if n not in op.settings]
        self.replay = op.definition is not None and any(n not in op.named for n in names)
        self.names = tuple(dict.fromkeys([*names, *op.args] if self.replay else names))
        self.sources = tuple([op.source(n) for n in self.names])
        self.watched = tuple([i for i, w in enumerate(wanted) if w and
                              (("arg", i) in self.sources or ("args", None) in self.sources)])

    def version(self, nodes: Any) -> int:
        """The sum of the versions of the leaves that are saved, or of which views are saved.

        Versions only grow, so equal sums mean equal versions.
        """
        return sum([leaf.version for i in self.watched if (leaf := leaf_under(nodes[i]))])

    def given(self, rule: Rule, node: Node, saved: Iterable[Any]) -> tuple[Any, ...]:
        """The arguments of a rule after the cotangent: residuals and settings."""
        named = {**node.static, **dict(zip(self.names, saved)), "wants": self.wanted}
        return tuple([named[n] for n in rule.needs + ("wants",) * rule.wants])


def own(arg: Any) -> Any:
    """An argument as it is saved: a bare array is copied, because the caller may change it."""
    return arg.array if isinstance(arg, Tensor) else unshared(arg)


def unshared(value: Any) -> Any:
    """`value` with copies of its arrays and lists, also nested: the caller cannot change these."""
    kind = type(value)
    if kind is tuple:
        return value if IMMUTABLE.issuperset(map(type, value)) else tuple(map(unshared, value))
    if kind is list:
        return list(map(unshared, value))
    here = known.get(kind)
    return here.array(value) if here is not None and kind not in here.scalar_types else value


def unshared_settings(settings: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The settings; the arrays and lists in those with these names are copied."""
    loose = {n: unshared(settings[n]) for n in names if type(settings[n]) not in IMMUTABLE}
    return {**settings, **loose} if loose else settings


def by_product(op: Op, name: str, extra: Mapping[str, Any] | None) -> Any:
    """The by-product that the kernel saved under this name; TypeError if there is none."""
    if extra is None or name not in extra:
        raise refusals.no_residual(op, name)
    return extra[name]
