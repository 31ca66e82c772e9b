"""Derivatives of the ops that move elements and compute nothing.

Such an op is a matrix of zeros and ones, and the derivative uses the transpose of that matrix.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .. import backend
from ..axes import index
from ..engine.tensor import Tensor
from ..errors import ShapeError
from ..hints import instead
from ..op import Op, Placed, Sizes, op


def place(axis: int, ndim: int, what: str) -> int:
    """The number of the axis `axis` among `ndim` axes, counted from the first.

    ShapeError if there is no such axis; its message begins with `what`.
    """
    axis = index(axis, f"{what}: axis")
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{what}: there is no axis {axis} among {ndim} axes")
    return axis % ndim


@op(x=lambda g: g)
def identity(xp, x):
    """x itself, as a new node of the graph."""
    return x


@op(x=lambda g, device, source: to_op(g, device=source, source=device))
def to_op(xp, x, *, device, source):
    """A copy of x on another device; the gradient is copied back to `source`, the device of x."""
    there = backend.get(device)
    return there.array(x if there.backend is xp else xp.host(x))


def to(x: Any, device: str) -> Any:
    """x on `device` ("numpy", "cupy", "cupy:N"); x itself if it is already there.

    BackendUnavailable if the device cannot be used.
    """
    return x if x.device == str(backend.get(device)) else to_op(x, device=device, source=x.device)


@op(x=lambda g, x_shape: reshape(g, shape=x_shape))
def reshape(xp, x, shape: Sizes):
    """x's elements, in order, in another shape; one size may be −1."""
    return xp.reshape(x, shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """x with the axes from start_dim to end_dim merged into one, as in PyTorch.

    A Tensor without axes becomes a vector of one element.
    """
    if x.ndim == 0:
        return reshape(x, shape=(1,))
    first, last = place(start_dim, x.ndim, "flatten"), place(end_dim, x.ndim, "flatten")
    if first > last:
        raise ShapeError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    one = math.prod(x.shape[first:last + 1])
    return reshape(x, shape=(*x.shape[:first], one, *x.shape[last + 1:]))


def squeeze(x: Any, dim: int | None = None) -> Any:
    """x without its axes of length 1, or without this one if it has length 1, as in PyTorch."""
    at = range(x.ndim) if dim is None else [place(dim, x.ndim, "squeeze")] if x.ndim else []
    return reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in at))


def unsqueeze(x: Any, dim: int) -> Any:
    """x with a new axis of length 1; dim is its number among the axes of the result."""
    at = place(dim, x.ndim + 1, "unsqueeze")
    return reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


@op(x=lambda g, axis0, axis1: transpose_op(g, axis0=axis0, axis1=axis1))
def transpose_op(xp, x, *, axis0=-2, axis1=-1):
    """x with two axes exchanged (a view)."""
    return xp.swapaxes(x, axis0, axis1)


def matrix_transpose(x: Any) -> Any:
    """x [..., n, m] with its last two axes exchanged, [..., m, n] (a view)."""
    return transpose_op(x)


def transpose(x: Any, axis0: int | None = None, axis1: int | None = None) -> Any:
    """x with two axes exchanged (a view), as in PyTorch; with at most two axes, none is passed.

    ShapeError for more than two axes if none is passed: NumPy would reverse them all.
    """
    if axis0 is None and axis1 is None:
        if x.ndim > 2:
            raise ShapeError(f"transpose: x is {x.dtype}{list(x.shape)}; with more than two axes "
                             "write x.mT to exchange the last two, x.transpose(i, j) for any two, "
                             f"or x.permute{tuple(reversed(range(x.ndim)))} to reverse them all")
        return transpose_op(x) if x.ndim == 2 else x
    if axis0 is None or axis1 is None:
        raise ShapeError("transpose: two axes are exchanged; pass both axis0 and axis1, as in "
                         "x.transpose(0, 1)")
    return transpose_op(x, axis0=axis0, axis1=axis1)


@op(x=lambda g, axes: permute(g, axes=_inverse(axes)))
def permute(xp, x, axes: Sizes):
    """x with its axes in the order `axes` (a view)."""
    if len(_several(axes)) != x.ndim:                   # CuPy takes () for all axes in reverse
        raise ShapeError(f"permute: axes must name each of the {x.ndim} axes once, not {axes}")
    return xp.transpose(x, axes)


def _several(sizes: int | Sequence[int]) -> Sequence[int]:
    return (sizes,) if isinstance(sizes, int) else sizes


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    order = [a % len(axes) for a in axes]
    return tuple(order.index(i) for i in range(len(order)))


@op(x=lambda g, x_shape: sum_to(g, shape=x_shape))
def broadcast_to(xp, x, shape: Sizes):
    """x repeated along new axes and axes of size 1 (a view): x_π(i)   (sum_to.2).

    Its transpose is sum_to   (sum_to.3).
    """
    if any(n < 0 for n in _several(shape)):             # CuPy would make an array of such a size
        raise ShapeError(f"broadcast_to: a size is negative: {shape}; write every size")
    return xp.broadcast_to(x, shape)


@op(x=lambda g, x_shape: broadcast_to(g, shape=x_shape))
def sum_to(xp, x, *, shape):
    """x summed over the axes along which `shape` was repeated   (sum_to.1).

    It is the transpose of broadcast_to   (sum_to.3).
    """
    lead = x.ndim - len(shape)
    repeated = [i for i, n in enumerate(shape, lead) if n == 1 and x.shape[i] != 1]
    axes = (*range(lead), *repeated)
    if axes:
        x = xp.sum(x, axis=axes, keepdims=True)
    return xp.reshape(x, shape)


@op(x=lambda g, x_shape: reshape(g, shape=x_shape))
def expand(xp, x, *, axis, ndim):
    """x, the result of a reduction over `axis`, with the reduced axes inserted again, of size 1.

    So x broadcasts to the input of the reduction. axis=None: all axes were reduced.
    """
    reduced = (axis,) if type(axis) is int else axis
    axes = range(ndim) if axis is None else [a % ndim for a in reduced]
    sizes = iter(x.shape)
    return xp.reshape(x, tuple(1 if i in axes else next(sizes) for i in range(ndim)))


def _concat_rule(g: Any, xs_shapes: Any, axis: int) -> Any:
    return split(g, sizes=[shape[axis] for shape in xs_shapes], axis=axis)


@op(joint=_concat_rule)
def concat_op(xp, *xs, axis=0):
    """The arrays joined along `axis`; the gradient is split where they were joined."""
    return xp.concatenate(xs, axis=axis)


@instead
def concat(xs: Sequence[Any], axis: int = 0) -> Any:
    """The Tensors xs joined along `axis`; their other sizes must be equal.

    ShapeError if these differ.
    """
    return concat_op(*xs, axis=axis)


@instead
def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """The Tensors xs, of one shape, along a new axis."""
    if not xs:
        raise ShapeError("stack: there is nothing to stack")
    at = place(axis, xs[0].ndim + 1, "stack")
    return concat([reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:])) for x in xs], axis=at)


@op(x=lambda g, axis: concat(g, axis=axis))
def split_op(xp, x, *, ends, axis):
    """x split along `axis` before each index in `ends`, as a tuple of views."""
    return tuple(xp.split(x, list(ends), axis=axis))


@instead
def split(x: Any, ambiguous: Any = None, *, sections: int | None = None,
          sizes: Sequence[int] | None = None, axis: int = 0) -> tuple[Any, ...]:
    """A tuple of views: x split along `axis` into `sections` equal parts, or into parts of `sizes`.

    One of the two must be passed by name: `split(x, 2)` means parts of size 2 in PyTorch and two
    parts in NumPy; `split(x, [1, 3])` means parts of these sizes in PyTorch and splits before these
    indices in NumPy. ShapeError if neither or both are passed, or if the sizes do not add up.
    """
    size = x.shape[place(axis, x.ndim, "split")]
    if ambiguous is not None:
        if hasattr(ambiguous, "__len__"):
            raise ShapeError(f"split: {ambiguous} are sizes in PyTorch and indices in NumPy; write "
                             f"sizes={ambiguous}, or call np.split(x, indices), which splits a "
                             "Tensor too")
        raise ShapeError(f"split: {ambiguous} is the size of each part in PyTorch and the number "
                         f"of parts in NumPy; write sections={ambiguous} for {ambiguous} equal "
                         f"parts, or sizes=[{ambiguous}, …] with the size of each")
    if (sections is None) == (sizes is None):
        raise ShapeError("split: write sections= for a number of equal parts, or sizes= for the "
                         "size of each part")
    if sections is not None:
        n = index(sections, "split: sections")
        if n < 1 or size % n:
            raise ShapeError(f"split: axis {axis} of {x.dtype}{list(x.shape)} cannot be cut into "
                             f"{n} equal parts")
        parts = [size // n] * n
    else:
        parts = [index(n, "split: sizes") for n in (() if sizes is None else sizes)]
        if sum(parts) != size or any(n < 0 for n in parts):
            raise ShapeError(f"split: sizes {parts} do not add up to {size}, axis {axis} of "
                             f"{x.dtype}{list(x.shape)}")
    cut: Any = split_op(x, ends=tuple(accumulate(parts[:-1])), axis=axis)
    return cut


@op(x=lambda g: join_heads(*g))
def split_heads(xp, x, *, heads, parts=1):
    """x [..., T, parts·h·d] split into parts of h heads: parts × [..., h, T, d]   (attention.8).

    The parts are views. With parts=3 they are Q, K and V.
    """
    *lead, T, width = x.shape
    if width % (parts * heads):
        raise ShapeError(f"split_heads: {width} numbers cannot be split into {parts} × {heads} "
                         "heads of equal size")
    cut = xp.reshape(x, (*lead, T, parts, heads, width // (parts * heads)))
    return tuple(xp.swapaxes(cut[..., i, :, :], -3, -2) for i in range(parts))


def _join_rule(g: Any, xs_shapes: Any) -> Any:
    return split_heads(g, heads=xs_shapes[0][-3], parts=len(xs_shapes))


@op(joint=_join_rule)
def join_heads(xp, *xs):
    """The transpose of split_heads: arrays [..., h, T, d] -> [..., T, len(xs)·h·d]   (attention.9).

    In the last axis all heads of the first array come first, then those of the second, and so on.
    """
    *lead, h, T, d = xs[0].shape
    side = [xp.swapaxes(x, -3, -2)[..., None, :, :] for x in xs]       # [..., T, 1, h, d]
    whole = side[0] if len(xs) == 1 else xp.concatenate(side, axis=-3)
    return xp.reshape(whole, (*lead, T, len(xs) * h * d))


@op(x=lambda g, diagonal: tril(g, diagonal=diagonal))
def tril(xp, x, diagonal: Placed = 0):
    """The lower triangle of the last two axes, up to `diagonal` above the main one; above it 0."""
    _matrix(x, "tril")
    return xp.tril(x, diagonal)


@op(x=lambda g, diagonal: triu(g, diagonal=diagonal))
def triu(xp, x, diagonal: Placed = 0):
    """The upper triangle of the last two axes, from `diagonal` above the main one; below it 0."""
    _matrix(x, "triu")
    return xp.triu(x, diagonal)


def _matrix(x: Any, what: str) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{what}: x is {x.dtype}{list(x.shape)}; at least two axes are needed")


def stop_gradient(x: Any) -> Any:
    """x as a constant: no gradient passes through it."""
    return x.detach() if isinstance(x, Tensor) else x


_op: Op
for _op in (identity, reshape, transpose_op, permute, broadcast_to, sum_to, expand, split_op,
            split_heads, join_heads):
    _op.view = True
for _op in (identity, to_op, reshape, transpose_op, permute, broadcast_to, expand, concat_op,
            split_op, split_heads, join_heads, tril, triu):
    _op.narrow = True
