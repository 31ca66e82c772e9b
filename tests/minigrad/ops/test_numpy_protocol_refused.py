"""NumPy's functions that no op is for: a gradient is never lost in one without a word, and constants are computed as NumPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.ops import numpy_protocol as protocol


def _dispatching() -> list[Any]:
    """Every function of NumPy that asks its arguments what it means for them."""
    found: dict[int, Any] = {}
    kinds = (type(np.sum), np.ufunc)
    for module in (np, np.linalg, np.fft):
        for name in dir(module):
            f = getattr(module, name)
            if isinstance(f, kinds) and not name.startswith("_"):
                found[id(f)] = f
    return sorted(found.values(), key=protocol.name_of)


CONSTANT = [f for f in _dispatching() if f.__name__ in protocol.CONSTANT]
KNOWN = {*protocol.FUNCTIONS, *protocol.OPERATORS, *protocol.UFUNCS, *CONSTANT}
OTHER = [f for f in _dispatching() if f not in KNOWN]


def test_there_is_something_to_refuse():
    """The walk through NumPy's names found its functions, and every hint is about one of them."""
    assert len(OTHER) > 150 and len(CONSTANT) > 40
    assert set(protocol.INSTEAD) <= {f.__name__ for f in OTHER} | {
        "matvec",
        "vecmat",
        "unstack",
    }  # not in NumPy 2.0
    assert protocol.CONSTANT <= {f.__name__ for f in CONSTANT}


UNREAD = {
    "real_if_close",
    "matrix_rank",
    "angle",
    "svd",
    "nan_to_num",
    "unique",
}  # whose second is a switch, or a tolerance
WRITES = (np.put, np.place, np.putmask, np.copyto, np.put_along_axis, np.fill_diagonal)
WITHIN = {
    "histogramdd": "np.linspace",
    "polyint": "np.atleast_1d",
    "full_like": "np.copyto",
    "nan_to_num": "np.copyto",
    "lstsq": "np.lstsq",
    "diff": "np.subtract",
}  # what they meet first


def _attempts(x: Any, f: Any) -> list[Any]:
    """Calls of every kind that a function might take, one Tensor at least in each."""
    a, i = np.ones(x.shape), np.zeros(x.shape, int)
    one: list[Any] = [x, [x, x], (x,)]
    calls = (
        [(o,) for o in one]
        + [(o, p) for o in one for p in (a, 1, x, i, [0], lambda y: y)]
        + [(x, 1, a), (x, a, a), (x, i, x)]
    )
    if f.__name__ in UNREAD:
        return calls
    if f in WRITES:
        return [(a, x), (a, i, x), (a, a > 0, x), (a, i, x, 0)]
    return (
        calls
        + [(p, o) for o in one for p in (a, 1, i, "ij->ij")]
        + [(lambda y: y, x, [0]), (i, [x, x])]
    )


def _lost(result: Any) -> bool:
    """Whether there is an array in a result."""
    if isinstance(result, tuple | list):
        return any(map(_lost, result))
    return isinstance(result, np.ndarray | np.generic)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("f", OTHER, ids=protocol.name_of)
def test_a_gradient_is_not_lost(f: Any, monkeypatch: pytest.MonkeyPatch):
    """Outside the table a Tensor that requires a gradient never becomes a plain array: one line says which function that was, and what
    to do. What NumPy does not ask about, such as Tensors in lists, it would convert."""

    def converted(self: Any, *args: Any, **options: Any) -> Any:
        raise TypeError("converted; x.detach().numpy()")

    monkeypatch.setattr(mg.Tensor, "__array__", converted)
    refused = 0
    for shape in ((3,), (2, 2)):
        for args in _attempts(mg.tensor(np.full(shape, 0.5), requires_grad=True), f):
            try:
                result = f(*args)
            except mg.GraphError as error:
                refused += 1
                assert protocol.name_of(f) in str(error) or WITHIN.get(f.__name__, "?") in str(
                    error
                )
                assert "x.detach().numpy()" in str(error) and "\n" not in str(error)
            except Exception as error:  # NumPy's own, where these arguments mean nothing
                refused += "x.detach().numpy()" in str(error)
            else:
                assert not _lost(result) and result is None, f"{protocol.name_of(f)}{args}"
    assert refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("f", OTHER, ids=protocol.name_of)
def test_without_a_gradient_it_is_numpys(f: Any):
    """What no gradient goes through is computed on the arrays: for constants the result is NumPy's, or its error."""
    if f in protocol.NO_OPERATORS or f in WRITES:
        pytest.skip("Tensors lack the operator, or the function writes into its argument")
    a = np.array([[0.25, 0.5], [1.0, 0.125]])
    with np.errstate(all="ignore"):
        try:
            expected: Any = f(a)
        except Exception as error:
            expected = type(error)
        try:
            result = f(mg.tensor(a))
        except Exception as error:
            result = type(error)
    assert repr(result) == repr(expected)


@pytest.mark.parametrize("f", CONSTANT, ids=protocol.name_of)
def test_what_is_flat_is_numpys(f: Any, tmp_path: Any):
    """Integers, bools, and what has a derivative of zero are computed on the arrays, also where a gradient is wanted."""
    a = np.array([[0.25, 0.5], [1.0, 0.125]])
    if f.__name__.startswith("save"):
        f(tmp_path / "x", mg.tensor(a, requires_grad=True))
        assert list(tmp_path.iterdir())
        return
    tried = 0
    for make in (
        lambda x: (x,),
        lambda x: (x, x),
        lambda x: (x, x[0]),
        lambda x: (x[0], 0.5),
        lambda x: (x, 1),
        lambda x: ("ij,jk", x, x),
        lambda x: (x[0], np.array([0.0, 1.0])),
        lambda x: (x, "float64"),
    ):
        if isinstance(f, np.ufunc) and len(make(a)) != f.nin:
            continue
        try:
            expected = f(*make(a))
        except Exception:
            continue
        if f.__name__ != "empty_like":
            assert repr(f(*make(mg.tensor(a, requires_grad=True)))) == repr(expected)
        tried += 1
    assert tried or f is np.isnat  # which is for dates


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: np.add(x, x, dtype="float64"), ["np.add", "dtype="]),
        (lambda x: np.exp(x, where=[True, False]), ["np.exp", "where="]),
        (lambda x: np.add.reduce(x), ["np.add.reduce"]),
        (lambda x: np.multiply.accumulate(x), ["np.multiply.accumulate"]),
        (lambda x: np.subtract.outer(x, x), ["np.subtract.outer"]),
        (lambda x: np.add.at(np.ones(2), [0], x[:1]), ["np.add.at"]),
        (lambda x: np.add.reduceat(x, [0]), ["np.add.reduceat"]),
        (lambda x: np.sum(x, dtype="float64"), ["np.sum", "dtype="]),
        (lambda x: np.sum(x, where=np.array([True, False])), ["np.sum", "where="]),
        (lambda x: np.max(x, initial=5.0), ["np.max", "initial="]),
        (lambda x: np.concatenate([x, x], dtype="float64"), ["np.concatenate", "dtype="]),
        (lambda x: np.reshape(x, (2, 1), order="F"), ["np.reshape", "order="]),
        (lambda x: np.mean(x, out=np.ones(())), ["np.mean", "out="]),
        (lambda x: np.take(x, [5], mode="clip"), ["np.take", "mode="]),
        (lambda x: np.linalg.norm(x, 1), ["np.linalg.norm"]),
        (lambda x: np.linalg.norm(x, ord=np.inf), ["np.linalg.norm"]),
        (lambda x: np.einsum(x, [0], x, [0]), ["np.einsum"]),
        (lambda x: np.clip(x, x, None), ["np.clip"]),
        (lambda x: np.clip(np.ones(2), x, 3.0), ["np.clip"]),
        (lambda x: np.cumprod(x), ["np.cumprod", "no op"]),
        (lambda x: np.arctan(x), ["np.arctan", "no op"]),
        (lambda x: np.full_like(x, x[0]), ["np.full_like"]),
        (lambda x: np.linspace(0.0, x[0], 3), ["np.linspace"]),
        (lambda x: np.copy(x), ["np.copy", "x itself"]),
        (lambda x: np.round(x), ["np.round"]),
        (lambda x: np.copyto(np.ones(2), x), ["np.copyto"]),
        (lambda x: np.tril(x), ["np.tril"]),
        (lambda x: np.var(x, ddof=1, correction=1), ["np.var"]),
    ],
)
def test_what_would_lose_a_gradient_is_refused_by_name(call: Any, words: list[str]):
    """out=, where=, dtype=, a ufunc's methods, another norm: one line with the name, and what to do."""
    with pytest.raises(mg.GraphError) as caught:
        call(mg.tensor([1.0, 2.0], requires_grad=True))
    assert all(w in str(caught.value) for w in [*words, "x.detach().numpy()"]) and "\n" not in str(
        caught.value
    )


def test_what_is_suggested_exists():
    """Every mg.name and np.name in a suggestion is one."""
    for text in protocol.INSTEAD.values():
        for word in text.replace("(", " ").replace(")", " ").split():
            library = {"mg": mg, "np": np}.get(word.partition(".")[0])
            assert library is None or hasattr(library, word.partition(".")[2]), word
