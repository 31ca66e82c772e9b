"""What a call saves for the backward pass: which residuals its rules name, where each comes from,
and how their values stay true until then."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..backend import known
from . import checks
from .declaration import Rule
from .graph import Node, leaf_under

if TYPE_CHECKING:
    from .op import Op

IMMUTABLE = frozenset((int, float, bool, type(None), str, slice, type(...)))

# Where a residual comes from, given its place, the arguments, the result, and by-products by name.
SOURCES: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "arg": lambda i, arrays, out, extra: arrays[i] if i < len(arrays) else None,
    "shape": lambda i, arrays, out, extra: getattr(arrays[i], "shape", ()),
    "dtype": lambda i, arrays, out, extra: arrays[i].dtype,
    "args": lambda i, arrays, out, extra: tuple(arrays),
    "shapes": lambda i, arrays, out, extra: tuple(a.shape for a in arrays),
    "out": lambda i, arrays, out, extra: out,
    "extra": lambda name, arrays, out, extra: extra[name],
}


class Plan:
    """What a call saves, given which of its arguments want gradients; worked out once for each op.

    rules: the rule of each argument that wants a gradient, or one for all of them, (None, joint).
    names, sources: of the residuals, and where each comes from. kept: the arguments whose arrays
    are saved; watched: those of them that a later change would make wrong. replay: a second
    derivative runs the op's definition again.
    """

    def __init__(self, op: Op, wanted: tuple[bool, ...]) -> None:
        self.rules: list[tuple[int | None, Rule]] = [(None, op.joint)] if op.joint else [
            (i, op.rules[op.args[i]]) for i, w in enumerate(wanted) if w]
        names = [n for _, rule in self.rules for n in rule.needs if n not in op.settings]
        self.replay = op.definition is not None and any(op.source(n)[0] == "extra" for n in names)
        if self.replay:                                 # a by-product has no derivative of its own
            names += op.args
        self.wanted, self.names = wanted, tuple(dict.fromkeys(names))
        self.sources = tuple(op.source(n) for n in self.names)
        self.kept = tuple(at for kind, at in self.sources if kind == "arg")
        if ("args", None) in self.sources:
            self.kept = tuple(range(len(wanted)))
        self.watched = tuple(i for i in self.kept if i < len(wanted) and wanted[i])

    def collect(self, op: Op, arrays: Sequence[Any], args: Sequence[Any], out: Any,
                extra: Any) -> tuple[Any, ...]:
        """The residuals of a call. args: as they were given; a bare array among them is copied
        where it is saved, for the caller may write it before the backward pass."""
        bare = [i for i in self.kept if i < len(args) and args[i] is arrays[i]]
        if bare:
            arrays = [unshared(a) if i in bare else a for i, a in enumerate(arrays)]
        try:
            return tuple([SOURCES[kind](at, arrays, out, extra) for kind, at in self.sources])
        except (KeyError, TypeError):
            raise checks.no_residual(op, self, extra) from None

    def version(self, nodes: Any) -> int:
        """The sum of the versions of the leaves that are saved, themselves or views of them.

        Versions only grow, so equal sums mean equal versions.
        """
        leaves = [leaf_under(nodes[i]) for i in self.watched]
        return sum([leaf.version for leaf in leaves if leaf is not None])

    def given(self, rule: Rule, node: Node, saved: Iterable[Any]) -> tuple[Any, ...]:
        """What a rule is called with, after the cotangent: residuals and settings."""
        named = {**node.static, **dict(zip(self.names, saved)), "wants": self.wanted}
        return tuple([named[n] for n in rule.needs + ("wants",) * rule.wants])


def unshared(value: Any) -> Any:
    """`value` without an array or a list that its owner can still write; these are copied, also
    inside tuples and lists."""
    kind = type(value)
    if kind is tuple:
        return value if IMMUTABLE.issuperset(map(type, value)) else tuple(map(unshared, value))
    if kind is list:
        return list(map(unshared, value))
    here = known.get(kind)
    return here.array(value) if here is not None and kind not in here.scalar_types else value


def unshared_settings(settings: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The settings; those of these names that hold arrays or lists of the caller are copied."""
    loose = {n: unshared(settings[n]) for n in names if type(settings[n]) not in IMMUTABLE}
    return {**settings, **loose} if loose else settings
