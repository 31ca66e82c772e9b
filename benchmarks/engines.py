"""Benchmarks without a model: the gradient of a chain of nine ops on ten numbers, and single ops at GPT-2's shapes, for each engine."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import agreement
from .peers import Work
from .rows import Row


# ── the chain ──
def chain(x: Any, np: Any) -> Any:
    """Nine operations and a sum, computed with the functions of the module `np`."""
    d = np.tanh(x * 2.0 + 1.0) * x                      # mul, add, tanh, mul
    return np.sum(np.tanh((np.exp(d) - x) / 3.0))       # exp, sub, div, tanh, sum


def numbers() -> Any:
    import numpy as np

    return np.linspace(-1.0, 1.0, 10).astype(np.float32)


def about() -> str:
    from minigrad import info

    blas = info.collect()["blas"]
    return f"minigrad on {blas['name']} {blas['version']}, kernels {blas['architecture']}, {blas['threads']} threads"


def _chain(gradient: Callable[[], Any], about: str) -> Work:
    return Work(gradient, lambda: {"gradient": [float(v) for v in gradient()]}, about)


def minigrad_chain(task: Mapping[str, Any]) -> Work:
    import minigrad as mg

    x0 = numbers()

    def gradient() -> Any:
        x: Any = mg.Tensor(x0).requires_grad_()
        chain(x, mg).backward()
        return x.grad.array

    return _chain(gradient, f"minigrad {mg.__version__}")


def mygrad_chain(task: Mapping[str, Any]) -> Work:
    import mygrad

    mygrad.turn_memory_guarding_off()                   # MyGrad's documentation advises this for speed
    x0 = numbers()

    def gradient() -> Any:
        x = mygrad.tensor(x0)
        chain(x, mygrad).backward()
        return x.grad

    return _chain(gradient, f"MyGrad {mygrad.__version__}, memory guarding off")


def autograd_chain(task: Mapping[str, Any]) -> Work:
    import importlib.metadata

    import autograd
    import autograd.numpy

    x0, grad = numbers(), autograd.grad(lambda x: chain(x, autograd.numpy))
    return _chain(lambda: grad(x0), f"HIPS autograd {importlib.metadata.version('autograd')}")


def torch_chain(task: Mapping[str, Any]) -> Work:
    import torch

    x0 = torch.from_numpy(numbers())

    def gradient() -> Any:
        x = x0.detach().requires_grad_()
        chain(x, torch).backward()
        return x.grad

    return _chain(gradient, f"PyTorch {torch.__version__}")


# ── single ops: the value, and the gradients of all float arguments for a given cotangent ──
def inputs(row: Row) -> tuple[dict[str, Any], Any]:
    """The arguments by name, and the cotangent; they are the same for all engines."""
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    name, a, b = row.kind.removeprefix("op "), row.batch, row.tokens
    if name == "layer_norm":
        return {"x": normal(a, b), "weight": normal(b), "bias": normal(b)}, normal(a, b)
    if name == "gelu":
        return {"x": normal(a, b)}, normal(a, b)
    if name == "attention":
        return {which: normal(a, 12, b, 64) for which in "qkv"}, normal(a, 12, b, 64)
    if name == "cross_entropy":
        return {"logits": normal(a, b), "targets": rng.integers(0, b, a)}, None
    return {"p": normal(b), "g": normal(b)}, None       # adamw


def told(out: Any, gradients: Mapping[str, Any]) -> dict[str, Any]:
    values = {"value": out, **{f"d{name}": g for name, g in gradients.items()}}
    return {"values": {name: agreement.sketch(name, array) for name, array in values.items()}}


def minigrad_op(task: Mapping[str, Any]) -> Work:
    import minigrad as mg

    row = Row.from_dict(task["row"])
    given, cotangent = inputs(row)
    mg.backend.cpu.settle()
    if "p" in given:
        p = mg.Parameter(given["p"].copy())
        optimizer = mg.optim.AdamW([p], lr=agreement.RATE, weight_decay=agreement.DECAY)
        p.grad = mg.Tensor(given["g"])

        def first() -> dict[str, Any]:
            optimizer.step()
            return told(p.numpy(), {})

        return Work(optimizer.step, first, about())
    compute: dict[str, Callable[..., Any]] = {
        "layer_norm": mg.layer_norm,
        "gelu": lambda x: mg.gelu(x, approximate="tanh"),
        "attention": lambda q, k, v: mg.attention(q, k, v, causal=True),
        "cross_entropy": lambda logits: mg.cross_entropy(logits, given["targets"]),
    }
    f, floats = compute[row.kind.removeprefix("op ")], {name: array for name, array in given.items() if array.dtype.kind == "f"}
    g = mg.Tensor(cotangent) if cotangent is not None else mg.tensor(1.0)

    def run() -> Any:
        leaves = [mg.Tensor(array).requires_grad_() for array in floats.values()]
        out = f(*leaves)
        return out, mg.gradients(out, leaves, g)

    def answer() -> dict[str, Any]:
        out, gradients = run()
        return told(out.numpy(), {name: each.numpy() for name, each in zip(floats, gradients)})

    return Work(run, answer, about())


def torch_op(task: Mapping[str, Any]) -> Work:
    import torch
    import torch.nn.functional as F

    from minigrad.backend.numpy.kernels import cores

    row = Row.from_dict(task["row"])
    arrays, cotangent = inputs(row)
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    described = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {cores()} cores"
    if "p" in given:
        p = torch.nn.Parameter(given["p"])
        optimizer = torch.optim.AdamW([p], lr=agreement.RATE, weight_decay=agreement.DECAY, fused=True)
        p.grad = given["g"]

        def first() -> dict[str, Any]:
            optimizer.step()
            return told(p.detach().numpy(), {})

        return Work(optimizer.step, first, described)
    compute: dict[str, Callable[..., Any]] = {
        "layer_norm": lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias),
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "cross_entropy": lambda logits: F.cross_entropy(logits, given["targets"]),
    }
    f, floats = compute[row.kind.removeprefix("op ")], {name: each for name, each in given.items() if each.is_floating_point()}
    g = torch.from_numpy(cotangent) if cotangent is not None else torch.tensor(1.0)

    def run() -> Any:
        leaves = [each.detach().requires_grad_() for each in floats.values()]
        out = f(*leaves)
        return out, torch.autograd.grad(out, leaves, g)

    def answer() -> dict[str, Any]:
        out, gradients = run()
        return told(out.detach().numpy(), {name: each.numpy() for name, each in zip(floats, gradients)})

    return Work(run, answer, described)
