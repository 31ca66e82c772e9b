"""Decorators that declare an op: a kernel, one rule per argument, and what is saved for backward.

`engine.op` explains what an op is.

    @elementwise(a=lambda g, b: g * b, b=lambda g, a: g * a)
    def mul(xp, a, b): return a * b

A rule's signature is the list of residuals. Its first argument is the cotangent `g`; the others
are, by name, any of the op's arguments, `out`, the shape of an argument (`a_shape`, for which no
data is saved), the op's keyword-only settings, or extras that the kernel returned in `Saved`.
Nothing else is saved for backward. Rules are written with ops and operators, so the same text runs
on bare arrays in an ordinary backward pass and on Tensors when the gradient itself is
differentiated.

A backend may have a faster kernel for an op, a faster rule, or a rule that adds to the gradient
summed so far (`Backend.kernels`). Such a kernel returns NotImplemented in a case that it does not
support; then the op's own text runs.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .backend.base import Saved as Saved
from .engine.declaration import REGISTRY
from .engine.declaration import Axis as Axis
from .engine.declaration import Flag as Flag
from .engine.declaration import Placed as Placed
from .engine.declaration import Rule as Rule
from .engine.declaration import Sizes as Sizes
from .engine.fast import FastOp
from .engine.op import Op

if TYPE_CHECKING:
    from typing import Concatenate, Generic, ParamSpec

    from .engine.tensor import Tensor

    P = ParamSpec("P")

    class Called(FastOp, Generic[P]):
        """The type of an op for mypy: its kernel's signature without xp, and a Tensor as result."""

        def __call__(self, *args: P.args, **settings: P.kwargs) -> Tensor: ...

Constant = Any                          # annotates an argument without a gradient: ids, a mask


def _register(made: Op) -> Any:
    """Put the op into the registry under its name.

    It may replace an op of the same module, for example when a notebook's cell is run again.
    """
    there = REGISTRY.get(made.name)
    if there is not None and there.__module__ != made.__module__:
        raise ValueError(f"an op called {made.name!r} exists already, in {there.__module__}; "
                         "give yours another name")
    REGISTRY[made.name] = made
    return made


def op(
    joint: Callable[..., Any] | None = None, **rules: Callable[..., Any],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Called[P]]:
    """Declare a primitive.

    rules: one per differentiable argument; or `joint`, one rule that returns all gradients in a
    tuple.
    """
    return lambda kernel: _register(FastOp(kernel, rules, joint=joint))


def elementwise(
    **rules: Callable[..., Any],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Called[P]]:
    """Declare an op that broadcasts.

    The engine undoes the broadcasting   (sum_to.4), so its rules never mention shapes.
    """
    return lambda kernel: _register(FastOp(kernel, rules, elementwise=True))


def fused(
    definition: Callable[..., Any], joint: Callable[..., Any] | None = None, *,
    check: Callable[..., None] | None = None, widens: bool = False, **rules: Callable[..., Any],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Called[P]]:
    """Declare a kernel with hand-derived rules that computes the same as its unfused definition.

    definition: computes the same from other ops. check: is called with the arguments before any
    kernel; it raises an error if they do not fit. widens: for floats of 16 bits the result is
    float32.
    """
    return lambda kernel: _register(FastOp(kernel, rules, definition=definition, joint=joint,
                                           check=check, widens=widens))
