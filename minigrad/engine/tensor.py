"""Tensor: a Value that can be a leaf with a gradient, and from which a backward pass can start.

This file uses no op; `minigrad.ops` attaches the operators and methods.
"""
from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .. import backend
from ..backend.base import FLOATS
from ..errors import DeviceError, DTypeError, GraphError, ShapeError
from ..locks import lock
from . import refusals
from .copies import Copies
from .graph import Leaf, backprop
from .hooks import Hooked, hooked, leaf_hook, turns

if TYPE_CHECKING:
    from ..ops.methods import Methods  # which minigrad.ops attaches

    class Base(Methods, Copies): ...  # type: ignore[misc]
else:
    Base = Copies

_adding = lock()                        # held while a gradient is added to a .grad


class Tensor(Base):
    """An array and, unless it is a constant, its node in a graph.

    array: the value, an array of some backend. node: None for a constant. `minigrad.tensor` makes a
    Tensor.
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
            raise GraphError(f"{self.node!r} is not a leaf; detach() it first")
        if on and self.node is None:
            if self.array.dtype.kind not in FLOATS:
                raise DTypeError("only floats have gradients; "
                                 f"this is {self.dtype}{list(self.shape)}")
            self.node = Leaf(self.shape, self.dtype)
        elif not on:
            if self.grad is not None:
                raise GraphError("requires_grad_(False) would drop .grad; set x.grad = None "
                                 "first, or call zero_grad()")
            self.node = None
        return self

    def detach(self) -> Tensor:
        """A view of the same array as a constant.

        It shares the memory, but not the version: do not write into it if a graph needs the value.
        """
        backend.of(self.array).at(self.array)
        return Tensor(self.array[...])

    @property
    def grad(self) -> Tensor | None:
        """The sum of the gradients of all `.backward()` calls; None before, and if not a leaf."""
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
        """Set another value of the same shape and dtype: an array of the backend, or a Tensor.

        It also increases the version, so that the backward pass of a graph which saved the old
        value raises an error. A plain array is copied; the memory of a Tensor is shared.
        """
        here, array = backend.of(self.array), value
        if isinstance(value, Tensor):
            array = value.array
        elif isinstance(value, here.array_types):
            array = here.array(value)
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is a result; assign works only on leaves")
        if type(array) in here.scalar_types:            # NumPy's result for an array of no axes
            array = here.adopt(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ShapeError(f"assign: the value is {array.dtype}{list(array.shape)}, but the "
                             f"Tensor is {self.dtype}{list(self.shape)}")
        self.array = array
        self.changed()
        return self

    def changed(self) -> None:
        """Tell the engine that this leaf's array was changed in place."""
        if self.node is not None:
            self.node.version += 1

    # ── hooks ──
    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        """Call hook(∂L/∂self) in each backward pass through self, as in PyTorch.

        If the hook returns a Tensor, it replaces the gradient. Hooks are called in the order in
        which they were registered. They belong to the graph, so they need not be removed.
        GraphError for a leaf, whose gradient is `.grad`, and for a constant.
        """
        node = self.node
        if node is None or isinstance(node, Leaf):
            raise GraphError("register_hook is for a result that requires a gradient; "
                             "a leaf has .grad")
        if not isinstance(node.op, Hooked):
            node.op = Hooked(node.op)

        def passed(g: Any) -> Any:
            given = g if isinstance(g, Tensor) else Tensor(g)
            made = hook(given)
            if made is None:
                return g
            if made.shape != given.shape or made.dtype != given.dtype:
                raise ShapeError(f"a hook of {self.dtype}{list(self.shape)} returned "
                                 f"{made.dtype}{list(made.shape)}")
            return made if isinstance(g, Tensor) else made.array

        node.op.hooks.append(passed)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]
                                           ) -> Callable[[], None]:
        """Call hook(self) when a backward pass has added its whole gradient to this leaf's `.grad`.

        The pass goes on to older nodes after that. Returns a function that removes the hook.
        GraphError if self is not a leaf that requires a gradient. The name is PyTorch's.
        """
        leaf = self.node
        if not isinstance(leaf, Leaf):
            raise GraphError("register_post_accumulate_grad_hook is for a leaf that requires a "
                             "gradient; make one with requires_grad_()")
        return leaf_hook(leaf, lambda: hook(self))

    # ── backward ──
    def backward(self, gradient: Any = None, retain_graph: bool = False,
                 create_graph: bool = False) -> None:
        """Add ∂self/∂leaf to `.grad` of every leaf that self depends on.

        gradient: the cotangent, of self's shape and dtype; may be left out when self is a scalar.
        GraphError if nothing here requires a gradient, or if a backward pass has already used the
        graph; ShapeError for a non-scalar without `gradient`.
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
        """The cotangent for a backward pass from self: `gradient`, checked, or 1 for a scalar."""
        here = backend.of(self.array).at(self.array)
        if gradient is not None:
            return self._seeded(here, gradient)
        if self.shape != ():
            raise refusals.no_scalar(self)
        return Tensor(here.ones_like(self.array))

    def _seeded(self, here: Any, gradient: Any) -> Tensor:
        """`gradient`, checked; as a new Tensor, because it may become a leaf's .grad."""
        if isinstance(gradient, Tensor):
            g = Tensor(gradient.array, gradient.node)
        else:                                           # a copy: the caller may change the array
            dtype = None if hasattr(gradient, "dtype") else self.dtype
            g = Tensor(here.array(gradient, dtype=dtype))
        if g.shape != self.shape or g.dtype != self.dtype:
            raise ShapeError(f"backward: the gradient is {g.dtype}{list(g.shape)} but the result "
                             f"is {self.dtype}{list(self.shape)}")
        if g.device != self.device:
            raise DeviceError(f"backward: the gradient is on {g.device} and the result on "
                              f"{self.device}; move one with .to()")
        return g


for _base in (Copies, *Copies.__bases__):               # messages show these methods as Tensor's
    for _name, _f in vars(_base).items():
        if isinstance(_f, FunctionType):
            _f.__qualname__ = f"Tensor.{_name}"


def accumulate(leaf: Leaf, g: Any, fresh: bool) -> None:
    """Add g to a leaf's .grad, and call the leaf's hooks.

    fresh: nothing else uses g's memory. .grad stays the same Tensor unless it has a graph, as in
    PyTorch.
    """
    with _adding:
        if leaf.grad is None and not isinstance(g, Tensor):
            leaf.grad = Tensor(g if fresh else backend.of(g).array(g))
        else:
            leaf.grad = _added(leaf.grad, g)
    for hook in leaf.hooks:
        hook()


def _added(grad: Tensor | None, g: Any) -> Tensor:
    """The sum of a .grad and of what a later, or a recorded, backward pass adds to it."""
    if isinstance(g, Tensor) or (grad is not None and grad.node is not None):
        g = g if isinstance(g, Tensor) else Tensor(g)
        return g if grad is None else grad + g
    assert grad is not None
    grad.array = backend.of(g).at(g).adopt(grad.array + g)
    return grad
