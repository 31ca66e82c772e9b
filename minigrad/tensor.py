"""Tensor: an array and, perhaps, the node that made it. It knows of no op; `minigrad.ops` attaches the operators."""
from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import backend, hints
from .backend.base import FLOATS
from .engine.hooks import Hooked, hooked, turns
from .errors import DeviceError, DTypeError, GraphError, ShapeError
from .graph import Leaf, Node, backprop, state

_adding = threading.Lock()                              # held while a gradient is added to .grad: a sum is read and written


if TYPE_CHECKING:
    from .ops.methods import Methods  # which minigrad.ops attaches
else:
    Methods = object


class Tensor(Methods):
    """An array with a place in a graph.

    array: the value, of some backend. node: None for a constant. Make one with `minigrad.tensor`.
    """

    __slots__ = ("array", "node", "__weakref__")

    def __init__(self, array: Any, node: Node | None = None) -> None:
        self.array, self.node = array, node

    # ── what it is ──
    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def device(self) -> str:
        """"numpy", or "cupy:N"."""
        return backend.of(self.array).device(self.array)

    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, on: bool) -> None:
        self.requires_grad_(on)

    @property
    def is_leaf(self) -> bool:
        return self.node is None or self.node.op is None

    def numel(self) -> int:
        """The number of elements."""
        return self.array.size

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len() of a Tensor of no axes")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __index__(self) -> int:
        if self.dtype.kind not in "iu" or self.numel() != 1:
            raise TypeError(f"only one integer can be an index; this is {self.dtype}{list(self.shape)}")
        return self.item()

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("'Tensor' object does not support item assignment; type x = mg.where(mask, value, x), or p.assign(value)")

    def __format__(self, spec: str) -> str:
        """The one number in this format, as in f"{loss:.3f}"; without a format the Tensor as it prints."""
        return format(self.item(), spec) if spec else str(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name.startswith("__"):                   # of a protocol that Tensors do not speak
                raise AttributeError(name)
            raise hints.unknown("Tensor", name, hints.TENSOR, dir(type(self)))

    __hash__ = object.__hash__                          # by identity: == compares values

    def __repr__(self) -> str:
        text = repr(backend.of(self.array).host(self.array)).removeprefix("array(").removesuffix(")")
        place = "" if self.device == "numpy" else f", device={self.device!r}"
        how = "" if self.node is None else ", requires_grad=True" if self.node.op is None else f", node={self.node!r}"
        return f"tensor({text}{place}{how})"

    # ── out of the graph, out of the device ──
    def detach(self) -> Tensor:
        """A view of the same array as a constant. It shares the memory, but not the version: write nothing in place that a graph needs."""
        backend.of(self.array).at(self.array)
        return Tensor(self.array[...])

    def numpy(self) -> Any:
        """The value as a numpy.ndarray: a read-only view of its memory; from a GPU a copy.

        Copy the view to write it (`x.numpy().copy()`): a graph may still need the value.
        """
        host = backend.of(self.array).host(self.array)
        if host is self.array:
            host = host.view()
            host.flags.writeable = False
        return host

    def item(self) -> Any:
        """The one element as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item() needs one element; this is {self.dtype}{list(self.shape)}")
        return self.numpy().item()

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.device != "numpy":
            raise DeviceError(f"np.asarray of a Tensor on {self.device} would copy it silently; say .numpy() or .to(\"numpy\")")
        if self.node is not None and state.recording:
            raise GraphError("a NumPy function would lose the gradient of a Tensor that requires one; use minigrad's op, "
                             "or give it x.detach().numpy()")
        import numpy

        return numpy.array(self.numpy(), dtype=dtype, copy=copy)

    # ── copies ──
    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A Tensor with memory of its own; the copy of a leaf is a leaf of its own, with a copy of `.grad`, as in PyTorch."""
        made = self._remade(copy.deepcopy(self.array, memo))
        memo[id(self)] = made
        if isinstance(made.node, Leaf):
            made.node.grad = copy.deepcopy(self.grad, memo)
        vars_of(made).update(copy.deepcopy(vars_of(self), memo))
        return made

    def __copy__(self) -> Tensor:
        raise GraphError("copy.copy of a Tensor may mean two things: copy.deepcopy(x) has memory of its own, x.detach() shares it")

    def __reduce__(self) -> Any:
        """A pickled Tensor is its array, and whether it is a leaf: the number of a leaf means nothing in another process."""
        made = self._remade(self.array)                 # refuses a result
        return _unpickled, (type(self), made.array, made.node is not None), vars_of(self) or None

    def _remade(self, array: Any) -> Tensor:
        """A Tensor of self's class around `array`, a new leaf where self is one. GraphError for a result, whose graph is not copied."""
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is a result, and its graph cannot be copied; copy x.detach(), or compute it again")
        return _unpickled(type(self), array, self.node is not None)

    # ── in place ──
    def _become(self, symbol: str, made: Tensor) -> Tensor:
        """self after `self symbol= …`, whose value is `made`: what PyTorch's in-place operators do, or a refusal.

        A leaf that requires a gradient is written under no_grad only. Any other Tensor takes the value and the place in the graph
        of `made`; nothing that was computed from it before changes. GraphError for a view, whose base would have to change as well.
        """
        if not isinstance(made, Tensor):
            return made                                 # NotImplemented
        said = f"x {symbol}= …: x is"
        if made.shape != self.shape or made.dtype != self.dtype:
            raise ShapeError(f"{said} {self.dtype}{list(self.shape)} and the result {made.dtype}{list(made.shape)}; "
                             f"write x = x {symbol} …")
        if isinstance(self.node, Leaf):
            if state.recording:
                raise GraphError(f"{said} a leaf that requires a gradient; write x = x {symbol} … for a new result, or change "
                                 "the leaf inside `with minigrad.no_grad():`")
            backend.of(self.array).at(self.array)
            self.array[...] = made.array                # in its memory, which others may look into
            self.changed()
            return self
        if backend.of(self.array).owner(self.array) is not self.array and (self.node is None or self.node.op.view):
            raise GraphError(f"{said} a view, and what it is a view of would not change with it; write x = x {symbol} …")
        self.array = made.array
        if state.recording:
            self.node = made.node
        return self

    def __dlpack__(self, **options: Any) -> Any:
        if self.node is not None and state.recording:
            raise GraphError("another library would lose the gradient of a Tensor that requires one; give it x.detach()")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    # ── leaves ──
    @property
    def grad(self) -> Tensor | None:
        """The gradient that `.backward()` has added up here; None before, and for all but leaves."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if not isinstance(self.node, Leaf):
            raise GraphError("only a leaf that requires a gradient has .grad; make one with requires_grad_()")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ShapeError(f".grad of {self.dtype}{list(self.shape)} cannot be {value.dtype}{list(value.shape)}")
        self.node.grad = value

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        """Call hook(∂L/∂self) in each backward pass through self; a Tensor that it returns is used as the gradient instead.

        Hooks are called in the order in which they were registered, and go with the graph, so that there is nothing to remove.
        GraphError for a leaf, whose gradient is `.grad`, and for a constant. PyTorch's name.
        """
        node = self.node
        if node is None or isinstance(node, Leaf):
            raise GraphError("only a result that a gradient goes through takes a hook; a leaf has .grad")
        if not isinstance(node.op, Hooked):
            node.op = Hooked(node.op)

        def passed(g: Any) -> Any:
            given = g if isinstance(g, Tensor) else Tensor(g)
            made = hook(given)
            if made is None:
                return g
            if made.shape != given.shape or made.dtype != given.dtype:
                raise ShapeError(f"a hook of {self.dtype}{list(self.shape)} gave {made.dtype}{list(made.shape)}")
            return made if isinstance(g, Tensor) else made.array

        node.op.hooks.append(passed)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> Callable[[], None]:
        """Call hook(self) whenever a backward has added its whole share to `.grad` of this leaf, while it goes on with what is older.

        Returns a function that takes the hook away. GraphError for what is no leaf that requires a gradient. PyTorch's name.
        """
        leaf = self.node
        if not isinstance(leaf, Leaf):
            raise GraphError("only a leaf that requires a gradient has .grad to wait for; make one with requires_grad_()")

        def called() -> None:
            hook(self)

        leaf.hooks.append(called)
        hooked.add(leaf)

        def remove() -> None:
            if called in leaf.hooks:
                leaf.hooks.remove(called)
            if not leaf.hooks:
                hooked.discard(leaf)

        return remove

    def requires_grad_(self, on: bool = True) -> Tensor:
        """Make this leaf want a gradient, or stop wanting one."""
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is no leaf; detach() it first")
        if on and self.node is None:
            if self.array.dtype.kind not in FLOATS:
                raise DTypeError(f"only floats have gradients; this is {self.dtype}{list(self.shape)}")
            self.node = Leaf(self.shape, self.dtype)
        elif not on:
            if self.grad is not None:
                raise GraphError("requires_grad_(False) would forget .grad; set x.grad = None first, or zero_grad()")
            self.node = None
        return self

    def assign(self, value: Any) -> Tensor:
        """Give this leaf another value of the same shape and dtype (an array of its backend, or a Tensor).

        Bumps the version, so that a graph which saved the old value refuses its backward pass. A plain array is copied; the memory of a
        Tensor is shared.
        """
        here = backend.of(self.array)
        array = value.array if isinstance(value, Tensor) else here.array(value) if isinstance(value, here.array_types) else value
        if not self.is_leaf:
            raise GraphError(f"{self.node!r} is a result; only leaves are assigned to")
        if type(array) in here.scalar_types:            # what NumPy gives for an array of no axes
            array = here.adopt(array)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ShapeError(f"assign: the value is {array.dtype}{list(array.shape)}, the Tensor {self.dtype}{list(self.shape)}")
        self.array = array
        self.changed()
        return self

    def changed(self) -> None:
        """Declare that this leaf's array was written in place."""
        if self.node is not None:
            self.node.version += 1

    # ── backward ──
    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add ∂self/∂leaf into `.grad` of every leaf that self depends on.

        gradient: the cotangent, of self's shape and dtype; may be left out when self is a scalar.
        GraphError when nothing here wants a gradient or the graph was walked already; ShapeError for a non-scalar.
        """
        if self.node is None:
            raise GraphError("backward: nothing that this was computed from requires a gradient")
        try:
            seed = self.seed(gradient)
        except MemoryError as error:
            backend.translate(error, "backward")
            raise
        grads = backprop([(self.node, seed if create_graph else seed.array)], create_graph=create_graph, retain_graph=retain_graph,
                         early=turns([self.node]) if hooked else {}, arrived=accumulate)
        for leaf, (g, fresh) in grads.items():
            assert isinstance(leaf, Leaf)
            accumulate(leaf, g, fresh)

    def seed(self, gradient: Any = None) -> Tensor:
        """The cotangent that a backward pass from self starts with: `gradient` checked, or 1 for a scalar."""
        here = backend.of(self.array)
        here.at(self.array)
        if gradient is not None:
            return self._seeded(here, gradient)
        if self.shape != ():
            raise ShapeError(f"backward of {self.dtype}{list(self.shape)} needs a gradient argument; or reduce to a scalar first")
        one = here.empty_like(self.array)
        one[...] = 1.0
        return Tensor(one)

    def _seeded(self, here: Any, gradient: Any) -> Tensor:
        """The gradient that was given, checked; as another Tensor, for .grad may be it."""
        if isinstance(gradient, Tensor):
            g = Tensor(gradient.array, gradient.node)
        else:                                           # a copy: the caller may write to theirs while a graph still needs it
            g = Tensor(here.array(gradient, dtype=None if hasattr(gradient, "dtype") else self.dtype))
        if g.shape != self.shape or g.dtype != self.dtype:
            raise ShapeError(f"backward: the gradient is {g.dtype}{list(g.shape)} but the result {self.dtype}{list(self.shape)}")
        if g.device != self.device:
            raise DeviceError(f"backward: the gradient is on {g.device} and the result on {self.device}; move one with .to()")
        return g


def accumulate(leaf: Leaf, g: Any, fresh: bool) -> None:
    """Add g to a leaf's .grad, and call its hooks. fresh: nobody else holds g's memory.

    .grad stays the same Tensor while no graph is behind it, as in PyTorch.
    """
    with _adding:
        if isinstance(g, Tensor) or (leaf.grad is not None and leaf.grad.node is not None):
            g = g if isinstance(g, Tensor) else Tensor(g)
            leaf.grad = g if leaf.grad is None else leaf.grad + g
        elif leaf.grad is None:
            leaf.grad = Tensor(g if fresh else backend.of(g).array(g))
        else:
            backend.of(g).at(g)
            leaf.grad.array = backend.of(g).adopt(leaf.grad.array + g)
    for hook in leaf.hooks:
        hook()


class Parameter(Tensor):
    """A leaf that a Module finds among its attributes and an optimiser changes.

    value: a Tensor, whose memory it shares, or what `tensor` takes, which is copied.
    """

    __slots__ = ()

    def __init__(self, value: Any, requires_grad: bool = True) -> None:
        super().__init__(value.array if isinstance(value, Tensor) else tensor(value).array)
        self.requires_grad_(requires_grad)


def vars_of(tensor: Tensor) -> dict[str, Any]:
    """The attributes that a subclass with a __dict__ of its own has given to `tensor`."""
    return getattr(tensor, "__dict__", {})


def _unpickled(kind: type[Tensor], array: Any, requires_grad: bool) -> Tensor:
    """A Tensor of class `kind` around `array`; a new leaf of this process where it requires a gradient."""
    out = kind.__new__(kind)
    Tensor.__init__(out, array)
    return out.requires_grad_() if requires_grad else out


def tensor(value: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor holding a copy of `value`: numbers, nested lists, an array, a Tensor, or anything that speaks DLPack.

    dtype: kept from arrays; Python floats become float32, Python ints int64. device: "numpy", "cupy", "cupy:N"; kept
    from arrays, else "numpy". GraphError for a list that holds Tensors that require gradients: it would cut their graph.
    """
    dtype = backend.dtype(dtype)
    if isinstance(value, list | tuple) and _holds_gradients(value):
        raise GraphError("tensor: a list of Tensors that require gradients would lose them; use mg.stack([...]), or detach() them first")
    if isinstance(value, Tensor):
        value = value.array
    foreign = not hasattr(value, "dtype")
    if device is None:
        try:
            here, number = backend.of(value), 0
            number = int(here.device(value).partition(":")[2] or 0)
        except TypeError:
            here, number = backend.cpu, 0
    else:
        here, number = backend.get(device)
    if hasattr(value, "__dlpack__") and not isinstance(value, (*here.array_types, *backend.cpu.array_types)):
        value, foreign = _from_dlpack(value), False
    if not isinstance(value, here.array_types) and not foreign:
        value = backend.of(value).host(value)
    if foreign:                                         # numbers and lists become an array here before they travel
        value = backend.cpu.array(value, dtype=dtype)
        if dtype is None and value.dtype == "float64":
            value = value.astype("float32")
    array = here.array(value, dtype=dtype, device=number)
    if array.dtype.kind not in "iub" + FLOATS:
        raise DTypeError(f"tensor: numbers are needed, this is {array.dtype}")
    out = Tensor(array)
    return out.requires_grad_() if requires_grad else out


def _holds_gradients(values: Any) -> bool:
    """Whether there is a Tensor that requires a gradient in a list, at any depth."""
    if set(map(type, values)) <= {int, float, bool}:
        return False
    return any(v.node is not None if isinstance(v, Tensor) else isinstance(v, list | tuple) and _holds_gradients(v) for v in values)


def _from_dlpack(value: Any) -> Any:
    kind, _ = value.__dlpack_device__()
    library = backend.cpu if int(kind) == 1 else backend.get("cupy")[0]
    return library.namespace.from_dlpack(value)


def from_dlpack(value: Any) -> Tensor:
    """A constant Tensor that shares the memory of any object that speaks DLPack."""
    return Tensor(_from_dlpack(value))


def asarray(value: Any) -> Any:
    """The array inside a Tensor; an array as it is; numbers and lists as `tensor` makes them."""
    if isinstance(value, Tensor):
        return value.array
    return tensor(value).array if not hasattr(value, "dtype") else backend.of(value).adopt(value)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return state.recording
