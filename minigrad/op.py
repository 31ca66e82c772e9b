"""How an op is declared: a kernel, one rule per argument, and what is saved for backward.

What an op is: `engine.op`.

    @elementwise(a=lambda g, b: g * b, b=lambda g, a: g * a)
    def mul(xp, a, b): return a * b

A rule's signature is the list of residuals. It receives the cotangent `g` and then, by name, any of
the op's arguments, `out`, the shape of an argument (`a_shape`, which frees the data), the op's
keyword-only settings, or extras that the kernel returned in `Saved`. Nothing else is kept. Rules
are written with ops and operators, so the same text runs on bare arrays in an ordinary backward
pass and on Tensors when the gradient itself is differentiated.

A backend may have a faster kernel for an op, a faster rule, or one that adds to a gradient that is
there already (`Backend.kernels`). It returns NotImplemented in a case that it is not for, and the
op's own text is run.
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
        """What mypy knows of an op: called as its kernel is, without xp, it returns a Tensor."""

        def __call__(self, *args: P.args, **settings: P.kwargs) -> Tensor: ...

Constant = Any                          # annotates an argument without a gradient: ids, a mask


def _register(made: Op) -> Any:
    """Known by its name.

    One of the same module is replaced: a cell of a notebook is run again, a module reloaded.
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
    """Declare a kernel with hand-derived rules that promises to equal its definition by parts.

    definition: computes the same from other ops. check: raises on arguments that do not fit; it is
    called with them before whichever kernel is run. widens: floats of 16 bits give float32.
    """
    return lambda kernel: _register(FastOp(kernel, rules, definition=definition, joint=joint,
                                           check=check, widens=widens))
