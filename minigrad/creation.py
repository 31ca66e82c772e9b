"""Tensors made of a size alone: zeros, ones, full, arange, linspace, eye, rand, randn.

Their names, arguments and dtypes are PyTorch's.
"""
from __future__ import annotations

from typing import Any

from . import backend, random
from .axes import whole
from .engine.making import tensor
from .engine.tensor import Tensor
from .errors import ShapeError


def _size(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes that are given one by one, or as one sequence.

    ShapeError for what is no whole number from 0 on.
    """
    given = size[0] if len(size) == 1 and not hasattr(size[0], "__index__") else size
    sizes = whole(given, f"{name}: the size")
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if any(n < 0 for n in sizes):
        raise ShapeError(f"{name}: a size is negative: {list(sizes)}")
    return sizes


def zeros(*size: Any, dtype: Any = "float32", device: str | None = None,
          requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros: zeros(2, 3) or zeros((2, 3))."""
    return full(_size("zeros", size), 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones(*size: Any, dtype: Any = "float32", device: str | None = None,
         requires_grad: bool = False) -> Tensor:
    """A Tensor of ones: ones(2, 3) or ones((2, 3))."""
    return full(_size("ones", size), 1, dtype=dtype, device=device, requires_grad=requires_grad)


def full(size: Any, fill_value: float, *, dtype: Any = None, device: str | None = None,
         requires_grad: bool = False) -> Tensor:
    """A Tensor of one number.

    dtype: float32 for a float, int64 for an int, bool for a bool, unless it is given.
    """
    kind = ("float32" if isinstance(fill_value, float) else
            "bool" if isinstance(fill_value, bool) else "int64")
    array = backend.cpu.full(_size("full", (size,)), fill_value, dtype=backend.dtype(dtype or kind))
    return tensor(array, device=device, requires_grad=requires_grad)


def zeros_like(x: Any, *, dtype: Any = None, device: str | None = None,
               requires_grad: bool = False) -> Tensor:
    """Zeros with the shape, the dtype and the device of x."""
    return full_like(x, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones_like(x: Any, *, dtype: Any = None, device: str | None = None,
              requires_grad: bool = False) -> Tensor:
    """Ones with the shape, the dtype and the device of x."""
    return full_like(x, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(x: Any, fill_value: float, *, dtype: Any = None, device: str | None = None,
              requires_grad: bool = False) -> Tensor:
    """One number, with the shape, the dtype and the device of x."""
    like = x if isinstance(x, Tensor) else tensor(x)
    return full(like.shape, fill_value, dtype=dtype or like.dtype, device=device or like.device,
                requires_grad=requires_grad)


def arange(start: float, end: float | None = None, step: float = 1, *, dtype: Any = None,
           device: str | None = None, requires_grad: bool = False) -> Tensor:
    """start, start + step, … below end; arange(n) is 0 … n − 1.

    dtype: int64 for ints, float32 where a float is among them, unless it is given.
    """
    start, end = (0, start) if end is None else (start, end)
    kind = "float32" if any(isinstance(n, float) for n in (start, end, step)) else "int64"
    return tensor(backend.cpu.arange(start, end, step), dtype=dtype or kind, device=device,
                  requires_grad=requires_grad)


def linspace(start: float, end: float, steps: int, *, dtype: Any = "float32",
             device: str | None = None, requires_grad: bool = False) -> Tensor:
    """`steps` numbers from start to end, both among them, at equal distances."""
    return tensor(backend.cpu.linspace(start, end, steps), dtype=dtype, device=device,
                  requires_grad=requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = "float32", device: str | None = None,
        requires_grad: bool = False) -> Tensor:
    """The identity matrix [n, n], or ones on the diagonal of [n, m]."""
    return tensor(backend.cpu.eye(n, m), dtype=dtype, device=device, requires_grad=requires_grad)


def rand(*size: Any, dtype: str = "float32", device: str = "numpy",
         requires_grad: bool = False) -> Tensor:
    """Numbers uniform in [0, 1) from the default stream; they are not PyTorch's numbers.

    `random.manual_seed` starts the stream anew.
    """
    made = random.uniform(random.next_key(), _size("rand", size), dtype=dtype, device=device)
    return made.requires_grad_() if requires_grad else made


def randn(*size: Any, dtype: str = "float32", device: str = "numpy",
          requires_grad: bool = False) -> Tensor:
    """Normal numbers from the default stream; they are not PyTorch's numbers.

    `random.manual_seed` starts the stream anew.
    """
    made = random.normal(random.next_key(), _size("randn", size), dtype=dtype, device=device)
    return made.requires_grad_() if requires_grad else made
