"""Functions of PyTorch, JAX and CuPy as subjects of `check`: right ones hold, and a mistake of each kind is found."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.testing import LawsBroken, arrays, check, fake_cupy
from minigrad.testing.adapters import cupy_function, jax_function, torch_function
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.laws.subject import subject_of

C = math.sqrt(2.0 / math.pi)
HALVES = ["float16", "bfloat16"]


def broken(*args: Any, dtypes: Any = ("float64",), **flags: Any) -> set[str]:
    """The laws that a check finds broken; none where it holds."""
    try:
        assert check(*args, examples=5, dtypes=dtypes, **flags).ok
    except LawsBroken as error:
        return {v.law for v in error.report.broken}
    return set()


def test_a_subject_is_its_own():
    subject = subject_of("tanh")
    assert subject_of(subject) is subject


# ── PyTorch ──
@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed; pip install torch==2.13.0")


def square(torch: Any, factor: float, apart: bool = False) -> Any:
    """x ↦ scale·x² as a torch.autograd.Function, whose backward pass has a factor of its own; apart: with setup_context."""
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale=1.0):
            ctx.save_for_backward(x)
            ctx.scale = scale
            return scale * x * x

        @staticmethod
        def backward(ctx, g):
            return factor * ctx.scale * ctx.saved_tensors[0] * g, None

    class Apart(Square):
        @staticmethod
        def forward(x, scale=1.0):
            return scale * x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.scale = inputs[1]

    return Apart if apart else Square


@pytest.mark.parametrize("apart", [False, True], ids=["ctx", "setup_context"])
def test_an_autograd_function(torch, apart):
    """Its settings go by name; a backward pass that forgets a factor is found, with the law named."""
    assert broken(torch_function(square(torch, 2.0, apart)), arrays((2, 3)), scale=0.5, definition=lambda x, scale: scale * x * x) == set()
    assert broken(torch_function(square(torch, 1.0, apart)), arrays((2, 3))) == {"adjoint"}
    assert torch_function(square(torch, 2.0)).name == "Square"


def test_functions_of_torch(torch):
    """Settings by name, arrays among them, several results, constants, and arguments that the gradient does not reach."""
    F = torch.nn.functional
    assert broken(torch_function(F.gelu), arrays((2, 3)), approximate="tanh", definition=mg.gelu) == set()
    targets = np.array([1, 0])
    assert broken(torch_function(F.cross_entropy), arrays((2, 3)), target=targets,
                  definition=lambda x, target: mg.cross_entropy(x, target)) == set()
    assert broken(torch_function(lambda x: x.chunk(3, -1)), arrays((2, 3)), definition=lambda x: mg.split(x, sections=3, axis=-1)) == set()
    assert broken(torch_function(torch.ones_like), arrays((2,)), definition=lambda x: x * 0.0 + 1.0) == set()
    assert broken(torch_function(lambda a, b: a * a + 0.0 * b.detach()), arrays((2,)), arrays((2,)),
                  definition=lambda a, b: a * a + 0.0 * b) == set()
    assert broken(torch_function(lambda x: x * x.detach()), arrays((2,))) == {"adjoint"}


def test_torch_sees_the_numbers_bit_by_bit(torch):
    """16 bits, memory in every layout, read-only memory: the numbers and the dtype are those that were given."""
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed; pip install ml_dtypes")
    same = torch_function(lambda x: x)
    x = np.arange(24.0).reshape(2, 3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    for dtype in ("float16", mg.backend.dtype("bfloat16"), "float32", "float64"):
        for a in (x, x.T, x[:, ::-1], x[..., ::2], frozen, x[0, 0, 0], x[:0]):
            a = a.astype(dtype, copy=False)
            y = same.value(a)
            assert (y.dtype, y.tolist()) == (a.dtype, a.tolist())
            assert [g.tolist() for g in same.pull(a, a)] == [a.tolist()]
    assert broken(torch_function(torch.tanh), arrays((2, 3)), definition=mg.tanh, oracle=np.tanh, dtypes=HALVES) == set()


def test_a_device_that_torch_has_not_is_refused(torch):
    with pytest.raises(mg.DeviceError, match="device 'nowhere'") as caught:
        torch_function(torch.tanh, device="nowhere")
    assert "\n" not in str(caught.value)


# ── JAX ──
@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed; pip install jax")


def test_functions_of_jax(jax):
    """Plain, jitted, with constants, several results and 16 bits; float64 is float64."""
    assert broken(jax_function(jax.nn.gelu), arrays((2, 3)), approximate=True,
                  definition=lambda x, approximate: mg.gelu(x, approximate="tanh")) == set()
    assert broken(jax_function(jax.jit(jax.nn.softmax)), arrays((2, 3)), definition=mg.softmax) == set()
    ids = np.array([1, 0, 1])
    assert broken(jax_function(lambda w, ids: w[ids]), arrays((2, 3)), ids=ids, definition=lambda w, ids: mg.embedding(ids, w)) == set()
    assert broken(jax_function(lambda x: (x, x * x)), arrays((2,)), definition=lambda x: (x, x * x)) == set()
    wide = jax_function(lambda x: jax.numpy.tanh(x.astype("float32")).astype(x.dtype))
    assert broken(wide, arrays((2, 3)), definition=mg.tanh, oracle=np.tanh, dtypes=HALVES) == set()
    assert jax_function(jax.numpy.sin).value(np.ones(2)).dtype == "float64"


def test_a_custom_vjp_that_forgets_a_factor(jax):
    def custom(factor):
        f = jax.custom_vjp(lambda x: x * x)
        f.defvjp(lambda x: (x * x, x), lambda x, g: (factor * x * g,))
        return jax_function(f, name="square")

    assert broken(custom(2.0), arrays((2, 3)), definition=lambda x: x * x) == set()
    assert broken(custom(1.0), arrays((2, 3))) == {"adjoint"}


# ── CuPy ──
SOURCE = """
#define KERNEL extern "C" __global__ void
typedef float Store;
typedef long long Count;
KERNEL tanh_forward(const Store* x, Store* y, Count n) {
    Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = tanh(x[i]);
}
KERNEL tanh_backward(const Store* g, const Store* x, Store* dx, Count n) {
    Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dx[i] = g[i] * (1 - tanh(x[i]) * tanh(x[i]));
}
"""


def kernels(old: str = "", new: str = "") -> tuple[Any, Any]:
    """The value and the VJP by the kernels above, on the fake CuPy, with one line changed."""
    cupy = fake_cupy.install().namespace
    assert old in SOURCE
    module = cupy.RawModule(code=SOURCE.replace(old, new) if old else SOURCE, options=("-DSTORE=float", "-DREAL=float"))

    def launch(name: str, *inputs: Any) -> Any:
        inputs = tuple(cupy.ascontiguousarray(a) for a in inputs)
        y = cupy.empty(inputs[0].shape, inputs[0].dtype)
        if y.size:
            module.get_function(name)((-(-y.size // 32),), (32,), (*inputs, y, y.size))
        return y

    return (lambda x: launch("tanh_forward", x)), (lambda g, x: launch("tanh_backward", g, x))


@pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed; get a C++ compiler, as in apt-get install g++")
def test_kernels_of_cuda():
    """CUDA kernels that are launched on arrays of CuPy's manners; a backward kernel without the square is found."""
    flags = {"definition": mg.tanh, "dtypes": ["float32"]}
    assert broken(cupy_function(*kernels(), device="fake", name="tanh"), arrays((5, 8)), **flags) == set()
    wrong = cupy_function(*kernels("1 - tanh(x[i]) * tanh(x[i])", "1 - tanh(x[i])"), device="fake", name="tanh")
    assert {"adjoint", "parts"} <= broken(wrong, arrays((5, 8)), **flags)


def test_functions_of_cupy():
    """Functions of the library's arrays, with an array among the settings; on the fake CuPy, CuPy's manners on a CPU."""
    cupy = fake_cupy.install().namespace

    def scaled(x, weight):
        return cupy.tanh(x) * weight

    right = cupy_function(scaled, lambda g, x, weight: g * (1 - cupy.tanh(x) ** 2) * weight, device="fake")
    wrong = cupy_function(scaled, lambda g, x, weight: g * (1 - cupy.tanh(x) ** 2), device="fake")
    weight = np.float64(2.0) * np.ones(3)
    assert right.name == "scaled"
    assert broken(right, arrays((2, 3)), weight=weight, definition=lambda x, weight: mg.tanh(x) * weight) == set()
    assert "adjoint" in broken(wrong, arrays((2, 3)), weight=weight)


def test_cupy_gets_memory_as_it_was_drawn():
    """Fortran order, gaps and backwards on the device as well, with the same numbers."""
    seen: list[Any] = []
    subject = cupy_function(lambda x: (seen.append(x), x.copy())[1], lambda g, x: g, device="fake")
    x = np.arange(24.0).reshape(2, 3, 4)
    for a in (x, x.T, x[::-1, ::-1, ::-1], x[..., ::2], x[0, 0, 0]):
        y = subject.value(np.asarray(a))
        assert y.shape == a.shape and np.array_equal(y, a)
    assert [a.flags.c_contiguous for a in seen] == [True, False, False, False, True]


def test_without_a_gpu_cupy_is_refused():
    """In one line, when the subject is made."""
    try:
        mg.backend.get("cupy")
    except mg.BackendUnavailable:
        with pytest.raises(mg.BackendUnavailable):
            cupy_function(lambda x: x, lambda g, x: g)
    else:
        assert cupy_function(lambda x: x.copy(), lambda g, x: g).value(np.ones(2)).tolist() == [1.0, 1.0]
