"""Everything that a file with a new op imports.

    from minigrad.extend import elementwise, faster

    @elementwise(x=lambda g, x: g * (2.0 * x))
    def square(xp, x):
        "x²."
        return x * x

    @faster(square)                     # on a CPU; square's own text stays its definition
    def _(xp, x):
        return xp.square(x)

`minigrad.testing.check(square, arrays())` then tests every law on it, on NumPy and on the fake GPU,
where a kernel fails that uses `np` instead of `xp`. docs/adding-an-op.md explains each step.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from . import backend
from .backend.cupy.table import KERNELS
from .op import REGISTRY, Axis, Constant, Flag, Op, Placed, Saved, Sizes, elementwise, fused, op

__all__ = ["Axis", "Constant", "Flag", "Placed", "Saved", "Sizes", "elementwise", "faster", "fused",
           "op"]
F = TypeVar("F", bound=Callable[..., Any])


def faster(of: Any, rule: str | None = None, *, on: str = "numpy",
           into_sum: bool = False) -> Callable[[F], F]:
    """Declare a faster kernel of an op or of one of its rules; a later one replaces an earlier one.

    of: the op, or its name. rule: an argument of the op, or "joint". on: "numpy" or "cupy". A
    kernel for the op has the arguments of the op's own kernel, `xp` first; a kernel for a rule has
    the rule's arguments, the cotangent first. into_sum: the kernel of a rule accumulates: it has
    one more argument in front, the gradient summed so far, and adds to it in place (`joint`: it
    does so for the op's first argument, and returns all gradients). A kernel returns NotImplemented
    in a case that it does not support; then the op's own text runs. ValueError for a rule or a
    backend that does not exist.
    """
    name = of.name if isinstance(of, Op) else of
    if name not in REGISTRY:
        raise ValueError(f"faster: there is no op called {name!r}")
    rules = [*REGISTRY[name].rules, *(["joint"] if REGISTRY[name].joint else [])]
    if rule is not None and rule not in rules:
        raise ValueError(f"faster: {name} has no rule {rule!r}; "
                         f"it has {', '.join(rules) or 'none'}")
    if on not in ("numpy", "cupy"):
        raise ValueError(f"faster: there is no backend {on!r}; choose numpy or cupy")
    if into_sum and rule is None:
        raise ValueError("faster: into_sum is for the kernel of a rule; name the rule")
    key = name if rule is None else f"{name}/{rule}{'+' if into_sum else ''}"

    def add(f: F) -> F:
        if on == "cupy":                                # its backend may not be loaded yet
            KERNELS[key] = f if rule is None else lambda xp, *given: f(*given)
        if (there := backend.loaded(on)) is not None:
            there.kernels[key] = f
        return f

    return add
