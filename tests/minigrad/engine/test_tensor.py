"""Tensor: making one, its dtypes, its operators, what it says and refuses, and how it meets NumPy and PyTorch."""
from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad.engine.making import asarray


# ── making one ──
@pytest.mark.parametrize("value, dtype, shape", [
    (1.5, "float32", ()), (3, "int64", ()), (True, "bool", ()), ([1, 2], "int64", (2,)), ([1.0, 2], "float32", (2,)),
    ([[1.0], [2.0]], "float32", (2, 1)), ([], "float32", (0,)), ([True, False], "bool", (2,)), ((1.0, 2.0), "float32", (2,)),
    (np.float64(2.0), "float64", ()), (np.arange(3), "int64", (3,)), (np.ones((2, 0)), "float64", (2, 0)),
    (np.ones(2, np.float16), "float16", (2,)), (np.arange(3, dtype="uint8"), "uint8", (3,)),
    (torch.ones(2, 3), "float32", (2, 3)), (torch.ones(2, dtype=torch.float64), "float64", (2,)), (torch.arange(3), "int64", (3,)),
])
def test_what_a_tensor_is_made_of(value: Any, dtype: str, shape: tuple[int, ...]):
    """Python floats become float32 and ints int64; arrays, NumPy's scalars and PyTorch's tensors keep their dtype."""
    t = mg.tensor(value)
    assert isinstance(t, mg.Tensor) and t.dtype == dtype and t.shape == shape and t.ndim == len(shape)
    assert t.device == "numpy" and not t.requires_grad and t.is_leaf and t.grad is None
    assert t.numel() == int(np.prod(shape)) and isinstance(t.numpy(), np.ndarray)
    np.testing.assert_array_equal(t.numpy(), np.asarray(value))
    assert mg.tensor(t).shape == shape and mg.tensor(t).dtype == dtype


def test_a_tensor_is_a_copy():
    """tensor() copies: changing the list, array or Tensor it came from changes nothing."""
    a = np.ones(3)
    t, u = mg.tensor(a), mg.tensor(torch.from_numpy(a))
    v = mg.tensor(t)
    a[:] = 2.0
    assert t.tolist() == u.tolist() == v.tolist() == [1.0, 1.0, 1.0]
    assert not np.shares_memory(t.numpy(), v.numpy())


def test_dtype_device_and_gradient_can_be_asked_for():
    """dtype= converts, device= places, requires_grad= makes a leaf."""
    assert mg.tensor([1, 2], dtype="float64").dtype == "float64" and mg.tensor(np.ones(2), dtype=np.float32).dtype == "float32"
    assert mg.tensor([1.0], device="numpy").device == "numpy"
    t = mg.tensor([1.0], requires_grad=True)
    assert t.requires_grad and t.is_leaf and not t.requires_grad_(False).requires_grad


@pytest.mark.parametrize("value", [["a"], "abc", None, [1j], [[1.0], [2.0, 3.0]], object()])
def test_what_is_no_number_is_refused(value: Any):
    """Strings, objects, complex numbers and ragged lists make no Tensor; the message is one line."""
    with pytest.raises((TypeError, ValueError)) as caught:
        mg.tensor(value)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_refused():
    """Unknown names and numbers are a DeviceError that lists what there is."""
    for device, words in [("nonsense", "choose auto, numpy, cupy"), ("numpy:1", "one device"), ("numpy:x", "numpy:x"), ("", "choose")]:
        with pytest.raises(mg.DeviceError) as caught:
            mg.tensor([1.0], device=device)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_parameter_is_a_leaf_that_shares_a_tensors_memory():
    """Parameter takes a Tensor as it is, and wants a gradient unless told otherwise."""
    a = np.ones(2)
    p = mg.Parameter(mg.Tensor(a))
    assert p.requires_grad and p.is_leaf and p.array is a
    assert mg.Parameter(mg.Tensor(a), requires_grad=False).requires_grad is False


# ── operators ──
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scalar", [2, 0.5, True])
@pytest.mark.parametrize("f", OPERATORS, ids=lambda f: f.__name__)
def test_python_numbers_stand_on_either_side(f: Any, scalar: Any, dtype: str):
    """A Python number takes the Tensor's dtype, left or right, with the value and gradient that PyTorch gives."""
    x = np.array([0.5, 1.0, 2.0], dtype)
    t, u = mg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    for swap in (False, True):
        ours = f(scalar, t) if swap else f(t, scalar)
        theirs = f(float(scalar), u) if swap else f(u, float(scalar))
        assert ours.dtype == dtype
        close(ours, theirs, terms=4)
        (a,), (b,) = mg.gradients(ours.sum(), [t]), torch.autograd.grad(theirs.sum(), u)
        close(a, b, terms=8)


@pytest.mark.parametrize("f", [*OPERATORS, *COMPARISONS, operator.matmul], ids=lambda f: f.__name__)
def test_operators_are_numpys(f: Any):
    """Between Tensors, and between a Tensor and an array on either side, operators compute what NumPy does, as Tensors."""
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 2.0], [0.5, 4.0]])
    expected = f(a, b)
    for x, y in [(mg.tensor(a), mg.tensor(b)), (mg.tensor(a), b), (a, mg.tensor(b))]:
        result = f(x, y)
        assert isinstance(result, mg.Tensor) and result.dtype == expected.dtype
        np.testing.assert_array_equal(result.numpy(), expected)


def test_an_array_times_a_tensor_is_one_tensor():
    """NumPy asks us: no object array of Tensors, and a gradient comes through."""
    t = mg.tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = np.array([3.0, 4.0]) * t
    assert isinstance(y, mg.Tensor) and y.dtype == "float64"
    assert mg.gradients(y.sum(), [t])[0].tolist() == [3.0, 4.0]
    assert isinstance(np.float64(2.0) * t, mg.Tensor)


def test_moving_to_the_same_device_is_no_op():
    """.to() of the device that a Tensor is on is the Tensor itself; of one that is not there, an error."""
    t = mg.tensor([1.0], requires_grad=True)
    assert t.to("numpy") is t and t.to("numpy:0") is t
    with pytest.raises(mg.DeviceError):
        t.to("numpy:1")


@pytest.mark.parametrize("f", COMPARISONS, ids=lambda f: f.__name__)
def test_comparisons_give_bools(f: Any):
    """==, !=, <, … are elementwise, with numbers on either side, and have no gradient."""
    t = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    for result, expected in [(f(t, 2.0), f(t.numpy(), 2.0)), (f(2, t), f(2, t.numpy()))]:
        assert result.dtype == "bool" and result.tolist() == expected.tolist() and not result.requires_grad
    assert len({t, mg.tensor([1.0, 2.0, 3.0])}) == 2    # hashed by identity


def test_unary_operators():
    """-t and abs(t) are ops."""
    t = mg.tensor([1.0, -2.0])
    assert (-t).tolist() == [-1.0, 2.0] and abs(t).tolist() == [1.0, 2.0]


@given(st.sampled_from(["float16", "float32", "float64"]), st.sampled_from(["float16", "float32", "float64", "int64"]))
def test_dtypes_never_mix(a: str, b: str):
    """Two dtypes meet in no operator; a DTypeError of one line names both and the cast."""
    x, y = mg.tensor(np.ones(2), dtype=a), mg.tensor(np.ones(2), dtype=b)
    for f in (*OPERATORS, operator.matmul):
        if a == b:
            assert f(x, y).dtype == a
            continue
        with pytest.raises(mg.DTypeError) as caught:
            f(x, y)
        text = str(caught.value)
        assert a in text and b in text and f'.astype("{a}")' in text and "\n" not in text
        if b == "int64":                                # the advice is a cast to the float, whichever comes first
            with pytest.raises(mg.DTypeError, match=f'astype..{a}'):
                f(y, x)


def test_numpys_scalars_are_no_python_numbers():
    """np.float64 times a float32 Tensor is refused, not promoted in silence."""
    t = mg.tensor([1.0])
    for f in (lambda: t * np.float64(2.0), lambda: np.float64(2.0) * t, lambda: t + np.ones(1)):
        with pytest.raises(mg.DTypeError):
            f()
    assert (t * np.float32(2.0)).dtype == "float32"


def test_bools_mix_with_numbers():
    """A bool array is a mask, not a dtype of its own: times a float Tensor it keeps that Tensor's dtype."""
    t = mg.tensor([1.0, 2.0])
    assert (t * (t > 1.0)).dtype == "float32" and ((t > 1.0) * t).tolist() == [0.0, 2.0]


# ── methods are PyTorch's ──
def test_methods_are_pytorchs():
    """The methods that a user of PyTorch types, with its arguments."""
    a = np.arange(24.0).reshape(2, 3, 4) / 10.0
    t, u = mg.tensor(a), torch.tensor(a)
    for ours, theirs in [
        (t.reshape(6, 4), u.reshape(6, 4)), (t.reshape((4, -1)), u.reshape((4, -1))), (t.reshape(-1), u.reshape(-1)),
        (t.transpose(0, 2), u.transpose(0, 2)), (t.permute(2, 0, 1), u.permute(2, 0, 1)), (t.permute((1, 0, 2)), u.permute((1, 0, 2))),
        (t.mT, u.mT), (t[0].T, u[0].T), (t[0, 0].T, u[0, 0]), (t[..., 1:], u[..., 1:]), (t[:, None, -1], u[:, None, -1]),
        (t[np.array([1, 0])], u[[1, 0]]), (t[mg.tensor([1, 0])], u[[1, 0]]), (t[t > 1.0], u[u > 1.0]), (t.sum(), u.sum()),
        (t.sum(axis=1), u.sum(1)), (t.mean(axis=-1, keepdims=True), u.mean(-1, keepdim=True)), (t.var(axis=0, correction=1), u.var(0)),
        (t.max(axis=1), u.amax(1)), (t.min(), u.amin()), (t.prod(axis=0), u.prod(0)), (t.exp(), u.exp()), (t.sqrt(), u.sqrt()),
        (t.tanh(), u.tanh()), (t.sigmoid(), u.sigmoid()), (t.relu(), u.relu()), (t.erf(), u.erf()), ((t + 1.0).log(), (u + 1.0).log()),
        (t.abs(), u.abs()), (t.clip(min=0.5, max=1.0), u.clip(0.5, 1.0)), (t.logsumexp(axis=2), u.logsumexp(2)),
        (t.tril(), u.tril()), (t.triu(diagonal=1), u.triu(1)), (t.split(sections=2, axis=2)[1], u.split(2, dim=2)[1]),
        (t.take(np.array([1, 1]), axis=1), u.index_select(1, torch.tensor([1, 1]))), (t.astype("float32"), u.to(torch.float32)),
        (t.gather(np.zeros((1, 3, 4), int), axis=0), u.gather(0, torch.zeros((1, 3, 4), dtype=torch.int64))),
    ]:
        close(ours, theirs, terms=50)


def test_a_tensor_is_a_sequence_of_its_rows():
    """len and iteration go along the first axis; a Tensor of no axes has neither."""
    t = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(t) == 2 and [row.tolist() for row in t] == [[1.0, 2.0], [3.0, 4.0]]
    for f in (len, iter):
        with pytest.raises(mg.ShapeError):
            f(mg.tensor(1.0))


def test_a_tensor_of_one_element_is_a_number():
    """item, float, int and bool of one element; of several, a ShapeError that shows the shape."""
    t = mg.tensor([[2.5]])
    assert t.item() == float(t) == 2.5 and int(t) == 2 and bool(t) and not bool(mg.tensor(0))
    for f in (lambda t: t.item(), float, int, bool):
        with pytest.raises(mg.ShapeError, match=r"float32\[2\]"):
            f(mg.tensor([1.0, 2.0]))


def test_a_tensor_shows_itself():
    """repr shows numbers, dtype where it is not the usual one, and whether there is a gradient to be had."""
    t = mg.tensor([1.0, 2.0], requires_grad=True)
    assert repr(t) == "tensor([1., 2.], dtype=float32, requires_grad=True)"
    assert "mul" in repr(t * 2.0) and repr(mg.tensor([1, 2])) == "tensor([1, 2])"


# ── immutability ──
def test_a_tensor_cannot_be_written():
    """No item assignment, no new attributes, and the array that NumPy is given is read-only; a copy of it is not."""
    t = mg.tensor([1.0, 2.0])
    with pytest.raises(TypeError):
        t[0] = 5.0
    with pytest.raises(AttributeError):
        t.name = "x"
    for array in (t.numpy(), np.asarray(t)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5.0
    np.array(t)[0] = t.numpy().copy()[0] = 5.0
    assert t.tolist() == [1.0, 2.0]


def test_an_index_means_what_it_means_in_both_numpy_and_pytorch_or_is_refused():
    """Every combination of up to four integers, slices, None, ... and arrays: PyTorch's result, or a refusal where NumPy has another."""
    parts = {"i": 1, ":": slice(None), "n": None, "k": np.array([0, 1]), "...": ...}
    a = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    ours, theirs = mg.tensor(a), torch.tensor(a)
    refused = 0
    for n in range(1, 5):
        for key in itertools.product(parts, repeat=n):
            if key.count("...") > 1:
                continue
            wanted = theirs[tuple(torch.tensor([0, 1]) if k == "k" else parts[k] for k in key)].numpy()
            index = tuple(parts[k] for k in key)
            try:
                found = ours[index].numpy()
            except IndexError as error:
                assert "another order" in str(error)
                assert not np.array_equal(a[index], wanted), key
                refused += 1
            else:
                assert np.array_equal(found, wanted), key
    assert refused > 0


def test_beside_none_identity_is_compared():
    t = mg.tensor([1.0, 2.0])
    assert (t == None) is False and (t != None) is True         # noqa: E711


def test_assign_replaces_a_leafs_value():
    """A leaf takes another value of its shape and dtype; everything else is refused."""
    p = mg.tensor([1.0, 2.0], requires_grad=True)
    assert p.assign(mg.tensor([3.0, 4.0])) is p and p.tolist() == [3.0, 4.0]
    for value in (np.ones(2), np.ones(3, "float32")):
        with pytest.raises(mg.ShapeError, match=r"float32\[2\]"):
            p.assign(value)


def test_detach_is_a_view_as_a_constant():
    """detach() shares the memory and has no node."""
    t = mg.tensor([1.0], requires_grad=True)
    d = (t * 2.0).detach()
    assert not d.requires_grad and d.tolist() == [2.0] and np.shares_memory(t.detach().array, t.array)


# ── NumPy and PyTorch ──
def test_asarray_of_a_tensor():
    """np.asarray(t) is its memory, np.array(t) a copy, with the dtype that is asked for."""
    t = mg.tensor([[1.0, 2.0]])
    assert np.shares_memory(np.asarray(t), t.numpy()) and not np.shares_memory(np.array(t), t.numpy())
    assert np.asarray(t, dtype="float64").dtype == "float64" and np.asarray(t).shape == (1, 2)
    with pytest.raises(ValueError):
        np.asarray(t, dtype="float64", copy=False)
    assert asarray(t) is t.array and asarray([1.0]).dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])
def test_dlpack_goes_both_ways(dtype: str):
    """torch.from_dlpack(t), np.from_dlpack(t) and mg.from_dlpack(theirs) share the memory, strides included."""
    a = np.arange(6).reshape(2, 3).astype(dtype)
    for array in (a, a.T, a[:, ::2]):
        t = mg.Tensor(array)
        for theirs in (torch.from_dlpack(t).numpy(), np.from_dlpack(t)):
            np.testing.assert_array_equal(theirs, array)
            assert np.shares_memory(theirs, array)
    for theirs in (torch.from_numpy(a), torch.from_numpy(a).T, a.T):
        back = mg.from_dlpack(theirs)
        np.testing.assert_array_equal(back.numpy(), np.asarray(theirs))
        assert np.shares_memory(back.numpy(), a) and not back.requires_grad


def test_dlpack_of_a_gradient():
    """A gradient goes to PyTorch without a copy."""
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    assert torch.from_dlpack(x.grad).tolist() == [2.0, 4.0]


# ── errors know where they happened ──
class _Mlp(mg.nn.Module):
    def __init__(self) -> None:
        self.c_fc = mg.nn.Linear(4, 8)

    def forward(self, x: Any) -> Any:
        return self.c_fc(x)


class _Block(mg.nn.Module):
    def __init__(self) -> None:
        self.mlp = _Mlp()

    def forward(self, x: Any) -> Any:
        return self.mlp(x)


class _Model(mg.nn.Module):
    def __init__(self) -> None:
        self.h = [_Block(), _Block()]

    def forward(self, x: Any, cut: bool = False) -> Any:
        x = x[:, :3] if cut else x
        return self.h[1](x)


def test_an_error_says_in_which_module_it_happened():
    """The message ends with the path of the innermost module, as seen from the outermost one; it stays one line."""
    model = _Model()
    with pytest.raises(mg.ShapeError) as caught:
        model(mg.tensor(np.ones((2, 3), "float32")))
    text = str(caught.value)
    assert text.endswith("; in h.1.mlp.c_fc") and "float32[2, 3]" in text and "float32[8, 4]" in text and "\n" not in text
    with pytest.raises(mg.DTypeError, match=r"; in h\.1\.mlp\.c_fc$"):
        model(mg.tensor(np.ones((2, 4))))
    with pytest.raises(mg.ShapeError) as caught:
        model.h[0].mlp.c_fc(mg.tensor(np.ones((2, 3), "float32")))
    assert "; in h" not in str(caught.value)              # the module itself is the outermost: there is no path to tell
    with pytest.raises(mg.ShapeError) as caught:
        model(mg.tensor(np.ones(4, "float32")), cut=True)
    assert "; in h" not in str(caught.value)              # it happened in the model's own code


def test_errors_are_what_python_calls_them():
    """Each error is also the built-in that a caller would catch, and has the exit code that commands end with."""
    assert issubclass(mg.ShapeError, ValueError) and issubclass(mg.DTypeError, TypeError)
    assert issubclass(mg.DeviceError, RuntimeError) and issubclass(mg.GraphError, RuntimeError)
    for kind in (mg.ShapeError, mg.DTypeError, mg.DeviceError, mg.GraphError, mg.BackendUnavailable):
        assert issubclass(kind, mg.MinigradError)
    assert mg.BackendUnavailable.exit_code == 4 and mg.MinigradError.exit_code == 1
