"""What the lines work on: a value for each name, made anew for each line."""
from __future__ import annotations

from typing import Any

import numpy as np


def _spread(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2.0, 2.0, shape).astype(np.float32)


# leaves that want a gradient, float32 unless said
LEAVES: dict[str, Any] = {
    "x": np.array([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]], np.float32),
    "y": np.array([[1.0, 2.0, 0.5], [3.0, 0.75, 1.25]], np.float32),           # positive
    "u": np.array([[-0.5, 0.3, 0.9], [0.1, -0.8, 0.6]], np.float32),           # within (−1, 1)
    "w": np.array([0.5, 2.0, -1.5], np.float32),
    "v": np.array([1.0, -2.0, 0.75], np.float32),
    "p": np.array([0.2, 0.3, 0.5], np.float32),
    "s": np.array(1.5, np.float32),
    "m": _spread(1, 3, 4),
    "S": _spread(2, 3, 3) + 3.0 * np.eye(3, dtype=np.float32),
    "z": _spread(3, 2, 3, 4),
    "Q": _spread(4, 1, 2, 3, 4), "K": _spread(5, 1, 2, 3, 4), "V": _spread(6, 1, 2, 3, 4),
    "tied": np.array([1.0, 3.0, 3.0], np.float32),
    "d": np.array([0.5, 2.0, -1.5], np.float64),
    "h": np.array([0.5, 2.0, -1.5], np.float16),
}
# Tensors without a gradient
CONSTANTS: dict[str, Any] = {
    "b": np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], np.float32),
    "o": np.array([1.0, 2.0, 3.0], np.float32),
    "n": np.array([[7, -7, 2], [3, 5, -1]], np.int64),
    "k": np.array([2, 0], np.int64),
    "t": np.array([2, 0], np.int64),                    # targets of the rows of x
    "bits": np.array([[True, False, True], [False, True, True]]),
    "some": np.array([True, False]),
}
# NumPy's arrays, whoever the peer is
ARRAYS: dict[str, Any] = {
    "a": np.array([[2.0, -1.0, 0.5], [1.0, 4.0, -3.0]], np.float32),
    "c": np.array([3.0, -1.0, 2.0], np.float32),
    "ia": np.array([1, 0], np.int64),
    "ma": np.array([[True, False, True], [False, True, True]]),
    "a64": np.array([3.0, -1.0, 2.0], np.float64),
}
COEFFICIENTS = np.array([1.0, 2.0, 3.0], np.float32)


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """Weights for a sum: the sum of a softmax alone has no gradient."""
    return np.cos(np.arange(np.prod(shape, dtype=int)) + 0.5).reshape(shape)


def cube(x: Any) -> Any:
    """Σ x³."""
    return (x * x * x).sum()


def square(x: Any) -> Any:
    """x², elementwise."""
    return x * x


def tilt(x: Any, y: Any) -> Any:
    """Σ x² y."""
    return (x * x * y).sum()


FUNCTIONS = {"cube": cube, "square": square, "tilt": tilt}
MODULES = ("lin", "net", "emb", "ln")


def tensors(used: set[str], library: Any) -> dict[str, Any]:
    """Those of a library with tensors: torch, or minigrad."""
    made: dict[str, Any] = {name: f for name, f in FUNCTIONS.items() if name in used}
    for name in used & LEAVES.keys():
        made[name] = library.tensor(LEAVES[name].copy(), requires_grad=True)
    for name in used & CONSTANTS.keys():
        made[name] = library.tensor(CONSTANTS[name].copy())
    for name in used & ARRAYS.keys():
        made[name] = ARRAYS[name].copy()
    for name in used & {"wg", "xg"}:                    # leaves that have a gradient already
        made[name] = library.tensor(LEAVES[name[0]].copy(), requires_grad=True)
        (made[name] * made[name] * library.tensor(COEFFICIENTS)).sum().backward()
    if "loss" in used:                                  # of w
        w = made.setdefault("w", library.tensor(LEAVES["w"].copy(), requires_grad=True))
        made["loss"] = (w * w * library.tensor(COEFFICIENTS)).sum()
    for name in used & set(MODULES):
        made[name] = module(name, library)
    if "netg" in used:
        made["netg"] = module("net", library)
        (made["netg"](library.tensor(LEAVES["x"].copy())) ** 2).sum().backward()
    return made


def module(name: str, library: Any) -> Any:
    """A module with the same weights in either library."""
    nn = library.nn
    made = {"lin": lambda: nn.Linear(3, 2), "emb": lambda: nn.Embedding(5, 3), "ln": lambda: nn.LayerNorm(3),
            "net": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))}[name]()
    set_weights(made)
    return made


def set_weights(made: Any) -> Any:
    """Fixed weights for the parameters of a module, by their order."""
    for seed, p in enumerate(made.parameters()):
        value = _spread(20 + seed, *p.shape)
        if hasattr(p, "assign"):
            p.assign(value)
        else:
            p.data.copy_(type(p.data)(value))
    return made


def arrays(used: set[str], dtype: Any = np.float32) -> dict[str, Any]:
    """The same as NumPy has them."""
    made: dict[str, Any] = {name: f for name, f in FUNCTIONS.items() if name in used}
    for name in used & (LEAVES.keys() | CONSTANTS.keys() | ARRAYS.keys()):
        value = {**LEAVES, **CONSTANTS, **ARRAYS}[name]
        made[name] = value.astype(dtype) if value.dtype == np.float32 else value.copy()
    return made
