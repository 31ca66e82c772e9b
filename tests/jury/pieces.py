"""Right functions in NumPy, with their VJPs, that several entries of the jury use."""
from __future__ import annotations

import numpy as np


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def softmax_vjp(g, x, axis=-1):
    p = softmax(x, axis)
    return p * (g - (g * p).sum(axis, keepdims=True))


def log_p(x):
    z = x - x.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def nll(x, targets):
    return -log_p(x)[np.arange(len(x)), targets].mean()


def nll_vjp(g, x, targets):
    d = np.exp(log_p(x))
    d[np.arange(len(x)), targets] -= 1
    return d * (g / len(x))


def over_rows(g, x):
    """The VJP of a sum over each row: every number of a row gets the cotangent of its sum."""
    return np.repeat(np.asarray(g)[..., None], x.shape[-1], -1)


def to_the_largest(g, x):
    """The VJP of a maximum over each row: the row's largest number gets the cotangent."""
    d = np.zeros_like(x)
    np.put_along_axis(d, x.argmax(-1)[..., None], g[..., None], -1)
    return d


def wide(*xs):
    """The arrays in float32, in which functions of 16 bits compute."""
    return [np.asarray(x).astype(np.float32) for x in xs]
