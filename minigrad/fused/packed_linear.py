"""A product of a few rows with a matrix that is stored as panels.

The panels store the matrix in the order in which such a product reads it.
"""
from __future__ import annotations

import math
from typing import Any

from ..errors import ShapeError
from ..op import fused
from ..ops.index import unslice
from ..ops.linalg import matmul_op
from ..ops.shape import matrix_transpose, permute, reshape, sum_to
from ..widen import in_float32

# rows; for more rows BLAS is as fast with the matrix as with its panels
FEW = 32


def unpack(panels: Any, size: int) -> Any:
    """The matrix W [k, size] of panels [P, q, c, w], k = q·c   (packed_linear.1).

    W[s·c + t, p·w + j] = panels[p, s, t, j].
    """
    P, q, c, w = panels.shape
    return reshape(permute(panels, axes=(1, 2, 0, 3)), shape=(q * c, P * w))[:, :size]


@in_float32
def packed_linear_unfused(x: Any, panels: Any, bias: Any = None, *, size: int) -> Any:
    """x W + b with W = unpack(panels)   (packed_linear.2)"""
    out = matmul_op(x, unpack(panels, size))
    return out if bias is None else out + bias


def _rows(x: Any) -> Any:
    return reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


def _packed_dpanels(g: Any, x: Any, panels_shape: tuple[int, ...], size: int) -> Any:
    """xᵀ g, as panels; 0 where the last panel is only padded   (packed_linear.3)"""
    P, q, c, w = panels_shape
    dweight = matmul_op(matrix_transpose(_rows(x)), _rows(g))                 # [k, size]
    filled = unslice(dweight, shape=(q * c, P * w), index=(slice(None), slice(size)))
    return permute(reshape(filled, shape=(q, c, P, w)), axes=(2, 0, 1, 3))


def _check_packed_linear(x: Any, panels: Any, bias: Any = None, *, size: int) -> None:
    """ShapeError unless panels [P, q, c, w] hold a matrix [k, size] for x [..., k].

    A bias must be [size].
    """
    if panels.ndim != 4 or x.ndim == 0 or x.shape[-1] != panels.shape[1] * panels.shape[2]:
        raise ShapeError(f"packed_linear: x {list(x.shape)} and panels {list(panels.shape)} do not "
                         "fit; x is [..., q·c], panels [P, q, c, w]")
    if not 0 <= size <= panels.shape[0] * panels.shape[3]:
        raise ShapeError(f"packed_linear: panels {list(panels.shape)} have "
                         f"{panels.shape[0] * panels.shape[3]} columns, not {size}")
    if bias is not None and bias.shape != (size,):
        raise ShapeError(f"packed_linear: bias must be {bias.dtype}[{size}], "
                         f"not {list(bias.shape)}")


@fused(packed_linear_unfused, check=_check_packed_linear,
       x=lambda g, panels, size: matmul_op(g, matrix_transpose(unpack(panels, size))),
       panels=_packed_dpanels, bias=lambda g, bias_shape: sum_to(g, shape=bias_shape))
def packed_linear(xp, x, panels, bias=None, *, size):
    """x W + b with W [k, size] stored as panels by `Backend.pack`   (packed_linear.2).
    x [..., k], bias [size] or None -> [..., size].

    The k terms of a sum are added up in q parts   (packed_linear.4). ShapeError if the shapes do
    not fit.
    """
    P, q, c, w = panels.shape
    n = math.prod(x.shape[:-1])
    rows = xp.swapaxes(xp.reshape(x, (n, q, c)), 0, 1)                 # [q, n, c]
    # [q, n, c] @ [P, q, c, w] -> [P, q, n, w] -> [P, n, w]
    parts = xp.sum(xp.matmul(rows, panels), axis=1)
    out = xp.reshape(xp.swapaxes(parts, 0, 1), (n, P * w))[:, :size]   # [n, P, w] -> [n, size]
    return xp.reshape(out if bias is None else out + bias, (*x.shape[:-1], size))
