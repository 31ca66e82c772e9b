"""Value: an array and, perhaps, its node in a graph; and its conversions to numbers and arrays.

This file uses no op and no backward pass. `Tensor` is a Value with both.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import backend, hints
from ..errors import DeviceError, GraphError, ShapeError
from .graph import Node, state


class Value:
    """An array of some backend, and its node, which is None for a constant."""

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
        return str(backend.of(self.array).device(self.array))

    @property
    def is_leaf(self) -> bool:
        return self.node is None or self.node.op is None

    def numel(self) -> int:
        """The number of elements."""
        return self.array.size

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len() of a Tensor without axes; it has no length")
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))      # type: ignore[index]

    __hash__ = object.__hash__                          # by identity: == compares values

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("'Tensor' object does not support item assignment; write "
                        "x = mg.where(mask, value, x), or p.assign(value)")

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name.startswith("__"):                   # of a protocol that Tensors do not support
                raise AttributeError(name)
            raise hints.unknown("Tensor", name, hints.TENSOR, dir(type(self)))

    def __repr__(self) -> str:
        text = repr(backend.of(self.array).host(self.array))
        text = text.removeprefix("array(").removesuffix(")")
        place = "" if self.device == "numpy" else f", device={self.device!r}"
        how = ""
        if self.node is not None:
            how = ", requires_grad=True" if self.node.op is None else f", node={self.node!r}"
        return f"tensor({text}{place}{how})"

    # ── one number ──
    def item(self) -> Any:
        """The one element as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item() needs one element; this is {self.dtype}{list(self.shape)}")
        return self.numpy().item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu" or self.numel() != 1:
            raise TypeError("only one integer can be an index; "
                            f"this is {self.dtype}{list(self.shape)}")
        return self.item()

    def __format__(self, spec: str) -> str:
        """The one number in the format `spec`, as in f"{loss:.3f}"; str(self) without a spec."""
        return format(self.item(), spec) if spec else str(self)

    # ── all numbers ──
    def numpy(self) -> Any:
        """The value as a numpy.ndarray: a read-only view of the memory, or a copy from a GPU.

        To change the numbers, copy the view (`x.numpy().copy()`): a graph may still need them.
        """
        host = backend.of(self.array).host(self.array)
        if host is self.array:
            host = host.view()
            host.flags.writeable = False
        return host

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.device != "numpy":
            raise DeviceError(f"np.asarray of a Tensor on {self.device} would copy it silently; "
                              "write .numpy() or .to(\"numpy\")")
        if self.node is not None and state.recording:
            raise GraphError("a NumPy function would lose the gradient of a Tensor that requires "
                             "one; use minigrad's op, or pass x.detach().numpy()")
        import numpy

        return numpy.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.node is not None and state.recording:
            raise GraphError("another library would lose the gradient of a Tensor that requires "
                             "one; pass x.detach()")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()
