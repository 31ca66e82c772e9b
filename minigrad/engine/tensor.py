"""Tensor: a Value with a place in the graph: leaves, their gradients, and the backward pass.

It knows of no op; `minigrad.ops` attaches the operators and methods.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .. import backend
from ..backend.base import FLOATS
from ..errors import DeviceError, DTypeError, GraphError, ShapeError
from . import refusals
from .copies import Copies
from .graph import Leaf, backprop
from .hooks import Hooked, hooked, leaf_hook, turns

if TYPE_CHECKING:
    from ..ops.methods import Methods  # which minigrad.ops attaches

    class Base(Methods, Copies): ...  # type: ignore[misc]
else:
    Base = Copies

_adding = threading.Lock()              # held while a gradient is added to .grad: read and written


class Tensor(Base):
    """An array with a place in a graph.

    array: the value, of some backend. node: None for a constant. `minigrad.tensor` makes one.
    """

    __slots__ = ()

    # ── leaves ──
    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, on: bool) -> None:
        self.requires_grad_(on)

    def requires_grad_(self, on: bool = True) -> Tensor:
        """Make this leaf want a gradient, or stop wanting one."""
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is no leaf; detach() it first")
        if on and self.node is None:
            if self.array.dtype.kind not in FLOATS:
                raise DTypeError("only floats have gradients; "
                                 f"this is {self.dtype}{list(self.shape)}")
            self.node = Leaf(self.shape, self.dtype)
        elif not on:
            if self.grad is not None:
                raise GraphError("requires_grad_(False) would forget .grad; set x.grad = None "
                                 "first, or zero_grad()")
            self.node = None
        return self

    def detach(self) -> Tensor:
        """A view of the same array as a constant.

        It shares the memory, but not the version: write nothing in place that a graph needs.
        """
        backend.of(self.array).at(self.array)
        return Tensor(self.array[...])

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `.backward()` has added up here; None before, and but for leaves."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if not isinstance(self.node, Leaf):
            raise GraphError("only a leaf that requires a gradient has .grad; make one with "
                             "requires_grad_()")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ShapeError(f".grad of {self.dtype}{list(self.shape)} cannot be "
                             f"{value.dtype}{list(value.shape)}")
        self.node.grad = value

    def assign(self, value: Any) -> Tensor:
        """Give this leaf another value of the same shape and dtype (an array of its backend, or a
        Tensor).

        Bumps the version, so that a graph which saved the old value refuses its backward pass. A
        plain array is copied; the memory of a Tensor is shared.
        """
        here, array = backend.of(self.array), value
        if isinstance(value, Tensor):
            array = value.array
        elif isinstance(value, here.array_types):
            array = here.array(value)
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is a result; only leaves are assigned to")
        if type(array) in here.scalar_types:            # what NumPy gives for an array of no axes
            array = here.adopt(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ShapeError(f"assign: the value is {array.dtype}{list(array.shape)}, the Tensor "
                             f"{self.dtype}{list(self.shape)}")
        self.array = array
        self.changed()
        return self

    def changed(self) -> None:
        """Declare that this leaf's array was written in place."""
        if self.node is not None:
            self.node.version += 1

    # ── hooks ──
    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        """Call hook(∂L/∂self) in each backward pass through self; a Tensor that it returns is used
        as the gradient instead.

        Hooks are called in the order in which they were registered, and go with the graph, so that
        there is nothing to remove. GraphError for a leaf, whose gradient is `.grad`, and for a
        constant. PyTorch's name.
        """
        node = self.node
        if node is None or isinstance(node, Leaf):
            raise GraphError("only a result that a gradient goes through takes a hook; "
                             "a leaf has .grad")
        if not isinstance(node.op, Hooked):
            node.op = Hooked(node.op)

        def passed(g: Any) -> Any:
            given = g if isinstance(g, Tensor) else Tensor(g)
            made = hook(given)
            if made is None:
                return g
            if made.shape != given.shape or made.dtype != given.dtype:
                raise ShapeError(f"a hook of {self.dtype}{list(self.shape)} gave "
                                 f"{made.dtype}{list(made.shape)}")
            return made if isinstance(g, Tensor) else made.array

        node.op.hooks.append(passed)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]
                                           ) -> Callable[[], None]:
        """Call hook(self) whenever a backward has added its whole share to `.grad` of this leaf,
        while it goes on with what is older.

        Returns a function that takes the hook away. GraphError for what is no leaf that requires a
        gradient. PyTorch's name.
        """
        leaf = self.node
        if not isinstance(leaf, Leaf):
            raise GraphError("only a leaf that requires a gradient has .grad to wait for; make one "
                             "with requires_grad_()")
        return leaf_hook(leaf, lambda: hook(self))

    # ── backward ──
    def backward(self, gradient: Any = None, retain_graph: bool = False,
                 create_graph: bool = False) -> None:
        """Add ∂self/∂leaf into `.grad` of every leaf that self depends on.

        gradient: the cotangent, of self's shape and dtype; may be left out when self is a scalar.
        GraphError when nothing here wants a gradient or the graph was walked already; ShapeError
        for a non-scalar.
        """
        if self.node is None:
            raise GraphError("backward: nothing that this was computed from requires a gradient")
        try:
            seed = self.seed(gradient)
        except MemoryError as error:
            backend.translate(error, "backward")
            raise
        grads = backprop(self.node, seed if create_graph else seed.array,
                         create_graph=create_graph, retain_graph=retain_graph,
                         early=turns([self.node]) if hooked else {}, arrived=accumulate)
        for leaf, (g, fresh) in grads.items():
            accumulate(leaf, g, fresh)                  # type: ignore[arg-type]

    def seed(self, gradient: Any = None) -> Tensor:
        """The cotangent that a backward pass from self starts with: `gradient` checked, or 1 for a
        scalar."""
        here = backend.of(self.array).at(self.array)
        if gradient is not None:
            return self._seeded(here, gradient)
        if self.shape != ():
            raise refusals.no_scalar(self)
        return Tensor(here.ones_like(self.array))

    def _seeded(self, here: Any, gradient: Any) -> Tensor:
        """The gradient that was given, checked; as another Tensor, for .grad may be it."""
        if isinstance(gradient, Tensor):
            g = Tensor(gradient.array, gradient.node)
        else:                                           # a copy: the caller may write to theirs
            dtype = None if hasattr(gradient, "dtype") else self.dtype
            g = Tensor(here.array(gradient, dtype=dtype))
        if g.shape != self.shape or g.dtype != self.dtype:
            raise ShapeError(f"backward: the gradient is {g.dtype}{list(g.shape)} but the result "
                             f"{self.dtype}{list(self.shape)}")
        if g.device != self.device:
            raise DeviceError(f"backward: the gradient is on {g.device} and the result on "
                              f"{self.device}; move one with .to()")
        return g


for _base in (Copies, *Copies.__bases__):               # their methods are a Tensor's to everybody
    for _name, _f in vars(_base).items():
        if isinstance(_f, FunctionType):
            _f.__qualname__ = f"Tensor.{_name}"


def accumulate(leaf: Leaf, g: Any, fresh: bool) -> None:
    """Add g to a leaf's .grad, and call its hooks. fresh: nobody else holds g's memory.

    .grad stays the same Tensor while no graph is behind it, as in PyTorch.
    """
    with _adding:
        if leaf.grad is None and not isinstance(g, Tensor):
            leaf.grad = Tensor(g if fresh else backend.of(g).array(g))
        else:
            leaf.grad = _added(leaf.grad, g)
    for hook in leaf.hooks:
        hook()


def _added(grad: Tensor | None, g: Any) -> Tensor:
    """A .grad and what a further, or a recorded, backward pass adds to it."""
    if isinstance(g, Tensor) or (grad is not None and grad.node is not None):
        g = g if isinstance(g, Tensor) else Tensor(g)
        return g if grad is None else grad + g
    assert grad is not None
    grad.array = backend.of(g).at(g).adopt(grad.array + g)
    return grad
