"""Derivatives of products: ∂L/∂A = G Bᵀ and ∂L/∂B = Aᵀ G for C = A B   (matmul.1–3)."""
from __future__ import annotations

import math
from typing import Any

from ..errors import ShapeError
from ..op import fused, op
from ..widen import in_float32, widened
from .shape import broadcast_to, matrix_transpose, reshape, sum_to


def _matmul_da(g: Any, b: Any, a_shape: tuple[int, ...]) -> Any:
    """G Bᵀ   (matmul.2), summed over the axes along which A was repeated   (matmul.4)"""
    return _product_to(g, matrix_transpose(b), a_shape)


def _matmul_db(g: Any, a: Any, b_shape: tuple[int, ...]) -> Any:
    """Aᵀ G   (matmul.3, .4)

    With a matrix b, the batch is one long axis that the product sums over   (matmul.5).
    """
    if len(b_shape) == 2:
        return matmul_op(matrix_transpose(_rows(a)), _rows(g))
    return _product_to(matrix_transpose(a), g, b_shape)


def _product_to(a: Any, b: Any, shape: tuple[int, ...]) -> Any:
    """A B, the gradient of an argument of this shape, summed over axes that were broadcast.

    If there are such axes, nothing is rounded before the sum.
    """
    if len(shape) < a.ndim or a.shape[:-2] != shape[:-2] or b.shape[:-2] != shape[:-2]:
        a, b = widened(a), widened(b)
    return sum_to(matmul_op(a, b), shape=shape)


def _rows(x: Any) -> Any:
    return reshape(x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


@op(a=_matmul_da, b=_matmul_db)
def matmul_op(xp, a, b):
    """A B over the last two axes; the others broadcast   (matmul.1).

    [n, k] @ [k, m] needs 2·n·k·m operations   (matmul.6).
    """
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"matmul: inner sizes differ: a is {a.dtype}{list(a.shape)}, b is "
                         f"{b.dtype}{list(b.shape)} ({a.shape[-1]} ≠ {b.shape[-2]})")
    if b.ndim == 2 and a.ndim > 2:                      # one large product, not many small ones
        rows = xp.reshape(a, (math.prod(a.shape[:-1]), a.shape[-1]))
        return xp.reshape(xp.matmul(rows, b), (*a.shape[:-1], b.shape[-1]))
    return xp.matmul(a, b)


def matmul(a: Any, b: Any) -> Any:
    """a @ b as in NumPy and PyTorch: the product of matrices in the last two axes, or of vectors.

    a [..., n, k], b [..., k, m] -> [..., n, m]. Batch axes broadcast; an argument with one axis is
    a vector. Both have one dtype. ShapeError if the inner sizes differ or an argument has no axes.
    """
    if not hasattr(a, "ndim") or not hasattr(b, "ndim") or a.ndim == 0 or b.ndim == 0:
        raise ShapeError("matmul: both arguments need at least one axis; use * for a scalar")
    left = reshape(a, shape=(1, a.shape[0])) if a.ndim == 1 else a
    right = reshape(b, shape=(b.shape[0], 1)) if b.ndim == 1 else b
    out = matmul_op(left, right)
    shape = list(out.shape)
    if a.ndim == 1:
        del shape[-2]
    if b.ndim == 1:
        del shape[-1]
    return out if len(shape) == out.ndim else reshape(out, shape=tuple(shape))


def _check_bias(name: str, bias: Any, size: int) -> None:
    if bias.shape != (size,):
        raise ShapeError(f"{name}: bias must be {bias.dtype}[{size}], not {list(bias.shape)}")


@in_float32
def addmm_unfused(bias: Any, x: Any, weight: Any) -> Any:
    """x W + b   (linear.1)"""
    return matmul_op(x, weight) + bias


def _check_addmm(bias: Any, x: Any, weight: Any) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(f"matmul: inner sizes differ: a is {x.dtype}{list(x.shape)}, b is "
                         f"{weight.dtype}{list(weight.shape)} ({x.shape[-1] if x.ndim else 1} ≠ "
                         f"{weight.shape[0] if weight.ndim else 1})")
    _check_bias("addmm", bias, weight.shape[1])


@fused(addmm_unfused, check=_check_addmm, bias=lambda g, bias_shape: sum_to(g, shape=bias_shape),
       x=lambda g, weight: matmul_op(g, matrix_transpose(weight)),
       weight=lambda g, x: matmul_op(matrix_transpose(_rows(x)), _rows(g)))
def addmm(xp, bias, x, weight):
    """x W + b; the bias is added to the product in place   (linear.1, .3, .4).

    bias [m], x [..., k], weight [k, m] -> [..., m].
    """
    out = xp.matmul(xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1])), weight)
    out += bias
    return xp.reshape(out, (*x.shape[:-1], weight.shape[1]))


def _check_linear(x: Any, weight: Any, bias: Any = None) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: inner sizes differ: x is {x.dtype}{list(x.shape)}, weight is "
                         f"{weight.dtype}{list(weight.shape)} ({x.shape[-1] if x.ndim else 1} ≠ "
                         f"{weight.shape[-1] if weight.ndim else 1})")
    if bias is not None:
        _check_bias("linear", bias, weight.shape[0])


@in_float32
def linear_unfused(x: Any, weight: Any, bias: Any = None) -> Any:
    """x Wᵀ + b   (linear.2)"""
    out = matmul_op(x, matrix_transpose(weight))
    return out if bias is None else out + bias


@fused(linear_unfused,
       x=lambda g, weight: matmul_op(g, weight),
       weight=lambda g, x: matmul_op(matrix_transpose(_rows(g)), _rows(x)),
       bias=lambda g, bias_shape: sum_to(g, shape=bias_shape), check=_check_linear)
def linear(xp, x, weight, bias=None):
    """x Wᵀ + b with the weight stored [out, in], as in torch.nn.functional.linear   (linear.2).

    x [..., k], weight [m, k], bias [m] or None -> [..., m]. The gradient of the weight is computed
    as [m, k], without a transpose   (linear.3, .5).
    """
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    out = xp.matmul(rows, xp.swapaxes(weight, 0, 1))
    if bias is not None:
        out += bias
    return xp.reshape(out, (*x.shape[:-1], weight.shape[0]))


def _einsum_rule(g: Any, xs: Any, subscripts: str, wants: Any) -> Any:
    """Each operand's gradient is the einsum of g and the other operands   (einsum.2).

    Along an index that only this operand has, the gradient is repeated.
    """
    inputs, output = subscripts.split("->")
    terms = inputs.split(",")
    grads: list[Any] = []
    for i, term in enumerate(terms):
        if not wants[i]:
            grads.append(None)
            continue
        others = [t for j, t in enumerate(terms) if j != i]
        present = "".join(c for c in term if c in output or any(c in t for t in others))
        subscript = ",".join([output, *others]) + "->" + present
        value = einsum_op(g, *[x for j, x in enumerate(xs) if j != i], subscripts=subscript)
        shape = tuple(n if c in present else 1 for c, n in zip(term, xs[i].shape))
        grads.append(broadcast_to(reshape(value, shape=shape), shape=xs[i].shape))
    return tuple(grads)


@op(joint=_einsum_rule)
def einsum_op(xp, *xs, subscripts):
    """Σ of products over the indices that `subscripts` names, "->" included   (einsum.1)."""
    if any(x.size == 0 for x in xs):                    # NumPy's einsum may return garbage
        inputs, output = subscripts.split("->")
        sizes = {c: n for term, x in zip(inputs.split(","), xs) for c, n in zip(term, x.shape)}
        return xp.zeros(tuple(sizes[c] for c in output), dtype=xs[0].dtype)
    out = xp.einsum(subscripts, *xs, optimize=len(xs) > 2)
    return out if len(xs) > 1 or xp.owns(out) else xp.array(out)        # else it may be a view


def einsum(subscripts: str, *xs: Any) -> Any:
    """Sums of products over named indices, as in einsum("bij,bjk->bik", a, b).

    ShapeError for "..." and for an index twice in one operand, which are not supported.
    """
    subscripts = subscripts.replace(" ", "")
    if "." in subscripts:
        raise ShapeError(f"einsum: {subscripts!r}: '...' is not supported; name every axis")
    inputs, arrow, output = subscripts.partition("->")
    if not arrow:
        output = "".join(sorted(c for c in set(inputs) if c != "," and inputs.count(c) == 1))
    terms = inputs.split(",")
    if len(terms) != len(xs):
        raise ShapeError(f"einsum: {subscripts!r} names {len(terms)} operands; {len(xs)} were "
                         "passed")
    sizes: dict[str, int] = {}
    for term, x in zip(terms, xs):
        if len(set(term)) != len(term):
            raise ShapeError(f"einsum: {subscripts!r}: an index stands twice in {term!r}, which is "
                             "not supported")
        if len(term) != x.ndim:
            raise ShapeError(f"einsum: {term!r} names {len(term)} axes of {x.dtype}{list(x.shape)}")
        for c, n in zip(term, x.shape):
            if sizes.setdefault(c, n) != n:
                shapes = ", ".join(str(list(y.shape)) for y in xs)
                raise ShapeError(f"einsum: {subscripts!r}: index {c!r} is {sizes[c]} long and {n} "
                                 f"long; the operands are {shapes}")
    return einsum_op(*xs, subscripts=f"{inputs}->{output}")

