"""grad, vjp, jvp, hvp, jacobian, hessian and checkpoint: against PyTorch, nested, and in what they keep."""
from __future__ import annotations

import collections
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg

EPS = float(np.finfo(np.float64).eps)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")        # torch.func's own


def _rng(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def _t(x: Any, **how: Any) -> mg.Tensor:
    return mg.tensor(x, dtype="float64", **how)


def _net(lib: Any, x: Any, w: Any) -> Any:
    """A small network, in minigrad or in PyTorch."""
    h = lib.tanh(x @ w)
    return (lib.softmax(h, axis=-1) if lib is mg else torch.softmax(h, -1)) * h


def _loss(lib: Any, x: Any, w: Any) -> Any:
    y = _net(lib, x, w)
    return (y * y).sum() + lib.exp(-(x * x)).sum()


# ── nesting ──
def test_perturbations_are_not_confused():
    """d/dx [x · d/dy (x + y) at y = 1] = 1 at x = 1: the inner variable is not the outer one (Siskind, Pearlmutter 2005)."""
    f = mg.grad(lambda x: x * mg.grad(lambda y: x + y)(_t(1.0)))
    assert f(_t(1.0)).item() == 1.0


def test_an_inner_gradient_depends_on_what_it_captured():
    """d/dx [d/dy (x² y²) at y = 3] = 2x·2y, although the inner call is given a constant."""
    f = mg.grad(lambda x: mg.grad(lambda y: x * x * y * y)(_t(3.0)))
    assert f(_t(5.0)).item() == 60.0


def test_an_inner_value_depends_on_what_it_captured():
    """The value that an inner value_and_grad gives is differentiable as its gradient is: d/dx (x² y² at y = 3) = 2x·9."""
    f = mg.grad(lambda x: mg.value_and_grad(lambda y: x * x * y * y)(_t(3.0))[0])
    assert f(_t(5.0)).item() == 90.0


def test_operands_that_are_kept_together_are_differentiated():
    """An op of any number of operands keeps them as one, and each is still a value of the graph: the Hessian of ⟨x, x⟩ is 2."""
    assert mg.hessian(lambda x: mg.einsum("i,i->", x, x))(_t([1.0, 2.0])).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_an_inner_gradient_of_the_outer_variable_itself():
    """grad of x ↦ x · f'(x) with f = x³ is 9x², the inner function being given the outer variable."""
    f = mg.grad(lambda x: x * mg.grad(lambda y: y * y * y)(x))
    assert f(_t(2.0)).item() == 36.0


def test_no_grad_around_an_inner_gradient_cuts_it_off():
    """What is computed under no_grad is a constant of the outer function; the inner gradient itself still works."""
    def f(x: Any) -> Any:
        with mg.no_grad():
            c = mg.grad(lambda y: y * y * x)(_t(3.0))
        return c * x

    assert mg.value_and_grad(f)(_t(2.0))[0].item() == 24.0
    assert mg.grad(f)(_t(2.0)).item() == 12.0


@pytest.mark.parametrize("f, order, at, expected", [
    (lambda x: x ** 5, 5, 2.0, 120.0), (lambda x: x ** 5, 6, 2.0, 0.0), (lambda x: mg.exp(x * 2.0), 4, 0.0, 16.0),
    (lambda x: mg.tanh(x), 3, 0.0, -2.0), (lambda x: mg.log(x), 4, 1.0, -6.0), (lambda x: 1.0 / x, 3, 1.0, -6.0),
    (lambda x: mg.softmax(mg.stack([x, x * 0.0]))[0], 3, 0.0, -0.125), (lambda x: mg.sigmoid(x), 3, 0.0, -0.125),
    (lambda x: mg.erf(x), 3, 0.0, -4.0 / np.sqrt(np.pi)), (lambda x: mg.sqrt(x), 3, 1.0, 0.375),
])
def test_gradients_of_gradients_of_gradients(f: Any, order: int, at: float, expected: float):
    """grad may be taken of grad as often as one likes."""
    g = f
    for _ in range(order):
        g = mg.grad(g)
    close(g(_t(at)), np.asarray(expected), terms=100)


def test_third_derivatives_through_fused_ops_are_pytorchs():
    """grad of grad of grad through attention, layer_norm and gelu, whose rules replay their definitions.

    layer_norm is spelled out: the third derivative of PyTorch 2.13's own differs from that of its definition.
    """
    x0 = _rng(2, 3)

    def f(lib: Any, x: Any) -> Any:
        w = x[0] * x[0] + 1.0
        if lib is mg:
            y = mg.gelu(mg.layer_norm(x, w, x[1]), approximate="tanh")
            return (mg.attention(y, x, y, causal=True) * x).sum()
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
        y = torch.nn.functional.gelu(normal * w + x[1], approximate="tanh")
        return (torch.softmax((y @ x.T * 3**-0.5).masked_fill(~torch.ones(2, 2).bool().tril(), -1e300), -1) @ y * x).sum()

    def chain(x: Any, grad: Any, y: Any) -> Any:
        for power in (1, 2):
            (d,) = grad(y, x)
            y = (d * x ** power).sum()
        return grad(y, x)[0]

    ours = _t(x0, requires_grad=True)
    theirs = torch.tensor(x0, requires_grad=True)
    a = chain(ours, lambda y, x: mg.gradients(y, [x], create_graph=True), f(mg, ours))
    b = chain(theirs, lambda y, x: torch.autograd.grad(y, x, create_graph=True), f(torch, theirs))
    close(a, b, terms=20_000)                           # σ of three numbers: each order divides by it once more


# ── the transforms against PyTorch ──
def test_value_and_grad_over_several_arguments():
    """argnums an int gives a gradient, a tuple a tuple of them in its order; captured leaves keep no .grad."""
    x, w = _rng(2, 3), _rng(3, 3, seed=1)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    t = _loss(torch, tx, tw)
    dx, dw = torch.autograd.grad(t, (tx, tw))
    f = lambda x, w: _loss(mg, x, w)  # noqa: E731
    value, grads = mg.value_and_grad(f, (1, 0))(x, w)
    close(value, t)
    close(grads[0], dw)
    close(grads[1], dx)
    close(mg.grad(f, 1)(x, w), dw)
    (one,) = mg.grad(f, (0,))(x, w)
    close(one, dx)
    captured = _t(w, requires_grad=True)
    close(mg.grad(lambda x: f(x, captured))(x), dx)
    assert captured.grad is None


def test_one_tensor_given_twice_has_two_gradients():
    """f(x, x) has a gradient by each argument, not their sum twice; and they are two arrays."""
    for x in (_t([2.0, 3.0]), _t([2.0, 3.0], requires_grad=True)):
        a, b = mg.grad(lambda a, b: (a * a * b).sum(), (0, 1))(x, x)
        assert a.tolist() == [8.0, 18.0] and b.tolist() == [4.0, 9.0]
        assert not np.shares_memory(a.numpy(), b.numpy())


def test_a_pullback_may_be_called_many_times():
    """vjp's pullback is linear, gives PyTorch's numbers for every cotangent, and does not wear out."""
    x, w = _rng(2, 3), _rng(3, 4, seed=1)
    y, pull = mg.vjp(lambda x, w: _net(mg, x, w), x, w)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    t = _net(torch, tx, tw)
    close(y, t)
    assert not y.requires_grad
    for seed in range(4):
        g = _rng(2, 4, seed=seed)
        for ours, theirs in zip(pull(g), torch.autograd.grad(t, (tx, tw), torch.tensor(g), retain_graph=True)):
            close(ours, theirs)
            assert not ours.requires_grad


def test_jvp_is_pytorchs_forward_mode():
    """jvp by transposing twice equals torch.func.jvp, also for an output that ignores its input."""
    x, w, dx, dw = _rng(2, 3), _rng(3, 4, seed=1), _rng(2, 3, seed=2), _rng(3, 4, seed=3)
    y, dy = mg.jvp(lambda x, w: _net(mg, x, w), (x, w), (dx, dw))
    t, dt = torch.func.jvp(lambda x, w: _net(torch, x, w), (torch.tensor(x), torch.tensor(w)), (torch.tensor(dx), torch.tensor(dw)))
    close(y, t)
    close(dy, dt)
    assert mg.jvp(lambda x: _t([1.0, 2.0]), (x,), (dx,))[1].tolist() == [0.0, 0.0]


FUSED = {
    "attention": lambda x: mg.attention(x, x * 0.5, x, causal=True), "layer_norm": lambda x: mg.layer_norm(x, x[0], x[1]),
    "gelu": lambda x: mg.gelu(x, approximate="none"),
    "cross_entropy": lambda x: mg.cross_entropy(x, np.array([0, 2])), "log_softmax": mg.log_softmax, "prod": lambda x: mg.prod(x, axis=0),
    "max": lambda x: mg.max(x, axis=1), "dropout": lambda x: mg.dropout(x, key=3) * x,
    "gather": lambda x: x.gather(np.array([[1], [0]]), axis=1),
}


@pytest.mark.parametrize("name", FUSED)
@given(seed=st.integers(0, 1000))
def test_vjp_is_the_adjoint_of_the_derivative(name: str, seed: int):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩, and J v is the central difference up to its error h²·|f‴| + eps·|f|/h."""
    f, h = FUSED[name], EPS ** (1 / 3)
    x, v = _rng(2, 3, seed=seed) * 2.0, _rng(2, 3, seed=seed + 1)
    y, jv = mg.jvp(f, (x,), (v,))
    u = _rng(*y.shape, seed=seed + 2)
    (ju,) = mg.vjp(f, x)[1](u)
    close(np.asarray((u * jv.numpy()).sum()), np.asarray((ju.numpy() * v).sum()), terms=1000, scale=float(np.abs(jv.numpy()).max()))
    gap = np.diff(np.sort(x, axis=1)).min()             # a small one means a large third derivative, or a kink near
    if name in ("layer_norm", "max") and gap < 0.3:
        return
    with mg.no_grad():
        difference = (f(_t(x + h * v)).numpy() - f(_t(x - h * v)).numpy()) / (2.0 * h)
    third = 1000.0 * max(1.0, float(np.abs(v).max()) ** 3)      # a bound on the third derivative along v, generous for x̂ of three numbers
    assert np.abs(difference - jv.numpy()).max() <= third * h**2 + 100.0 * EPS / h


def test_hvp_is_pytorchs():
    """hvp over two arguments equals torch.autograd.functional.hvp, and the Hessian times the vector."""
    x, w, vx, vw = _rng(2, 3), _rng(3, 3, seed=1), _rng(2, 3, seed=2), _rng(3, 3, seed=3)
    ours = mg.hvp(lambda x, w: _loss(mg, x, w), (x, w), (vx, vw))
    theirs = torch.autograd.functional.hvp(lambda x, w: _loss(torch, x, w), (torch.tensor(x), torch.tensor(w)),
                                           (torch.tensor(vx), torch.tensor(vw)))[1]
    for a, b in zip(ours, theirs):
        close(a, b)
    (one,) = mg.hvp(lambda x: _loss(mg, x, mg.Tensor(w)), (x,), (vx,))
    matrix = mg.hessian(lambda x: _loss(mg, x, mg.Tensor(w)))(x).numpy()
    close(one, np.einsum("abcd,cd->ab", matrix, vx))


def test_jacobian_and_hessian_are_pytorchs():
    """Shapes (*f(x).shape, *x.shape) and (*x.shape, *x.shape), numbers PyTorch's, by either argument, also for size 0."""
    x, w = _rng(2, 3), _rng(3, 3, seed=1)
    F = torch.autograd.functional
    ours, theirs = (lambda x, w: _net(mg, x, w)), (lambda x, w: _net(torch, x, w))
    jx, jw = F.jacobian(theirs, (torch.tensor(x), torch.tensor(w)))
    close(mg.jacobian(ours)(x, w), jx)
    close(mg.jacobian(ours, 1)(x, w), jw)
    close(mg.hessian(lambda x: _loss(mg, x, mg.Tensor(w)))(x), F.hessian(lambda x: _loss(torch, x, torch.tensor(w)), torch.tensor(x)))
    assert mg.jacobian(lambda x: x[:0])(_t([1.0, 2.0])).shape == (0, 2)
    assert mg.jacobian(lambda x: x.sum())(_t([1.0, 2.0])).tolist() == [1.0, 1.0]
    matrix = mg.hessian(lambda x: _loss(mg, x, mg.Tensor(w)))(x).numpy().reshape(6, 6)
    close(matrix, matrix.T)


def test_a_jacobian_inside_a_gradient():
    """The transforms nest in each other: grad of the trace of a Jacobian."""
    def divergence(x: Any) -> Any:
        j = mg.jacobian(lambda y: y * y * y)(x)
        return mg.einsum("ij,ij->", j, mg.Tensor(np.eye(3)))

    assert mg.grad(divergence)(_t([1.0, 2.0, 3.0])).tolist() == [6.0, 12.0, 18.0]


def test_numbers_and_arrays_are_arguments_too():
    """Arguments may be Tensors, arrays or numbers; results are Tensors; a float is float32 as in tensor()."""
    g = mg.grad(lambda x: x * x)(3.0)
    assert isinstance(g, mg.Tensor) and g.dtype == "float32" and g.item() == 6.0
    assert mg.grad(lambda x: (x * x).sum())(np.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_refusals_name_what_is_wrong():
    """A gradient of no scalar, a function that returns no Tensor, a tangent of another shape: one line each."""
    for f, kind, words in [
        (lambda: mg.grad(lambda x: x * x)(_t([1.0, 2.0])), mg.ShapeError, "float64[2]"),
        (lambda: mg.grad(lambda x: 1.0)(_t(1.0)), TypeError, "float"),
        (lambda: mg.vjp(lambda x: x, _t([1.0]))[1](np.ones(2)), mg.ShapeError, "float64[2]"),
        (lambda: mg.grad(lambda x: x.sum())(mg.tensor([1, 2])), mg.DTypeError, "int64[2]"),
        (lambda: mg.checkpoint(lambda x: (x, x))(_t([1.0])), TypeError, "one Tensor"),
    ]:
        with pytest.raises(kind) as caught:
            f()
        assert words in str(caught.value) and "\n" not in str(caught.value)


# ── checkpoint ──
def _block(x: Any, w: Any) -> Any:
    h = mg.dropout(mg.gelu(x @ w, approximate="tanh"), p=0.4)               # draws from the default stream
    return mg.layer_norm(h, w[0], w[1]) + mg.dropout(x, p=0.2)


def test_a_checkpoint_changes_no_gradient():
    """Value and gradients, of arguments and of captured parameters, are bit for bit those without; dropout draws the same masks."""
    x0, w0, v0 = _rng(4, 3), _rng(3, 3, seed=1), _rng(3, 3, seed=2)
    results = []
    for wrap in (lambda f: f, mg.checkpoint):
        x, w, v = (_t(a, requires_grad=True) for a in (x0, w0, v0))
        mg.random.manual_seed(5)
        f = wrap(lambda x, w, v=v: _block(_block(x, w), v))
        y = f(x, w)
        z = (wrap(lambda x, v=v: mg.tanh(x) @ v)(y) * mg.dropout(y, p=0.5)).sum()
        z.backward()
        results.append([z.numpy(), x.grad.numpy(), w.grad.numpy(), v.grad.numpy(), np.asarray(mg.random.get_state(), dtype=np.uint64)])
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_within_a_checkpoint():
    """Checkpoints nest, with dropout inside."""
    x0, w0 = _rng(4, 3), _rng(3, 3, seed=1)
    results = []
    for wrap in (lambda f: f, mg.checkpoint):
        x, w = _t(x0, requires_grad=True), _t(w0, requires_grad=True)
        mg.random.manual_seed(5)
        f = wrap(lambda x, w=w, wrap=wrap: wrap(lambda x: _block(x, w))(mg.dropout(wrap(lambda x: _block(x, w))(x), p=0.5)))
        f(x).sum().backward()
        results.append((x.grad.numpy(), w.grad.numpy()))
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_runs_its_function_twice():
    """Once forward and once when the walk back comes to it; once only when nothing is recorded."""
    calls = []

    def f(x: Any) -> Any:
        calls.append(mg.is_grad_enabled())
        return x * x

    x = _t([1.0, 2.0], requires_grad=True)
    mg.checkpoint(f)(x).sum().backward()
    assert calls == [False, True] and x.grad.tolist() == [2.0, 4.0]
    with mg.no_grad():
        assert not mg.checkpoint(f)(x).requires_grad
    assert len(calls) == 3


def test_a_checkpoint_holds_its_inputs_alone():
    """Between forward and backward the bytes held are those of input and output, not of the 30 values between."""
    size, depth = 50_000, 30

    def f(x: Any) -> Any:
        for _ in range(depth):
            x = mg.tanh(x)
        return x

    held = {}
    gc.collect()
    gc.disable()
    try:
        for name, g in (("plain", f), ("checkpoint", mg.checkpoint(f))):
            x = _t(np.ones(size), requires_grad=True)
            tracemalloc.start()
            y = g(x)
            held[name] = tracemalloc.get_traced_memory()[0]
            y.sum().backward()
            del y
            x.grad = None
            after = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert after < size * 8                     # and nothing stays behind
    finally:
        gc.enable()
    assert held["plain"] > depth * size * 8 and held["checkpoint"] < 2 * size * 8


def test_a_checkpoint_is_differentiable_twice():
    """The gradient of a gradient through a checkpoint is the one without; so are hvp and the graph's own create_graph."""
    x0, v = _rng(3, 3), _rng(3, 3, seed=1)
    w = _t(_rng(3, 3, seed=2), requires_grad=True)

    def f(x: Any) -> Any:
        return mg.tanh(mg.gelu(x @ w, approximate="tanh") @ x)

    plain, wrapped = (lambda x: (f(x) * x).sum()), (lambda x: (mg.checkpoint(f)(x) * x).sum())
    close(mg.grad(wrapped)(x0), mg.grad(plain)(x0), terms=1)
    close(mg.hvp(wrapped, (x0,), (v,))[0], mg.hvp(plain, (x0,), (v,))[0])
    close(mg.jvp(wrapped, (x0,), (v,))[1], mg.jvp(plain, (x0,), (v,))[1])
    seconds = []
    for g in (wrapped, plain):
        x = _t(x0, requires_grad=True)
        (d,) = mg.gradients(g(x), [x], create_graph=True)
        seconds.append(mg.gradients((d * d).sum(), [x, w]))
    for a, b in zip(*seconds):
        close(a, b)


def test_a_checkpoint_passes_constants_and_leaves_through():
    """Arguments that are no Tensors, or want no gradient, come to the function as they are; f may return its input."""
    x = _t([1.0, 2.0], requires_grad=True)
    y = mg.checkpoint(lambda x, n, c: x * float(n) + c)(x, 3, mg.Tensor(np.ones(2)))
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
    x.grad = None
    mg.checkpoint(lambda x: x)(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


# ── trees, aux, names ──
def test_an_argument_may_be_a_tree():
    """Dicts, lists, tuples and named tuples of Tensors and arrays, nested: the gradient is such a tree, as JAX has it."""
    Pair = collections.namedtuple("Pair", ["a", "b"])
    x, y = mg.tensor([1.0, 2.0], dtype="float64"), mg.tensor(3.0, dtype="float64")
    tree = {"x": x, "rest": [Pair(y, (np.float64(2.0), x)), {}]}

    def f(t: Any) -> Any:
        return (t["x"] * t["rest"][0].b[1]).sum() * t["rest"][0].a * t["rest"][0].b[0]

    value, found = mg.value_and_grad(f)(tree)
    assert value.item() == 30.0 and found["rest"][1] == {} and type(found["rest"][0]) is Pair
    assert found["x"].tolist() == [6.0, 12.0] and found["rest"][0].b[1].tolist() == [6.0, 12.0]
    assert found["rest"][0].a.item() == 10.0 and found["rest"][0].b[0].item() == 15.0
    assert mg.grad(lambda v: (v * v).sum())([[1.0, 2.0]]).tolist() == [[2.0, 4.0]]          # numbers alone are one array


def test_a_tree_in_vjp_jvp_and_hvp():
    """A cotangent for each leaf, in the same tree; numbers among the arguments are arguments, and no array."""
    x = {"a": mg.tensor([1.0, 2.0]), "b": [mg.tensor(3.0)]}
    y, pull = mg.vjp(lambda t, c: t["a"] * t["b"][0] * c, x, 2.0)
    slopes, factor = pull(mg.ones(2))
    assert y.tolist() == [6.0, 12.0] and slopes["a"].tolist() == [6.0, 6.0] and slopes["b"][0].item() == 6.0 and factor.item() == 9.0
    _, pull, more = mg.vjp(lambda v: (v * v, {"v": v}), mg.tensor(3.0), has_aux=True)
    assert pull(1.0)[0].item() == 6.0 and more["v"].node is None
    ones = {"a": mg.ones(2), "b": [mg.tensor(1.0)]}
    assert mg.jvp(lambda t: t["a"] * t["b"][0], (x,), (ones,))[1].tolist() == [4.0, 5.0]
    (found,) = mg.hvp(lambda t: (t["a"] * t["a"]).sum() * t["b"][0], (x,), (ones,))
    assert found["a"].tolist() == [8.0, 10.0] and found["b"][0].item() == 6.0
    assert [g.item() for g in mg.hvp(lambda p, q: p * p * q, (2.0, 3.0), (1.0, 0.0))] == [6.0, 4.0]
    with pytest.raises(mg.ShapeError, match="2 Tensors among the primals, and 1 among the tangents"):
        mg.hvp(lambda t: t["b"][0], (x,), ({"a": mg.ones(2)},))


def test_what_a_function_returns_beside_its_value():
    """has_aux, as JAX has it; Tensors in it are constants, but where the gradient itself is differentiated."""
    (value, more), slope = mg.value_and_grad(lambda x: ((x * x).sum(), {"twice": x * 2.0}), has_aux=True)([1.0, 2.0])
    assert (value.item(), more["twice"].tolist(), slope.tolist()) == (5.0, [2.0, 4.0], [2.0, 4.0]) and more["twice"].node is None
    assert mg.grad(lambda x: (x * x, "said"), has_aux=True)(3.0)[1] == "said"
    curved = mg.grad(lambda x: mg.grad(lambda z: (z * z * z, z * z), has_aux=True)(x)[1])
    assert curved(3.0).item() == 6.0
    with pytest.raises(TypeError, match=r"must return \(value, anything\); it returned a Tensor"):
        mg.grad(lambda x: x * x, has_aux=True)(3.0)


def test_arguments_by_name_are_passed_on():
    assert mg.grad(lambda x, *, by: x * by)(3.0, by=5.0).item() == 5.0
