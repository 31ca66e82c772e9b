"""Floats of 16 bits, and TF32: what is computed stays in them, sums and losses are float32, and nothing is lost on the way."""
from __future__ import annotations

import numpy as np
import pytest
from device import DEVICE

import minigrad as mg

mg.backend.dtype("bfloat16")                            # NumPy knows it from here on
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}       # the relative error of rounding once
FUNCTIONS = {
    "layer_norm": (lambda x, w: mg.layer_norm(x, w, w), (3, 5), (5,)),
    "gelu": (lambda x: mg.gelu(x, approximate="tanh"), (3, 5)),
    "exact gelu": (lambda x: mg.gelu(x, approximate="none"), (3, 5)),
    "addmm": (lambda b, x, w: mg.addmm(b, x, w), (4,), (2, 3, 5), (5, 4)),
    "linear": (mg.linear, (2, 5), (4, 5)),
    "attention": (lambda q, k, v: mg.attention(q, k, v, causal=True), (2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)),
    "one query": (lambda q, k, v: mg.attention(q, k, v, causal=True), (2, 3, 1, 5), (2, 3, 4, 5), (2, 3, 4, 5)),
    "masked": (lambda q, k, v: mg.attention(q, k, v, np.array([True, True, False, True]), causal=True),
               (2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)),
    "softmax": (mg.softmax, (3, 5)),
    "log_softmax": (mg.log_softmax, (3, 5)),
    "embedding": (lambda w: mg.embedding(np.array([0, 1, 1]), w), (7, 5)),
    "scaling": (lambda x: (x * 2.0 + 1.0) / 3.0, (3, 5)),
    "reductions": (lambda x: x.mean(axis=-1) + x.sum(axis=-1) + x.max(axis=-1), (3, 5)),
    "relu": (lambda x: x.relu() * x.tanh(), (3, 5)),
    "dropout": (lambda x: mg.dropout(x, p=0.5, key=3, training=True), (3, 50)),
    "packed_linear": (lambda x, w, b: mg.packed_linear(x, w, b, size=3), (2, 4), (1, 2, 2, 3), (3,)),
    "batched": (lambda a, b: a @ b, (2, 3, 4), (2, 4, 3)),
}


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_16_bits_stay_16_bits(name: str, dtype: str):
    """Values and gradients have the arguments' dtype, whatever Python numbers an op computes with, and are near float32's."""
    f, *shapes = FUNCTIONS[name]
    arrays = [np.random.default_rng(i).standard_normal(shape).astype(dtype) for i, shape in enumerate(shapes)]
    results = []
    for kind in (dtype, "float32"):
        xs = [mg.tensor(a, dtype=kind, requires_grad=True) for a in arrays]
        y = f(*xs)
        y.backward(mg.tensor(np.ones(y.shape), dtype=kind))
        results.append([y.numpy(), *(x.grad.numpy() for x in xs)])
    for found, wanted in zip(*results):
        assert found.dtype == dtype
        assert np.abs(found.astype("float32") - wanted).max() <= 12 * UNIT[dtype] * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_the_loss_of_16_bits_is_float32(dtype: str):
    """So is what is walked back from; the logits' gradient is of their dtype."""
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    for f in (lambda x: mg.cross_entropy(x, np.array([0, 1, 2])), lambda x: mg.linear_cross_entropy(x, x, np.array([0, 1, 2]))):
        x = mg.tensor(logits, requires_grad=True)
        loss = f(x)
        assert loss.dtype == "float32"
        loss.backward()
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("device", ["numpy", DEVICE])
def test_no_gradient_is_lost_below_16_bits(device: str, dtype: str):
    """A small probability by the number of rows is less than float16 has; its gradient is right all the same."""
    rng, n, V = np.random.default_rng(0), 2048, 900
    x, weight = rng.standard_normal((n, 4)) * 0.3, rng.standard_normal((V, 4)) * 0.3
    x[:, 0], weight[:, 0], weight[0], targets = 1.0, 0.0, (9.0, 0.0, 0.0, 0.0), np.zeros(n, int)       # 10⁻⁴ for each but the target
    arrays = [a.astype(dtype) for a in (x, weight)]
    found, exact = ([mg.tensor(a, dtype=kind, device=where, requires_grad=True) for a in arrays]
                    for kind, where in ((dtype, device), ("float64", "numpy")))
    for x, weight in (found, exact):
        mg.linear_cross_entropy(x, weight, mg.tensor(targets, device=x.device)).backward()
    for x, y in zip(found, exact):                      # of a row of x: logits, their gradient, the product and its scaling are rounded
        g, wanted = x.grad.numpy().astype(np.float64), y.grad.numpy()
        assert np.linalg.norm(g - wanted) <= 8 * UNIT[dtype] * np.linalg.norm(wanted)
    rest, wanted = found[1].grad.numpy()[1:].astype(np.float64), exact[1].grad.numpy()[1:]             # all but the target's row
    assert np.linalg.norm(rest - wanted) <= 8 * UNIT[dtype] * np.linalg.norm(wanted)


def test_products_of_float32_round_when_asked():
    """"high" changes products on a GPU and nothing on a CPU; another word is refused."""
    x = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    there, exact = mg.tensor(x, device=DEVICE), x @ x
    assert mg.get_float32_matmul_precision() == "highest"
    full = (there @ there).numpy()
    try:
        mg.set_float32_matmul_precision("high")
        assert mg.get_float32_matmul_precision() == "high"
        rounded, here = (there @ there).numpy(), (mg.tensor(x) @ mg.tensor(x)).numpy()
    finally:
        mg.set_float32_matmul_precision("highest")
    worst = np.abs(rounded - exact).max()
    assert np.abs(full - exact).max() < 1e-5 < worst < 8 * 3 * 2.0**-11 * np.abs(x).max() ** 2
    assert np.array_equal(here, exact)
    with pytest.raises(ValueError, match="choose"):
        mg.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("name", ["sum", "rows", "columns", "mean", "var", "softmax", "layer_norm", "bias", "table", "places"])
def test_sums_of_many_16_bits_add_up_in_float32(name: str, dtype: str):
    """4,096 numbers, where a sum in 16 bits stops growing at 256 or 2,048 ones: values and gradients stay within a few roundings."""
    rng, n = np.random.default_rng(0), 4096
    x = np.abs(rng.standard_normal((n, 2))).astype(dtype)
    ids = np.zeros(n, int)
    f = {"sum": lambda x: x.sum(), "rows": lambda x: x.sum(axis=0), "columns": lambda x: x.T.sum(axis=1), "mean": lambda x: x.mean(axis=0),
         "var": lambda x: x.var(axis=0, ddof=0), "softmax": lambda x: mg.softmax(x * 0.0, axis=0).sum(axis=0),
         "layer_norm": lambda x: mg.layer_norm(x.T, mg.tensor(np.ones(n), dtype=x.dtype), mg.tensor(np.zeros(n), dtype=x.dtype)),
         "bias": lambda b: b[:1] + mg.tensor(x, dtype=b.dtype), "table": lambda w: mg.embedding(ids, w), "places": lambda w: w[ids]}[name]
    results = []
    for kind in (dtype, "float32"):
        at = mg.tensor(x, dtype=kind, requires_grad=True)
        y = f(at)
        y.backward(mg.tensor(np.abs(np.random.default_rng(1).standard_normal(y.shape)).astype(dtype), dtype=kind))
        results.append([y.numpy().astype("float64"), at.grad.numpy().astype("float64")])
    for found, wanted in zip(*results):
        assert np.abs(found - wanted).max() <= 4 * UNIT[dtype] * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("device", ["numpy", DEVICE])
@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_optimisers_of_16_bits(kind: str, device: str, dtype: str):
    """Moments, and a step before it is rounded, are float32's: squares of small gradients, ε and small rates are nothing in float16."""
    start, slopes = np.array([1e-3, 2e-3, -5e-4, 0.0], dtype), [np.array([1e-4, -3e-5, 0.0, 1e-3], dtype)] * 5
    settings = {"lr": 1e-4} if kind != "SGD" else {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-5}
    results = []
    for dtype_, place in ((dtype, device), ("float64", "numpy")):
        p = mg.Parameter(mg.tensor(start.astype("float64"), dtype=dtype_, device=place))
        optimizer = getattr(mg.optim, kind)([p], **settings)
        for g in slopes:
            p.grad = mg.tensor(g.astype("float64"), dtype=dtype_, device=place)
            optimizer.step()
        assert str(p.dtype) == dtype_
        results.append(p.numpy().astype("float64"))
    found, wanted = results
    assert np.abs(found - wanted).max() <= 5 * (UNIT[dtype] * np.abs(wanted).max() + 2.0**-25)         # five steps, rounded once each


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("device", ["numpy", DEVICE])
def test_the_norm_of_16_bits(device: str, dtype: str):
    """10⁵ squares of 10⁴ add up, and a factor below float16's least number scales."""
    p = mg.Parameter(mg.tensor(np.zeros(100_000, dtype), device=device))
    p.grad = mg.tensor(np.full(100_000, 1e4), dtype=dtype, device=device)
    exact, one = float(p.grad.numpy().astype("float64")[0]), UNIT[dtype] + 1e-4
    norm = mg.optim.clip_grad_norm_([p], 0.05)
    assert abs(norm / (exact * 100_000**0.5) - 1.0) <= 1e-4
    found = p.grad.numpy().astype("float64")
    assert np.abs(found - 0.05 / 100_000**0.5).max() <= one * 0.05 / 100_000**0.5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gradient_of_one_number_that_is_a_sum(dtype: str):
    """It is an array of no axes, as the number is, and no scalar of NumPy."""
    x = mg.tensor(0.5, dtype=dtype, requires_grad=True)
    (g,) = mg.gradients(x * 2.0 + x * 4.0, [x])
    assert isinstance(g.array, np.ndarray) and g.numpy().tolist() == 6.0
