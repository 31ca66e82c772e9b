"""How a Tensor is copied and pickled, and what `x += y` does to it."""
from __future__ import annotations

import copy
from typing import Any

from .. import backend
from ..errors import GraphError, ShapeError
from .graph import Leaf, state
from .value import Value


class Copies(Value):
    """A Value with PyTorch's rules for copying, pickling and in-place operators."""

    __slots__ = ()

    # ── copies ──
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A Tensor with its own memory.

        The copy of a leaf is a new leaf with a copy of `.grad`, as in PyTorch.
        """
        made = self._remade(copy.deepcopy(self.array, memo))
        memo[id(self)] = made
        if isinstance(made.node, Leaf):
            made.node.grad = copy.deepcopy(self.node.grad, memo)        # type: ignore[union-attr]
        vars_of(made).update(copy.deepcopy(vars_of(self), memo))
        return made

    def __copy__(self) -> Any:
        raise GraphError("copy.copy of a Tensor may mean two things: copy.deepcopy(x) has its own "
                         "memory, x.detach() shares the memory of x")

    def __reduce__(self) -> Any:
        """A pickled Tensor consists of its array and of whether it requires a gradient.

        The number of a leaf means nothing in another process, so it is left out.
        """
        made = self._remade(self.array)                 # GraphError for a result
        return _unpickled, (type(self), made.array, made.node is not None), vars_of(self) or None

    def _remade(self, array: Any) -> Any:
        """A Tensor of self's class around `array`; a new leaf if self is one.

        GraphError for a result, because its graph cannot be copied.
        """
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is a result, and its graph cannot be copied; copy "
                             "x.detach(), or compute it again")
        return _unpickled(type(self), array, self.node is not None)

    # ── in place ──
    def _become(self, symbol: str, made: Any) -> Any:
        """self after `self symbol= …`, with the value `made`, as PyTorch's in-place operators do.

        A leaf that requires a gradient can be written only under no_grad. Any other Tensor gets the
        value and the node of `made`; results that were computed from it before do not change.
        GraphError for a view, because its base would have to change as well.
        """
        if not isinstance(made, Value):
            return made                                 # NotImplemented
        said, here = f"x {symbol}= …: x is", backend.of(self.array)
        if made.shape != self.shape or made.dtype != self.dtype:
            raise ShapeError(f"{said} {self.dtype}{list(self.shape)} and the result is "
                             f"{made.dtype}{list(made.shape)}; write x = x {symbol} …")
        if isinstance(self.node, Leaf):
            if state.recording:
                raise GraphError(f"{said} a leaf that requires a gradient; write x = x {symbol} … "
                                 "for a new result, or change the leaf inside "
                                 "`with minigrad.no_grad():`")
            here.at(self.array)
            self.array[...] = made.array                # in place: others may share this memory
            self.node.version += 1
            return self
        view = here.owner(self.array) is not self.array
        if view and (self.node is None or self.node.op.view):
            raise GraphError(f"{said} a view, and the Tensor whose memory it shares would not "
                             f"change; write x = x {symbol} …")
        self.array = made.array
        if state.recording:
            self.node = made.node
        return self


def vars_of(tensor: Value) -> dict[str, Any]:
    """The attributes in the __dict__ of `tensor`; only instances of a subclass have one."""
    return getattr(tensor, "__dict__", {})


def _unpickled(kind: Any, array: Any, requires_grad: bool) -> Any:
    """A Tensor of class `kind` around `array`; a new leaf if it requires a gradient."""
    out = kind.__new__(kind)
    Value.__init__(out, array)
    return out.requires_grad_() if requires_grad else out
