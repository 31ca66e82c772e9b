"""The operators and methods of a Tensor: each calls the op of its name, with positional arguments.

`Tensor` itself uses no op, so that ops can import Tensor; `ops` attaches these when it is imported.
In the examples `x` is `mg.tensor([[1.0, 2.0], [3.0, 4.0]])`, of shape [2, 2].
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from .. import backend
from ..hints import instead, pytorchs
from ..op import Axis, Flag
from . import elementwise, index, linalg, reduce, shape

if TYPE_CHECKING:
    from typing import Unpack

    from ..engine.tensor import Tensor


class _Dims(TypedDict, total=False):
    """PyTorch's names of `axis` and `keepdims`."""

    dim: Axis
    keepdim: bool


def _over(names: Any, **settings: Any) -> dict[str, Any]:
    """The settings of a reduction; PyTorch's names are accepted too."""
    return pytorchs(names, settings) if names else settings


def _sizes(sizes: tuple[Any, ...]) -> Any:
    """Sizes or axes that were passed one by one or as one sequence."""
    one = len(sizes) == 1 and getattr(sizes[0], "__len__", None) and getattr(sizes[0], "ndim", 1)
    return sizes[0] if one else sizes


def _placed(name: str, axis: Any, *given: Any) -> tuple[Any, list[Any]]:
    """The axis, which was passed by name or as the first argument, and the other arguments."""
    others = [a for a in given if a is not None]
    at = axis if axis is not None else others.pop(0) if len(others) == len(given) else None
    if at is None or len(others) != len(given) - 1:
        needed = ", ".join(["index", "source"][:len(given) - 1])
        raise TypeError(f"{name}: write x.{name}(axis, {needed})")
    return at, others


class Methods:
    """The operators and methods that `attach` gives to `Tensor`."""

    __slots__ = ()

    # ── operators ──
    def __add__(self, other: Any) -> Tensor:
        """self + other, elementwise; the shapes broadcast."""
        return elementwise.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return elementwise.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        """self − other, elementwise; the shapes broadcast."""
        return elementwise.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return elementwise.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        """self · other, elementwise; the shapes broadcast."""
        return elementwise.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return elementwise.mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        """self / other, elementwise; the shapes broadcast."""
        return elementwise.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return elementwise.div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        """self to the power of other, elementwise; the shapes broadcast."""
        return elementwise.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return elementwise.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        """The product [..., n, k] @ [..., k, m]; a vector is a matrix of one row or column."""
        return linalg.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return linalg.matmul(other, self)

    # a comparison with None is NotImplemented: then Python compares identities, as with PyTorch
    def __eq__(self, other: Any) -> Any:
        """Whether each element equals the other's, as bool."""
        return NotImplemented if other is None else elementwise.equal(self, other)

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if other is None else elementwise.not_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return NotImplemented if other is None else elementwise.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return NotImplemented if other is None else elementwise.less_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return NotImplemented if other is None else elementwise.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return NotImplemented if other is None else elementwise.greater_equal(self, other)

    def __neg__(self) -> Tensor:
        return elementwise.neg(self)

    def __abs__(self) -> Tensor:
        return elementwise.abs(self)

    def __getitem__(self, key: Any) -> Tensor:
        """NumPy's indexing: a view for integers and slices, a copy for arrays of integers or bools.

        >>> x[0].tolist(), x[:, 1].tolist(), x[x > 2.0].tolist()
        ([1.0, 2.0], [2.0, 4.0], [3.0, 4.0])
        """
        return index.getitem(self, index=index.plain(key))

    # ── elementwise ──
    def exp(self) -> Tensor:
        """eˣ, elementwise."""
        return elementwise.exp(self)

    def log(self) -> Tensor:
        """The natural logarithm, elementwise."""
        return elementwise.log(self)

    def sqrt(self) -> Tensor:
        """√x, elementwise."""
        return elementwise.sqrt(self)

    def expm1(self) -> Tensor:
        """eˣ − 1, elementwise, to full precision near 0."""
        return elementwise.expm1(self)

    def log1p(self) -> Tensor:
        """log(1 + x), elementwise, to full precision near 0."""
        return elementwise.log1p(self)

    def sin(self) -> Tensor:
        """The sine, elementwise."""
        return elementwise.sin(self)

    def cos(self) -> Tensor:
        """The cosine, elementwise."""
        return elementwise.cos(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent, elementwise."""
        return elementwise.tanh(self)

    def erf(self) -> Tensor:
        """The error function, elementwise."""
        return elementwise.erf(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + e⁻ˣ), elementwise."""
        return elementwise.sigmoid(self)

    def relu(self) -> Tensor:
        """max(x, 0), elementwise; the gradient at 0 is 0."""
        return elementwise.relu(self)

    def abs(self) -> Tensor:
        """|x|, elementwise; the gradient at 0 is 0."""
        return elementwise.abs(self)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """x limited to [min, max]; None means no bound.

        >>> x.clip(2.0, 3.0).tolist()
        [[2.0, 2.0], [3.0, 3.0]]
        """
        return elementwise.clip(self, min=min, max=max)

    # ── reductions ──
    def sum(self, axis: Axis = None, keepdims: Flag = False, **names: Unpack[_Dims]) -> Tensor:
        """The sum over one axis, several or all; with keepdims these axes stay, with length 1.

        >>> x.sum().item(), x.sum(0).tolist(), x.sum(-1, keepdims=True).shape
        (10.0, [4.0, 6.0], (2, 1))
        """
        return reduce.sum(self, **_over(names, axis=axis, keepdims=keepdims))

    def mean(self, axis: Axis = None, keepdims: Flag = False, **names: Unpack[_Dims]) -> Tensor:
        """The mean over `axis`; the arguments are those of `sum`.

        >>> x.mean(0).tolist()
        [2.0, 3.0]
        """
        return reduce.mean(self, **_over(names, axis=axis, keepdims=keepdims))

    def var(self, axis: Axis = None, *, keepdims: Flag = False, correction: int | None = None,
            ddof: int | None = None, unbiased: Flag | None = None,
            **names: Unpack[_Dims]) -> Tensor:
        """The variance over `axis`, Σ (x − mean)² / (n − correction).

        One of these must be passed: correction, ddof (NumPy's name for it), or unbiased, which is
        True for a correction of 1.

        >>> x.var(0, correction=0).tolist()
        [1.0, 1.0]
        """
        correction = correction if unbiased is None else int(unbiased)
        return reduce.var(self, **_over(names, axis=axis, keepdims=keepdims,
                                       correction=correction, ddof=ddof))

    def std(self, axis: Axis = None, *, keepdims: Flag = False, correction: int | None = None,
            ddof: int | None = None, unbiased: Flag | None = None,
            **names: Unpack[_Dims]) -> Tensor:
        """The standard deviation, the square root of `var`, with the same arguments.

        >>> x.std(0, correction=0).tolist()
        [1.0, 1.0]
        """
        correction = correction if unbiased is None else int(unbiased)
        return reduce.std(self, **_over(names, axis=axis, keepdims=keepdims,
                                       correction=correction, ddof=ddof))

    def norm(self, *place: NoReturn, axis: Axis = None, keepdims: Flag = False,
             **names: Unpack[_Dims]) -> Tensor:
        """The Euclidean length √(Σ x²) over `axis`; its gradient at 0 is 0.

        The axis must be passed by name, because the first argument of PyTorch's norm is the order.

        >>> mg.tensor([3.0, 4.0]).norm().item()
        5.0
        """
        return reduce.norm(self, *place, **_over(names, axis=axis, keepdims=keepdims))

    def cumsum(self, axis: int | None = None, *, dim: int | None = None) -> Tensor:
        """Running sums along an axis.

        >>> x.cumsum(1).tolist()
        [[1.0, 3.0], [3.0, 7.0]]
        """
        return reduce.cumsum(self, dim if axis is None else axis)

    def argmax(self, axis: Axis = None, keepdims: Flag = False, **names: Unpack[_Dims]) -> Tensor:
        """The index of the largest element (the first one) along an axis or of all, as int64.

        >>> x.argmax(1).tolist(), x.argmax().item()
        ([1, 1], 3)
        """
        return reduce.argmax(self, **_over(names, axis=axis, keepdims=keepdims))

    def argmin(self, axis: Axis = None, keepdims: Flag = False, **names: Unpack[_Dims]) -> Tensor:
        """The index of the smallest element; the arguments are those of `argmax`."""
        return reduce.argmin(self, **_over(names, axis=axis, keepdims=keepdims))

    def max(self, *place: NoReturn, axis: Axis = None, keepdims: Flag = False,
            **names: NoReturn) -> Tensor:
        """The largest element over `axis`; equal ones share the gradient.

        The axis must be passed by name, because PyTorch's max(axis) returns indices too.

        >>> x.max(axis=1).tolist()
        [2.0, 4.0]
        """
        return reduce.max(self, *place, axis=axis, keepdims=keepdims, **names)

    def min(self, *place: NoReturn, axis: Axis = None, keepdims: Flag = False,
            **names: NoReturn) -> Tensor:
        """The smallest element over `axis`, which must be passed by name, as to `max`."""
        return reduce.min(self, *place, axis=axis, keepdims=keepdims, **names)

    def logsumexp(self, axis: Axis = None, keepdims: Flag = False,
                  **names: Unpack[_Dims]) -> Tensor:
        """log Σ eˣ over `axis`, without overflow."""
        return reduce.logsumexp(self, **_over(names, axis=axis, keepdims=keepdims))

    def prod(self, axis: Axis = None, keepdims: Flag = False) -> Tensor:
        """The product over `axis`; its derivatives are right even where elements are 0."""
        return reduce.prod(self, axis, keepdims)

    # ── shapes ──
    def reshape(self, *sizes: Any, **shapes: Any) -> Tensor:
        """The same elements in another shape, passed as sizes or as one tuple; one size may be −1.

        >>> x.reshape(4).shape, x.reshape((1, -1)).shape
        ((4,), (1, 4))
        """
        if sizes or not shapes:
            return shape.reshape(self, shape=_sizes(sizes), **shapes)
        return shape.reshape(self, **shapes)

    def view(self, *sizes: Any) -> Tensor:
        """`reshape` under PyTorch's name."""
        return shape.reshape(self, shape=_sizes(sizes))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """The Tensor with the axes from start_dim to end_dim merged into one."""
        return shape.flatten(self, start_dim, end_dim)

    def squeeze(self, dim: int | None = None) -> Tensor:
        """The Tensor without its axes of length 1, or without this one if it has length 1."""
        return shape.squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Tensor:
        """The Tensor with a new axis of length 1; dim is its number in the result.

        >>> x.unsqueeze(0).shape, x.unsqueeze(-1).shape
        ((1, 2, 2), (2, 2, 1))
        """
        return shape.unsqueeze(self, dim)

    def transpose(self, *axes: Any, **named: int) -> Tensor:
        """The Tensor with two axes exchanged (a view); for a matrix none is passed.

        ShapeError for more than two axes if none is passed.

        >>> x.transpose(0, 1).tolist()
        [[1.0, 3.0], [2.0, 4.0]]
        """
        if len(axes) > 2:
            raise TypeError(f"transpose exchanges two axes, but {len(axes)} were passed; "
                            f"x.permute{axes} puts all in another order")
        return shape.transpose(self, *axes, **named)

    def permute(self, *axes: Any) -> Tensor:
        """The axes in another order (a view), passed one by one or as one tuple."""
        return shape.permute(self, axes=_sizes(axes))

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix (a view)."""
        return shape.transpose(self)

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged (a view): x [..., n, m] as [..., m, n]."""
        return shape.matrix_transpose(self)

    @instead
    def split(self, ambiguous: Any = None, *, sections: int | None = None,
              sizes: Sequence[int] | None = None, axis: int = 0) -> tuple[Tensor, ...]:
        """A tuple of views: x split along `axis` into `sections` equal parts or parts of `sizes`.

        >>> [part.tolist() for part in x.split(sections=2)]
        [[[1.0, 2.0]], [[3.0, 4.0]]]
        """
        return shape.split(self, ambiguous, sections=sections, sizes=sizes, axis=axis)

    def tril(self, diagonal: int = 0) -> Tensor:
        """The lower triangle of each matrix, up to this diagonal, and 0 above."""
        return shape.tril(self, diagonal=diagonal)

    def triu(self, diagonal: int = 0) -> Tensor:
        """The upper triangle of each matrix, from this diagonal on, and 0 below."""
        return shape.triu(self, diagonal=diagonal)

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim                                # type: ignore[attr-defined]

    # ── by index ──
    def take(self, indices: Any, *, axis: int | None = None) -> Tensor:
        """The slices at integer `indices` along `axis`; the axes of `indices` replace that axis.

        Without an axis the elements of x, in order, are selected.

        >>> x.take(mg.tensor([1, 0]), axis=0).tolist()
        [[3.0, 4.0], [1.0, 2.0]]
        """
        return index.take(self, indices, axis=axis)

    def gather(self, dim: Any = None, index: Any = None, *, axis: int | None = None) -> Tensor:
        """out[i, j] = x[index[i, j], j] for axis 0, and so on.

        Write x.gather(0, index), as in PyTorch, or x.gather(index, axis=0).

        >>> x.gather(1, mg.tensor([[1], [0]])).tolist()
        [[2.0], [3.0]]
        """
        at, (index,) = _placed("gather", axis, dim, index)
        return _gather(self, index, axis=at)

    def scatter_add(self, dim: Any = None, index: Any = None, source: Any = None, *,
                    axis: int | None = None) -> Tensor:
        """x with source[i, j] added at [index[i, j], j] for axis 0, and so on.

        Where an index repeats, the sum is added. The axis is passed as to `gather`:
        x.scatter_add(0, index, source), or x.scatter_add(index, source, axis=0).
        """
        at, (index, source) = _placed("scatter_add", axis, dim, index, source)
        return _scatter_add(self, index, source, axis=at)

    def flip(self, *axes: Any) -> Tensor:
        """The elements in reverse order (a view) along axes passed one by one or as one tuple."""
        return index.flip(self, _sizes(axes))

    def argsort(self, axis: int = -1, descending: Flag = False) -> Tensor:
        """The indices that sort the elements along an axis, the smallest first, as int64."""
        return index.argsort(self, axis=axis, descending=descending)

    def topk(self, k: int, axis: int = -1) -> index.Sorted:
        """(values, indices) of the k largest elements along an axis, the largest first (PyTorch's).

        >>> x.topk(1).values.tolist()
        [[2.0], [4.0]]
        """
        return index.topk(self, k, axis)

    # ── dtypes and devices ──
    def astype(self, dtype: Any) -> Tensor:
        """The Tensor in another dtype; between floats the gradient is cast back.

        >>> str(x.astype("float64").dtype)
        'float64'
        """
        return elementwise.astype(self, dtype=dtype)

    def type_as(self, other: Any) -> Tensor:
        """The Tensor in the dtype of `other`; itself if it has this dtype already."""
        return elementwise.type_as(self, other)

    def to(self, other: Any) -> Tensor:
        """The Tensor on a device ("numpy", "cupy", "cupy:N") or in a dtype; itself if it is there.

        >>> x.to("numpy") is x, str(x.to("float64").dtype)
        (True, 'float64')
        """
        if backend.is_dtype(other):
            return elementwise.astype(self, dtype=other)
        return shape.to(self, other)

    def cpu(self) -> Tensor:
        """The Tensor in the memory of this machine; itself if it is there."""
        return shape.to(self, "numpy")

    def cuda(self, device: int | str = 0) -> Tensor:
        """The Tensor on the GPU with this number."""
        return shape.to(self, device if isinstance(device, str) else f"cupy:{device}")

    def float(self) -> Tensor:
        """The Tensor in float32."""
        return elementwise.astype(self, dtype="float32")

    def double(self) -> Tensor:
        """The Tensor in float64."""
        return elementwise.astype(self, dtype="float64")

    def half(self) -> Tensor:
        """The Tensor in float16."""
        return elementwise.astype(self, dtype="float16")

    def bfloat16(self) -> Tensor:
        """The Tensor in bfloat16."""
        return elementwise.astype(self, dtype="bfloat16")

    def long(self) -> Tensor:
        """The Tensor in int64."""
        return elementwise.astype(self, dtype="int64")

    def int(self) -> Tensor:
        """The Tensor in int32."""
        return elementwise.astype(self, dtype="int32")

    def bool(self) -> Tensor:
        """The Tensor in bool: whether each element is not 0."""
        return elementwise.astype(self, dtype="bool")


_gather, _scatter_add = index.gather, index.scatter_add     # their argument is called `index` too
IN_PLACE = {"add": ("+", elementwise.add), "sub": ("-", elementwise.sub),
            "mul": ("*", elementwise.mul), "truediv": ("/", elementwise.div),
            "pow": ("**", elementwise.power)}


def attach(kind: Any) -> None:
    """Give the class Tensor its operators and methods."""
    for name, f in vars(Methods).items():
        if callable(f) or isinstance(f, property):
            if callable(f):
                f.__qualname__ = f"{kind.__name__}.{name}"
            setattr(kind, name, f)
    for name, (symbol, f) in IN_PLACE.items():
        setattr(kind, f"__i{name}__", lambda a, b, f=f, symbol=symbol: a._become(symbol, f(a, b)))
